"""TRL's GRPOTrainer takes its rollouts from a live stream: what was sampled and told to the gateway is what it trains on, to
the bit; its masks, log-probs and advantages are those of the batches, it learns from them, and commits them. The trainer is
the one of docs/connect/trl.md, word for word.

Run by the trainers' Python (test_live.py), with a folder for what TRL writes, and the addresses of broker and gateway.
"""

import asyncio
import math
import sys
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from claw_r1.client.sync import Client
from claw_r1.recipes import Recipe
from claw_r1.registry import apply_recipe
from tests.documents import blocks
from tests.trainers.rollouts import CLOSE, END, PAD, WORDS, log_probs_of, make_model
from tests.trainers.sampling import Row, play_group
from trainer_adapter import Batch, BatchStream, TrainingBatch

GUIDE = "docs/connect/trl.md"
GENERATIONS = 4
REWARDS = [(1.0, 0.0, 0.5, 0.5), (2.0, 1.0, 1.0, -1.0)]
STEPS = 2


def a_tokenizer() -> Any:
    """TRL wants one; no text comes from it or goes to it."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=f"w{PAD}", eos_token=f"w{END}", unk_token="w2")


def difference(model: Any, taken: dict[str, Any]) -> float:
    """The largest difference of the model's log-probs from those that TRL holds for the rollout's, on trained tokens."""
    ids = torch.cat([taken["prompt_ids"], taken["completion_ids"]], 1)
    attention = torch.cat([taken["prompt_mask"], taken["completion_mask"]], 1)
    places = taken["completion_ids"].shape[1]
    with torch.no_grad():
        found = log_probs_of(model, ids, attention_mask=attention)[:, -places:]
    mask = taken["completion_mask"] * taken["tool_mask"]
    return float(((found - taken["sampling_per_token_logps"]) * mask).abs().max())


def spoil(taken: dict[str, Any], how: str) -> dict[str, Any]:
    taken = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in taken.items()}
    trained = (taken["completion_mask"] * taken["tool_mask"]).nonzero()
    row, place = (int(one) for one in trained[len(trained) // 2])
    if how == "a log-prob":
        taken["sampling_per_token_logps"][row, place] += 0.01
    elif how == "all by one":
        taken["sampling_per_token_logps"] = taken["sampling_per_token_logps"].roll(1, 1)
    else:
        taken["completion_ids"][row, place] = 2 + (taken["completion_ids"][row, place] - 1) % 50
    return taken


def check(model: Any, batch: TrainingBatch, taken: dict[str, Any]) -> None:
    """What TRL made of the batch."""
    ids = torch.cat([taken["prompt_ids"], taken["completion_ids"]], 1)
    attention = torch.cat([taken["prompt_mask"], taken["completion_mask"]], 1)
    mask = taken["completion_mask"] * taken["tool_mask"]
    assert ids[attention == 1].tolist() == batch.token_ids.tolist()
    assert mask.sum(-1).tolist() == [int(row.sum()) for row in batch.rows(batch.loss_mask)]
    assert difference(model, taken) < 10 * CLOSE
    for how in ("a log-prob", "all by one", "an id"):
        assert difference(model, spoil(taken, how)) > 1e-3, f"{how} that is wrong would be seen"
    assert np.allclose(taken["advantages"].numpy(), batch.advantage, atol=1e-3), "TRL adds 1e-4 to the deviation"


def check_rows(batch: TrainingBatch, played: dict[str, Row]) -> None:
    """The batch is what was sampled, to the bit: ids, mask, log-probs."""
    columns = (batch.token_ids, batch.loss_mask, batch.rollout_log_probs)
    for uid, ids, mask, known in zip(batch.trajectory_uids, *(batch.rows(column) for column in columns), strict=True):
        row = played.pop(uid)
        assert ids.tolist() == row.ids
        assert mask.tolist() == [0] * len(row.prompt) + row.mask
        assert np.array_equal(known[mask == 1], np.array(row.log_probs, np.float32)[np.array(row.mask) == 1])
    assert not played, "every trajectory is in the batch"


def snippet() -> Any:
    """The trainer of the guide."""
    _, trainer = blocks(GUIDE, "python")
    return compile(trainer, GUIDE, "exec")


class Played:
    """A stream whose batches are sampled with the trainer's weights when they are asked for, and told to the gateway."""

    def __init__(self, stream: BatchStream, client: Client, recipe: str, model: Any) -> None:
        self._stream, self._client, self._recipe, self._model = stream, client, recipe, model
        self._draw = torch.Generator().manual_seed(0)
        self.batches: list[Batch] = []
        self.models: list[Any] = []

    @property
    def policy_version(self) -> int | None:
        return self._stream.policy_version

    def next(self, _: float) -> Batch:
        version = self.policy_version or 0
        self.models.append(make_model())  # a copy of one that is being trained would call the trained one
        self.models[-1].load_state_dict(self._model.state_dict())
        about = {"run_id": self._recipe, "version": version, "draw": self._draw}
        played = [play_group(self._client, self.models[-1], rewards, **about) for rewards in REWARDS]
        batch = self._stream.next(60)
        check_rows(batch, {uid: row for group in played for uid, row in group.items()})
        assert (batch.policy_version[batch.loss_mask == 1] == version).all()
        self.batches.append(batch)
        return batch


