"""A step's context becomes a difference to a step that the broker already has: tokens and messages alike.

Invariants:
- only acknowledged steps are added, so a difference never refers to what may be lost (where the gateway does not wait for
  acknowledgements a parent may be lost: its children cannot be restored then, and are never trained);
- a parent is found by exact equality of token ids, the longest first, among all chains of the trajectory, so that
  sub-agents and parallel calls each find their own; messages are kept only where they are equal;
- every MAX_DEPTH-th link is a full context;
- memory is bounded; what is forgotten costs bytes on the log, never correctness.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final, Generic, TypeVar

import msgspec

from claw_r1.codec import MAX_DEPTH, pack_ids

MAX_LINKS: Final = 8
"""Most steps of one trajectory that may become parents."""
_TOKEN_BYTES: Final = 4
_LINK_BYTES: Final = 1000
"""Of a link beside what it refers to, nearly."""
_ids = msgspec.json.Decoder(list[int]).decode


@dataclass(frozen=True, slots=True)
class Context:
    """What a model call was given."""

    prompt: bytes
    """Packed token ids."""
    prompt_json: bytes
    """The same as the engine wrote them: a JSON array."""
    messages: tuple[bytes, ...]
    """JSON, one value each."""
    request: bytes
    """JSON object: the request without its messages."""


@dataclass(frozen=True, slots=True)
class Delta:
    """A context, written as a difference to its parent; without a parent it is the context itself."""

    parent_step_id: str | None
    prefix_len: int
    prefix_hash: bytes | None
    depth: int
    new_prompt_ids: bytes
    messages_kept: int
    new_messages: bytes
    request: bytes | None


@dataclass(slots=True)
class _Line:
    """What the steps of one line of calls share: what each of them was given is a beginning of it."""

    ids: bytes
    """Packed: the last step's prompt + response."""
    json: bytes
    """The last step's prompt as the engine wrote it."""
    messages: tuple[bytes, ...]
    size: int


@dataclass(slots=True)
class _Link:
    """A step that may become a parent: its prompt + response are the first `length` bytes of the line's."""

    line: _Line
    length: int
    prompt_length: int
    json_length: int
    """Of the prompt's JSON without its last bracket."""
    messages: int
    """How many of the line's messages were this step's request."""
    reply: bytes | None
    request: bytes
    hash: Any
    depth: int
    senses: tuple[bytes, ...] | None
    size: int

    def begins(self, prompt: bytes) -> bool:
        ids = self.line.ids
        return prompt.startswith(ids if self.length == len(ids) else memoryview(ids)[: self.length])


class Chains:
    """The steps of one trajectory that later contexts may refer to."""

    def __init__(self) -> None:
        self._links: OrderedDict[str, _Link] = OrderedDict()
        self.bytes = 0
        """What the links hold, nearly: a line that several share counts once."""

    def read_prompt(self, prompt_json: bytes) -> bytes:
        """The packed ids of a JSON array; what an earlier prompt had at its beginning is not parsed again.

        Raises ValueError or OverflowError if it is not an array of token ids.
        """
        for link in reversed(self._links.values()):
            end = link.json_length
            if prompt_json[end : end + 1] == b"," and prompt_json.startswith(memoryview(link.line.json)[:end]):
                tail = pack_ids(_ids(b"[" + prompt_json[end + 1 :]))
                return b"".join((memoryview(link.line.ids)[: link.prompt_length], tail))
        return pack_ids(_ids(prompt_json))

    def delta(self, context: Context) -> Delta:
        """The context as a difference to its longest parent."""
        step_id, link = None, None
        for other_id, other in reversed(self._links.items()):
            if (link is None or other.length > link.length) and other.begins(context.prompt):
                step_id, link = other_id, other
        if link is None or link.depth + 1 >= MAX_DEPTH:
            return full(context)
        kept = _common(link, context.messages)
        return Delta(
            parent_step_id=step_id,
            prefix_len=link.length // _TOKEN_BYTES,
            prefix_hash=link.hash.digest(),
            depth=link.depth + 1,
            new_prompt_ids=context.prompt[link.length :],
            messages_kept=kept,
            new_messages=_array(context.messages[kept:]),
            request=None if link.request == context.request else context.request,
        )

    def held(self, senses: Sequence[bytes]) -> tuple[int, bytes, bytes] | None:
        """The step whose conversation these messages go on with: (messages kept, prompt + response, response), packed.

        Only of steps that were added with the senses of their messages and reply.
        """
        found: _Link | None = None
        for link in self._links.values():
            mine = link.senses
            if mine is not None and len(mine) < len(senses) and mine == tuple(senses[: len(mine)]):
                found = link if found is None or len(mine) >= len(found.senses or ()) else found
        if found is None:
            return None
        whole = found.line.ids[: found.length]
        return len(found.senses or ()), whole, whole[found.prompt_length :]

    def add(
        self,
        step_id: str,
        context: Context,
        delta: Delta,
        response: bytes,
        reply: bytes | None,
        senses: tuple[bytes, ...] | None = None,
    ) -> int:
        """Take an acknowledged step in; returns by how many bytes the memory grew."""
        parent = self._links.get(delta.parent_step_id or "")
        whole = context.prompt + response
        if parent is not None:
            hash_ = parent.hash.copy()
            hash_.update(delta.new_prompt_ids + response)
            self._links.move_to_end(delta.parent_step_id or "")
        else:
            hash_ = hashlib.blake2b(whole, digest_size=16)
        request = parent.request if parent is not None and parent.request == context.request else context.request
        self._links[step_id] = _Link(
            line=_line(parent, context, delta, whole),
            length=len(whole),
            prompt_length=len(context.prompt),
            json_length=len(context.prompt_json) - 1,
            messages=len(context.messages),
            reply=reply,
            request=request,
            hash=hash_,
            depth=delta.depth,
            senses=senses,
            size=_LINK_BYTES + len(request) + len(reply or b"") + sum(map(len, senses or ())),
        )
        while len(self._links) > MAX_LINKS:
            self._links.popitem(last=False)
        before = self.bytes
        lines = {id(link.line): link.line.size for link in self._links.values()}
        self.bytes = sum(lines.values()) + sum([link.size for link in self._links.values()])
        return self.bytes - before


