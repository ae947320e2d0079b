"""What went wrong is said in the shape of Anthropic's errors, whether the gateway or the engine said it.

Invariants: the status decides the type; the gateway's code and the field stand in `error.details`, where Anthropic's own
codes stand; a message is bounded.
"""

from typing import Any, Final

import msgspec

from gateway.replies import Refusal

MAX_MESSAGE: Final = 4000
"""Longest message of an engine's error, characters."""

_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def refusal_body(refusal: Refusal) -> bytes:
    """The body of a call that is not served."""
    return msgspec.json.encode(error_shape(refusal.status, refusal.message, refusal.code, refusal.param))


def break_off(refusal: Refusal) -> bytes:
    """The same as an event of a stream that has begun."""
    return sse("error", error_shape(refusal.status, refusal.message, refusal.code, refusal.param))


def error_shape(status: int, message: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """`{"type": "error", "error": {"type", "message", "details": {"error_code", "param"}}}`."""
    kind = _TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "api_error")
    error: dict[str, Any] = {"type": kind, "message": message}
    details = {key: value for key, value in (("error_code", code), ("param", param)) if value is not None}
    if details:
        error["details"] = details
    return {"type": "error", "error": error}


def read_error(status: int, body: bytes) -> tuple[int, str, str | None, str | None]:
    """(status, message, code, parameter) of an engine's error, whatever its shape."""
    try:
        read = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        read = None
    error = read.get("error", read) if isinstance(read, dict) else None
    error = error if isinstance(error, dict) else {"message": error}
    message = error.get("message") or error.get("detail")
    if not isinstance(message, str):
        message = body.decode("utf-8", "replace").strip() or f"the engine answered with status {status}"
    code, param = error.get("code"), error.get("param")
    if status == 500 and isinstance(code, int) and 400 <= code < 600:
        status = code  # an error inside of a stream says its status itself
    return (
        status,
        message[:MAX_MESSAGE],
        code if isinstance(code, str) else None,
        param if isinstance(param, str) else None,
    )


def sse(name: str, data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))
