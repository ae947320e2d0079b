"""Whatever goes wrong in the rollout API becomes an answer of the one error shape.

Invariants: the message names the field and the rule; what may succeed later is a 503 with Retry-After.
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from claw_r1.errors import InvalidRecord, Overloaded, RetryableError, UserError
from gateway.replies import UNAVAILABLE, Refusal, internal, not_json, unavailable
from gateway.rollouts.bodies import NOT_FIELDS
from gateway.rollouts.wire import is_msgpack
from gateway.routes import unknown

MAX_FAULTS = 8
"""Wrong fields that one message names."""


def answer_errors(api: FastAPI) -> None:
    """Every error of the API's handlers gets its answer."""
    api.add_exception_handler(Refusal, _on_refusal)
    api.add_exception_handler(UserError, _on_user_error)
    api.add_exception_handler(Overloaded, _on_overloaded)
    api.add_exception_handler(RetryableError, _on_retryable)
    api.add_exception_handler(InvalidRecord, _on_unrecordable)
    api.add_exception_handler(Exception, _on_fault)
    api.add_exception_handler(RequestValidationError, _on_invalid)
    api.add_exception_handler(HTTPException, _on_http)


def _answer(refusal: Refusal) -> Response:
    headers = {name.decode(): value.decode() for name, value in refusal.headers}
    return Response(refusal.body, refusal.status, headers)


async def _on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _answer(error)


async def _on_user_error(request: Request, error: Exception) -> Response:
    return _answer(Refusal(400, str(error)))


async def _on_overloaded(request: Request, error: Exception) -> Response:
    assert isinstance(error, Overloaded)
    return _answer(Refusal(429, str(error), kind=UNAVAILABLE, code="too_many_requests", retry_after=error.retry_after))


async def _on_retryable(request: Request, error: Exception) -> Response:
    return _answer(unavailable(f"this could not be recorded: {error}", code="not_recorded"))


async def _on_unrecordable(request: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidRecord)
    if error.reason in ("too_large", "blob_too_large"):
        return _answer(Refusal(413, str(error), code="record_too_large"))
    return _answer(Refusal(400, str(error), code="invalid_field"))


async def _on_fault(request: Request, error: Exception) -> Response:
    return _answer(internal())  # the server logs the error


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    for e in error.errors():
        if e["type"] == "json_invalid":
            return _answer(not_json(f"{e['ctx']['error']} (byte {e['loc'][-1]})"))
    faults = [_fault(e) for e in error.errors()]
    known = "json" in request.headers.get("content-type", "") or is_msgpack(request)
    if not known and any(e["loc"][:1] == ("body",) for e in error.errors()):
        message = "send the body with the header content-type: application/json or application/msgpack"
        return _answer(Refusal(415, message, code="not_json"))
    return _answer(Refusal(400, "; ".join(m for _, m in faults[:MAX_FAULTS]), param=faults[0][0], code="invalid_field"))


def _fault(error: dict[str, Any]) -> tuple[str, str]:
    place = ".".join(str(part) for part in error["loc"] if part not in NOT_FIELDS) or "body"
    return place, f"{place}: {error['msg'].removeprefix('Value error, ')}"


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _answer(unknown(request.scope["path"]))
    if error.status_code == 405:
        allow = [(b"allow", (error.headers or {}).get("Allow", "POST").encode())]
        message = f"{request.scope['path'][:200]} does not take {request.method}"
        return _answer(Refusal(405, message, code="method_not_allowed", headers=allow))
    return _answer(not_json("it cannot be read"))  # the framework's only other error: of a body that it cannot parse
