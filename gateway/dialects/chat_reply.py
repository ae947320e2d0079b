"""A chat completion of an engine, whole or in chunks, gives its tokens up (vLLM's shape and SGLang's).

Invariants: a stream gives what the whole reply would have given, however it is cut.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from gateway.dialects.base import Mark
from gateway.dialects.captured import (
    MISSING_LOG_PROB,
    Captured,
    Choice,
    Version,
    given,
    pack,
    read_stop_reason,
    read_usage,
    read_versions,
)


class _LogProb(Struct, gc=False):
    logprob: float = MISSING_LOG_PROB


class _LogProbs(Struct, gc=False):
    content: list[_LogProb] | None = None


class _ExpertsSchema(Struct, gc=False):
    num_layers: int | None = None


class _Experts(Struct, gc=False):
    """SGLang's routed experts, of the one choice of a reply."""

    routed_experts: Raw = Raw()
    expert_ids_schema: _ExpertsSchema | None = None


class _MetaInfo(Struct, gc=False):
    """What SGLang says beside a choice."""

    routed_experts: Raw = Raw()
    expert_ids_schema: _ExpertsSchema | None = None

    output_token_logprobs: list[tuple[float | None, int, Any]] | None = None
    """(log-prob, id, text) of each token."""
    weight_version: int | str | None = None
    weight_versions: list[Version] | None = None


class _ReplyChoice(Struct, gc=False):
    index: int = 0
    message: Raw = Raw()
    logprobs: _LogProbs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: Raw = Raw()
    weight_versions: list[Version] | None = None
    routed_experts: Raw = Raw()
    meta_info: _MetaInfo | None = None


class _Reply(Struct, gc=False):
    choices: list[_ReplyChoice]
    model: str | None = None
    usage: dict[str, Any] | None = None
    id: Any = None
    prompt_token_ids: Raw = Raw()
    sglext: _Experts | None = None


class _ToolFunction(Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolDelta(Struct, gc=False):
    index: int = 0
    id: str | None = None
    type: str | None = None
    function: _ToolFunction | None = None


class _Delta(Struct, gc=False):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolDelta] | None = None


