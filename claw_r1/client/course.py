"""A trajectory that a client works on: what was said of it decides the ids, indexes and revisions of what is said next.

Invariants: no network here; steps count from 0; a reward or an annotation that is given anew has the next revision.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from claw_r1.client import requests
from claw_r1.client.calls import Call, Done, Floats, Generated, Ids, Json, Submitted, Trajectory
from claw_r1.client.steps import Step
from claw_r1.recipes import EndStatus

_NOTHING: Final[Mapping[str, Any]] = {}


class Course:
    """Where the trajectory is, and how far it is."""

    def __init__(self, began: Trajectory) -> None:
        self._began = began
        self._steps = 0
        self._revisions: Counter[tuple[str, ...]] = Counter()
        self.ended = False

    @property
    def base_url(self) -> str:
        """For an agent's client, ending in /v1."""
        return self._began.base_url

    @property
    def api_key(self) -> str:
        """For an agent's client: good for this trajectory only."""
        return self._began.session_key

    @property
    def trajectory_uid(self) -> str:
        return self._began.trajectory_uid

    @property
    def prompt_uid(self) -> str:
        return self._began.prompt_uid

    @property
    def run_id(self) -> str:
        return self._began.run_id

    def _place(self) -> dict[str, str]:
        return {"trajectory_uid": self.trajectory_uid, "prompt_uid": self.prompt_uid, "run_id": self.run_id}

    def _revision(self, *what: str) -> int:
        self._revisions[what] += 1
        return self._revisions[what] - 1

    def _submit(self, steps: Sequence[Step]) -> Call[Submitted]:
        counted = []
        for step in steps:
            index = self._steps if step.step_index is None else step.step_index
            counted.append(replace(step, step_index=index))
            self._steps = index + 1
        return requests.submit_steps(counted, **self._place())

    def _generate(self, prompt_ids: Ids, sampling_params: Json) -> Call[Generated]:
        return requests.generate(prompt_ids, sampling_params, trajectory_uid=self.trajectory_uid)

    def _reward(
        self,
        value: float | None,
        source: str,
        step_id: str | None,
        components: Mapping[str, float],
        revision: int | None,
        metadata: Json,
    ) -> Call[Done]:
        return requests.reward(
            value,
            step_id=step_id,
            source=source,
            components=components,
            revision=self._revision("reward", source, step_id or "") if revision is None else revision,
            metadata=metadata,
            **self._place(),
        )

    def _annotate(self, step_id: str, name: str, values: Floats, source: str, revision: int | None) -> Call[Done]:
        return requests.annotate(
            step_id,
            name,
            values,
            source=source,
            revision=self._revision("annotation", name, source, step_id) if revision is None else revision,
            **self._place(),
        )

    def _end(self, reward: float | None, status: EndStatus, reason: str | None) -> Call[Done]:
        place = self._place()
        return requests.complete_trajectory(
            place.pop("trajectory_uid"),
            prompt_uid=self.prompt_uid,
            run_id=self.run_id,
            reward=reward,
            status=status,
            reason=reason,
        )


def end_of(error: BaseException | None) -> tuple[EndStatus, str | None]:
    """How a trajectory ends whose block was left so: an error fails it, an interruption aborts it."""
    if error is None:
        return "completed", None
    told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return "failed" if isinstance(error, Exception) and not isinstance(
        error, asyncio.CancelledError
    ) else "aborted", told
