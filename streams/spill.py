"""Steps of open groups that would take more memory than allowed lie on a local disk, and are read when their group is decided.

A cache and no more: it is emptied at every start and never synced. If it is deleted under a worker, the worker ends at the
first step that it misses, and its replay brings everything back. What lies there has numbers for names: a step's id is its
sender's, and another group may have a step of the same one.
"""

import shutil
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import lmdb

from claw_r1.codec import decode_body, encode_body
from claw_r1.errors import ClawError
from claw_r1.events import Step
from streams.readiness import GroupState
from streams.state import Key, PartitionState

LIGHT: Final = (
    "fact_id",
    "run_id",
    "at",
    "prompt_uid",
    "trajectory_uid",
    "step_id",
    "status",
    "channel",
    "parent_step_id",
)
"""What of a spilled step stays in memory."""
_LIGHT: Final = set(LIGHT)
"""One for all: nobody changes it."""
STEP_BYTES: Final = 7_000
"""About what a step and its announcement take in memory besides the step's arrays and texts."""
MAP_BYTES: Final = 2**40
"""Addresses, not space: the file is as large as what lies in it."""
READ_KEPT: Final = 256
"""Steps read last that are kept: a merge looks at each of a trajectory's steps many times."""
_TEXTS: Final = ("new_prompt_ids", "response_ids", "rollout_log_probs", "new_messages", "reply", "request")


class SpillLost(ClawError):
    """A step is no longer where it was put."""


class SpilledStep(Step):
    """A Step of which LIGHT is here and the rest elsewhere; it looks like any other."""

    def __getattr__(self, name: str) -> Any:
        if name in Step.model_fields:
            spill, place = self.__dict__["_place"]
            return getattr(spill.read(place, self.step_id), name)
        raise AttributeError(name)


class Spill:
    """The spilled steps of one partition."""

    def __init__(self, folder: Path) -> None:
        """`folder` is this partition's own, and is emptied."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder = folder
        self._env = lmdb.open(str(folder), map_size=MAP_BYTES, sync=False, metasync=False, lock=False, max_readers=1)
        self._read: OrderedDict[bytes, Step] = OrderedDict()
        self._groups: dict[Key, tuple[GroupState, list[bytes]]] = {}
        self._next = 0
        self.steps = 0
        """How many lie here."""

    def put(self, groups: Iterable[GroupState], wanted: int) -> int:
        """Spill the steps of groups, one after another, until about `wanted` bytes of memory are freed; how many were."""
        freed = 0
        with self._env.begin(write=True) as transaction:
            for group in groups:
                if freed >= wanted:
                    break
                freed += self._put_one(group, transaction)
        return freed

    def _put_one(self, group: GroupState, transaction: Any) -> int:
        freed = _merged_bytes(group)
        group.merged.clear()
        _, places = self._groups.setdefault((group.run_id, group.prompt_uid), (group, []))
        for trajectory in group.trajectories.values():
            for step_id, step in trajectory.steps.items():
                if isinstance(step, SpilledStep):
                    continue
                place = self._next.to_bytes(8, "big")
                transaction.put(place, encode_body(step))
                freed += size_of(step)
                shared = {
                    "run_id": group.run_id,
                    "prompt_uid": group.prompt_uid,
                    "trajectory_uid": trajectory.trajectory_uid,
                    "step_id": step_id,
                }
                trajectory.steps[step_id] = self._spilled(step, place, shared)
                places.append(place)
                self._next += 1
                self.steps += 1
        return freed

    def _spilled(self, step: Step, place: bytes, shared: dict[str, Any]) -> SpilledStep:
        """`shared` is what is in memory anyway: each step came with texts of its own that say the same."""
        light = SpilledStep.__new__(SpilledStep)
        fields: dict[str, Any] = {name: getattr(step, name) for name in LIGHT}
        fields.update(shared)
        fields["_place"] = (self, place)
        for name, value in (
            ("__dict__", fields),
            ("__pydantic_fields_set__", _LIGHT),
            ("__pydantic_extra__", None),
            ("__pydantic_private__", None),
        ):
            object.__setattr__(light, name, value)
        return light

    def read(self, place: bytes, step_id: str) -> Step:
        """The step that was put there. Raises SpillLost."""
        if (known := self._read.get(place)) is not None:
            return known
        with self._env.begin() as transaction:
            body = transaction.get(place)
        if body is None:
            raise SpillLost(f"step {step_id} is not in {self._folder} any more: it is read from the log again")
        step = self._read[place] = decode_body(Step, body)
        if len(self._read) > READ_KEPT:
            self._read.popitem(last=False)
        return step

    def drop_closed(self, state: PartitionState) -> None:
        """Forget the steps of groups that are not open any more."""
        gone = [key for key, (group, _) in self._groups.items() if state.groups.get(key) is not group]
        if not gone:
            return
        with self._env.begin(write=True) as transaction:
            for key in gone:
                _, places = self._groups.pop(key)
                for place in places:
                    transaction.delete(place)
                self.steps -= len(places)

    def close(self) -> None:
        """Delete it all."""
        self._env.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def size_of(step: Step) -> int:
    """About the bytes that a step takes in memory."""
    return STEP_BYTES + sum(len(getattr(step, name) or b"") for name in _TEXTS)


def _merged_bytes(group: GroupState) -> int:
    """A row's ids, mask and log-probs, and the tree of tokens below it."""
    return sum(
        17 * len(row.loss_mask)
        for merged in group.merged.values()
        if merged is not None
        for rows in merged._rows.values()
        for row in rows
    )


def in_memory(groups: Iterable[GroupState]) -> int:
    """About the bytes that the steps of these groups, and what was merged of them, take in memory."""
    total = 0
    for group in groups:
        total += _merged_bytes(group)
        for trajectory in group.trajectories.values():
            total += sum(size_of(step) for step in trajectory.steps.values() if not isinstance(step, SpilledStep))
    return total


class Budget:
    """Keeps a partition's open groups within an amount of memory; the oldest are spilled first.

    What lies in memory is counted only when it could have passed the amount: the count of the last time and all that was taken
    in since. So a look at all open groups comes once in so many bytes, not once a batch.
    """

    def __init__(self, most: int, folder: Path) -> None:
        self._most = most
        self._folder = folder
        self._counted = 0
        self.spill: Spill | None = None

    def keep(self, state: PartitionState, taken: int) -> int:
        """`taken` bytes were added since the last call; the bytes that were spilled."""
        self._counted += taken
        if self._counted <= self._most:
            return 0
        self._counted = in_memory(state.groups.values())
        spilled = 0
        if self._counted > self._most * 3 // 4:
            spilled = self._spill_down_to(state, self._most // 2)
        self._counted -= spilled
        return spilled

    def _spill_down_to(self, state: PartitionState, wanted: int) -> int:
        if self.spill is None:
            self.spill = Spill(self._folder)
        self.spill.drop_closed(state)
        return self.spill.put(state.groups.values(), self._counted - wanted)  # in the order in which they were opened

    def tidy(self, state: PartitionState) -> int:
        """Forget what is not needed any more; how many steps are spilled."""
        if self.spill is None:
            return 0
        self.spill.drop_closed(state)
        return self.spill.steps

    def close(self) -> None:
        if self.spill is not None:
            self.spill.close()
            self.spill = None
