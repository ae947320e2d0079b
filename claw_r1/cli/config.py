"""`claw config`: every setting of every process, with its value here and where that comes from."""

import json
import os
from typing import Annotated, Any

import typer

from claw_r1.cli.options import AsJson
from claw_r1.clickhouse import without_password
from claw_r1.settings import OTHER_VARIABLES, PASSWORD_VARIABLE, PROCESSES, check_names


def config(
    process: Annotated[
        str | None, typer.Argument(help="gateway, streams, workers, sinks or console; default: all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the settings: variable, value, meaning."""
    check_names(os.environ)
    if process is not None and process not in PROCESSES:
        raise typer.BadParameter(f"{process} is not one of {', '.join(PROCESSES)}")
    rows: dict[str, dict[str, Any]] = {}
    for name, model in PROCESSES.items():
        if process not in (None, name):
            continue
        values = model.read().model_dump(mode="json")
        for variable, field in model.variables().items():
            meaning = model.model_fields[field].description
            value = values[field]
            if isinstance(value, str) and "://" in value:
                value = without_password(value)
            rows[variable] = {"value": value, "set": variable in os.environ, "meaning": meaning}
    for variable, meaning in OTHER_VARIABLES.items():
        value = os.environ.get(variable)
        if variable == PASSWORD_VARIABLE and value:
            value = "**********"
        rows[variable] = {"value": value, "set": variable in os.environ, "meaning": meaning}
    if as_json:
        print(json.dumps(rows))
        return
    for variable, row in rows.items():
        print(f"{variable}={_text(row['value'])}{'' if row['set'] else '  (default)'}\n    {row['meaning']}")


def _text(value: Any) -> str:
    """As it stands in the environment."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, list | dict):
        return json.dumps(value)
    return "" if value is None else str(value)
