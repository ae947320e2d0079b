"""The engine's chat completion is said as an Anthropic message: whole, or as its event stream while the chunks arrive.

Invariants:
- a stream builds the message that the whole reply would have given, block by block: one block is open at a time, and what
  belongs to another waits until the open one is complete;
- text and thinking are said as they come; a tool's input too, unless an earlier tool's is not complete yet or its own is no
  JSON object;
- nothing is said before the engine has said something, so that a call that an engine gave up at once can be made again.
"""

import base64
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw, Struct

from gateway.dialects.base import Mark
from gateway.dialects.messages_errors import error_shape, read_error, sse
from gateway.replies import UPSTREAM, Refusal

INVALID_JSON: Final = "INVALID_JSON"
"""The one member of a tool's input that is no JSON object, as sampled (the name is the one that Anthropic advises)."""

Kind = Literal["thinking", "text", "tool_use"]


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Said(Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct):
    index: int = 0
    message: _Said | None = None
    delta: _Said | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    matched_stop: Any = None
    """SGLang's name for it."""
    token_ids: Raw = Raw()
    prompt_token_ids: Raw = Raw()
    """SGLang's place of them."""


class _PromptDetails(Struct):
    cached_tokens: int | None = None
    created_cache_tokens: int | None = None


class _CompletionDetails(Struct):
    reasoning_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Answer(Struct):
    choices: list[_Choice] = []
    model: str | None = None
    usage: _Usage | None = None
    prompt_token_ids: Raw = Raw()


_answer = msgspec.json.Decoder(_Answer).decode
_encode = msgspec.json.encode


# ----------------------------------------------------------------------------------------------------------------- voice


@dataclass(slots=True)
class _Block:
    """A content block as it grows."""

    kind: Kind
    id: str | None = None
    name: str = ""
    said: list[str] = field(default_factory=list)
    sent: int = 0
    state: Literal["waiting", "open", "closed"] = "waiting"
    opening: str = ""
    ending: str = ""
    """The first and the last character that is no space."""
    tried: int = 0

    def say(self, text: str) -> None:
        self.said.append(text)
        self.opening = self.opening or text.lstrip()[:1]
        self.ending = text.rstrip()[-1:] or self.ending

    @property
    def malformed(self) -> bool:
        """Whether a tool's input cannot become a JSON object: agents would fail at its first piece."""
        return self.kind == "tool_use" and self.opening not in ("", "{")

    @property
    def complete(self) -> bool:
        """Whether a tool's input is a whole JSON object; it is parsed only when that is possible and anew."""
        if self.ending != "}" or self.tried == len(self.said):
            return False
        self.tried = len(self.said)
        return _input(self.said) is not None


