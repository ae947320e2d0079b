"""Offsets of a partition that are taken in order and done in any order become the one offset that may be committed.

Invariant: everything below `committable` is done.
"""


class Prefix:
    """What is done of one partition from `start` on."""

    def __init__(self, start: int) -> None:
        self.next = start
        """The offset behind the last one taken."""
        self._open: dict[int, None] = {}
        """Offsets that were taken and are not done, in order."""

    def __len__(self) -> int:
        """Offsets that are taken and not done."""
        return len(self._open)

    def take(self, offset: int) -> bool:
        """False if it was taken before. Offsets may have gaps: transactions leave some."""
        if offset < self.next:
            return False
        self._open[offset] = None
        self.next = offset + 1
        return True

    def done(self, offset: int) -> None:
        self._open.pop(offset, None)

    @property
    def committable(self) -> int:
        """The lowest offset that is not done."""
        return next(iter(self._open), self.next)

    @property
    def span(self) -> int:
        """Offsets between the committable one and the last one taken."""
        return self.next - self.committable