class _ChunkChoice(Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    logprobs: _LogProbs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: Raw = Raw()
    weight_versions: list[Version] | None = None


class _Chunk(Struct, gc=False):
    choices: list[_ChunkChoice] = []
    model: str | None = None
    usage: dict[str, Any] | None = None
    id: Any = None
    prompt_token_ids: Raw = Raw()
    error: Raw = Raw()


_PROMPT_KEY: Final = b'"prompt_token_ids":'
_MARK: Final = b'"cut out here: a3f1c58e7d024b96"'
"""Nobody else writes it."""
_reply = msgspec.json.Decoder(_Reply).decode
_chunk = msgspec.json.Decoder(_Chunk).decode


def _read(body: bytes) -> tuple[_Reply, bytes | None]:
    """The reply and the prompt's ids as they are written, which are half of it and which the decoder need not look at.

    They are cut out where their key stands last, and the decoder is given a mark instead: if it finds the mark as the
    reply's own member, what was cut out is that member.
    """
    at = body.rfind(_PROMPT_KEY)
    if at >= 0:
        start = at + len(_PROMPT_KEY)
        end = body.find(b"]", start) + 1
        if body[start : start + 1] == b"[" and end:
            reply = _reply(b"".join((memoryview(body)[:start], _MARK, memoryview(body)[end:])))
            if bytes(reply.prompt_token_ids) == _MARK:
                return reply, body[start:end]
    reply = _reply(body)
    return reply, given(reply.prompt_token_ids)


def read_reply(body: bytes) -> Captured:
    """What a whole reply holds; a reply that is not a chat completion gives the fault `unparsable_reply`."""
    try:
        reply, prompt_json = _read(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Captured(faults=("unparsable_reply",))
    captured = Captured(
        prompt_json=prompt_json,
        usage=read_usage(reply.usage),
        model=reply.model,
        response_id=reply.id if isinstance(reply.id, str) else None,
    )
    for choice in reply.choices:
        captured.prompt_json = captured.prompt_json or given(choice.prompt_token_ids)
        found = Choice(
            choice.index, finish_reason=choice.finish_reason, stop_reason=read_stop_reason(choice.stop_reason)
        )
        found.reply = given(choice.message)
        found.versions = read_versions(choice.weight_versions)
        found.routed_experts = given(choice.routed_experts)
        log_probs = None if choice.logprobs is None else choice.logprobs.content
        if choice.meta_info is not None and choice.meta_info.output_token_logprobs is not None:
            _read_meta(found, choice.meta_info, choice.meta_info.output_token_logprobs)
        else:
            pack(found, choice.token_ids, None if log_probs is None else [entry.logprob for entry in log_probs])
        if found.routed_experts is None and (choice.meta_info is not None or reply.sglext is not None):
            _read_experts(found, choice.meta_info, reply.sglext if len(reply.choices) == 1 else None, captured)
        captured.choices.append(found)
    return captured


def _read_experts(choice: Choice, meta: _MetaInfo | None, whole: _Experts | None, captured: Captured) -> None:
    """SGLang's routed experts: the numbers alone, one behind the other, of all tokens but the last."""
    for holder in (meta, whole):
        if holder is not None and (numbers := given(holder.routed_experts)) is not None:
            prompt = (captured.prompt_json or b"[]").strip(b"[] ")
            tokens = (prompt.count(b",") + 1 if prompt else 0) + len(choice.response_ids or b"") // 4
            schema = holder.expert_ids_schema
            choice.routed_experts = numbers
            choice.experts_layout = (tokens - 1, None if schema is None else schema.num_layers)
            return


def _read_meta(choice: Choice, meta: _MetaInfo, tokens: list[tuple[float | None, int, Any]]) -> None:
    """SGLang's own record of the sampled tokens, which its OpenAI shape may leave the ids out of."""
    pack(choice, [token for _, token, _ in tokens], [log_prob for log_prob, _, _ in tokens])
    whole = [Version(version=meta.weight_version, start=0, end=len(tokens))]
    choice.versions = choice.versions or read_versions(meta.weight_versions or whole)


# --------------------------------------------------------------------------------------------------------------- stream


@dataclass(slots=True)
class _Growing:
    ids: list[int] | None = None
    log_probs: list[float] | None = None
    role: str = "assistant"
    content: list[str] | None = None
    reasoning: dict[str, list[str]] = field(default_factory=dict)
    tools: dict[int, dict[str, Any]] = field(default_factory=dict)
    choice: Choice = field(default_factory=lambda: Choice(0))


class ChatStream:
    """Folds the chunks of a streamed reply into what a whole reply would have held."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._choices: dict[int, _Growing] = {}
        self._captured = Captured()
        self._spoken = False
        self._ended = 0
        """Choices that have their finish reason."""

    @property
    def spoken(self) -> bool:
        """Whether any token or text has come."""
        return self._spoken

    @property
    def finished(self) -> bool:
        """Whether every choice has its finish reason."""
        return self._ended >= self._n

    def take(self, data: bytes) -> Mark:
        """Fold one event's data in."""
        if data == b"[DONE]":
            return "done"
        try:
            chunk = _chunk(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._captured.faults = ("unparsable_chunk",)
            return "other"
        if given(chunk.error) is not None:
            return "error"
        captured = self._captured
        captured.model = chunk.model or captured.model
        if isinstance(chunk.id, str):
            captured.response_id = chunk.id
        if chunk.usage is not None:
            captured.usage = read_usage(chunk.usage) or captured.usage
        if captured.prompt_json is None:
            captured.prompt_json = given(chunk.prompt_token_ids)
        for choice in chunk.choices:
            if captured.prompt_json is None:
                captured.prompt_json = given(choice.prompt_token_ids)
            self._grow(choice)
        return "usage" if chunk.usage and not chunk.choices else "delta"

    def _grow(self, chunk: _ChunkChoice) -> None:
        growing = self._choices.get(chunk.index)
        if growing is None:
            growing = self._choices[chunk.index] = _Growing(choice=Choice(chunk.index))
        if chunk.token_ids is not None:
            if growing.ids is None:
                growing.ids = []
            growing.ids += chunk.token_ids
            self._spoken = self._spoken or bool(chunk.token_ids)
        if chunk.logprobs is not None and chunk.logprobs.content is not None:
            if growing.log_probs is None:
                growing.log_probs = []
            growing.log_probs += [entry.logprob for entry in chunk.logprobs.content]
        delta = chunk.delta
        if delta is not None:
            _grow_message(growing, delta)
            if not self._spoken:
                said = delta.content or delta.reasoning or delta.reasoning_content or delta.tool_calls
                self._spoken = bool(said)
        choice = growing.choice
        if chunk.finish_reason:  # an empty one is none
            self._ended += choice.finish_reason is None
            choice.finish_reason = chunk.finish_reason
        if chunk.stop_reason is not None:
            choice.stop_reason = read_stop_reason(chunk.stop_reason)
        if chunk.weight_versions is not None:
            choice.versions = read_versions(chunk.weight_versions) or choice.versions

    def captured(self) -> Captured:
        """What the chunks up to now held."""
        self._captured.choices.clear()
        for index in sorted(self._choices):
            growing = self._choices[index]
            growing.choice.reply = _message(growing)
            pack(growing.choice, growing.ids, growing.log_probs)
            self._captured.choices.append(growing.choice)
        return self._captured


def _grow_message(growing: _Growing, delta: _Delta) -> None:
    growing.role = delta.role or growing.role
    if delta.content is not None:
        if growing.content is None:
            growing.content = []
        growing.content.append(delta.content)
    if delta.reasoning is not None:
        growing.reasoning.setdefault("reasoning", []).append(delta.reasoning)
    if delta.reasoning_content is not None:
        growing.reasoning.setdefault("reasoning_content", []).append(delta.reasoning_content)
    for tool in delta.tool_calls or ():
        call = growing.tools.setdefault(
            tool.index, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = tool.id or call["id"]
        call["type"] = tool.type or call["type"]
        if tool.function is not None:
            call["function"]["name"] += tool.function.name or ""
            call["function"]["arguments"] += tool.function.arguments or ""


def _message(growing: _Growing) -> bytes:
    message: dict[str, Any] = {"role": growing.role, "content": None}
    if growing.content is not None:
        message["content"] = "".join(growing.content)
    message |= {name: "".join(parts) for name, parts in growing.reasoning.items()}
    if growing.tools:
        message["tool_calls"] = [growing.tools[index] for index in sorted(growing.tools)]
    return msgspec.json.encode(message)


# ------------------------------------------------------------------------------------------------------------ synthesis


def as_events(reply: bytes) -> list[bytes]:
    """A whole reply as the server-sent events of a stream, usage and terminal event included.

    For what engines return only whole (routed experts), where the agent asked for a stream.
    """
    whole: dict[str, Any] = msgspec.json.decode(reply)
    base: dict[str, Any] = {key: whole[key] for key in ("id", "created", "model", "system_fingerprint") if key in whole}
    base["object"] = "chat.completion.chunk"
    chunks: list[dict[str, Any]] = []
    for choice in whole["choices"]:
        message = {key: value for key, value in (choice.get("message") or {}).items() if value is not None}
        role = {"role": message.pop("role", "assistant"), "content": ""}
        tools = message.get("tool_calls") or []
        if tools:
            message["tool_calls"] = [{"index": number, **tool} for number, tool in enumerate(tools)]
        kept = {"index": choice.get("index", 0)}
        chunks.append({"choices": [kept | {"delta": role, "logprobs": None, "finish_reason": None}]})
        said = {"delta": message, "logprobs": choice.get("logprobs"), "finish_reason": None}
        chunks.append({"choices": [kept | said | {"token_ids": choice.get("token_ids")}]})
        end = {"delta": {}, "logprobs": None, "finish_reason": choice.get("finish_reason")}
        chunks.append({"choices": [kept | end | {"stop_reason": choice.get("stop_reason")}]})
    if chunks and "prompt_token_ids" in whole:
        chunks[0]["prompt_token_ids"] = whole["prompt_token_ids"]
    if whole.get("usage"):
        chunks.append({"choices": [], "usage": whole["usage"]})
    return [b"data: " + msgspec.json.encode(base | chunk) + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]
