"""`python -m claw_r1.cli.http_api`: docs/http.md, the gateway's paths with what comes in and goes out, from its own OpenAPI
document; `--check` fails if the file differs."""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import typer

from claw_r1.cli.reference import table, write_or_check
from claw_r1.settings import GatewaySettings
from gateway.app import Gateway
from gateway.routes import ENTRY_POINTS

TARGET: Final = Path("docs/http.md")
COMMAND: Final = "python -m claw_r1.cli.http_api"
HEAD: Final = f"""<!-- Made by `{COMMAND}`. Do not edit. -->

# The gateway's HTTP API

Every path, the keys that may use it, and what goes in and comes out. `GET /openapi.json` of a gateway says the same for
programs. Where no secret is set no key is asked for ([keys](guide.md#keys)).
[The gateway](gateway.md) tells what the paths are for, and how errors look.
"""
Schema = Mapping[str, Any]


def write_http_api() -> str:
    """The whole document."""
    with tempfile.TemporaryDirectory() as folder:
        document = Gateway(GatewaySettings(blobs=folder)).api.openapi()
    described = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    parts = [HEAD, *_others(described), "## Paths\n"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += _operation(f"{method.upper()} {path}", operation)
    parts.append("## Schemas\n")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts += _schema(name, schema)
    return "\n".join(parts).rstrip() + "\n"


def _others(described: set[str]) -> Iterator[str]:
    yield "## Model calls and probes\n"
    yield (
        "Model calls speak OpenAI's chat completions, completions and responses and Anthropic's messages; their fields are "
        "those of these APIs ([what the gateway does with them](gateway.md#the-four-apis)).\n"
    )
    rows = (
        (f"`{entry}`", ", ".join(sorted(scopes)) or "no key")
        for entry, scopes in ENTRY_POINTS.items()
        if entry not in described
    )
    yield from table(("path", "keys of the scopes"), rows)


def _operation(name: str, operation: Schema) -> Iterator[str]:
    yield f"### `{name}`\n"
    yield f"{operation['summary']}. {operation['description']}\n".replace("..", ".")
    if parameters := operation.get("parameters"):
        rows = ((f"`{p['name']}`", p["in"], _type(p["schema"]), _words(p)) for p in parameters)
        yield from table(("parameter", "in", "type", "meaning"), rows)
    if body := operation.get("requestBody"):
        yield f"Takes {_type(body['content']['application/json']['schema'])}.\n"
    yield f"Answers {_type(operation['responses']['200']['content']['application/json']['schema'])}.\n"


def _schema(name: str, schema: Schema) -> Iterator[str]:
    yield f"### {name}\n"
    yield f"{_words(schema)}\n"
    required = schema.get("required", ())
    rows = [
        (f"`{field}`", _type(one), "required" if field in required else _default(one), _words(one))
        for field, one in schema.get("properties", {}).items()
    ]
    if rows:
        yield from table(("field", "type", "default", "meaning"), rows)


def _words(schema: Schema) -> str:
    return " ".join(str(schema.get("description", "")).split())


def _default(schema: Schema) -> str:
    value = schema.get("default")
    return "" if value is None or value in ({}, []) else f"`{value}`"


def _type(schema: Schema) -> str:
    """In words; a schema of its own as a link."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(one) for one in choices))
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"map of {_type(schema['additionalProperties'])}"
    if schema.get("contentEncoding") == "base64":
        return "packed array"
    return {"string": "text", "null": "null", "object": "object"}.get(kind, str(kind))


def main(check: bool = False, target: Path = TARGET) -> None:
    """Write the page, or with --check say how the file differs and exit with 1."""
    write_or_check(write_http_api(), target, COMMAND, check=check)


if __name__ == "__main__":
    typer.run(main)
