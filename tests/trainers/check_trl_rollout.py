"""examples/trl_rollout.py runs, and what the pool has of it is what TRL trained on: ids, masks, log-probs, version, rewards.

Run by the trainers' Python (test_live.py), in a folder with the model `model`, with the addresses of broker and gateway.
"""

import sys
from typing import Any

import numpy as np
from trl import GRPOTrainer

from examples import trl_rollout
from tests.trainers.pooled import next_batch, take_all

STEPS = 2
RUN = "trl-rollout"


def keep_what_is_taken() -> list[dict[str, Any]]:
    """The batches of every trainer from now on, as it made them."""
    taken: list[dict[str, Any]] = []
    score = GRPOTrainer._generate_and_score_completions

    def keep(self: Any, inputs: Any) -> Any:
        taken.append(score(self, inputs))
        return taken[-1]

    GRPOTrainer._generate_and_score_completions = keep
    return taken


def rows_of(taken: dict[str, Any], version: int) -> dict[bytes, tuple[Any, ...]]:
    """By token ids: mask, log-probs, version and advantage of each row that TRL trained on."""
    rows = {}
    for row in range(len(taken["prompt_ids"])):
        prompt = taken["prompt_ids"][row][taken["prompt_mask"][row] == 1].numpy()
        there = taken["completion_mask"][row] == 1
        mask = np.concatenate((np.zeros(len(prompt)), taken["tool_mask"][row][there].numpy()))
        known = np.concatenate((np.zeros(len(prompt)), taken["sampling_per_token_logps"][row][there].numpy()))
        ids = np.concatenate((prompt, taken["completion_ids"][row][there].numpy()))
        rows[ids.astype(np.int32).tobytes()] = (mask, known, version, float(taken["advantages"][row]))
    return rows


def main() -> None:
    kafka, gateway = sys.argv[-2:]
    groups = STEPS * len(trl_rollout.QUESTIONS)
    sources = (trl_rollout.varied.__name__, trl_rollout.short.__name__)
    recipe = take_all(kafka, RUN, size=trl_rollout.GENERATIONS, groups=groups, sources=sources)
    taken = keep_what_is_taken()
    trainer = trl_rollout.train(gateway, "model", STEPS, run_id=RUN)
    assert trainer.state.global_step == len(taken) == STEPS
    trained = {ids: row for step, one in enumerate(taken) for ids, row in rows_of(one, step).items()}
    batch = next_batch(kafka, recipe)
    assert len(batch) == len(trained) == groups * trl_rollout.GENERATIONS
    columns = (batch.token_ids, batch.loss_mask, batch.rollout_log_probs, batch.policy_version)
    for number, (ids, mask, known, versions) in enumerate(
        zip(*(batch.rows(column) for column in columns), strict=True)
    ):
        its_mask, its_known, version, advantage = trained.pop(ids.tobytes())
        assert np.array_equal(mask, its_mask)
        assert 0 < mask.sum() < len(mask)
        assert np.array_equal(known[mask == 1], its_known.astype(np.float32)[mask == 1])
        assert (versions[mask == 1] == version).all()
        response = ids[np.flatnonzero(mask)[0] :].tolist()
        parts = {f.__name__: f([response])[0] for f in (trl_rollout.varied, trl_rollout.short)}
        assert batch.reward_components[number] == parts
        assert np.isclose(batch.reward[number], sum(parts.values()))
        assert np.isclose(batch.advantage[number], advantage, rtol=0.02), "TRL adds 1e-4 to the deviation"
    assert not trained


if __name__ == "__main__":
    main()
