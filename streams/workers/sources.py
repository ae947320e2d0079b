"""A trajectory becomes the facts of one source: the rewards of a function, or an engine's log-probs of its tokens.

Invariants: the same trajectory gives facts of the same ids; what could not be made is a Missing, never a 0 and never an array
with holes; an array has as many values as the response has tokens.
"""

import asyncio
import logging
import math
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

from claw_r1 import metrics
from claw_r1.codec import pack_floats
from claw_r1.event_base import Packed
from claw_r1.events import Annotation, Reward, Trajectory
from claw_r1.ids import derived_id
from claw_r1.rewards.engines import Engine, pick
from claw_r1.rewards.rollout import Missing, StepView, rollout_of
from claw_r1.rewards.running import Runner, retrying
from claw_r1.settings import AnnotationSource
from streams.workers.leaves import leaves_of

Steps = Callable[[], Awaitable[Sequence[StepView]]]
"""Gives the trajectory's steps, read once however many sources ask."""
PATH: Final = "/v1/completions"

log = logging.getLogger("claw.workers")


class Source(Protocol):
    """What writes facts about trajectories, each of its own kind."""

    name: str

    async def facts(self, trajectory: Trajectory, steps: Steps) -> Sequence[Reward | Annotation]:
        """Raises Missing: there is none, for its reason."""
        ...

    async def close(self) -> None: ...


class RewardSource:
    """A reward function."""

    def __init__(self, runner: Runner) -> None:
        self.name = runner.function.name
        self._runner = runner

    async def facts(self, trajectory: Trajectory, steps: Steps) -> Sequence[Reward]:
        function = self._runner.function
        needed = bool(trajectory.step_ids) and (function.steps or trajectory.messages is None)
        rollout = rollout_of(trajectory, await steps() if needed else ())
        score = await self._runner.score(rollout)
        if unknown := sorted(score.steps.keys() - set(trajectory.step_ids)):
            raise Missing("bad_value", f"the function scored {unknown[0][:80]!r}, which is no step of the trajectory")
        at = time.time()
        found: list[Reward] = []
        if score.value is not None:
            found.append(self._reward(trajectory, None, score.value, at, score.components, score.metadata))
        return found + [self._reward(trajectory, step, value, at) for step, value in sorted(score.steps.items())]

    def _reward(self, trajectory: Trajectory, step_id: str | None, value: float, at: float, *more: Any) -> Reward:
        """A source's revision of a reward is one fact, whatever its value, as at the gateway."""
        components, metadata = more or ({}, {})
        revision = self._runner.function.revision
        target = (trajectory.run_id, trajectory.prompt_uid, trajectory.trajectory_uid, step_id)
        return Reward(
            fact_id=derived_id("reward", *target, self.name, revision),
            run_id=trajectory.run_id,
            prompt_uid=trajectory.prompt_uid,
            trajectory_uid=trajectory.trajectory_uid,
            step_id=step_id,
            at=at,
            source=self.name,
            value=value,
            components=dict(components),
            revision=revision,
            metadata=dict(metadata),
        )

    async def close(self) -> None:
        await self._runner.close()


