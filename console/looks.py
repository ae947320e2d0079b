"""What is new of a list is told by where the log's partitions end: how far a look has read, whatever the list is of. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

MOST: Final = 1000
"""Rows that one look for news reads at most; the next look goes on behind them."""
Place = TypeVar("Place", int, tuple[str, int])
"""A partition, or a topic and a partition of it."""


def read_to(
    rows: Sequence[Mapping[str, Any]], whole: Place, ends: Mapping[Place, int], now: Mapping[Place, int]
) -> dict[Place, int]:
    """How far a look has read: to `now`, or to its last row, which is of `whole`, if there may be more behind it.

    Rows come ordered by place and offset.
    """
    if len(rows) < MOST:
        return dict(now)
    before = {place: last for place, last in now.items() if place < whole}
    return before | {whole: int(rows[-1]["offset"])} | {place: last for place, last in ends.items() if place > whole}
