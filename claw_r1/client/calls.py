"""What a white-box agent wants to say becomes one HTTP request, and the answer becomes a value or an error; no network here.

Invariants: no clock, no chance and no transport; every id is made before the first try, so that a call that is sent again is
the same facts; arrays are packed, never lists of numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar
from urllib.parse import urlsplit

import msgspec
import numpy as np
from numpy.typing import NDArray

from claw_r1.codec import pack_floats, pack_ids
from claw_r1.errors import RetryableError, UserError

MSGPACK: Final = "application/msgpack"
RETRIED: Final = frozenset({408, 425, 429, 502, 503, 504})
"""Statuses after which the same call may succeed."""
T = TypeVar("T")
Ids: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]
Floats: TypeAlias = Sequence[float] | NDArray[np.floating[Any]]
Json: TypeAlias = Mapping[str, Any]


class CallRefused(UserError):
    """The gateway does not take the call, and would not if it came again."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(f"{message} ({code or 'status'} {status})")
        self.status = status
        self.code = code
        self.param = param


class NotAllowed(CallRefused):
    """401 or 403: the key is missing, not believed, expired, or for something else."""


class NotKnown(CallRefused):
    """404: what was named is not known to the gateway."""


class GatewayAway(RetryableError):
    """The gateway did not take the call within the client's patience; the same call may succeed later."""

    def __init__(self, message: str, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class Trajectory(msgspec.Struct, frozen=True):
    """Where an agent points its base URL, and the key that it sends."""

    trajectory_uid: str
    prompt_uid: str
    run_id: str
    base_url: str
    session_key: str
    expires_at: float
    channel: str | None = None


class Group(msgspec.Struct, frozen=True):
    """A group that was opened."""

    prompt_uid: str
    run_id: str


class Submitted(msgspec.Struct, frozen=True):
    """The steps that are recorded."""

    accepted: int
    step_ids: list[str]


class Decided(msgspec.Struct, frozen=True):
    """The decisions that are recorded; by its id one can be undone."""

    accepted: int
    decision_ids: list[str]


class VersionSpan(msgspec.Struct, frozen=True):
    """Tokens [start, end) of a response were sampled by the weights of this version."""

    start: int
    end: int
    version: int | None = None


class Generated(msgspec.Struct, frozen=True):
    """What an engine sampled."""

    token_ids: list[int]
    log_probs: list[float] | None = None
    stop_reason: str | None = None
    model: str | None = None
    engine: str | None = None
    version_spans: list[VersionSpan] = []


class Scored(msgspec.Struct, frozen=True):
    """What the gateway's reward function said."""

    reward_score: float
    reward_extra_info: dict[str, Any] = {}


class Done(msgspec.Struct, frozen=True):
    """It is recorded."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request; `answer` is what a 200 holds."""

    path: str
    body: bytes
    answer: type[T]
    slow: bool = False
    """It waits for a model or a reward function."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came; `retry_after` in seconds."""

    status: int
    body: bytes
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client goes on."""

    tries: int = 8
    first: float = 0.25
    longest: float = 20.0
    """Seconds: waits double from the first to the longest, each taken at random between nothing and itself."""
    timeout: float = 60.0
    """Seconds of one try (of the synchronous client: of its longest silence)."""
    slow_timeout: float = 660.0
    """The same, of a call that waits for a model or a reward function."""

    def of(self, call: Call[Any]) -> float:
        """Seconds of one try."""
        return self.slow_timeout if call.slow else self.timeout

    def wait(self, tried: int, chance: float, retry_after: float | None) -> float | None:
        """Seconds until the next try after `tried` of them; None: give up. `chance` is in [0, 1).

        Full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015), on top of what Retry-After asks.
        """
        if tried >= self.tries:
            return None
        return (retry_after or 0.0) + chance * min(self.longest, self.first * 2.0 ** min(tried - 1, 64))


@dataclass(frozen=True, slots=True)
class Address:
    """A gateway's URL in parts."""

    secure: bool
    host: str
    port: int
    prefix: str

    @classmethod
    def of(cls, url: str) -> "Address":
        """Raises UserError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UserError(f"{url!r} is no URL of a gateway: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url!r} is no URL of a gateway: write http://host:port")
        secure = parts.scheme == "https"
        return cls(secure, parts.hostname, port or (443 if secure else 80), parts.path.rstrip("/"))


# --------------------------------------------------------------------------------------------------------------- building


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def call(path: str, body: Mapping[str, Any], answer: type[T], *, slow: bool = False) -> Call[T]:
    """A request of this body."""
    try:
        return Call(path, msgspec.msgpack.encode(body, enc_hook=_plain), answer, slow)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: what was given cannot be sent: {error}") from error


def _plain(value: Any) -> Any:
    """NumPy's scalars and arrays inside metadata."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} has no form in msgpack")


def packed_ids(ids: Ids) -> bytes:
    """Token ids as packed uint32. Raises UserError for what is none."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or (ids.size and not (np.issubdtype(ids.dtype, np.integer) and ids.min() >= 0)):
            raise UserError("token ids are one row of integers from 0 on")
        if ids.size and int(ids.max()) >= 2**32:
            raise UserError("a token id does not fit into 32 bits")
        return ids.astype("<u4").tobytes()
    try:
        return pack_ids(ids)
    except (OverflowError, TypeError) as error:
        raise UserError(f"token ids are integers from 0 to 2**32 - 1: {error}") from error


def packed_floats(values: Floats) -> bytes:
    """Numbers as packed float32. Raises UserError for what is none, or not finite."""
    try:
        with np.errstate(over="ignore"):  # what does not fit becomes infinite and is refused below
            packed = values.astype("<f4").tobytes() if isinstance(values, np.ndarray) else pack_floats(values)
    except (TypeError, ValueError) as error:
        raise UserError(f"these are no numbers: {error}") from error
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise UserError("the numbers of a step are one row")
    if not np.isfinite(np.frombuffer(packed, "<f4")).all():
        raise UserError("a number is not finite in 32 bits")
    return packed


# ---------------------------------------------------------------------------------------------------------------- reading


def read(asked: Call[T], reply: Reply) -> T:
    """The answer. Raises GatewayAway where trying again may help, else CallRefused."""
    if reply.status == 200:
        try:
            return msgspec.json.decode(reply.body, type=asked.answer, strict=False)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CallRefused(200, f"{asked.path}: this is no answer of a gateway: {error}") from error
    message, code, param = _error(reply)
    message = f"{asked.path}: {message}"
    if reply.status in RETRIED:
        raise GatewayAway(message, reply.status, code)
    kind = {401: NotAllowed, 403: NotAllowed, 404: NotKnown}.get(reply.status, CallRefused)
    raise kind(reply.status, message, code, param)


class _Detail(msgspec.Struct):
    message: str
    code: str | None = None
    param: str | None = None


class _Refused(msgspec.Struct):
    error: _Detail


def _error(reply: Reply) -> tuple[str, str | None, str | None]:
    try:
        error = msgspec.json.decode(reply.body, type=_Refused).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return reply.body[:500].decode("utf-8", "replace") or "no reason was given", None, None
    return error.message, error.code, error.param


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header; a date is not taken for one."""
    return float(value) if value is not None and value.strip().isdecimal() else None
