"""The records of a recipe's topic become ready groups, in ready order, each with its samples.

Pure fold over (offset, event). Invariants:
- samples come before their group's marker; the first marker of a group wins, so does the first sample of an id;
- a group that a cut has taken never comes back; groups and samples seen twice are counted;
- whatever is held has a bound: bodies in bytes (beyond it only what judging needs is kept, and the cut reads them again),
  samples without a marker and remembered groups in number.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from claw_r1.codec import unpack_ids, unpack_mask
from claw_r1.events import Event, GroupReady, Sample
from claw_r1.ids import derived_id
from trainer_adapter.batch import rewards_of

GroupKey = tuple[str, str]
"""(run_id, group_id)"""

REASONS = {
    "samples_missing": "the marker names samples that the topic does not hold",
    "no_reward": "a sample's trajectory has no reward",
    "token_id_too_large": "a token id does not fit into a signed 32-bit integer",
    "no_trained_tokens": "every token of the group is masked",
    "unknown_version": "a trained token's policy version is not known, and the recipe drops such groups",
    "stale": "a trained token is older than staleness.max_versions allows",
}
"""Why a ready group is left out of a batch."""


@dataclass(frozen=True)
class HeldSample:
    """A sample as far as it is judged, with its body while there is room."""

    sample_id: str
    trajectory_uid: str
    offset: int
    trained_tokens: int
    oldest_version: int | None
    """Of the trained tokens whose version is known."""
    version_unknown: bool
    """Some trained token's version is not known."""
    too_large: bool
    body: Sample | None


@dataclass(frozen=True)
class ReadyGroup:
    """A group whose marker was read."""

    marker: GroupReady
    offset: int
    """Of the marker."""
    samples: tuple[HeldSample, ...]
    """In the marker's order; without those that are missing."""
    ready_at: float
    """When the broker appended the marker, seconds since the epoch."""

    @property
    def key(self) -> GroupKey:
        return self.marker.run_id, self.marker.group_id

    @cached_property
    def first_offset(self) -> int:
        """Lowest offset that holds a part of the group."""
        return min([self.offset, *(sample.offset for sample in self.samples)])

    @cached_property
    def fault(self) -> str | None:
        """Why the group can never be trained, whatever the recipe says."""
        if len(self.samples) != len(self.marker.sample_ids):
            return "samples_missing"
        rewarded = rewards_of(self.marker)
        if any(sample.trajectory_uid not in rewarded for sample in self.samples):
            return "no_reward"
        if any(sample.too_large for sample in self.samples):
            return "token_id_too_large"
        if not any(sample.trained_tokens for sample in self.samples):
            return "no_trained_tokens"
        return None


class Remembered:
    """The newest `bound` groups that cuts have taken."""

    def __init__(self, bound: int = 1_000_000) -> None:
        self._bound = bound
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def add(self, keys: Iterable[GroupKey]) -> None:
        for key in keys:
            self._keys[_short(key)] = None
        while len(self._keys) > self._bound:
            self._keys.popitem(last=False)

    def __contains__(self, key: GroupKey) -> bool:
        return _short(key) in self._keys


def _short(key: GroupKey) -> bytes:
    return bytes.fromhex(derived_id(*key))


