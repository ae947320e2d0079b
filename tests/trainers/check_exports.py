"""TRL's SFT and DPO trainers take what `claw export` wrote: conversations with their tools, exact tokens, pairs.

Run by the trainers' Python (test_live.py), in a folder with the exports `sft`, `tokens`, `preference` and the model `model`.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from claw_r1.demo import grpo, policy, tokens

STEPS = 4
QUIET: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "max_steps": STEPS,
    "report_to": [],
    "save_strategy": "no",
    "logging_steps": 1,
    "disable_tqdm": True,
    "max_length": None,
    "per_device_train_batch_size": 4,
    "lr_scheduler_type": "constant",
    "learning_rate": 1e-3,
}


def losses(trainer: Any) -> list[float]:
    """By step; all are finite."""
    found = [float(log["loss"]) for log in trainer.state.log_history if "loss" in log]
    assert len(found) == STEPS
    assert all(map(math.isfinite, found))
    return found


def check_sft(rows: Dataset, tokenizer: Any) -> None:
    """Chats: every message of the conversation is in what the trainer takes."""
    model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    trainer = SFTTrainer(
        model, args=SFTConfig(output_dir="out", **QUIET), train_dataset=rows, processing_class=tokenizer
    )
    assert len(trainer.train_dataset) == len(rows) > 8
    calls = 0
    for row, taken in zip(rows, trainer.train_dataset, strict=True):
        text = tokenizer.decode(taken["input_ids"])
        assert text.count("<|im_start|>assistant") == sum(said["role"] == "assistant" for said in row["messages"]) > 0
        called = [call["function"]["name"] for said in row["messages"] for call in said.get("tool_calls") or ()]
        assert text.count('<tool_call>\n{"name": "') == len(called), (text, called)
        calls += len(called)
        assert "<tools>" in text
        assert all((said["content"] or "") in text for said in row["messages"])
    assert calls > 0, "most games have calls; one that is given up at once has none"
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


class Row:
    """Columns of one exported row, as the demo's own trainer reads a batch of one."""

    def __init__(self, row: dict[str, Any]) -> None:
        prompt = len(row["prompt_ids"])
        self.token_ids = np.array(row["prompt_ids"] + row["response_ids"], np.int32)
        self.loss_mask = np.array([0] * prompt + row["loss_mask"], np.uint8)
        self.rollout_log_probs = np.array([0.0] * prompt + row["log_probs"], np.float32)
        self.advantages = np.zeros(len(self.token_ids), np.float32)
        self.offsets = np.array([0, len(self.token_ids)])


def gap(rows: Dataset) -> float:
    """The largest difference of log-probs that are computed from the ids again from those that were captured, nats."""
    found = []
    for row in map(Row, rows):
        again = grpo.token_log_probs(policy.initial_weights(), row)
        found.append(float(np.abs(again - row.rollout_log_probs[row.loss_mask == 1]).max()))
    return max(found)


def _change_an_id(row: dict[str, Any]) -> dict[str, Any]:
    """The first trained token is the next one: in some places both are as likely, not in all rows."""
    ids = list(row["response_ids"])
    ids[row["loss_mask"].index(1)] += 1
    return {"response_ids": ids}


def check_tokens(rows: Dataset) -> None:
    """Exact tokens: log-probs computed from the ids again are those that were captured, and only trained tokens have labels."""
    assert gap(rows) < 1e-4
    assert gap(rows.map(_change_an_id)) > 1e-3, "an id that is wrong would be seen"
    columns = [Row(row) for row in rows]
    config = LlamaConfig(
        vocab_size=tokens.SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokens.END,
        pad_token_id=tokens.SYSTEM,
    )
    made = [{"input_ids": row.token_ids.tolist(), "assistant_masks": row.loss_mask.tolist()} for row in columns]
    tokenizer = AutoTokenizer.from_pretrained("model")
    trainer = SFTTrainer(
        LlamaForCausalLM(config),
        args=SFTConfig(output_dir="out", **QUIET),
        train_dataset=Dataset.from_list(made),
        processing_class=tokenizer,
    )
    taken = next(iter(trainer.get_train_dataloader()))
    labels = {tuple(ids[ids != -100].tolist()) for ids in taken["labels"]}
    assert labels <= {tuple(row.token_ids[row.loss_mask == 1].tolist()) for row in columns}
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]


def are_pairs(rows: Dataset, chats: Dataset) -> bool:
    """Whether each row has a conversation of its group's best trajectory and one of its worst, by their rewards."""
    ends = {(row["trajectory_uid"], _text(row["messages"])): (row["group_id"], row["reward"]) for row in chats}

    def reward(row: dict[str, Any], side: str) -> tuple[str, float] | None:
        return ends.get((row[f"{side}_trajectory_uid"], _text(row["prompt"] + row[side])))

    def is_pair(row: dict[str, Any]) -> bool:
        of_group = sorted(one for one in ends.values() if one[0] == row["group_id"])
        return (reward(row, "rejected"), reward(row, "chosen")) == (of_group[0], of_group[-1])

    return all(map(is_pair, rows))


def _text(messages: list[dict[str, Any]]) -> str:
    return json.dumps([{name: value for name, value in said.items() if value is not None} for said in messages])


def _swap(row: dict[str, Any]) -> dict[str, Any]:
    """The two conversations alone, under each other's names."""
    return {"chosen": row["rejected"], "rejected": row["chosen"]}


def _swap_all(row: dict[str, Any]) -> dict[str, Any]:
    """With their rewards and trajectories."""
    names = ("", "_reward", "_trajectory_uid")
    sides = [(f"chosen{name}", f"rejected{name}") for name in names]
    return {to: row[of] for a, b in sides for to, of in ((a, b), (b, a))}


def check_dpo(rows: Dataset, chats: Dataset, tokenizer: Any) -> None:
    """Pairs: the loss begins at ln 2, since the model is its own reference, and falls."""
    model = AutoModelForCausalLM.from_pretrained("model", dtype=torch.float32)
    assert are_pairs(rows, chats)
    assert not any(are_pairs(rows.map(how), chats) for how in (_swap, _swap_all)), "a swapped pair would be seen"
    trainer = DPOTrainer(
        model, args=DPOConfig(output_dir="out", **QUIET), train_dataset=rows, processing_class=tokenizer
    )
    assert len(trainer.train_dataset) == len(rows) > 0
    trainer.train()
    found = losses(trainer)
    assert abs(found[0] - math.log(2)) < 1e-3
    assert found[-1] < found[0] - 0.01


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained("model")
    assert Path("sft").is_dir()
    chats = load_from_disk("sft")
    check_sft(chats, tokenizer)
    check_tokens(load_from_disk("tokens"))
    check_dpo(load_from_disk("preference"), chats, tokenizer)


if __name__ == "__main__":
    main()
