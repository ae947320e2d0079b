"""The API's document says what a caller meets: both kinds of bodies, the one error shape, and who may call.

Invariants: nothing here changes what is served.
"""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.rollouts.bodies import ErrorReply
from gateway.rollouts.wire import MSGPACK
from gateway.routes import ENTRY_POINTS

JSON: Final = "application/json"
DESCRIPTION: Final = """What is said to the gateway beside model calls: where trajectories begin and end, rewards, annotations,
feedback, groups, steps that an agent sampled itself, and the gateway's administration.

Model calls are not here: they speak OpenAI's chat completions, completions and responses and Anthropic's messages, under
`/{trajectory_uid}/{prompt_uid}/v1/…` and, with a session key, under `/v1/…`.

Every body may be JSON or msgpack. An answer that is no result is `{"error": {"message", "type", "param", "code"}}`; 429 and 503
carry Retry-After. Calls are idempotent where ids are given: sent again, they are the same facts."""
ERRORS: Final = {
    "400": "The request is wrong; `param` names the field and the message the rule.",
    "401": "The call carries no key, or one that is not believed.",
    "403": "The key is for something else.",
    "404": "What was named is not known.",
    "405": "The path takes another method.",
    "408": "The body stopped coming.",
    "409": "What was named belongs elsewhere.",
    "413": "The body, or a record of it, is too large.",
    "415": "The body is neither JSON nor msgpack.",
    "429": "Too much for now: come back after Retry-After.",
    "500": "The gateway failed.",
    "501": "The gateway was started without what this needs.",
    "502": "What was asked behind the gateway gave no usable answer.",
    "503": "It cannot be recorded or served now: send the call again after Retry-After.",
    "504": "What was asked behind the gateway gave no answer in time.",
}


def describe(api: FastAPI) -> None:
    """Give the API its document, made once and when it is first asked for."""

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            made = get_openapi(title=api.title, version=api.version, description=DESCRIPTION, routes=api.routes)
            api.openapi_schema = _completed(made)
        return api.openapi_schema

    api.openapi = document  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)  # the framework's own shape of an error is never sent
    shape = ErrorReply.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= shape.pop("$defs", {}) | {"ErrorReply": shape}
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "a key of `claw keys mint` or a session key"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "the same"},
    }
    error = {"schema": {"$ref": "#/components/schemas/ErrorReply"}}
    document["components"]["responses"] = {
        f"Error{status}": {"description": meaning, "content": {JSON: error}} for status, meaning in ERRORS.items()
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _complete(operation, sorted(ENTRY_POINTS.get(f"{method.upper()} {path}", ())))
    return document


def _complete(operation: dict[str, Any], scopes: list[str]) -> None:
    body = operation.get("requestBody", {}).get("content", {})
    if JSON in body:
        body[MSGPACK] = body[JSON]
    responses = operation["responses"]
    responses.pop("422", None)
    for status in ERRORS:
        responses.setdefault(status, {"$ref": f"#/components/responses/Error{status}"})
    if scopes:
        operation["security"] = [{}, {"bearer": []}, {"x-api-key": []}]
        who = f"Keys of the scopes {', '.join(scopes)}." if len(scopes) > 1 else f"Keys of the scope {scopes[0]}."
        operation["description"] = f"{operation.get('description', '')}\n\n{who}".strip()
