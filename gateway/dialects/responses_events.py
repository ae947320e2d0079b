"""The small parts of a response: its events, its usage and log-probs, and the free text inside a function's arguments.

Invariants: whatever an engine wrote in their places gives a value; nothing here raises.
"""

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw, Struct

from gateway.dialects.responses_shapes import INPUT

Entry = dict[str, Any]


def event(kind: str, number: int, **members: Any) -> bytes:
    """A server-sent event of the API."""
    return raw_event(kind, msgspec.json.encode({"type": kind, "sequence_number": number, **members}))


def raw_event(kind: str, data: bytes) -> bytes:
    """The same, of a body that is encoded."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)


def error_event(kind: str | None, message: str, code: str | None, param: str | None, number: int = 0) -> bytes:
    """An error inside a stream: flat as the API documents it, and nested as clients raise on it."""
    error = {"type": kind, "message": message, "code": code, "param": param}
    return event("error", number, code=code, message=message, param=param, error=error)


# --------------------------------------------------------------------------------------------------------------- errors

_FIELDS: Final = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
"""Members of the chat request under the names that the agent used."""


def read_error(body: bytes) -> dict[str, Any]:
    """An engine's error in OpenAI's form: vLLM's and SGLang's own ones, and what their frameworks write."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = body.decode("utf-8", "replace")[:2000]
    if isinstance(found, dict):
        found = found.get("error") or (found if "message" in found else found.get("detail"))
    if not isinstance(found, dict):
        found = {"message": found if isinstance(found, str) else None if found is None else str(found)[:2000]}
    message, param = found.get("message"), found.get("param")
    return {
        "message": message if isinstance(message, str) else "",
        "type": found["type"] if isinstance(found.get("type"), str) else "upstream_error",
        "param": _FIELDS.get(param, param) if isinstance(param, str) else None,
        "code": found["code"] if isinstance(found.get("code"), str | int) else None,
    }


# ---------------------------------------------------------------------------------------------------------------- usage


def usage_of(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    """The API's usage, of a chat completion's; None if the engine did not count."""
    if usage is None:
        return None
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    inputs = usage.get("prompt_tokens_details")
    outputs = usage.get("completion_tokens_details") or usage  # where SGLang counts them
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": _count(inputs, "cached_tokens"), "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": _count(outputs, "reasoning_tokens")},
        "total_tokens": prompt + completion,
    }


def _count(counts: Any, key: str) -> int:
    value = counts.get(key) if isinstance(counts, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


# ------------------------------------------------------------------------------------------------------------ log-probs


class LogProb(Struct):
    """A token as a chat completion shows it."""

    token: str = ""
    logprob: float = 0.0
    units: list[int] | None = msgspec.field(default=None, name="bytes")
    top_logprobs: list["LogProb"] | None = None

    @property
    def spelling(self) -> bytes:
        """The token's part of the text, in UTF-8."""
        units = self.units
        return self.token.encode() if units is None or any(not 0 <= u < 256 for u in units) else bytes(units)

    def shown(self) -> Entry:
        """As an output_text part shows it."""
        return self._alone() | {"top_logprobs": [other._alone() for other in self.top_logprobs or ()]}

    def brief(self) -> Entry:
        """As the events of a text show it."""
        top = [{"token": other.token, "logprob": other.logprob} for other in self.top_logprobs or ()]
        return {"token": self.token, "logprob": self.logprob, "top_logprobs": top}

    def _alone(self) -> Entry:
        return {"token": self.token, "bytes": list(self.spelling), "logprob": self.logprob}


class _LogProbs(Struct):
    content: list[LogProb] | None = None


_log_probs = msgspec.json.Decoder(_LogProbs | None).decode


def read_log_probs(raw: Raw) -> list[LogProb]:
    """The tokens of a choice or chunk; none for what is no list of them."""
    try:
        found = _log_probs(raw) if bytes(raw) else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
    return [] if found is None else found.content or []


def tokens_of(text: str, tokens: Sequence[LogProb], start: int) -> tuple[int, int]:
    """The tokens, from `start` on, that spell `text`; all from there on if they do not (characters cut in parts)."""
    if not text:
        return start, start
    spelled = b"".join(token.spelling for token in tokens[start:])
    place = spelled.find(text.encode())
    if place < 0:
        return start, len(tokens)
    end = place + len(text.encode())
    first, position = start, 0
    while position + len(tokens[first].spelling) <= place:
        position += len(tokens[first].spelling)
        first += 1
    last = first
    while position < end:
        position += len(tokens[last].spelling)
        last += 1
    return first, last


# -------------------------------------------------------------------------------------------------------- custom inputs

_OPENING = re.compile(r"\s{0,8}\{\s{0,8}\"" + INPUT + r"\"\s{0,8}:\s{0,8}\"")
_LONGEST_OPENING: Final = 64
_PLAIN = re.compile(
    r'(?:[^"\\]+|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})*'
)
_ESCAPE: Final = re.compile(r"\\u[0-9a-fA-F]{4}|\\.?", re.DOTALL)
_LONGEST_ESCAPE: Final = 12  # two escapes of a character outside the first plane
_SHORT: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_ANY_ESCAPE = re.compile(r"((?:\\u[0-9a-fA-F]{4})+)|\\(.)", re.DOTALL)


class CustomInput:
    """The text inside `{"input": "…"}`, while the JSON grows; the arguments as they are if they are nothing like that.

    Invariant: the same arguments give the same text, however they were cut.
    """

    def __init__(self) -> None:
        self._rest = ""
        self._raw: list[str] = []
        self._state: Literal["before", "inside", "after", "raw"] = "before"

    def feed(self, arguments: str) -> str:
        """The text that this part adds."""
        if self._state == "raw":
            self._raw.append(arguments)
            return ""
        self._rest += arguments
        if self._state == "before":
            if (opening := _OPENING.match(self._rest)) is not None:
                self._rest = self._rest[opening.end() :]
                self._state = "inside"
            elif len(self._rest) >= _LONGEST_OPENING:
                self._raw.append(self._rest)
                self._state = "raw"
        return self._read(_LONGEST_ESCAPE) if self._state == "inside" else ""

    def end(self) -> str:
        """The text that is left when no part comes any more."""
        if self._state == "inside":
            return self._read(0)
        return {"before": self._rest, "raw": "".join(self._raw), "after": ""}[self._state]

    def _read(self, kept: int) -> str:
        """What is safe to read; an escape that may still grow stays, unless it is longer than `kept`."""
        texts: list[str] = []
        position = 0
        while True:
            end = _PLAIN.match(self._rest, position).end()  # type: ignore[union-attr]  # it matches nothing at least
            texts.append(_unescape(self._rest[position:end]))
            position = end
            if position == len(self._rest):
                break
            if self._rest[position] == '"':
                self._state = "after"
                break
            if len(self._rest) - position < kept:
                break
            found = _ESCAPE.match(self._rest, position)
            position = len(self._rest) if found is None else found.end()
            texts.append("\ufffd")
        self._rest = self._rest[position:]
        return "".join(texts)


def _unescape(escaped: str) -> str:
    if "\\" not in escaped:
        return escaped
    return _ANY_ESCAPE.sub(_character, escaped)


def _character(match: re.Match[str]) -> str:
    units, short = match.groups()
    if units is None:
        return _SHORT.get(short, short)
    return bytes.fromhex(units.replace("\\u", "")).decode("utf-16-be", "replace")
