"""What the trainer's kill tests play: recipes with the same groups, trainers on them, and what had an effect afterwards."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claw_r1.events import BatchCut, BatchTrained, Decision
from claw_r1.ids import derived_id
from tests.integration.adapter_stand import AdapterStand, an_adapter_stand
from tests.kill.trainer.program import FIRST, Plan
from tests.warm import Started

PROGRAM = "tests.kill.trainer.program"
GROUPS_OF_BATCH = 2
Effect = tuple[int, str, int]
"""Sequence, digest and policy version of a batch that was committed."""


@dataclass
class Trainers:
    """A recipe, and the trainers that it has one after the other."""

    stand: AdapterStand
    folder: Path
    batches: int
    keeps_cursor: bool = True
    _log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._log = self.folder / "trainer.log"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.json"

    @property
    def trace(self) -> Path:
        return self.folder / "trace"

    def begin(self, point: str = "", at: int = 0, signal: str = "KILL", holder: str = FIRST) -> Started:
        """A trainer that goes on to the last batch, unless it is struck before."""
        plan = Plan(
            kafka=self.stand.kafka,
            recipe=self.stand.recipe.name,
            checkpoint=str(self.checkpoint),
            trace=str(self.trace),
            batches=self.batches,
            keeps_cursor=self.keeps_cursor,
            point=point,
            at=at,
            signal=signal,
            holder=holder,
        )
        with self._log.open("ab") as log:
            return Started(PROGRAM, plan.to_json(), stdout=log, stderr=log)

    async def end(self, trainer: Started, status: int = 0) -> None:
        """Wait until it ends, and with what status."""
        found = await asyncio.to_thread(trainer.wait, 120)
        assert found == status, f"a trainer ended with {found}:\n{self.logged()[-3_000:]}"

    async def run(self, status: int = 0, **how: Any) -> None:
        await self.end(self.begin(**how), status)

    def logged(self) -> str:
        return self._log.read_text(errors="replace")

    def operations(self) -> list[str]:
        """What was begun, in order; a record that is one of several on a topic is named once."""
        lines = dict.fromkeys(self.trace.read_text().splitlines())
        return [line.partition(" ")[2] for line in lines]

    async def cuts(self) -> list[tuple[int, str, list[str], list[str]]]:
        """What each cut holds, in log order."""
        return [
            (event.sequence, event.digest, [m.group_id for m in event.members], [e.group_id for e in event.excluded])
            for event in await self.stand.history()
            if isinstance(event, BatchCut)
        ]

    async def commits(self) -> list[Effect]:
        """In log order."""
        history = await self.stand.history()
        digests = {event.batch_id: event.digest for event in history if isinstance(event, BatchCut)}
        return [(e.sequence, digests[e.batch_id], e.policy_version) for e in history if isinstance(e, BatchTrained)]


@contextlib.asynccontextmanager
async def two_recipes(kafka: str, folder: Path, batches: int) -> AsyncIterator[tuple[Trainers, Trainers]]:
    """The same groups and decisions in two recipes: for a trainer that is left alone, and for one that is not."""
    rules: dict[str, Any] = {"batch": {"groups": GROUPS_OF_BATCH}, "group": {"size": 2, "min_size": 1}}
    async with an_adapter_stand(kafka, **rules) as quiet, an_adapter_stand(kafka, **rules) as struck:
        number = GROUPS_OF_BATCH * batches * 2  # some cannot be trained
        groups = [quiet.group(n, mask=(0, 0, 0, 1) if n % 3 else (0,) * 4) for n in range(number)]
        for stand in (quiet, struck):
            await stand.publish(*groups)
            for said in some_decisions(quiet.recipe.run_id):
                await stand.send(stand.topic, said, f"{said.run_id}/{said.prompt_uid}")
        yield Trainers(quiet, folder / "quiet", batches), Trainers(struck, folder / "struck", batches)


def some_decisions(run: str) -> list[Decision]:
    said: list[dict[str, Any]] = [
        {"action": "veto", "prompt_uid": "g4"},
        {"action": "veto", "prompt_uid": "g7", "trajectory_uid": "g7-t0"},
        {"action": "override_reward", "prompt_uid": "g10", "trajectory_uid": "g10-t1", "value": 2.5},
    ]
    head = {"run_id": run, "at": 1.0, "author": "ada"}
    return [Decision.model_validate(head | {"fact_id": derived_id(str(about))} | about) for about in said]


def effective(commits: list[Effect]) -> list[Effect]:
    """The commits whose weights were kept: a batch that came again, and every batch after it, counts from there on."""
    kept: list[Effect] = []
    for commit in commits:
        kept = [*(one for one in kept if one[0] < commit[0]), commit]
    return kept
