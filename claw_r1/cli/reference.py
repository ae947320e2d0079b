"""`python -m claw_r1.cli.reference`: docs/reference.md, made from the code; `--check` fails if the file differs."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import typer
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel

from claw_r1 import metrics, reasons, topics
from claw_r1.algorithms import PRESETS
from claw_r1.cli.entry import COMMANDS, load_command
from claw_r1.recipes import Recipe
from claw_r1.rules import FIELDS, OPS
from claw_r1.settings import OTHER_VARIABLES, PROCESSES, Settings

TARGET: Final = Path("docs/reference.md")
COMMAND: Final = "python -m claw_r1.cli.reference"
HEAD: Final = f"""<!-- Made by `{COMMAND}`. Do not edit. -->

# Reference

Settings, commands, recipes, metrics, topics and reason codes, as the code has them.
"""


def write_reference() -> str:
    """The whole document."""
    parts = [HEAD, *_settings(), *_commands(), *_recipes(), *_metrics(), *_topics(), *_reasons()]
    return "\n".join(parts).rstrip() + "\n"


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """The lines of a table."""
    heads = list(heads)
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
    yield ""


# ------------------------------------------------------------------------------------------------------------- settings


def _settings() -> Iterator[str]:
    yield "## Settings\n"
    yield (
        "Environment variables, read once when a process starts. A variable that begins with `CLAW_` and does not exist is an "
        "error. Durations are seconds, or text such as `500ms`, `30s`, `10m`.\n"
    )
    shared = set(Settings.model_fields)
    yield "### Every process\n"
    yield from _variables(Settings, shared)
    for name, model in PROCESSES.items():
        yield f"### {name}\n"
        yield from _variables(model, set(model.model_fields) - shared)
    yield "### The command line and the local stack\n"
    yield from table(("variable", "meaning"), ((f"`{k}`", v) for k, v in OTHER_VARIABLES.items()))


def _variables(model: type[Settings], fields: set[str]) -> Iterator[str]:
    rows = []
    for variable, field in model.variables().items():
        if field in fields:
            info = model.model_fields[field]
            rows.append((f"`{variable}`", _default(field, info.default), info.description or ""))
    yield from table(("variable", "default", "meaning"), rows)


def _default(field: str, value: Any) -> str:
    if field == "worker":
        return "`HOSTNAME-0`"
    text = ",".join(value) if isinstance(value, tuple) else f"{value}"
    return f"`{text}`" if text else ""


# ------------------------------------------------------------------------------------------------------------- commands


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    yield (
        "Data go to standard output, talk to standard error. Exit codes: 0 ok, 1 failure, 2 wrong use or setting, "
        "3 a dependency does not answer.\n"
    )
    for name in COMMANDS:
        yield from _command(f"claw {name}", load_command(name))


def _command(path: str, command: Any) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from _command(f"{path} {name}", child)
        return
    arguments = " ".join(
        (p.name.upper() if p.required else f"[{p.name.upper()}]")
        for p in command.params
        if p.param_type_name == "argument"
    )
    yield f"### `{path}{' ' if arguments else ''}{arguments}`\n"
    yield f"{(command.help or '').strip()}\n"
    rows = [(f"`{_flag(p)}`", p.help or "") for p in command.params if p.name != "help" and not p.hidden]
    if rows:
        yield from table(("", "meaning"), rows)


def _flag(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name.upper())
    takes = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
    return ", ".join(parameter.opts) + takes


# -------------------------------------------------------------------------------------------------------------- recipes


def _recipes() -> Iterator[str]:
    yield "## Recipes\n"
    yield "The fields of a recipe. [Recipes](recipes.md) tells what they do together.\n"
    yield from table(("field", "default", "meaning"), _recipe_fields(Recipe, ""))
    yield "### Algorithms\n"
    rows = (
        (
            f"`{preset.name}`",
            preset.does,
            f"[{preset.paper}]({preset.url})",
        )
        for preset in PRESETS.values()
    )
    yield from table(("algorithm", "what it changes", "paper"), rows)
    yield "### Fields of filters\n"
    fields = ((f"`{f.name}`", f.level, f.kind, f.doc, "yes" if f.in_pool else "no") for f in FIELDS)
    yield from table(("field", "of a", "kind", "meaning", "dry run"), fields)
    yield from table(("kind", "ops"), ((kind, ", ".join(f"`{op}`" for op in ops)) for kind, ops in OPS.items()))


def _recipe_fields(model: type[BaseModel], above: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        default = field.default
        if isinstance(default, BaseModel):
            yield from _recipe_fields(type(default), f"{above}{name}.")
            continue
        if field.default_factory is not None:
            default = {}
        required = field.is_required()
        shown = "" if required else _as_yaml(default)
        yield f"`{above}{name}`", f"`{shown}`" if shown else "", field.description or ""


def _as_yaml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {one}" for key, one in value.items()) + "}"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}"


# -------------------------------------------------------------------------------------------------------------- metrics


def _metrics() -> Iterator[str]:
    yield "## Metrics\n"
    yield "Every process serves them at `/metrics`, beside `/healthz` and `/readyz`. Each process counts only its own.\n"
    rows = []
    for metric in list_metrics():
        name = metric._name + ("_total" if metric._type == "counter" else "")
        rows.append((f"`{name}`", metric._type, ", ".join(metric._labelnames), metric._documentation))
    yield from table(("metric", "type", "labels", "meaning"), sorted(rows))


def list_metrics() -> list[Any]:
    """The project's metrics, in the order of claw_r1.metrics."""
    found = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    assert found, "claw_r1.metrics has no metric"
    return found


# --------------------------------------------------------------------------------------------------------------- topics


def _topics() -> Iterator[str]:
    yield "## Topics\n"
    yield (
        "Automatic creation is off: `claw topics apply` makes them, and `claw recipes apply` makes a recipe's. Values are "
        "MessagePack; headers are CloudEvents in binary mode. A record is at most 8 MiB.\n"
    )
    listed = [*topics.all_topics(), topics.batch_topic_spec("RECIPE"), topics.dlq_topic_spec("TOPIC")]
    rows = [
        (f"`{t.name}`", str(t.partitions), t.key, t.carries, ", ".join(f"{k}={v}" for k, v in t.config.items()))
        for t in listed
    ]
    yield from table(("topic", "partitions", "key", "carries", "configuration"), rows)


# -------------------------------------------------------------------------------------------------------------- reasons


def _reasons() -> Iterator[str]:
    yield "## Reason codes\n"
    for title, (meanings, where) in reasons.SECTIONS.items():
        yield f"### {title}\n"
        yield f"{where}\n"
        yield from table(("reason", "meaning"), ((f"`{name}`", text) for name, text in sorted(meanings.items())))


def write_or_check(wanted: str, target: Path, command: str, *, check: bool) -> None:
    """Write a document, or say how the file differs from it and exit with 1."""
    found = target.read_text("utf-8") if target.exists() else ""
    if not check:
        target.write_text(wanted, "utf-8")
        return
    if found != wanted:
        diff = difflib.unified_diff(found.splitlines(), wanted.splitlines(), str(target), command, lineterm="")
        print("\n".join(diff))
        print(f"{target} is out of date: run `{command}`", file=sys.stderr)
        sys.exit(1)


def main(check: bool = False, target: Path = TARGET) -> None:
    """Write the reference, or with --check say how the file differs and exit with 1."""
    write_or_check(write_reference(), target, COMMAND, check=check)


if __name__ == "__main__":
    typer.run(main)
