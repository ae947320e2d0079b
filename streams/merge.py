"""A trajectory's steps become training rows: chains of exact prefix extensions, each sampled token trained once.

A step extends another iff its prompt begins with exactly that step's prompt + response, media included; anything else begins
a new chain. A row is then a sequence that the engine really saw. Where branches share a response, the first branch trains it
and the others mask it. What must not be trained is masked with a reason, unless it is allowed; log-probs are as captured, 0.0
where masked.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from claw_r1.errors import InvalidRecord
from claw_r1.events import BlobRef, ExpertsSpan, Packed, Step, VersionSpan
from claw_r1.trainable import ALLOWABLE, unknown_versions, why_masked
from streams.drift import classify
from streams.forest import Node, Places, build_forest, link_exact
from streams.holes import Talk
from streams.retries import resolve_retries

Piece = tuple[int, int, str | None]
"""Tokens [start, end) of a response, and why they are masked, or None."""


@dataclass(slots=True)
class Row:
    """A chain from a root to a leaf, merged: all arrays have one entry per token."""

    nodes: list[Node]
    token_ids: Packed
    loss_mask: bytearray
    log_probs: bytearray
    versions: list[VersionSpan] = field(default_factory=list)
    mask_reasons: Counter[str] = field(default_factory=Counter)
    holes: int | None = None
    """Replies in the leaf's conversation that no step recorded; None: not known."""
    trained_tokens: int = 0
    """Ones in the mask; counted here, since counting them in the mask costs more than the merge."""

    @property
    def links(self) -> dict[str, int]:
        """Steps by the kind of their link."""
        return count_links(self.nodes)

    @property
    def media(self) -> tuple[BlobRef, ...]:
        """The leaf's, which begin with those of every step before it."""
        return self.nodes[-1].step.multi_modal_data

    @property
    def experts(self) -> tuple[ExpertsSpan, ...]:
        """Which step's routed experts are of which tokens: of those that it read first, that is from the last token of the
        step before it to the last but one of its own."""
        spans = []
        first = 0
        for node in self.nodes:
            last = max(first, node.end - 1)
            if (blob := node.step.routed_experts) is not None and last > first:
                spans.append(ExpertsSpan(step_id=node.step.step_id, blob=blob, start=first, end=last))
            first = last
        return tuple(spans)


@dataclass(slots=True)
class Merged:
    """A trajectory's steps, linked and resolved; rows for each set of allowed reasons."""

    nodes: list[Node]
    retried: dict[str, str]
    """Why a step is masked that may not be what its agent went on from, by step id."""
    holes: dict[str, tuple[bytes, ...] | None]
    """Senses of replies that no step recorded, by the id of the leaf in whose conversation they are; None: not known."""
    _rows: dict[tuple[frozenset[str], bool], list[Row]] = field(default_factory=dict)

    def rows(self, allow: frozenset[str] = frozenset(), *, by_step: bool = False) -> list[Row]:
        """One row per leaf, in the call order of the leaves; rows without a token to train are kept (their mask says why).

        `by_step`: one row per step, in call order, with its whole prompt, of which nothing is trained.
        """
        key = allow & ALLOWABLE, by_step
        if key not in self._rows:
            self._rows[key] = self._divide(key[0]) if by_step else self._merge(key[0])
        return self._rows[key]

    def _divide(self, allow: frozenset[str]) -> list[Row]:
        rows = [_merge_chain([node], self.retried, allow, set()) for node in self.nodes]
        for row, node in zip(rows, self.nodes, strict=True):
            holes = self.holes.get(node.step.step_id)
            row.holes = None if holes is None else len(holes)
        return rows

    def _merge(self, allow: frozenset[str]) -> list[Row]:
        trained: set[str] = set()
        rows = []
        for leaf in self.nodes:
            if leaf.has_child:
                continue
            row = _merge_chain(_chain(leaf), self.retried, allow, trained)
            holes = self.holes[leaf.step.step_id]
            row.holes = None if holes is None else len(holes)
            rows.append(row)
        return rows

    @property
    def links(self) -> dict[str, int]:
        """The trajectory's steps by the kind of their link."""
        return count_links(self.nodes)

    @property
    def hole_count(self) -> int | None:
        """Different replies that no step recorded; None if nothing is known of any conversation."""
        known = [senses for senses in self.holes.values() if senses is not None]
        return len(set().union(*known)) if known else None

    @property
    def step_tokens(self) -> int:
        """Tokens that the trajectory's steps are, each with its whole prompt."""
        return sum(node.end for node in self.nodes)


def merge_steps(steps: Iterable[Step]) -> Merged:
    """Link, classify and resolve. Raises InvalidRecord if a context cannot be restored."""
    steps = list(steps)
    nodes = build_forest(steps)
    places = Places(nodes)
    link_exact(nodes, places)
    talk = Talk(steps, nodes)
    classify(nodes, places, talk)
    holes = {leaf.step.step_id: talk.holes(leaf) for leaf in nodes if not leaf.has_child}
    return Merged(nodes, resolve_retries(steps, nodes, places, talk), holes)


def rows_of(steps: Iterable[Step], allow: frozenset[str] = frozenset()) -> list[Row] | None:
    """A trajectory's rows; None where a context cannot be restored: the trajectory is incomplete."""
    try:
        return merge_steps(steps).rows(allow)
    except InvalidRecord:
        return None


def count_links(nodes: Iterable[Node]) -> dict[str, int]:
    """Steps by the kind of their link, in the order of the kinds' names."""
    kinds = [node.link.kind for node in nodes]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _chain(leaf: Node) -> list[Node]:
    """From the root to the leaf."""
    chain: list[Node] = []
    node: Node | None = leaf
    while node is not None:
        chain.append(node)
        node = node.parent
    return chain[::-1]


def _merge_chain(chain: list[Node], retried: dict[str, str], allow: frozenset[str], trained: set[str]) -> Row:
    leaf = chain[-1]
    row = Row(chain, leaf.context, bytearray(leaf.end), bytearray(4 * leaf.end))
    for node in chain:
        step = node.step
        row.versions += _shift_versions(step, node.start, node.end)
        for first, last, reason in _pieces(step, retried.get(step.step_id), allow):
            reason = reason or ("shared" if step.step_id in trained else None)
            if reason is not None:
                row.mask_reasons[reason] += last - first
                continue
            assert step.rollout_log_probs is not None, "why_masked() names steps without log-probs"
            start, end = node.start + first, node.start + last
            row.trained_tokens += end - start
            row.loss_mask[start:end] = b"\x01" * (end - start)
            row.log_probs[4 * start : 4 * end] = step.rollout_log_probs[4 * first : 4 * last]
        trained.add(step.step_id)
    return row


def _pieces(step: Step, retried: str | None, allow: Collection[str]) -> Sequence[Piece]:
    """The response in order, cut where the reason to mask changes."""
    length = step.response_len
    whole = why_masked(step, allow) or (retried if retried not in allow else None)
    if length == 0:
        return []
    if whole is not None or "unknown_version" in allow:
        return [(0, length, whole)]
    pieces: list[Piece] = []
    at = 0
    for start, end in unknown_versions(step):
        pieces += [(at, start, None), (start, end, "unknown_version")]
        at = end
    return [piece for piece in [*pieces, (at, length, None)] if piece[1] > piece[0]]


def _shift_versions(step: Step, start: int, end: int) -> list[VersionSpan]:
    if not step.version_spans:
        return [VersionSpan(version=step.policy_version, start=start, end=end)] if end > start else []
    return [
        VersionSpan(version=span.version, start=start + span.start, end=start + span.end) for span in step.version_spans
    ]
