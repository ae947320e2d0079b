"""An answer that an engine gave up in the middle is gone on with: prompt and tokens so far become the prompt of the rest.

Both answers together are one answer and one step: the ids, log-probs and texts one behind the other, each token with the
policy version that sampled it (see docs/decisions/0046-continuations.md).

Invariants:
- pure; ids and log-probs are put together, never computed, and only if the engine says itself that its prompt was the
  first one's prompt and tokens, exactly;
- what an engine cannot go on with as if it had never stopped is not gone on with: a grammar, penalties, a choice of
  several, and a tool call or a reasoning that is open, since an engine parses the rest by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from claw_r1.codec import unpack_ids
from claw_r1.events import VersionSpan
from gateway.calls.capture import Served
from gateway.calls.tito import tokens_member
from gateway.dialects.base import Asked
from gateway.dialects.captured import Captured, Choice
from gateway.dialects.fields import read_members, splice

ABORT: Final = b'"abort"'
"""Stands in every chunk that may give an answer up; few others have it."""
GIVEN_UP: Final = b'{"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}'
_LIMITS: Final = ("max_tokens", "max_completion_tokens")
_PENALTIES: Final = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1}
"""They count the tokens of the answer, and an engine would begin to count anew; at this value they do nothing."""
_OTHER_WAYS: Final = ("bad_words", "echo", "truncate_prompt_tokens", "use_beam_search")
"""Members of a request with which an engine takes no tokens, or would not go on from them as it began."""
_OPENERS: Final = "<{[`"
"""One of these begins a tool call, in every model's way to write them."""
_SAID: Final = ("content", "reasoning", "reasoning_content", "tool_calls")
_REASONING: Final = ("reasoning", "reasoning_content")
_HALF: Final = "\ufffd"
"""Stands for a part of a character."""


# ------------------------------------------------------------------------------------------------------------ request


def may_continue(asked: Asked) -> bool:
    """Whether the rest of an answer may be asked for at all: of a chat with one choice."""
    return asked.dialect != "completions" and asked.n == 1


def tokens_so_far(captured: Captured) -> list[int] | None:
    """The token ids of the prompt and the response that came; None if they are not known, or none came."""
    choice = captured.choices[0] if len(captured.choices) == 1 else None
    if choice is None or captured.prompt_json is None or not choice.response_ids:
        return None
    prompt = _numbers(captured.prompt_json)
    return None if prompt is None else [*prompt, *unpack_ids(choice.response_ids).tolist()]


def next_request(asked: Asked, captured: Captured, last: bytes, *, streamed: bool, field: str) -> bytes | None:
    """The request for the rest of an answer, its prompt as tokens in `field`; None if it cannot be asked for.

    `last` is the whole reply, or of a stream the last chunk that brought tokens.
    """
    ids = tokens_so_far(captured)
    if ids is None or not may_continue(asked) or asked.sampling.guided:
        return None
    members = _object(asked.upstream_body)
    raws = read_members(asked.upstream_body)
    if any(members.get(name) not in (None, False) for name in _OTHER_WAYS):
        return None
    if any(members.get(name) not in (None, neutral) for name, neutral in _PENALTIES.items()):
        return None
    choice = captured.choices[0]
    if choice.index != 0 or choice.routed_experts is not None or not _ends_in_text(choice, members, last, streamed):
        return None
    wanted = _left(members, len(choice.response_ids or b"") // 4)
    if wanted is None:
        return None
    return splice(asked.upstream_body, raws, wanted | tokens_member(ids, field))


def _left(members: Mapping[str, Any], tokens: int) -> dict[str, bytes] | None:
    """What of the request's limits is left after so many tokens; None: nothing."""
    left: dict[str, int] = {}
    for name in _LIMITS:
        if isinstance(members.get(name), int):
            left[name] = members[name] - tokens
            if left[name] < 1:
                return None
    if isinstance(members.get("min_tokens"), int):
        left["min_tokens"] = max(0, members["min_tokens"] - tokens)
    if isinstance(members.get("seed"), int):
        # The same seed would draw for the rest as it drew for the beginning.
        left["seed"] = (members["seed"] + tokens) % 2**63
    return {name: b"%d" % value for name, value in left.items()}


def _ends_in_text(choice: Choice, members: Mapping[str, Any], last: bytes, streamed: bool) -> bool:
    """Whether the answer stopped in plain text, so that the rest, parsed by itself, is the rest of that text."""
    said = _object(choice.reply or b"{}")
    text = said.get("content")
    if not isinstance(text, str) or not text or text.endswith(_HALF) or said.get("tool_calls"):
        return False
    if not streamed and any(said.get(name) for name in _REASONING):
        return False  # whole replies are parsed without a look at the prompt: the rest would become reasoning
    stops = members.get("stop")
    for stop in [stops] if isinstance(stops, str) else stops if isinstance(stops, list) else ():
        if isinstance(stop, str) and any(text.endswith(stop[:length]) for length in range(1, len(stop))):
            return False  # it may have begun
    if not members.get("tools") or members.get("tool_choice") == "none":
        return True
    return _said_all(last, streamed) and (streamed or not any(opener in text for opener in _OPENERS))


def _said_all(last: bytes, streamed: bool) -> bool:
    """Whether all that the tokens of a reply or a chunk say stands in its text: no parser holds anything back."""
    choices = _object(last).get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    said = choice.get("delta" if streamed else "message") or {}
    entries = (choice.get("logprobs") or {}).get("content")
    if not isinstance(entries, list) or not entries:
        return False
    return said.get("content") == "".join(str(entry.get("token")) for entry in entries if isinstance(entry, dict))


# ------------------------------------------------------------------------------------------------------------- stream


def gives_up(data: bytes) -> bool:
    """Whether a chunk says that the engine gave the answer up."""
    choices = _object(data).get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") == "abort" for choice in choices
    )


