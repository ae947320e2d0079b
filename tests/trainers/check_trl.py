"""TRL's GRPOTrainer takes its rollouts from a live stream: its masks, log-probs and advantages are those of the batches, it
learns from them, and commits them.

Run by the trainers' Python (test_trainers.py), with a folder for what TRL writes and the broker's address.
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

from claw_r1.events import BatchTrained
from tests.integration.adapter_stand import an_adapter_stand
from tests.trainers.rollouts import CLOSE, END, PAD, WORDS, log_probs_of, make_groups, make_model
from trainer_adapter import Batch, BatchStream, TrainingBatch
from trainer_adapter.targets.trl import claw_reward

GENERATIONS = 4
REWARDS = [(1.0, 0.0, 0.5, 0.5), (2.0, 1.0, 1.0, -1.0)]
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


async def play(kafka: str, model: Any, folder: str) -> None:
    """Groups on a recipe's topic, a trainer that takes them, and what it left on the log."""
    async with an_adapter_stand(kafka, group={"size": GENERATIONS}, batch={"groups": len(REWARDS)}) as stand:
        for seed in range(STEPS):
            await stand.publish(*make_groups(model, REWARDS, seed=seed, run_id=stand.recipe.run_id))
        await asyncio.to_thread(learn, kafka, stand.recipe.name, model, folder)
        trained = [event for event in await stand.history() if isinstance(event, BatchTrained)]
        assert [(event.sequence, event.policy_version) for event in trained] == [(1, 1), (2, 2)]


def learn(kafka: str, recipe: str, first: Any, folder: str) -> None:
    model = make_model()
    batches: list[Batch] = []
    with BatchStream(recipe, kafka=kafka) as stream:

        def rollout(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
            if batches:
                batches[-1].commit(policy_version=trainer.state.global_step)
            batches.append(stream.next(60))
            assert len(prompts) == len(batches[-1])
            return batches[-1].to_trl(num_generations=GENERATIONS)

        trainer = a_trainer(model, rollout, folder)
        taken: list[dict[str, Any]] = []
        score = trainer._generate_and_score_completions

        def keep(inputs: Any) -> Any:
            taken.append(score(inputs))
            return taken[-1]

        trainer._generate_and_score_completions = keep
        trainer.train()
        batches[-1].commit(policy_version=trainer.state.global_step)
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


def a_trainer(model: Any, rollout: Any, folder: str) -> Any:
    arguments = GRPOConfig(
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
    return GRPOTrainer(
        model=model,
        reward_funcs=claw_reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": f"w{number}"} for number in range(2, 10)]),
        processing_class=a_tokenizer(),
        rollout_func=rollout,
    )


if __name__ == "__main__":
    asyncio.run(play(sys.argv[-1], make_model(), sys.argv[-2]))
