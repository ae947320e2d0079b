"""A refusal becomes an HTTP answer in OpenAI's error shape, which clients of every kind can read.

Invariants: the message names the cause and the next step; what may succeed later carries Retry-After.
"""

from typing import Final

import msgspec

from claw_r1.errors import ClawError

INTERNAL: Final = "internal_error"
INVALID: Final = "invalid_request_error"
UNAVAILABLE: Final = "service_unavailable"
UPSTREAM: Final = "upstream_error"

Headers = list[tuple[bytes, bytes]]


class Refusal(ClawError):
    """A call that is not served, with the answer that its caller gets."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.extra = headers or []

    @property
    def body(self) -> bytes:
        return error_body(self.message, kind=self.kind, code=self.code, param=self.param)

    @property
    def headers(self) -> Headers:
        headers: Headers = [(b"content-type", b"application/json"), *self.extra]
        if self.retry_after is not None:
            headers.append((b"retry-after", str(max(1, round(self.retry_after))).encode()))
        return headers

    @property
    def event(self) -> bytes:
        """The same as a server-sent event, for a stream that has begun."""
        return b"data: " + self.body + b"\n\n"


def error_body(message: str, *, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def unavailable(message: str, *, code: str, retry_after: float = 1.0) -> Refusal:
    """503: the same call may succeed later."""
    return Refusal(503, message, kind=UNAVAILABLE, code=code, retry_after=retry_after)


def internal() -> Refusal:
    """500: the fault is the gateway's."""
    message = "the gateway failed at this request: its log says why; please report it with the log"
    return Refusal(500, message, kind=INTERNAL, code="internal")


def not_json(why: str) -> Refusal:
    """400: the body is no JSON."""
    return Refusal(400, f"the body is not JSON: {why}", code="invalid_json")
