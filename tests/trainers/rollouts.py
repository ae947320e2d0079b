"""A tiny random model, and batches of what it sampled: two turns a row with a tool's result between them."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from claw_r1.codec import pack_floats, pack_ids
from claw_r1.events import GroupReady, Sample, StepSpan, VersionSpan
from tests.factories import a_ready_group
from trainer_adapter.batch import TrainingBatch, build_columns

WORDS: Final = 60
PAD: Final = 0
END: Final = 1
CLOSE: Final = 2e-5
"""What log-probs of the same weights may differ by, nats."""


def make_model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def log_probs_of(model: Any, ids: Any, **inputs: Any) -> Any:
    """[n, L], nats: entry t is of token t; 0.0 at the first, of which nothing is known."""
    logits = model(input_ids=ids, **inputs).logits[:, :-1]
    found = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    return torch.nn.functional.pad(found, (1, 0))


def make_batch(model: Any, rewards: Sequence[Sequence[float]]) -> TrainingBatch:
    """The batch of `make_groups`."""
    head: dict[str, Any] = {"batch_id": "b", "recipe": "test", "recipe_version": 1, "run_id": "run", "sequence": 1}
    columns = build_columns([(marker, samples) for samples, marker in make_groups(model, rewards)])
    return TrainingBatch(**head, trained_version=4, **columns)


def make_groups(
    model: Any, rewards: Sequence[Sequence[float]], *, seed: int = 0, **over: Any
) -> list[tuple[list[Sample], GroupReady]]:
    """A group for each list of rewards, a row of other lengths for each reward; sampled tokens have the model's log-probs."""
    draw = np.random.default_rng(seed)
    groups = []
    for number, of_group in enumerate(rewards):
        samples, marker = a_ready_group(f"group_{seed}_{number}", tuple(of_group), **over)
        rows = []
        for sample in samples:
            prompt, first, tool, second = draw.integers(2, 9, 4).tolist()
            length = prompt + first + tool + second
            ids = draw.integers(2, WORDS, length)
            mask = np.repeat([0, 1, 0, 1], [prompt, first, tool, second])
            with torch.no_grad():
                known = log_probs_of(model, torch.from_numpy(ids)[None])[0].numpy() * mask
            turns = [(prompt, prompt + first), (length - second, length)]
            steps = [StepSpan(step_id=f"s{i}", step_index=i, start=a, end=b) for i, (a, b) in enumerate(turns)]
            columns = {
                "token_ids": pack_ids(ids.tolist()),
                "loss_mask": bytes(mask.tolist()),
                "rollout_log_probs": pack_floats(known),
                "version_spans": tuple(VersionSpan(version=3 + i, start=a, end=b) for i, (a, b) in enumerate(turns)),
                "spans": tuple(steps),
            }
            rows.append(sample.model_copy(update=columns))
        groups.append((rows, marker))
    return groups
