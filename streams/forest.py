"""A trajectory's steps become a forest: each step under the step whose prompt + response its own prompt begins with, exactly.

Media are part of a prompt: the same placeholder tokens over another picture are no prefix. A step's place follows from its
tokens and media alone, in whatever order the facts came; clocks only decide which of two equal steps comes first.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from claw_r1.errors import InvalidRecord
from claw_r1.events import LinkKind, Packed, Step
from claw_r1.prefix_tree import Segment, grow, locate, new_tree, spell
from streams.join import order_steps


@dataclass(frozen=True, slots=True)
class Link:
    """How a step goes on from the one before it."""

    kind: LinkKind
    to: "Node | None" = None
    """The step that it was meant to go on from; for `exact` its parent."""
    differs_at: int | None = None
    """Position of the first token that differs from that step's prompt + response; None: no token, but a picture does."""


@dataclass(slots=True, eq=False)
class Node:
    """A step in the forest."""

    step: Step
    index: int
    """step_index: the position in call order."""
    place: Segment
    """Where prompt + response end in the tree of all contexts."""
    start: int
    """Where the response begins in the context, tokens."""
    end: int
    """Length of the context, tokens."""
    parent: "Node | None" = None
    has_child: bool = False
    link: Link = Link("root")

    @property
    def context(self) -> Packed:
        """Prompt + response, packed ids; made anew each time."""
        return spell(self.place, self.end)

    def begins(self, other: "Node") -> bool:
        """Whether another step's media begin with this one's."""
        media = self.step.multi_modal_data
        return not media or other.step.multi_modal_data[: len(media)] == media


def build_forest(steps: Iterable[Step]) -> list[Node]:
    """Nodes in call order, not yet linked; failed and partial steps have no place among them.

    Raises InvalidRecord if a context cannot be restored.
    """
    steps = list(steps)
    ordered = order_steps(steps)
    if len(ordered) != len(steps):
        raise InvalidRecord("cycle", "steps name each other as parents")
    root = new_tree()
    contexts: dict[str, _Context] = {}
    nodes: list[Node] = []
    for step in ordered:
        if step.status == "failed":
            continue
        context = contexts[step.step_id] = _restore(step, contexts, root)
        if step.status != "partial":
            start = step.prompt_len
            nodes.append(Node(step, len(nodes), context.place, start, context.length))
    return nodes


def link_exact(nodes: Iterable[Node], places: "Places") -> None:
    """Give each node its parent: of the steps whose context its prompt begins with the longest, of equal ones the first."""
    for node in nodes:
        node.parent = next(places.beginnings(node), None)
        if node.parent is not None:
            node.parent.has_child = True
            node.link = Link("exact", node.parent)


# --------------------------------------------------------------------------------------------------------------- restore


@dataclass(slots=True)
class _Context:
    place: Segment
    length: int
    hash: Any = None
    """BLAKE2b of the packed context, once it is needed; what extends it goes on from there."""


def _restore(step: Step, contexts: dict[str, _Context], root: Segment) -> _Context:
    """As codec.restore_prompt, without a copy of what the parent has."""
    if step.parent_step_id is None:
        place, running = root, None
    else:
        parent = contexts.get(step.parent_step_id)
        if parent is None:
            raise InvalidRecord(
                "no_parent", f"step {step.step_id} refers to step {step.parent_step_id}, which is not here"
            )
        running = _running_hash(parent, step.prefix_len)
        if running is None or running.digest() != step.prefix_hash:
            raise InvalidRecord("prefix_differs", f"step {step.step_id} was made against another prefix of its parent")
        place = parent.place
    new = step.new_prompt_ids + step.response_ids
    if running is not None:
        running.update(new)
    return _Context(grow(place, step.prefix_len, new), step.prefix_len + len(new) // 4, running)


def _running_hash(parent: _Context, length: int) -> Any:
    """A hash of the parent's first `length` tokens that may be gone on with; None if it has fewer."""
    if length > parent.length:
        return None
    if length < parent.length:
        return hashlib.blake2b(spell(parent.place, length), digest_size=16)
    if parent.hash is None:
        parent.hash = hashlib.blake2b(spell(parent.place, length), digest_size=16)
    return parent.hash.copy()


# ---------------------------------------------------------------------------------------------------------------- places


@dataclass(slots=True)
class _Marks:
    """What ends within one segment, by position; of equal positions the last called first."""

    positions: list[int] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)


class Places:
    """Where the prompts and contexts of the steps that said something end in the tree."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        spoke = [node for node in nodes if node.end > node.start]
        self._contexts = _mark(sorted((node.end, -node.index, node) for node in spoke))
        self._prompts = _mark(sorted((node.start, -node.index, node) for node in spoke))

    def beginnings(self, node: Node) -> Iterator[Node]:
        """Steps whose context the node's prompt begins with, the longest first, of equal ones the first called first."""
        place: Segment | None = locate(node.place, node.start)
        while place is not None:
            marks = self._contexts.get(place)
            if marks is not None:
                last = bisect_right(marks.positions, node.start)
                yield from (other for other in reversed(marks.nodes[:last]) if other.begins(node))
            place = place.parent

    def asked_before(self, node: Node, longer_than: int) -> list[Node]:
        """Steps whose prompt the node's prompt begins with and goes on from, of those with the longest, the first called
        first; only prompts of more than `longer_than` tokens."""
        place: Segment | None = locate(node.place, node.start)
        while place is not None and place.end > longer_than:
            marks = self._prompts.get(place)
            if marks is not None:
                at = bisect_left(marks.positions, node.start) - 1
                while at >= 0 and marks.positions[at] > longer_than:
                    first = bisect_left(marks.positions, marks.positions[at])
                    found = [other for other in reversed(marks.nodes[first : at + 1]) if other.begins(node)]
                    if found:
                        return found
                    at = first - 1
            place = place.parent
        return []

    def same_prompt(self, node: Node) -> list[Node]:
        """Steps with the node's prompt and media, itself among them, the first called first."""
        marks = self._prompts.get(locate(node.place, node.start))
        if marks is None:
            return []
        first, last = bisect_left(marks.positions, node.start), bisect_right(marks.positions, node.start)
        return [other for other in reversed(marks.nodes[first:last]) if _same_media(other, node)]


def _same_media(one: Node, other: Node) -> bool:
    return one.step.multi_modal_data == other.step.multi_modal_data


def _mark(places: list[tuple[int, int, Node]]) -> dict[Segment, _Marks]:
    found: dict[Segment, _Marks] = {}
    for position, _, node in places:
        marks = found.setdefault(locate(node.place, position), _Marks())
        marks.positions.append(position)
        marks.nodes.append(node)
    return found