class Shelf:
    """Ready groups that no cut has taken, and samples that wait for their marker."""

    def __init__(
        self, taken: Remembered, *, floor: int = 0, max_bytes: int = 512 * 2**20, max_strays: int = 100_000
    ) -> None:
        self.ready: list[ReadyGroup] = []
        """In ready order."""
        self.counts: Counter[str] = Counter()
        """What was not taken in, by reason: duplicate_group, duplicate_sample, unnamed_sample, stray_sample, other_event."""
        self.floor = floor
        """Markers below are in a cut."""
        self._taken = taken
        self._max_bytes = max_bytes
        self._max_strays = max_strays
        self._bytes = 0
        self._strays: OrderedDict[GroupKey, dict[str, HeldSample]] = OrderedDict()
        self._n_strays = 0
        self._ready_keys: set[GroupKey] = set()

    @property
    def strays(self) -> int:
        """Samples that wait for their group's marker."""
        return self._n_strays

    @property
    def held_bytes(self) -> int:
        """Bytes of the bodies in memory."""
        return self._bytes

    def put(self, offset: int, event: Event, at: float) -> None:
        """Take in the record at `offset`, appended at `at` seconds since the epoch; offsets must rise."""
        if isinstance(event, Sample):
            self._put_sample(offset, event)
        elif isinstance(event, GroupReady):
            self._put_marker(offset, event, at)
        else:
            self.counts["other_event"] += 1

    def _put_sample(self, offset: int, sample: Sample) -> None:
        key = (sample.run_id, sample.group_id)
        if key in self._ready_keys or key in self._taken:
            self.counts["duplicate_sample"] += offset >= self.floor
            return
        waiting = self._strays.setdefault(key, {})
        if sample.sample_id in waiting:
            self.counts["duplicate_sample"] += 1
            return
        fits = self._bytes + _size(sample) <= self._max_bytes
        waiting[sample.sample_id] = judge_sample(offset, sample, keep=fits)
        self._bytes += _size(sample) if fits else 0
        self._n_strays += 1
        while self._n_strays > self._max_strays:
            self._drop_strays(next(iter(self._strays)), "stray_sample")

    def _put_marker(self, offset: int, marker: GroupReady, at: float) -> None:
        key = (marker.run_id, marker.group_id)
        if offset < self.floor:
            return
        if key in self._ready_keys or key in self._taken:
            self.counts["duplicate_group"] += 1
            return
        waiting = self._strays.get(key, {})
        named = [waiting.pop(sample_id) for sample_id in dict.fromkeys(marker.sample_ids) if sample_id in waiting]
        self._n_strays -= len(named)
        self._drop_strays(key, "unnamed_sample")
        self.ready.append(ReadyGroup(marker, offset, tuple(named), at))
        self._ready_keys.add(key)

    def _drop_strays(self, key: GroupKey, reason: str) -> None:
        dropped = self._strays.pop(key, {})
        self._n_strays -= len(dropped)
        self.counts[reason] += len(dropped)
        self._release(dropped.values())

    def _release(self, samples: Iterable[HeldSample]) -> None:
        self._bytes -= sum(_size(sample.body) for sample in samples if sample.body is not None)

    def settle(self, cursor: int) -> None:
        """Let go of what cuts have taken; the last of them ends at `cursor`."""
        self.floor = cursor
        gone = [group for group in self.ready if group.offset < cursor or group.key in self._taken]
        for group in gone:
            self._ready_keys.discard(group.key)
            self._release(group.samples)
        if gone:
            self.ready = [group for group in self.ready if group.key in self._ready_keys]
        for key in [key for key in self._strays if key in self._taken]:
            self._drop_strays(key, "duplicate_sample")

    def resume_at(self, cursor: int, leaving: Iterable[ReadyGroup] = ()) -> int:
        """Where to read on after a cut that ends at `cursor` and takes the groups `leaving`: no sample of a later group
        lies below."""
        taken = {group.key for group in leaving}
        later = [group.first_offset for group in self.ready if group.key not in taken]
        waiting = [sample.offset for group in self._strays.values() for sample in group.values()]
        return min([cursor, *later, *waiting])


def judge_sample(offset: int, sample: Sample, *, keep: bool = True) -> HeldSample:
    """What a cut needs to know of a sample; its body stays if `keep`."""
    mask = unpack_mask(sample.loss_mask)
    trained = int(np.count_nonzero(mask))
    known = 0
    oldest: int | None = None
    for span in sample.version_spans:
        inside = int(np.count_nonzero(mask[span.start : span.end]))
        if inside and span.version is not None:
            known += inside
            oldest = span.version if oldest is None else min(oldest, span.version)
    return HeldSample(
        sample.sample_id,
        sample.trajectory_uid,
        offset,
        trained,
        oldest,
        known < trained,
        bool(unpack_ids(sample.token_ids).max(initial=0) >= 2**31),
        sample if keep else None,
    )


def _size(sample: Sample) -> int:
    return 9 * len(sample.loss_mask) + 2048  # three columns, and about what the objects around them take
