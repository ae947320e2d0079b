"""TRL's rollouts, as its trainer takes them, go to the gateway too: so what is sampled in the trainer is pooled; checked with
TRL 1.16.

Invariants: what the trainer gets is what the rollout function and the reward functions gave; a trajectory that is not
recorded is an error here, never a hole in the pool.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

from claw_r1.client.rows import steps_of_row
from claw_r1.client.sync import Client
from claw_r1.errors import UserError
from claw_r1.ids import new_id

RolloutFunction = Callable[[list[Any], Any], dict[str, Any]]
RewardFunction = Callable[..., Sequence[float | None]]
AT_ONCE: Final = 8
"""Trajectories that are told at the same time."""
PROMPT, TRAJECTORY = "claw_prompt", "claw_trajectory"
"""Lists that a rollout has besides, an id for each row; TRL gives them to the reward functions by name."""


class PooledRollouts:
    """Rollouts and rewards of a `GRPOTrainer`, recorded as trajectories of this run.

        pooled = PooledRollouts(client, run_id="my-run")
        GRPOTrainer(…, rollout_func=pooled.rollout(rollout), reward_funcs=[pooled.reward(right), pooled.reward(short)])

    A row is a trajectory, `num_generations` rows in a run are a group. Its policy version is the trainer's `global_step`, its
    channel `channel` while the model trains and `val` else. Each reward function is a source of its name.
    """

    def __init__(self, client: Client, *, run_id: str | None = None, channel: str = "train") -> None:
        self._client = client
        self._run_id = run_id
        self._channel = channel

    def rollout(self, function: RolloutFunction) -> RolloutFunction:
        """The same `rollout_func`, whose rows are recorded before the trainer gets them.

        Raises UserError where a group's rows are on several processes, and what the client raises.
        """

        @functools.wraps(function)
        def pooled(prompts: list[Any], trainer: Any) -> dict[str, Any]:
            rows = function(prompts, trainer)
            trains = bool(trainer.model.training)
            size = int(trainer.num_generations if trains else trainer.num_generations_eval)
            return rows | self._record(prompts, rows, size, int(trainer.state.global_step), trains)

        return pooled

    def _record(
        self, prompts: Sequence[Any], rows: Mapping[str, Any], size: int, version: int, trains: bool
    ) -> dict[str, list[str]]:
        if len(prompts) % size:
            raise UserError(
                f"a process has {len(prompts)} rows, which are not groups of {size}: make per_device_train_batch_size times "
                "steps_per_generation a multiple of num_generations"
            )
        groups = [new_id() for _ in range(len(prompts) // size)]
        channel = self._channel if trains else "val"
        for group in groups:
            self._client.open_group(size=size, prompt_uid=group, run_id=self._run_id, channel=channel)

        def record(row: int) -> str:
            log_probs = rows["logprobs"][row]
            ids = rows["completion_ids"][row]
            mask = rows["env_mask"][row] if rows.get("env_mask") is not None else [1] * len(ids)
            steps = steps_of_row(rows["prompt_ids"][row], ids, mask, log_probs, policy_version=version)
            if isinstance(prompts[row], list):  # the first turn's prompt; of later ones no messages are known
                steps[:1] = [replace(step, messages=prompts[row]) for step in steps[:1]]
            group = groups[row // size]
            place = {"prompt_uid": group, "run_id": self._run_id, "channel": channel}
            with self._client.trajectory(**place, metadata={"trainer": "trl"}) as trajectory:
                if steps:
                    trajectory.submit_steps(steps)
            return trajectory.trajectory_uid

        with ThreadPoolExecutor(AT_ONCE) as threads:
            trajectories = list(threads.map(record, range(len(prompts))))
        return {PROMPT: [groups[row // size] for row in range(len(prompts))], TRAJECTORY: trajectories}

    def reward(self, function: RewardFunction, *, source: str | None = None) -> RewardFunction:
        """The same reward function, whose values are recorded; None is none. `source`: instead of the function's name.

        Raises UserError for a coroutine function, which TRL awaits.
        """
        if inspect.iscoroutinefunction(function):
            raise UserError(f"{function.__name__} is a coroutine function: wrap one that returns its values")
        name = source or function.__name__

        @functools.wraps(function)
        def pooled(*args: Any, **named: Any) -> Sequence[float | None]:
            values = function(*args, **named)
            places = list(zip(named[PROMPT], named[TRAJECTORY], values, strict=True))

            def tell(place: tuple[str, str, float | None]) -> None:
                prompt, trajectory, value = place
                if value is not None:
                    self._client.reward(
                        float(value), trajectory_uid=trajectory, prompt_uid=prompt, run_id=self._run_id, source=name
                    )

            with ThreadPoolExecutor(AT_ONCE) as threads:
                list(threads.map(tell, places))
            return values

        return pooled
