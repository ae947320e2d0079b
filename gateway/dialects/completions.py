"""A legacy completion: a prompt of text or token ids, continued; it passes as a chat completion does.

Invariants: a call with several prompts has prompts x n choices, each a step with the prompt of its own.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from gateway.dialects.base import Asked, Dialect, EngineApi, Mark
from gateway.dialects.captured import (
    MAX_CHOICES,
    Captured,
    Choice,
    Version,
    given,
    pack,
    read_stop_reason,
    read_usage,
    read_versions,
)
from gateway.dialects.fields import (
    Members,
    asks_to_stream,
    choices,
    join,
    member,
    model_of,
    raw_bytes,
    read_members,
    read_sampling,
    splice,
    want_usage,
    without_internal,
)
from gateway.dialects.pass_on import pass_on
from gateway.replies import Refusal


def asked(body: bytes, *, strip: bool = False) -> Asked:
    """The call in a completion request. Raises Refusal(400) naming the field."""
    body, members, left_out = without_internal(body, read_members(body))
    stream = asks_to_stream(members)
    n = _prompts(members) * choices(members)
    if n > MAX_CHOICES:
        raise Refusal(
            400, f"prompts x n is {n}: at most {MAX_CHOICES} choices a call", param="prompt", code="invalid_field"
        )
    wanted: dict[str, bytes] = {}
    for key in ("return_token_ids", "return_weight_versions"):
        if raw_bytes(members, key) != b"true":
            wanted[key] = b"true"
    if raw_bytes(members, "logprobs") in (None, b"null"):
        wanted["logprobs"] = b"0"  # the sampled token's alone
    if stream:
        want_usage(members, wanted)
    return Asked(
        dialect="completions",
        api=API,
        upstream_body=splice(body, members, wanted),
        stream=stream,
        n=n,
        model=model_of(members),
        messages=(),
        request=join(members),
        sampling=read_sampling(members),
        voice=pass_on(members, strip=strip),
        left_out=left_out,
    )


def _prompts(members: Members) -> int:
    prompt = member(members, "prompt")
    batch = isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)
    return len(prompt) if batch else 1


# ---------------------------------------------------------------------------------------------------------------- reply


class _LogProbs(Struct):
    token_logprobs: list[float | None] | None = None


class _Choice(Struct):
    index: int = 0
    text: str | None = None
    logprobs: _LogProbs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: Raw = Raw()
    weight_versions: list[Version] | None = None
    routed_experts: Raw = Raw()


class _Reply(Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: dict[str, Any] | None = None
    id: Any = None


class _Chunk(Struct):
    choices: list[_Choice] = []
    model: str | None = None
    usage: dict[str, Any] | None = None
    id: Any = None
    error: Raw = Raw()


_reply = msgspec.json.Decoder(_Reply).decode
_chunk = msgspec.json.Decoder(_Chunk).decode


@dataclass(slots=True)
class _Growing:
    choice: Choice
    text: list[str] = field(default_factory=list)
    ids: list[int] | None = None
    log_probs: list[float | None] | None = None


class _Fold:
    """Folds chunks, or the one whole reply, which has the same choices."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._growing: dict[int, _Growing] = {}
        self._captured = Captured()
        self.spoken = False

    @property
    def finished(self) -> bool:
        return sum(1 for growing in self._growing.values() if growing.choice.finish_reason is not None) >= self._n

    def take(self, data: bytes) -> Mark:
        if data == b"[DONE]":
            return "done"
        try:
            chunk = _chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._captured.faults = ("unparsable_chunk",)
            return "other"
        if given(chunk.error) is not None:
            return "error"
        self.add(chunk)
        return "usage" if chunk.usage and not chunk.choices else "delta"

    def add(self, part: _Chunk | _Reply) -> None:
        captured = self._captured
        captured.model = part.model or captured.model
        captured.usage = read_usage(part.usage) or captured.usage
        captured.response_id = part.id if isinstance(part.id, str) else captured.response_id
        for choice in part.choices:
            self._grow(choice)

    def _grow(self, part: _Choice) -> None:
        growing = self._growing.setdefault(part.index, _Growing(Choice(part.index)))
        choice = growing.choice
        choice.prompt_json = given(part.prompt_token_ids) or choice.prompt_json
        choice.finish_reason = part.finish_reason or choice.finish_reason
        choice.stop_reason = choice.stop_reason if part.stop_reason is None else read_stop_reason(part.stop_reason)
        choice.versions = read_versions(part.weight_versions) or choice.versions
        choice.routed_experts = given(part.routed_experts) or choice.routed_experts
        growing.text.append(part.text or "")
        self.spoken = self.spoken or bool(part.text or part.token_ids)
        ids = part.token_ids
        if ids is not None:
            growing.ids = growing.ids or []
            growing.ids.extend(ids)
        if part.logprobs is not None and part.logprobs.token_logprobs is not None:
            values = part.logprobs.token_logprobs
            # With `echo` they cover the prompt too, before the response.
            own = values if ids is None else values[len(values) - min(len(ids), len(values)) :]
            growing.log_probs = growing.log_probs or []
            growing.log_probs.extend(own)

    def captured(self) -> Captured:
        for index in sorted(self._growing):
            growing = self._growing[index]
            text = "".join(growing.text)
            growing.choice.reply = msgspec.json.encode({"role": "assistant", "content": text})
            pack(growing.choice, growing.ids, growing.log_probs)
            self._captured.choices.append(growing.choice)
        return self._captured


def read_reply(body: bytes) -> Captured:
    """What a whole reply holds; a reply that is no completion gives the fault `unparsable_reply`."""
    try:
        reply = _reply(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Captured(faults=("unparsable_reply",))
    fold = _Fold(len(reply.choices))
    fold.add(reply)
    return fold.captured()


API: Final = EngineApi("/v1/completions", read_reply, _Fold)


def dialect(*, strip: bool = False) -> Dialect:
    """Legacy completions."""
    return Dialect(
        name="completions",
        read=lambda body, call_id, at: asked(body, strip=strip),
        refusal=lambda refusal: refusal.body,
        break_off=lambda refusal: refusal.event,
    )
