"""The engine's answer passes as it came, without what the agent is not to see.

Invariants: where nothing is hidden no byte changes; what is hidden is null, so that the shape stays.
"""

from typing import Any, Final

import msgspec

from gateway.dialects.base import Mark
from gateway.dialects.fields import Members, asks_for_usage, raw_bytes

_REASONING: Final = ("reasoning", "reasoning_content")
_CAPTURED: Final = {
    "prompt_token_ids": "return_token_ids",
    "token_ids": "return_token_ids",
    "weight_versions": "return_weight_versions",
    "routed_experts": "return_routed_experts",
    "sglext": "return_routed_experts",
    "meta_info": "return_meta_info",
}
"""Member of a reply or of its choices → the member of a request that asks for it."""


def pass_on(members: Members, *, strip: bool) -> "PassOn":
    """The voice for a request; `strip` hides what only capture needs."""
    hidden: set[str] = set()
    if raw_bytes(members, "include_reasoning") == b"false":
        hidden.update(_REASONING)
    if strip:
        hidden.update(key for key, asks in _CAPTURED.items() if raw_bytes(members, asks) != b"true")
        if raw_bytes(members, "logprobs") in (None, b"null", b"false"):
            hidden.add("logprobs")
    return PassOn(shows_usage=asks_for_usage(members), hidden=frozenset(hidden))


class PassOn:
    """Says what the engine said."""

    def __init__(self, *, shows_usage: bool, hidden: frozenset[str]) -> None:
        self._shows_usage = shows_usage
        self._hidden = hidden

    def whole(self, reply: bytes) -> bytes:
        return self._without(reply) if self._hidden else reply

    def event(self, event: bytes, data: bytes | None, mark: Mark) -> bytes:
        if mark == "usage" and not self._shows_usage:
            return b""
        if self._hidden and mark == "delta" and data is not None and (said := self._without(data)) is not data:
            return b"data: " + said + b"\n\n"
        return event

    def end(self) -> bytes:
        return b""  # the engine's own end has passed

    def error(self, status: int, body: bytes) -> bytes:
        return body

    def _without(self, body: bytes) -> bytes:
        try:
            reply: Any = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return body  # of what nobody can read nothing can be left out
        choices = reply.get("choices", ())
        parts = [reply, *choices, *(choice.get(name) for choice in choices for name in ("message", "delta"))]
        found = 0
        for part in parts:
            for key in self._hidden & part.keys() if isinstance(part, dict) else ():
                if part[key] is not None:
                    found += 1
                    part[key] = None
        return msgspec.json.encode(reply) if found else body