def without_end(data: bytes) -> tuple[bytes, bool]:
    """A chunk that gives an answer up, without its finish reason; and whether it brought any token or text."""
    chunk = _object(data)
    spoken = False
    for choice in chunk["choices"]:
        spoken = spoken or _speaks(choice)
        choice["finish_reason"] = choice["stop_reason"] = None
    return msgspec.json.encode(chunk), spoken


class Seam:
    """Makes of the chunks of the rest the further chunks of the answer that was given up."""

    def __init__(self, captured: Captured, ids: Sequence[int], last: bytes) -> None:
        """`ids` were asked for as the prompt, `last` is a chunk of what was said before."""
        self._ids = list(ids)
        self._tokens = len(captured.choices[0].response_ids or b"") // 4
        self._usage = captured.usage
        before = _object(last)
        self._name = {key: before[key] for key in ("id", "created") if key in before}
        self._versions = _first(before).get("weight_versions")
        self.joined = False
        """The engine has said that it goes on from the tokens."""
        self.torn = False
        """What comes is not the rest of the answer."""

    def take(self, data: bytes) -> bytes:
        """The chunk as it goes on; b"" for one that says nothing that was not said."""
        chunk = _object(data)
        choices = chunk.get("choices")
        if not isinstance(choices, list) or "error" in chunk or not all(isinstance(choice, dict) for choice in choices):
            return data
        prompts = [chunk.pop("prompt_token_ids", None), *(choice.pop("prompt_token_ids", None) for choice in choices)]
        for prompt in prompts:
            if prompt is not None:
                self.joined = prompt == self._ids
                self.torn = self.torn or not self.joined
        spoken = any(_speaks(choice) for choice in choices)
        ends = any(choice.get("finish_reason") not in (None, "abort") for choice in choices)
        reasons = any((choice.get("delta") or {}).get(name) for choice in choices for name in _REASONING)
        self.torn = self.torn or reasons or ((spoken or ends) and not self.joined)
        if self.torn:
            return b""
        for choice in choices:
            (choice.get("delta") or {}).pop("role", None)
            if isinstance(choice.get("weight_versions"), list):
                choice["weight_versions"] = _joined_versions(self._versions, choice["weight_versions"], self._tokens)
        if isinstance(chunk.get("usage"), dict):
            chunk["usage"] = _joined_usage(self._usage, chunk["usage"], self._tokens)
        elif not spoken and not any(choice.get("finish_reason") for choice in choices):
            return b""
        return msgspec.json.encode(chunk | self._name)


def _speaks(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("token_ids")) or any(delta.get(name) for name in _SAID)


# -------------------------------------------------------------------------------------------------------------- whole


