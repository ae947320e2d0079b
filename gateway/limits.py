"""One key's calls are counted, so that a program that runs away harms itself alone.

Invariants: no clock here: `now` is given, in seconds of a clock that never goes back; memory is bounded: the calls in flight
are, and of the rates those used longest ago are forgotten first, which gives a key more and never less.
"""

import math
from collections import OrderedDict
from typing import Any, Final

import msgspec

from gateway.replies import Refusal

BURST_SECONDS: Final = 2.0
"""A key that was silent may make the calls of so many seconds at once."""
MAX_KEYS: Final = 65536
RATE_LIMIT: Final = "rate_limit_error"
BUSY_RETRY: Final = 1.0


class Limits:
    """What each key, by its own name, may do at once and a second; 0: no limit."""

    def __init__(self, *, calls: int, rate: float) -> None:
        self._calls = calls
        self._rate = rate
        self._most = max(1.0, rate * BURST_SECONDS)
        self._in_flight: dict[str, int] = {}
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Key → calls that it may make, as of a time."""

    def enter(self, jti: str, now: float) -> None:
        """A call begins; `leave` ends it. Raises Refusal(429), and then nothing has begun."""
        flying = self._in_flight.get(jti, 0)
        if self._calls and flying >= self._calls:
            raise Refusal(
                429,
                f"this key has {flying} calls in flight, the most that a key may have (CLAW_GATEWAY_KEY_CALLS): send this "
                "one when another has ended",
                kind=RATE_LIMIT,
                code="key_calls",
                retry_after=BUSY_RETRY,
            )
        if self._rate:
            self._draw(jti, now)
        self._in_flight[jti] = flying + 1

    def leave(self, jti: str) -> None:
        flying = self._in_flight[jti] - 1
        if flying:
            self._in_flight[jti] = flying
        else:
            del self._in_flight[jti]

    def _draw(self, jti: str, now: float) -> None:
        left, at = self._buckets.get(jti, (self._most, now))
        left = min(self._most, left + (now - at) * self._rate)
        drawn = left >= 1.0
        self._buckets[jti] = (left - 1.0 if drawn else left, now)
        self._buckets.move_to_end(jti)
        if len(self._buckets) > MAX_KEYS:
            self._buckets.popitem(last=False)
        if not drawn:
            raise Refusal(
                429,
                f"this key makes more than {self._rate:g} calls a second, the most that a key may make "
                "(CLAW_GATEWAY_KEY_RATE): wait, then send the call again",
                kind=RATE_LIMIT,
                code="key_rate",
                retry_after=(1.0 - left) / self._rate,
            )


class _Wanted(msgspec.Struct):
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    max_tokens: Any = None


_wanted = msgspec.json.Decoder(_Wanted).decode


def check_max_tokens(body: bytes, most: int) -> None:
    """Raise Refusal(400) if a call of any dialect asks for more than `most` tokens; what is no call is judged elsewhere."""
    try:
        wanted = _wanted(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    for name in _Wanted.__struct_fields__:
        value = getattr(wanted, name)
        if _number(value) > most:
            raise Refusal(
                400,
                f"{name} is {value}, and a key may ask for at most {most} tokens a call (CLAW_GATEWAY_KEY_MAX_TOKENS)",
                param=name,
                code="key_max_tokens",
            )


def _number(value: Any) -> float:
    """As engines read it, which take a number in a string too; what is none is theirs to refuse."""
    try:
        return float(value) if isinstance(value, int | float | str) else 0.0
    except (ValueError, OverflowError):
        return math.inf if isinstance(value, int) else 0.0
