"""TRL samples in the trainer, and what it samples is pooled: two lines around a rollout function and its rewards.

    python examples/trl_rollout.py GATEWAY_URL MODEL [STEPS]

MODEL is a folder or a name that transformers knows. Each row is two turns with a tool's answer between them.
"""

import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from claw_r1.client.sync import Client
from claw_r1.client.trl import PooledRollouts

QUESTIONS = ["Which marker is in the file?", "Which step gave the result?"]
TOOL = "\nThe tool says: not found. Try again.\n"
TURNS, TURN_TOKENS, GENERATIONS = 2, 8, 4


def sample(model: Any, ids: list[int]) -> tuple[list[int], list[float]]:
    """A turn behind these tokens, and the log-probs of its tokens, nats."""
    out = model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=TURN_TOKENS,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = out.sequences[0, len(ids) :]
    log_probs = torch.stack(out.logits)[:, 0].log_softmax(-1).gather(-1, new.unsqueeze(-1)).squeeze(-1)
    return new.tolist(), log_probs.tolist()


def rollout(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
    """An ordinary `rollout_func`: it knows nothing of Claw-R1."""
    rows: dict[str, list[Any]] = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "env_mask": []}
    tokenizer = trainer.processing_class
    tool = tokenizer(TOOL)["input_ids"]
    for prompt in prompts:
        asked = tokenizer(prompt)["input_ids"]
        said: list[int] = []
        known: list[float] = []
        mask: list[int] = []
        for turn in range(TURNS):
            if turn:
                said, known, mask = said + tool, known + [0.0] * len(tool), mask + [0] * len(tool)
            ids, log_probs = sample(trainer.model, asked + said)
            said, known, mask = said + ids, known + log_probs, mask + [1] * len(ids)
        for name, value in zip(rows, (asked, said, known, mask), strict=True):
            rows[name].append(value)
    return rows


def varied(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of different tokens."""
    return [len(set(ids)) / len(ids) for ids in completion_ids]


def short(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Less than 1 by a hundredth for each token."""
    return [1.0 - len(ids) / 100 for ids in completion_ids]


def train(gateway: str, model: str, steps: int = 2, *, run_id: str = "trl-rollout") -> Any:
    """The trainer, after so many optimiser steps."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    with tempfile.TemporaryDirectory() as output, Client(gateway) as client:
        pooled = PooledRollouts(client, run_id=run_id)
        trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            reward_funcs=[pooled.reward(varied), pooled.reward(short)],
            rollout_func=pooled.rollout(rollout),
            args=GRPOConfig(
                output_dir=output,
                per_device_train_batch_size=GENERATIONS * len(QUESTIONS),
                num_generations=GENERATIONS,
                max_steps=steps,
                learning_rate=1e-3,
                beta=0.0,
                bf16=torch.cuda.is_available(),
                use_cpu=not torch.cuda.is_available(),
                gradient_checkpointing=False,
                report_to=[],
                save_strategy="no",
            ),
            train_dataset=Dataset.from_list([{"prompt": question} for question in QUESTIONS]),
            processing_class=tokenizer,
        )
        trainer.train()
    return trainer


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 2)