def join_replies(first: bytes, second: bytes, captured: Captured, rest: Captured) -> bytes | None:
    """Two whole replies, of which the second goes on where the first was given up, as one; None if it does not.

    `captured` and `rest` are what they hold.
    """
    ids = tokens_so_far(captured)
    if rest.prompt_json is None or ids is None or _numbers(rest.prompt_json) != ids or len(rest.choices) != 1:
        return None
    try:
        return _join_replies(first, second, len(captured.choices[0].response_ids or b"") // 4)
    except (TypeError, KeyError, AttributeError, IndexError):  # members of other types than the first's
        return None


def _join_replies(first: bytes, second: bytes, tokens: int) -> bytes | None:
    one, two = _object(first), _object(second)
    before, after = one["choices"][0], two["choices"][0]
    if any(after["message"].get(name) for name in _REASONING):
        return None
    said = {**after["message"], "content": before["message"]["content"] + (after["message"].get("content") or "")}
    choice = {**after, "message": said}
    for name in ("token_ids", "prompt_token_ids"):
        if before.get(name) is not None:
            choice[name] = before[name] if name == "prompt_token_ids" else before[name] + after[name]
    if before.get("logprobs") is not None:
        choice["logprobs"] = {**after["logprobs"], "content": _both(before["logprobs"], after["logprobs"], "content")}
    if after.get("weight_versions") is not None:
        choice["weight_versions"] = _joined_versions(before.get("weight_versions"), after["weight_versions"], tokens)
    if before.get("meta_info") is not None:
        choice["meta_info"] = _join_meta(before["meta_info"], after["meta_info"], tokens)
    kept = {name: one[name] for name in ("id", "created", "prompt_token_ids", "prompt_logprobs") if name in one}
    usage = two.get("usage")
    counted = {} if usage is None else {"usage": _joined_usage(one.get("usage"), usage, tokens)}
    return msgspec.json.encode({**two, **kept, **counted, "choices": [choice]})


def _join_meta(before: dict[str, Any], after: dict[str, Any], tokens: int) -> dict[str, Any]:
    """What SGLang says beside a choice."""
    meta = dict(after)
    if before.get("output_token_logprobs") is not None:
        meta["output_token_logprobs"] = _both(before, after, "output_token_logprobs")
    spans = []
    for part, start in ((before, 0), (after, tokens)):
        length = len(part.get("output_token_logprobs") or ())
        own = part.get("weight_versions") or [{"version": part.get("weight_version"), "start": 0, "end": length}]
        spans += [{**span, "start": span["start"] + start, "end": span["end"] + start} for span in own]
    meta["weight_versions"] = spans
    for name, sign in (("prompt_tokens", -1), ("completion_tokens", 1)):
        if isinstance(meta.get(name), int):
            meta[name] += sign * tokens
    return meta


def _both(one: dict[str, Any], two: dict[str, Any], name: str) -> list[Any]:
    joined: list[Any] = one[name] + two[name]
    return joined


# -------------------------------------------------------------------------------------------------------------- record


@dataclass(slots=True)
class Parts:
    """The parts of an answer: which engine sampled which of its tokens, at which policy version."""

    tokens: int = 0
    spans: list[VersionSpan] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, captured: Captured, served: Served, engine: str | None) -> None:
        """What came since the last part is a part of its own; `served` is what its engine served at its first and last byte."""
        if not captured.choices:
            return
        choice = captured.choices[0]
        end = len(choice.response_ids or b"") // 4
        if end <= self.tokens:
            return
        own = [span for span in choice.versions if self.tokens <= span.start < span.end]
        if all(span.version is None for span in own):
            version = served.first if served.first == served.last else None
            own = [VersionSpan(version=version, start=self.tokens, end=end)]
        for span in own:
            before = self.spans[-1] if self.spans else None
            if before is not None and before.version == span.version and before.end == span.start:
                self.spans[-1] = before.model_copy(update={"end": span.end})
            else:
                self.spans.append(span)
        self.parts.append({"tokens": end - self.tokens, "engine": engine})
        self.tokens = end

    def label(self, captured: Captured) -> None:
        """Write down who sampled what."""
        if captured.choices:
            captured.choices[0].versions = tuple(self.spans)
        if len(self.parts) > 1:
            captured.metadata = {"continued": self.parts}


# -------------------------------------------------------------------------------------------------------------- helpers


def _joined_versions(before: Any, after: list[Any], tokens: int) -> list[Any]:
    moved = [
        {**span, "start": span.get("start", 0) + tokens, "end": span.get("end", 0) + tokens}
        for span in after
        if isinstance(span, dict)
    ]
    return [*(before if isinstance(before, list) else ()), *moved]


def _joined_usage(before: Mapping[str, Any] | None, after: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """The counts of the whole answer: of the rest's prompt, so many tokens are of the response."""
    usage = dict(after)
    for name, sign in (("prompt_tokens", -1), ("completion_tokens", 1)):
        if isinstance(usage.get(name), int):
            usage[name] += sign * tokens
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
        cached = min(details["cached_tokens"], usage.get("prompt_tokens") or 0)
        usage["prompt_tokens_details"] = {**details, "cached_tokens": cached}
    thought = _reasoning_tokens(before)
    if thought:
        details = usage.get("completion_tokens_details") or {}
        counted = thought + (_reasoning_tokens(after) or 0)
        usage["completion_tokens_details"] = {**details, "reasoning_tokens": counted}
    return usage


def _reasoning_tokens(usage: Mapping[str, Any] | None) -> int | None:
    details = (usage or {}).get("completion_tokens_details")
    counted = details.get("reasoning_tokens") if isinstance(details, dict) else None
    return counted if isinstance(counted, int) else None


def _first(chunk: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _numbers(data: bytes) -> list[int] | None:
    try:
        return msgspec.json.decode(data, type=list[int])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _object(data: bytes) -> dict[str, Any]:
    """The JSON object; {} for what is none."""
    try:
        read = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