def keep_what_is_taken() -> list[dict[str, Any]]:
    """The batches of every trainer from now on, as it made them."""
    taken: list[dict[str, Any]] = []
    score = GRPOTrainer._generate_and_score_completions

    def keep(self: Any, inputs: Any) -> Any:
        taken.append(score(self, inputs))
        return taken[-1]

    GRPOTrainer._generate_and_score_completions = keep
    return taken


def learn(kafka: str, gateway: str, recipe: str, folder: str) -> None:
    """The documented trainer, twice: what a fresh one commits is above the versions of the one before."""
    taken = keep_what_is_taken()
    for number in (1, 2):
        model = make_model()
        with Client(gateway) as client, BatchStream(recipe, kafka=kafka) as stream:
            played = Played(stream, client, recipe, model)
            names = {"stream": played, "model": model, "arguments": settings(folder), "tokenizer": a_tokenizer()}
            placeholders = Dataset.from_list([{"prompt": f"w{number}"} for number in range(2, 10)])
            exec(snippet(), names := names | {"placeholders": placeholders})
            assert (stream.cursor(), stream.policy_version) == (number * STEPS, number * STEPS), "all is committed"
        assert len(played.batches) == len(taken) == STEPS
        for of_step, batch, what_trl_took in zip(played.models, played.batches, taken, strict=True):
            check(of_step, batch, what_trl_took)
        logs = [log for log in names["trainer"].state.log_history if "loss" in log]
        assert len(logs) == STEPS
        assert all(math.isfinite(log["loss"]) and log["grad_norm"] > 0 for log in logs)
        moved = zip(model.parameters(), played.models[0].parameters(), strict=True)
        assert sum(float((a - b).detach().abs().sum()) for a, b in moved) > 0
        taken.clear()


def settings(folder: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=GENERATIONS * len(REWARDS),
        num_generations=GENERATIONS,
        max_completion_length=64,
        max_steps=STEPS,
        learning_rate=1e-3,
        beta=0.0,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def main() -> None:
    folder, kafka, gateway = sys.argv[-3:]
    rules = {"group": {"size": GENERATIONS}, "batch": {"groups": len(REWARDS)}, "staleness": {"max_versions": 0}}
    recipe = Recipe.model_validate({"name": "trl-live", "run_id": "trl-live", **rules})
    asyncio.run(apply_recipe(kafka, recipe))
    learn(kafka, gateway, recipe.name, folder)


if __name__ == "__main__":
    main()
