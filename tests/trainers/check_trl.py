"""TRL's GRPOTrainer takes its rollouts from batches: its masks, log-probs and advantages are theirs, and it learns from them.

Run by the trainers' Python (test_trainers.py), with a folder for what TRL writes.
"""

import math
import sys
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from tests.trainers.rollouts import CLOSE, END, PAD, WORDS, log_probs_of, make_batch, make_model
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.targets.trl import claw_reward

GENERATIONS = 4
STEPS = 2


def a_tokenizer() -> Any:
    """TRL wants one; no text comes from it or goes to it."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=f"w{PAD}", eos_token=f"w{END}", unk_token="w2")


def check(model: Any, batch: TrainingBatch, taken: dict[str, Any]) -> None:
    """What TRL made of the batch."""
    ids = torch.cat([taken["prompt_ids"], taken["completion_ids"]], 1)
    attention = torch.cat([taken["prompt_mask"], taken["completion_mask"]], 1)
    places = taken["completion_ids"].shape[1]
    mask = taken["completion_mask"] * taken["tool_mask"]
    assert ids[attention == 1].tolist() == batch.token_ids.tolist()
    assert mask.sum(-1).tolist() == [int(row.sum()) for row in batch.rows(batch.loss_mask)]
    with torch.no_grad():
        found = log_probs_of(model, ids, attention_mask=attention)[:, -places:]
    known = taken["sampling_per_token_logps"]
    assert ((found - known) * mask).abs().max() < 10 * CLOSE
    assert ((found - known.roll(1, 1)) * mask).abs().max() > 0.01, "a shift by one would be seen"
    assert np.allclose(taken["advantages"].numpy(), batch.advantage, atol=1e-3), "TRL adds 1e-4 to the deviation"


def main() -> None:
    model, first = make_model(), make_model()
    batches = [make_batch(first, [(1.0, 0.0, 0.5, 0.5), (2.0, 1.0, 1.0, -1.0)], seed) for seed in range(STEPS)]
    stream = iter(batches)

    def rollout(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        assert len(prompts) == len(batches[0])
        return next(stream).to_trl(num_generations=GENERATIONS)

    arguments = GRPOConfig(
        output_dir=sys.argv[-1],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=8,
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
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=claw_reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": f"w{number}"} for number in range(2, 10)]),
        processing_class=a_tokenizer(),
        rollout_func=rollout,
    )
    taken: list[dict[str, Any]] = []
    score = trainer._generate_and_score_completions

    def keep(inputs: Any) -> Any:
        taken.append(score(inputs))
        return taken[-1]

    trainer._generate_and_score_completions = keep
    trainer.train()
    assert len(taken) == STEPS
    for batch, of_step in zip(batches, taken, strict=True):
        check(first, batch, of_step)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == STEPS
    assert all(math.isfinite(log["loss"]) and log["grad_norm"] > 0 for log in logs)
    moved = sum(
        float((a - b).detach().abs().sum()) for a, b in zip(model.parameters(), first.parameters(), strict=True)
    )
    assert moved > 0


if __name__ == "__main__":
    main()