class LogProbSource:
    """An engine that says its log-probs of given tokens: a reference or a teacher of the same vocabulary."""

    def __init__(self, spec: AnnotationSource, *, timeout: float, attempts: int, calls: int) -> None:
        self.name = spec.name
        self._spec = spec
        self._source = spec.source or re.sub(r"[^A-Za-z0-9_.-]+", "-", spec.model or "").strip("-._")[:128] or "engine"
        key = os.environ.get(spec.key_variable) if spec.key_variable else None
        self._engine = Engine(spec.engine, model=spec.model, key=key)
        self._timeout, self._attempts = timeout, attempts
        self._free = asyncio.Semaphore(calls)

    async def facts(self, trajectory: Trajectory, steps: Steps) -> Sequence[Annotation]:
        """Of the steps that can be trained; one call a leaf of those that continue each other."""
        if not trajectory.step_ids:
            return []
        told = [step for step in await steps() if self._can_be_told(step)]
        contexts = [_context(step) for step in told]
        leaves = leaves_of(contexts)
        asked = sorted(set(leaves))
        answers = dict(zip(asked, await asyncio.gather(*(self._ask(contexts[n]) for n in asked)), strict=True))
        missing = [answer for answer in answers.values() if isinstance(answer, Missing)]
        facts: list[Annotation] = []
        for step, leaf in zip(told, leaves, strict=True):
            answer = answers[leaf]
            if not isinstance(answer, Missing):
                facts.append(self._annotation(trajectory, step, answer))
        if missing and not facts:
            raise missing[0]
        for error in missing:  # what the other leaves gave is not lost with it
            metrics.WORKERS_MISSING.labels(self.name, error.reason).inc()
            log.warning("a leaf could not be annotated", extra={"reason": error.reason, "why": str(error)[:500]})
        return facts

    def _can_be_told(self, step: StepView) -> bool:
        """Whether the step can be trained, and its ids say all of its prompt."""
        if step.status != "complete" or step.role != "policy" or not len(step.response_ids):
            return False
        reason = "media" if step.media else None if len(step.prompt_ids) else "context_lost"
        if reason is not None:
            metrics.WORKERS_MISSING.labels(self.name, reason).inc()
        return reason is None

    async def _ask(self, context: Packed) -> list[float] | Missing:
        try:
            return await retrying(self.name, self._attempts, lambda: self._attempt(context))
        except Missing as error:
            return error

    async def _attempt(self, context: Packed) -> list[float]:
        ids = memoryview(context).cast("I").tolist()
        body = {"prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        async with self._free:
            try:
                async with asyncio.timeout(self._timeout):
                    answer = await self._engine.post(PATH, body)
            except TimeoutError as error:
                raise Missing("late", f"the engine gave nothing for {self._timeout:g} s", retry=True) from error
        return log_probs_of(pick(answer, "choices", 0, "prompt_logprobs"), ids)

    def _annotation(self, trajectory: Trajectory, step: StepView, values: Sequence[float]) -> Annotation:
        start = len(step.prompt_ids) - 1  # nothing is said of the first token
        mine = values[start : start + len(step.response_ids)]
        place = (trajectory.run_id, trajectory.prompt_uid, trajectory.trajectory_uid, step.step_id)
        return Annotation(
            fact_id=derived_id("annotation", *place, self.name, self._source, self._spec.revision),
            run_id=trajectory.run_id,
            prompt_uid=trajectory.prompt_uid,
            trajectory_uid=trajectory.trajectory_uid,
            step_id=step.step_id,
            at=time.time(),
            name=self.name,
            source=self._source,
            values=pack_floats(mine),
            revision=self._spec.revision,
        )

    async def close(self) -> None:
        await self._engine.close()


def _context(step: StepView) -> Packed:
    return step.prompt_ids.astype("<u4").tobytes() + step.response_ids.astype("<u4").tobytes()


def log_probs_of(told: Any, ids: Sequence[int]) -> list[float]:
    """A log-prob for each id but the first, which nothing precedes. `told` is vLLM's `prompt_logprobs`.

    Raises Missing: bad_reply, not_finite.
    """
    if not isinstance(told, list) or len(told) != len(ids):
        count = len(told) if isinstance(told, list) else "no"
        raise Missing("bad_reply", f"the engine gave {count} log-probs for {len(ids)} tokens")
    found: list[float] = []
    for token, entry in zip(ids[1:], told[1:], strict=True):
        value = pick(entry, str(token), "logprob")
        if not isinstance(value, int | float):
            raise Missing("bad_reply", f"the engine's log-prob of token {token} is no number")
        if not math.isfinite(value):
            raise Missing("not_finite", f"the engine's log-prob of token {token} is {value}")
        found.append(float(value))
    return found
