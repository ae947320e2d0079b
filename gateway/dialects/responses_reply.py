"""A chat reply of the engine becomes a response: a whole one, or its events while the chunks arrive.

Invariants:
- both forms come from one fold, so a stream adds up to what the whole reply would have been;
- one item is open at a time, in the order in which the items began; what comes for a later one meanwhile is kept until its
  turn, so parallel calls that the engine mixes stay apart;
- the last items are closed by `end()` alone, and so is the response;
- nothing is said before the engine has said something, so that a call that an engine gave up at once can be made again.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw, Struct

from gateway.dialects.base import Mark
from gateway.dialects.responses_events import (
    CustomInput,
    LogProb,
    error_event,
    event,
    raw_event,
    read_error,
    read_log_probs,
    tokens_of,
    usage_of,
)
from gateway.dialects.responses_shapes import Tool, ToolNames, seal

_BROKEN: Final = {"code": "server_error", "message": "the engine ended its answer in the middle"}
_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass(frozen=True, slots=True)
class Question:
    """What a voice needs of the request that it answers."""

    call_id: str
    created_at: int
    """Seconds since the epoch."""
    model: str | None
    echo: bytes
    """Members of a JSON object, without the braces."""
    names: ToolNames
    log_probs: bool = False
    seals: bool = False
    """Whether reasoning comes sealed too."""
    shows_reasoning: bool = True


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(Struct):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None
    logprobs: Raw = Raw()
    finish_reason: str | None = None


class _Chat(Struct):
    choices: list[_Choice] = []
    model: str | None = None
    usage: dict[str, Any] | None = None


_chat = msgspec.json.Decoder(_Chat).decode


@dataclass(slots=True)
class _Item:
    kind: Literal["reasoning", "message", "call"]
    texts: list[str] = field(default_factory=list)
    said: int = 0
    """How many of the texts are out."""
    place: int = -1
    """Its output index, from when it is open."""
    closed: bool = False
    tool: Tool | None = None
    name: str = ""
    tool_call_id: str | None = None
    custom: CustomInput | None = None
    input: list[str] = field(default_factory=list)
    """Of a custom tool's call: the text of its arguments."""
    log_probs: list[LogProb] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class ResponsesVoice:
    """Says one chat answer as a response."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._id = f"resp_{question.call_id}"
        self._events: list[bytes] = []
        self._streams = True
        self._number = 0
        self._queue: list[_Item] = []
        self._calls: dict[int, _Item] = {}
        self._output: list[dict[str, Any]] = []
        self._finish: str | None = None
        self._usage: dict[str, Any] | None = None
        self._model: str | None = None
        self._error: dict[str, Any] | None = None
        self._text_alone = True
        self._tokens: list[LogProb] = []
        self._tokens_used = 0
        self._tokens_unsaid: list[LogProb] = []

    # ------------------------------------------------------------------------------------------------------------ voice

    def whole(self, reply: bytes) -> bytes:
        self._streams = False
        chat = _read(reply)
        if chat is not None:
            self._take(chat)
        self._close_all()
        return self._response(final=True)

    def event(self, event: bytes, data: bytes | None, mark: Mark) -> bytes:
        if data is None:
            return event if event.startswith(b":") else b""  # a comment keeps the connection open
        if self._error is not None:
            return b""  # agents stop reading at the error
        if mark == "error":
            self._fail(data)
        elif mark in ("delta", "usage") and (chat := _read(data)) is not None:
            self._take(chat)
        return self._flush()

    def end(self) -> bytes:
        self._begin()
        self._close_all()
        status = self._status()
        kind = f"response.{status}"
        body = b'{"type":"%s","sequence_number":%d,"response":%s}' % (
            kind.encode(),
            self._number,
            self._response(final=True),
        )
        return self._flush() + raw_event(kind, body)

    def error(self, status: int, body: bytes) -> bytes:
        error = read_error(body)
        error["message"] = error["message"] or f"the engine answered with status {status}"
        return msgspec.json.encode({"error": error})

    # ------------------------------------------------------------------------------------------------------------- fold

    def _take(self, chat: _Chat) -> None:
        self._model = chat.model or self._model
        self._usage = chat.usage or self._usage
        for choice in chat.choices:
            if choice.index == 0:  # a response has one answer
                self._take_choice(choice)

    def _take_choice(self, choice: _Choice) -> None:
        message = choice.delta or choice.message or _Message()
        reasoning = message.reasoning or message.reasoning_content
        if reasoning or message.tool_calls:
            self._text_alone = False
        if self._question.log_probs:
            tokens = read_log_probs(choice.logprobs)
            self._tokens.extend(tokens)
            self._tokens_unsaid.extend(tokens)
            if reasoning or message.tool_calls:
                self._tokens_unsaid.clear()  # not of a text alone: the item's end says which are its own
        if reasoning and self._question.shows_reasoning:
            self._tail("reasoning").texts.append(reasoning)
            self._advance()
        if message.content:
            self._tail("message").texts.append(message.content)
            self._advance()
        for place, call in enumerate(message.tool_calls or ()):
            self._take_call(place if call.index is None else call.index, call)
        self._finish = choice.finish_reason or self._finish

    def _tail(self, kind: Literal["reasoning", "message"]) -> _Item:
        if not self._queue or self._queue[-1].kind != kind:
            self._queue.append(_Item(kind))
        return self._queue[-1]

    def _take_call(self, index: int, call: _ToolCall) -> None:
        item = self._calls.get(index)
        if item is None:
            item = self._calls[index] = _Item("call")
            self._queue.append(item)
        if item.closed:
            return  # its arguments were whole: what comes after them is nothing
        item.tool_call_id = item.tool_call_id or call.id
        if call.function is not None:
            if item.place < 0:
                item.name += call.function.name or ""
            if call.function.arguments:
                item.texts.append(call.function.arguments)
        self._advance()

    def _advance(self) -> None:
        """Say what is new of the first item, and of the next ones as soon as the one before is whole."""
        while True:
            item = self._queue[0]
            self._speak(item)
            if len(self._queue) == 1 or not _is_whole(item):
                return
            self._close(self._queue.pop(0), cut=False)

    def _close_all(self) -> None:
        """The answer has ended: close what is open, with what was cut off marked as such."""
        if self._status() == "failed":
            self._output.extend(self._shown(item, "incomplete") for item in self._queue if item.place >= 0)
            return
        cut = self._status() == "incomplete"
        while self._queue:
            item = self._queue.pop(0)
            self._close(item, cut=cut and not (_is_whole(item) if item.kind == "call" else bool(self._queue)))

    # ------------------------------------------------------------------------------------------------------------ items

    def _speak(self, item: _Item, *, last: bool = False) -> None:
        """Open an item that has something to say, and say it. `last`: nothing comes after this."""
        if item.place < 0:
            if not (item.texts or last):
                return  # a call whose name may still grow
            self._open(item)
        if item.said == len(item.texts):
            return
        new = "".join(item.texts[item.said :])
        item.said = len(item.texts)
        place: dict[str, Any] = {"item_id": self._item_id(item), "output_index": item.place}
        if item.kind == "reasoning":
            self._emit("response.reasoning_text.delta", **place, content_index=0, delta=new)
        elif item.kind == "message":
            shown = [token.brief() for token in self._tokens_unsaid]
            self._tokens_unsaid.clear()
            self._emit("response.output_text.delta", **place, content_index=0, delta=new, logprobs=shown)
        elif item.custom is None:
            self._emit("response.function_call_arguments.delta", **place, delta=new)
        else:
            self._speak_input(item, item.custom.feed(new))

    def _speak_input(self, item: _Item, new: str) -> None:
        if new:
            item.input.append(new)
            place = {"item_id": self._item_id(item), "output_index": item.place}
            self._emit("response.custom_tool_call_input.delta", **place, delta=new)

    def _open(self, item: _Item) -> None:
        item.place = len(self._output)
        if item.kind == "call":
            # From here on the agent knows it by this id, whatever the engine says later.
            item.tool_call_id = item.tool_call_id or f"call_{self._question.call_id}_{item.place}"
            item.tool = self._question.names.tool(item.name)
            item.custom = CustomInput() if item.tool.kind == "custom" else None
        self._emit("response.output_item.added", output_index=item.place, item=self._shown(item, "in_progress"))
        if item.kind != "call":
            self._emit(
                "response.content_part.added",
                item_id=self._item_id(item),
                output_index=item.place,
                content_index=0,
                part=_part(item, "", []),
            )

    def _close(self, item: _Item, *, cut: bool) -> None:
        self._speak(item, last=True)
        item.closed = True
        place: dict[str, Any] = {"item_id": self._item_id(item), "output_index": item.place}
        if item.kind == "call":
            self._close_call(item, place)
        else:
            text = item.text
            if item.kind == "message":
                item.log_probs = self._tokens_of(text)
                brief = [token.brief() for token in item.log_probs]
                self._emit("response.output_text.done", **place, content_index=0, text=text, logprobs=brief)
            else:
                self._emit("response.reasoning_text.done", **place, content_index=0, text=text)
            part = _part(item, text, item.log_probs)
            self._emit("response.content_part.done", **place, content_index=0, part=part)
        shown = self._shown(item, "incomplete" if cut else "completed")
        self._output.append(shown)
        self._emit("response.output_item.done", output_index=item.place, item=shown)

    def _close_call(self, item: _Item, place: dict[str, Any]) -> None:
        if item.custom is None:
            self._emit("response.function_call_arguments.done", **place, name=item.name, arguments=item.text)
        else:
            self._speak_input(item, item.custom.end())
            self._emit("response.custom_tool_call_input.done", **place, input="".join(item.input))

    def _tokens_of(self, text: str) -> list[LogProb]:
        if not self._question.log_probs:
            return []
        if self._text_alone:  # its end token too
            return self._tokens
        first, last = tokens_of(text, self._tokens, self._tokens_used)
        self._tokens_used = last
        return self._tokens[first:last]

    def _item_id(self, item: _Item) -> str:
        prefix = {"reasoning": "rs", "message": "msg", "call": "fc" if item.custom is None else "ctc"}[item.kind]
        return f"{prefix}_{self._question.call_id}_{item.place}"

    def _shown(self, item: _Item, status: str) -> dict[str, Any]:
        """The item as it stands: of one that has just begun, without its text."""
        begun = status == "in_progress"
        shown: dict[str, Any] = {"id": self._item_id(item), "status": status}
        if item.kind == "message":
            content = [] if begun else [_part(item, item.text, item.log_probs)]
            return shown | {"type": "message", "role": "assistant", "content": content}
        if item.kind == "reasoning":
            content = [] if begun else [_part(item, item.text, [])]
            shown |= {"type": "reasoning", "summary": [], "content": content}
            if self._question.seals and not begun:
                shown["encrypted_content"] = seal(item.text)
            return shown
        tool = item.tool or Tool(item.name)
        shown["call_id"] = item.tool_call_id
        shown["name"] = tool.name
        if tool.namespace is not None:
            shown["namespace"] = tool.namespace
        if item.custom is not None:
            return shown | {"type": "custom_tool_call", "input": "" if begun else "".join(item.input)}
        return shown | {"type": "function_call", "arguments": "" if begun else item.text}

    # --------------------------------------------------------------------------------------------------------- response

    def _status(self) -> Literal["completed", "incomplete", "failed"]:
        if self._error is not None or self._finish in (None, "abort", "error"):
            return "failed"
        return "incomplete" if self._finish in _INCOMPLETE else "completed"

    def _response(self, *, final: bool) -> bytes:
        status = self._status() if final else "in_progress"
        error = None
        if status == "failed":
            error = _BROKEN if self._error is None else {**_BROKEN, "message": self._error["message"]}
        reason = _INCOMPLETE.get(self._finish or "") if status == "incomplete" else None
        said = {
            "id": self._id,
            "object": "response",
            "created_at": self._question.created_at,
            "status": status,
            "error": error,
            "incomplete_details": None if reason is None else {"reason": reason},
            "model": self._model or self._question.model or "",
            "output": self._output if final else [],
            "usage": usage_of(self._usage) if final else None,
        }
        return msgspec.json.encode(said)[:-1] + b"," + self._question.echo + b"}"

    def _begin(self) -> None:
        if self._number == 0:
            response = self._response(final=False)
            for kind in ("response.created", "response.in_progress"):
                body = b'{"type":"%s","sequence_number":%d,"response":%s}' % (kind.encode(), self._number, response)
                self._events.append(raw_event(kind, body))
                self._number += 1

    def _fail(self, data: bytes) -> None:
        self._begin()
        self._error = error = read_error(data)
        error["message"] = error["message"] or _BROKEN["message"]
        code = error["code"] if isinstance(error["code"], str) else None
        self._events.append(error_event(error["type"], error["message"], code, error["param"], self._number))
        self._number += 1

    def _emit(self, kind: str, **members: Any) -> None:
        if self._streams:
            self._begin()
            self._events.append(event(kind, self._number, **members))
            self._number += 1

    def _flush(self) -> bytes:
        events, self._events = self._events, []
        return b"".join(events)


def _read(data: bytes) -> _Chat | None:
    """None for what is no chat completion: the capture counts it."""
    try:
        return _chat(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_whole(item: _Item) -> bool:
    """Whether nothing more can come for an item after which another one began."""
    if item.kind != "call":
        return True
    if not item.texts or not item.texts[-1].rstrip().endswith("}"):
        return False
    try:
        msgspec.json.decode(item.text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _part(item: _Item, text: str, log_probs: list[LogProb]) -> dict[str, Any]:
    if item.kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": [token.shown() for token in log_probs]}