class MessagesVoice:
    """Says one answer. Text of a tool that comes after its input was complete, and another block was begun, is left out."""

    def __init__(self, call_id: str, *, hides_thinking: bool = False) -> None:
        self._call_id = call_id
        self._hides_thinking = hides_thinking
        self._blocks: list[_Block] = []
        self._tools: dict[int, _Block] = {}
        self._at = 0
        """The first block that is not closed."""
        self._begun = False
        self._failed = False
        self._finish: str | None = None
        self._stop: Any = None
        self._usage: _Usage | None = None
        self._prompt_tokens: int | None = None
        self._model = ""

    def whole(self, reply: bytes) -> bytes:
        try:
            self._take(_answer(reply))
            content = [self._shape(block, index) for index, block in enumerate(self._blocks)]
            return _encode(self._message(content or [{"type": "text", "text": ""}], *self._reason(), self._counts()))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            message = "the engine's reply is not a chat completion"
            raise Refusal(502, message, kind=UPSTREAM, code="unparsable_reply") from error

    def event(self, event: bytes, data: bytes | None, mark: Mark) -> bytes:
        if data is None or mark in ("done", "other") or self._failed:
            return b""
        if mark == "error":
            self._failed = True  # agents stop reading there
            return sse("error", error_shape(*read_error(500, data)))
        try:
            answer = _answer(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return b""  # capture counts it
        spoken = self._take(answer)
        if not self._begun and not spoken:
            return b""
        return self._begin() + self._advance(ended=False)

    def end(self) -> bytes:
        if not self._blocks:
            self._blocks.append(_Block("text"))  # agents look for a first block
        said = self._begin() + self._advance(ended=True)
        reason, sequence = self._reason()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        said += sse("message_delta", {"type": "message_delta", "delta": delta, "usage": self._counts()})
        return said + sse("message_stop", {"type": "message_stop"})

    def error(self, status: int, body: bytes) -> bytes:
        return _encode(error_shape(*read_error(status, body)))

    # ----------------------------------------------------------------------------------------------------------- hearing

    def _take(self, answer: _Answer) -> bool:
        """Fold in what came; whether it holds any token or text."""
        self._model = answer.model or self._model
        self._usage = answer.usage or self._usage
        self._count_prompt(answer.prompt_token_ids)
        spoken = False
        for choice in answer.choices:
            if choice.index != 0:
                continue  # a message is one choice
            self._count_prompt(choice.prompt_token_ids)
            self._finish = choice.finish_reason or self._finish
            stop = choice.matched_stop if choice.stop_reason is None else choice.stop_reason
            self._stop = self._stop if stop is None else stop
            spoken = bool(_length(choice.token_ids))
            said = choice.message or choice.delta
            if said is not None:
                spoken = self._hear(said) or spoken
        return spoken

    def _count_prompt(self, ids: Raw) -> None:
        if self._prompt_tokens is None:
            self._prompt_tokens = _length(ids)

    def _hear(self, said: _Said) -> bool:
        thought = said.reasoning or said.reasoning_content  # where both come they are equal
        if thought and not self._hides_thinking:
            self._say("thinking", thought)
        if said.content:
            self._say("text", said.content)
        for position, call in enumerate(said.tool_calls or ()):
            self._call(position if call.index is None else call.index, call)
        return bool(thought or said.content or said.tool_calls)

    def _say(self, kind: Kind, text: str) -> None:
        if not self._blocks or self._blocks[-1].kind != kind:
            self._blocks.append(_Block(kind))
        self._blocks[-1].say(text)

    def _call(self, index: int, call: _Call) -> None:
        block = self._tools.get(index)
        if block is None:
            block = self._tools[index] = _Block("tool_use")
            self._blocks.append(block)
        block.id = block.id or call.id
        if call.function is not None and block.state != "closed":
            if block.state == "waiting":
                block.name += call.function.name or ""
            if call.function.arguments:
                block.say(call.function.arguments)

    # ------------------------------------------------------------------------------------------------------------ saying

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        counts = {**self._counts(), "output_tokens": 0}
        return sse("message_start", {"type": "message_start", "message": self._message([], None, None, counts)})

    def _advance(self, *, ended: bool) -> bytes:
        """Say what can be said now, up to the block that is not complete."""
        said = []
        while self._at < len(self._blocks):
            block, index = self._blocks[self._at], self._at
            if block.state == "waiting":
                if block.kind == "tool_use" and not block.name and not ended:
                    break  # its name is still to come
                said.append(self._open(block, index))
            if block.malformed and not ended:
                break
            text = "".join(block.said[block.sent :])
            if block.malformed:
                text = _encode({INVALID_JSON: "".join(block.said)}).decode()
            if text:
                said.append(_delta(index, _PIECES[block.kind], text))
            block.sent = len(block.said)
            followed = index + 1 < len(self._blocks)
            if not ended and not (followed and (block.kind != "tool_use" or block.complete)):
                break
            said.append(self._close(block, index))
        return b"".join(said)

    def _open(self, block: _Block, index: int) -> bytes:
        block.state = "open"
        shape = self._shape(block, index, empty=True)
        return sse("content_block_start", {"type": "content_block_start", "index": index, "content_block": shape})

    def _close(self, block: _Block, index: int) -> bytes:
        block.state = "closed"
        self._at += 1
        signature = b""
        if block.kind == "thinking":
            signature = _delta(index, ("signature_delta", "signature"), self._signature(index))
        return signature + sse("content_block_stop", {"type": "content_block_stop", "index": index})

    def _shape(self, block: _Block, index: int, *, empty: bool = False) -> dict[str, Any]:
        text = "" if empty else "".join(block.said)
        if block.kind == "text":
            return {"type": "text", "text": text}
        if block.kind == "thinking":
            return {"type": "thinking", "thinking": text, "signature": "" if empty else self._signature(index)}
        given: dict[str, Any] = {}
        if not empty:
            read = _input(block.said)
            given = {INVALID_JSON: text} if read is None else read
        # The engine's id stays: some chat templates write it into the next prompt.
        return {
            "type": "tool_use",
            "id": block.id or f"toolu_{self._call_id}_{index}",
            "name": block.name,
            "input": given,
        }

    def _signature(self, index: int) -> str:
        """Agents keep it and send it back; nobody reads it, but an empty one makes some drop the thinking."""
        return base64.b64encode(f"{self._call_id}.{index}".encode()).decode()

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, sequence: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": f"msg_{self._call_id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage,
        }

    def _reason(self) -> tuple[str, str | None]:
        """(stop_reason, stop_sequence), as vLLM's own /v1/messages has them.

        A named tool ends with `stop` in a chat. A call that a stop sequence cut short must not run.
        """
        if self._finish == "length":
            return "max_tokens", None
        if self._finish == "content_filter":
            return "refusal", None
        tools = [block for block in self._blocks if block.kind == "tool_use"]
        if tools and _input(tools[-1].said) is not None:
            return "tool_use", None
        if isinstance(self._stop, str):
            return "stop_sequence", self._stop
        if tools or self._finish == "tool_calls":
            return "tool_use", None
        return "end_turn", None

    def _counts(self) -> dict[str, Any]:
        """Anthropic counts cached tokens apart: input_tokens are the others. What the engine does not say is left out."""
        usage = self._usage or _Usage()
        counts: dict[str, Any] = {"input_tokens": usage.prompt_tokens or self._prompt_tokens or 0}
        if (details := usage.prompt_tokens_details) is not None:
            if details.created_cache_tokens is not None:
                counts["cache_creation_input_tokens"] = details.created_cache_tokens
            if details.cached_tokens is not None:
                counts["cache_read_input_tokens"] = details.cached_tokens
            apart = (details.cached_tokens or 0) + (details.created_cache_tokens or 0)
            counts["input_tokens"] = max(0, counts["input_tokens"] - apart)
        counts["output_tokens"] = usage.completion_tokens or 0
        thought = usage.completion_tokens_details
        if thought is not None and thought.reasoning_tokens is not None:
            counts["output_tokens_details"] = {"thinking_tokens": thought.reasoning_tokens}
        return counts


_PIECES: Final[dict[Kind, tuple[str, str]]] = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


def _delta(index: int, piece: tuple[str, str], text: str) -> bytes:
    delta = {"type": piece[0], piece[1]: text}
    return sse("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta})


def _length(ids: Raw) -> int | None:
    """Of a JSON array of numbers, which is not parsed for it; None if there is none."""
    array = bytes(ids).strip()
    if not array.startswith(b"["):
        return None
    return array.count(b",") + 1 if array[1:-1].strip() else 0


def _input(said: list[str]) -> dict[str, Any] | None:
    """A tool's input; None if it is no JSON object. Nothing at all is a tool without input."""
    text = "".join(said)
    if not text.strip():
        return {}
    try:
        read = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return read if isinstance(read, dict) else None