def _line(parent: _Link | None, context: Context, delta: Delta, whole: bytes) -> _Line:
    """The parent's line, gone on with, if the parent is its last step and all of it stands in the context; else a new one."""
    if parent is not None:
        line, count = parent.line, len(parent.line.messages)
        if (
            parent.length == len(line.ids)
            and parent.messages == count <= delta.messages_kept
            and context.prompt_json.startswith(memoryview(line.json)[:-1])
        ):
            added = context.messages[count:]
            line.size += len(whole) - len(line.ids) + len(context.prompt_json) - len(line.json) + sum(map(len, added))
            line.ids, line.json, line.messages = whole, context.prompt_json, line.messages + added
            return line
    size = len(whole) + len(context.prompt_json) + sum(map(len, context.messages))
    return _Line(whole, context.prompt_json, context.messages, size)


def full(context: Context) -> Delta:
    """The context itself."""
    return Delta(None, 0, None, 0, context.prompt, 0, _array(context.messages), context.request)


def _array(messages: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(messages) + b"]"


def _common(link: _Link, messages: tuple[bytes, ...]) -> int:
    """How many messages begin as the parent's request messages + reply do."""
    mine = link.line.messages[: link.messages]
    kept = len(mine)
    if messages[:kept] != mine:
        return next(n for n, (a, b) in enumerate(zip_longest(mine, messages)) if a != b)
    if kept < len(messages) and link.reply is not None and _same(messages[kept], link.reply):
        return kept + 1
    return kept


def _same(message: bytes, other: bytes) -> bool:
    """Whether two JSON values are equal, however they are written."""
    try:
        return message == other or _meaning(message) == _meaning(other)
    except (ValueError, OverflowError, RecursionError):  # msgspec's errors are ValueErrors
        return False  # what cannot be read passes as it is, and equals only its own bytes


def _meaning(message: bytes) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(message), order="deterministic")


K = TypeVar("K", bound=Hashable)


class ChainMemory(Generic[K]):
    """The chains of the trajectories used last, bounded in number and in bytes."""

    def __init__(self, max_trajectories: int, max_bytes: int) -> None:
        self._max_trajectories = max_trajectories
        self._max_bytes = max_bytes
        self._chains: OrderedDict[K, Chains] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._chains)

    def of(self, key: K) -> Chains:
        """The chains of a trajectory; empty ones if it is new or was forgotten."""
        chains = self._chains.get(key)
        return Chains() if chains is None else chains

    def add(
        self,
        key: K,
        step_id: str,
        context: Context,
        delta: Delta,
        response: bytes,
        reply: bytes | None,
        senses: tuple[bytes, ...] | None = None,
    ) -> None:
        """Take an acknowledged step in, and forget what was used longest ago if a bound is passed."""
        chains = self._chains.setdefault(key, Chains())
        self._chains.move_to_end(key)
        self._bytes += chains.add(step_id, context, delta, response, reply, senses)
        while len(self._chains) > 1 and (len(self._chains) > self._max_trajectories or self._bytes > self._max_bytes):
            _, forgotten = self._chains.popitem(last=False)
            self._bytes -= forgotten.bytes

    def forget(self, key: K) -> None:
        """A trajectory is over."""
        chains = self._chains.pop(key, None)
        if chains is not None:
            self._bytes -= chains.bytes
