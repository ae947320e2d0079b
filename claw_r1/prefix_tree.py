"""Token sequences that share beginnings are held once, in a tree: a step's context is a place in it.

Pure. Invariants: a segment holds the tokens between two places where sequences part; the segments on the way from the root
to a place spell its sequence; memory and time grow with the tokens that differ, not with the number of contexts.
"""

from typing import Final

import numpy as np

from claw_r1.event_base import Packed

_WORD: Final = 4
"""Bytes of a packed token id."""


class Segment:
    """Tokens [start, end) of every sequence that comes through here."""

    __slots__ = ("children", "ids", "parent", "start")

    def __init__(self, start: int, ids: bytearray, parent: "Segment | None") -> None:
        self.start = start
        self.ids = ids
        """Packed, of this segment alone."""
        self.parent = parent
        self.children: dict[bytes, Segment] = {}
        """By their first token."""

    @property
    def end(self) -> int:
        return self.start + len(self.ids) // _WORD


def new_tree() -> Segment:
    """The root: the sequence without tokens."""
    return Segment(0, bytearray(), None)


def locate(segment: Segment, length: int) -> Segment:
    """The segment in which the first `length` tokens of a sequence that leads to `segment` end."""
    while segment.parent is not None and length <= segment.start:
        segment = segment.parent
    return segment


def spell(segment: Segment, length: int) -> Packed:
    """The first `length` tokens of a sequence that leads to `segment`, packed."""
    parts: list[bytes | bytearray] = []
    at: Segment | None = locate(segment, length)
    while at is not None:
        parts.append(at.ids[: _WORD * (length - at.start)] if at.end > length else at.ids)
        at = at.parent
    return b"".join(reversed(parts))


def grow(segment: Segment, length: int, new: Packed) -> Segment:
    """Where a sequence ends that goes on with `new` after the first `length` tokens of one that leads to `segment`."""
    at = locate(segment, length)
    done = 0
    while done < len(new):
        offset = _WORD * (length - at.start)
        if offset == len(at.ids):
            child = at.children.get(new[done : done + _WORD])
            if child is not None:
                at = child
            elif at.parent is None or at.children:
                leaf = Segment(length, bytearray(new[done:]), at)
                at.children[new[done : done + _WORD]] = leaf
                return leaf
            else:
                at.ids += new[done:]
                return at
            continue
        same = _count_same(at.ids, offset, new, done)
        done += same
        length += same // _WORD
        if done < len(new) and length < at.end:
            at = _split(at, length)
    return at


def count_common(one: Segment, one_length: int, other: Segment, other_length: int) -> int:
    """How many tokens two sequences begin with together."""
    passed = {id(s) for s in _way_up(one)}
    meeting = next(s for s in _way_up(other) if id(s) in passed)
    return min(one_length, other_length, meeting.end)


def _way_up(segment: Segment | None) -> list[Segment]:
    way = []
    while segment is not None:
        way.append(segment)
        segment = segment.parent
    return way


def _split(segment: Segment, length: int) -> Segment:
    """The upper part of a segment that is cut at `length`; the segment itself becomes the lower part."""
    above = segment.parent
    assert above is not None, "the root has no tokens"
    cut = _WORD * (length - segment.start)
    upper = Segment(segment.start, segment.ids[:cut], above)
    above.children[bytes(upper.ids[:_WORD])] = upper
    del segment.ids[:cut]
    upper.children[bytes(segment.ids[:_WORD])] = segment
    segment.start = length
    segment.parent = upper
    return upper


def _count_same(held: bytearray, offset: int, new: Packed, done: int) -> int:
    """Bytes, in whole tokens, in which `held` from `offset` and `new` from `done` agree."""
    size = min(len(held) - offset, len(new) - done)
    if held.startswith(new[done : done + size], offset):
        return size
    ours = np.frombuffer(held, "<u4", size // _WORD, offset)
    theirs = np.frombuffer(new, "<u4", size // _WORD, done)
    return _WORD * int((ours != theirs).argmax())
