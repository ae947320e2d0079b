"""What the messages of a trajectory's calls say: which step's reply a call goes on from, and which replies nobody recorded.

Pure. A reply is known by its sense, however a client writes it again. A hole is an assistant's message that no step said,
behind one that a step did: what a conversation begins with may be an example that its agent gives. Messages are read only
where tokens do not already say that nothing but the parent's reply was added.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import msgspec

from claw_r1.events import Step
from claw_r1.senses import sense
from streams.forest import Node

_MARK = b'"assistant"'
_messages = msgspec.json.Decoder(list[msgspec.Raw]).decode


class _Role(msgspec.Struct, gc=False):
    role: str | None = None


_role = msgspec.json.Decoder(_Role).decode


@dataclass(frozen=True, slots=True)
class Heard:
    """The replies in a call's messages."""

    count: int = 0
    """Messages."""
    last: bytes | None = None
    """Sense of the last reply."""
    at: int = -1
    """Its place among the messages."""
    begun: bool = False
    """Whether a step said any of them."""
    holes: tuple[bytes, ...] = ()
    """Senses of those that nobody recorded."""


class Talk:
    """The conversations of one trajectory."""

    def __init__(self, steps: Iterable[Step], nodes: Sequence[Node]) -> None:
        self._steps = {step.step_id: step for step in steps}
        self._nodes = nodes
        self._parents = {node.step.step_id: node.parent.step for node in nodes if node.parent is not None}
        self._called_before = {node.step.step_id: before.step for before, node in pairwise(nodes)}
        self._rests: dict[str, bytes] = {}
        self._heard: dict[str, Heard | None] = {}
        self._senses: dict[bytes, bytes] = {}

    def only_extends(self, node: Node) -> bool:
        """Whether the call surely adds no reply to its parent's messages and its own."""
        step, parent = node.step, node.parent
        return (
            parent is not None
            and step.parent_step_id == parent.step.step_id
            and step.prefix_len == parent.end
            and step.messages_kept > 0
            and _MARK not in (step.new_messages or b"")
        )

    def holes(self, leaf: Node) -> tuple[bytes, ...] | None:
        """Senses of the replies in the call's messages that nobody recorded; None if the messages are not known."""
        node = leaf
        while node.parent is not None and self.only_extends(node):
            node = node.parent
        if _has_no_reply(node.step):
            return ()
        heard = self.heard(node)
        return None if heard is None else heard.holes

    def goes_on_from(self, node: Node) -> list[Node]:
        """Earlier steps whose reply is the last in the call's messages, and stands there where it would be."""
        heard = None if _has_no_reply(node.step) else self.heard(node)
        if heard is None or heard.last is None:
            return []
        return [
            other
            for other in self._said.get(heard.last, ())
            if other.index < node.index and (before := self.heard(other)) is not None and before.count == heard.at
        ]

    def follows(self, node: Node, earlier: Node) -> bytes | None:
        """Sense of what the call's messages have where the earlier call's end, if both say the same before that."""
        heard, before = self.heard(node), self.heard(earlier)
        if heard is None or before is None or not 0 < before.count < heard.count:
            return None
        ours, theirs = self._restore(node.step), self._restore(earlier.step)
        same = ours is not None and theirs is not None and self.sense(ours[before.count - 1]) == self.sense(theirs[-1])
        return self.sense(ours[before.count]) if ours is not None and same else None

    # ----------------------------------------------------------------------------------------------------------- reading

    def heard(self, node: Node) -> Heard | None:
        """The replies in the call's messages; None if these are not known. Each call's new messages are read once."""
        way: list[Step] = []
        at: Step | None = node.step
        while at is not None and at.step_id not in self._heard and len(way) <= len(self._steps):
            way.append(at)
            at = self._base(at)
        before = None if at is None else self._heard.get(at.step_id)
        for step in reversed(way):
            before = self._heard[step.step_id] = self._go_on(step, before)
        return before

    def _base(self, step: Step) -> Step | None:
        """The step with whose messages this one's begin; None if they are all its own."""
        if step.messages_kept:
            return self._steps.get(step.parent_step_id or "")
        for before in (self._parents.get(step.step_id), self._called_before.get(step.step_id)):
            if before is not None and (rest := _rest(step, before)) is not None:
                self._rests[step.step_id] = rest
                return before
        return None

    def _go_on(self, step: Step, before: Heard | None) -> Heard | None:
        if step.new_messages is None and not step.messages_kept:
            return None
        try:
            if not step.messages_kept:
                rest = self._rests.pop(step.step_id, None)
                if before is None or rest is None:
                    return self._take(Heard(), step.new_messages)
                return self._take(before, rest)
            parent = self._steps.get(step.parent_step_id or "")
            if before is None or parent is None:
                return None
            if step.messages_kept == before.count + 1 and parent.reply is not None:
                return self._take(self._add(before, parent.reply), step.new_messages)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return None
        messages = self._restore(step)
        return None if messages is None else self._add(Heard(), *messages)

    def _take(self, heard: Heard, messages: bytes | None) -> Heard:
        return self._add(heard, *map(bytes, _messages(messages or b"[]")))

    def _add(self, heard: Heard, *messages: bytes) -> Heard:
        count, last, at, begun, holes = heard.count, heard.last, heard.at, heard.begun, heard.holes
        for message in messages:
            if _is_reply(message):
                last, at = self.sense(message), count
                known = last in self._known
                holes = (*holes, last) if begun and not known else holes
                begun = begun or known
            count += 1
        return Heard(count, last, at, begun, holes)

    def _restore(self, step: Step) -> list[bytes] | None:
        """The call's whole messages; None if they cannot be restored."""
        way = [step]
        while way[-1].messages_kept:
            parent = self._steps.get(way[-1].parent_step_id or "")
            if parent is None or len(way) > len(self._steps):
                return None
            way.append(parent)
        messages: list[bytes] = []
        said: bytes | None = None
        for one in reversed(way):
            try:
                new = [bytes(raw) for raw in _messages(one.new_messages or b"[]")]
            except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
                return None
            messages = [*messages, *([] if said is None else [said])]
            if len(messages) < one.messages_kept:
                return None
            messages = messages[: one.messages_kept] + new
            said = one.reply
        return messages

    def sense(self, message: bytes) -> bytes:
        """Of a message of this trajectory; each is read once."""
        found = self._senses.get(message)
        if found is None:
            found = self._senses[message] = sense(message)
        return found

    @cached_property
    def _known(self) -> frozenset[bytes]:
        """Senses of what any step said, also one that broke off."""
        return frozenset(self.sense(step.reply) for step in self._steps.values() if step.reply is not None)

    @cached_property
    def _said(self) -> dict[bytes, list[Node]]:
        said: dict[bytes, list[Node]] = {}
        for node in self._nodes:
            if node.step.reply is not None:
                said.setdefault(self.sense(node.step.reply), []).append(node)
        return said


def _rest(step: Step, parent: Step) -> bytes | None:
    """A JSON array of what a whole request's messages have after all of another's, word for word; None if they begin
    otherwise."""
    before, messages = parent.new_messages, step.new_messages
    if before is None or messages is None or parent.messages_kept or before[:1] != b"[" or before[-1:] != b"]":
        return None
    size = len(before) - 1
    if messages[size : size + 1] != b"," or size < 2 or not messages.startswith(memoryview(before)[:size]):
        return None
    return b"[" + messages[size + 1 :]


def _has_no_reply(step: Step) -> bool:
    """Surely none, told without reading: messages of its own that no assistant is named in."""
    own = step.new_messages
    return own is not None and step.messages_kept == 0 and own[:1] == b"[" and own[-1:] == b"]" and _MARK not in own


def _is_reply(message: bytes) -> bool:
    if _MARK not in message:
        return False
    try:
        return _role(message).role == "assistant"
    except (ValueError, RecursionError):
        return False
