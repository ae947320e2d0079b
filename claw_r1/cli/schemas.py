"""`python -m claw_r1.cli.schemas`: docs/schemas.md, what every record on the log holds, as the code has it; `--check` fails if
the file differs."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import typer
from pydantic import BaseModel

from claw_r1.cli.reference import table, write_or_check
from claw_r1.codec import event_type
from claw_r1.events import EVENTS, Event, Fact

TARGET: Final = Path("docs/schemas.md")
COMMAND: Final = "python -m claw_r1.cli.schemas"
HEAD: Final = f"""<!-- Made by `{COMMAND}`. Do not edit. -->

# Schemas of the log

What the records on the [topics](reference.md#topics) hold. A record's value is one MessagePack map of the fields below,
without those that are null; its header `ce_type` is the name here ([CloudEvents](https://cloudevents.io) in binary mode:
`ce_id` is the `fact_id`, `ce_partitionkey` the key). A reader ignores fields that it does not know, and a field that comes
later has a default. `Packed` and `Words` are bytes: arrays packed little-endian, ids as uint32, log-probs and annotations as
float32, masks as uint8. Times are seconds since the epoch.
"""


def write_schemas() -> str:
    """The whole document."""
    facts = [model for model in EVENTS.values() if issubclass(model, Fact)]
    others = [model for model in EVENTS.values() if not issubclass(model, Fact)]
    parts = [HEAD, "## Facts\n", "Immutable events; on `claw.events.v1` but where their topic says another.\n"]
    for model in facts:
        parts += _section(f"`{event_type(model)}`", model)
    parts += ["## What is made of them\n", "Outputs of the streams, of trainers and of the gateway.\n"]
    for other in others:
        parts += _section(f"`{event_type(other)}`", other)
    parts += ["## Parts\n", "What fields of the above are made of.\n"]
    for part in _parts([*facts, *others]):
        parts += _section(part.__name__, part)
    return "\n".join(parts).rstrip() + "\n"


def _section(title: str, model: type[BaseModel]) -> Iterator[str]:
    yield f"### {title}\n"
    if words := inspect.cleandoc(model.__doc__ or ""):
        yield f"{words}\n"
    rows = (
        (f"`{name}`", f"`{_source(model, name).type}`", _source(model, name).default, _source(model, name).meaning)
        for name in model.model_fields
    )
    yield from table(("field", "type", "default", "meaning"), rows)


def _parts(models: list[type[Event]]) -> list[type[BaseModel]]:
    """Every model that a field of these holds, by name; recipes have a section of the reference."""
    found: dict[str, type[BaseModel]] = {}

    def look(annotation: object) -> None:
        for inner in getattr(annotation, "__args__", ()):
            look(inner)
        if (
            inspect.isclass(annotation)
            and issubclass(annotation, BaseModel)
            and not issubclass(annotation, Event)
            and annotation.__module__ != "claw_r1.recipes"
            and annotation.__name__ not in found
        ):
            found[annotation.__name__] = annotation
            visit(annotation)

    def visit(model: type[BaseModel]) -> None:
        for field in model.model_fields.values():
            look(field.annotation)

    for model in models:
        visit(model)
    return [found[name] for name in sorted(found)]


# ------------------------------------------------------------------------------------------------------- fields' sources


class _Field(BaseModel):
    """A field as its class writes it."""

    type: str
    default: str
    meaning: str


def _source(model: type[BaseModel], name: str) -> _Field:
    """Of the class that declares the field last."""
    for base in model.__mro__:
        if name in vars(base).get("__annotations__", {}):
            return _fields(base)[name]
    raise LookupError(f"{model.__name__}.{name}")


@cache
def _fields(model: type[BaseModel]) -> dict[str, _Field]:
    """Type, default and the words below each field of one class, from its source."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for statement, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = _Field(
                type=ast.unparse(statement.annotation).removeprefix("_"),
                default=_default(statement.value),
                meaning=_words(after),
            )
    return found


def _default(value: ast.expr | None) -> str:
    if value is None:
        return ""
    text = ast.unparse(value)
    if isinstance(value, ast.Call) and text.startswith("Field("):
        factory = next((k.value for k in value.keywords if k.arg == "default_factory"), None)
        text = "" if factory is None else f"{ast.unparse(factory)}()".replace("dict()", "{}").replace("list()", "[]")
    return f"`{text}`" if text else ""


def _words(after: ast.stmt | None) -> str:
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
        return inspect.cleandoc(after.value.value)
    return ""


def main(check: bool = False, target: Path = TARGET) -> None:
    """Write the schemas, or with --check say how the file differs and exit with 1."""
    write_or_check(write_schemas(), target, COMMAND, check=check)


if __name__ == "__main__":
    typer.run(main)
