"""Where a command finds the broker and the pool: its option, else the environment, else the stack that runs here."""

import os
from pathlib import Path

from claw_r1.local.state import read_state
from claw_r1.settings import Settings, check_names


def data_dir(option: Path | None = None) -> Path:
    """The local stack's folder: the option, else CLAW_DATA, else `.claw`."""
    return option if option is not None else Path(os.environ.get("CLAW_DATA", ".claw"))


def kafka_address(option: str | None, data: Path | None = None) -> str:
    """host:port of the broker. Raises WrongUse if it is none."""
    return _find("kafka", option, data)


def clickhouse_address(option: str | None, data: Path | None = None) -> str:
    """URL of the pool's ClickHouse. Raises WrongUse if it is none."""
    return _find("clickhouse", option, data)


def database_name(option: str | None) -> str:
    """The pool's database: the option, else CLAW_DATABASE. Raises WrongUse if it is no name of a database."""
    check_names(os.environ)
    name = option or os.environ.get("CLAW_DATABASE")
    return Settings.read({"CLAW_DATABASE": name} if name else {}).database


def _find(name: str, option: str | None, data: Path | None) -> str:
    variable = f"CLAW_{name.upper()}"
    check_names(os.environ)
    given = option or os.environ.get(variable)
    if given:
        return str(getattr(Settings.read({variable: given}), name))
    state = read_state(data_dir(data))
    if state.alive and name in state.urls:
        return state.urls[name]
    return str(Settings.model_fields[name].default)
