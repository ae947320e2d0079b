"""What a format needs and a batch lacks is an error that names the line of the recipe which would supply it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from claw_r1.blobs import LocalBlobs
from claw_r1.codec import pack_floats
from claw_r1.errors import UserError
from claw_r1.recipes import Recipe
from tests.unit.trainer_adapter.test_batch import a_batch, a_pair
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.formats import Formats
from trainer_adapter.targets import areal, hf, openrlhf, torch, verl


def partly(name: str, algorithm: str = "grpo") -> TrainingBatch:
    """Of two rows the first one has the annotation."""
    marker, samples = a_pair()
    lengths = [len(sample.loss_mask) for sample in samples]
    labels = {"dpo": ("chosen", "rejected")}.get(algorithm, (None, None))
    rows = [sample.model_copy(update={"label": label}) for sample, label in zip(samples, labels, strict=True)]
    rows[0] = rows[0].model_copy(update={"annotations": {name: pack_floats([0.0] * lengths[0])}})
    return a_batch((marker, rows), algorithm=algorithm)


def of(algorithm: str, samples: int = 1) -> TrainingBatch:
    return a_batch(a_pair(samples=samples), algorithm=algorithm)


PRIME: Any = {"env_name": "x", "temperature": 1.0}
TABLE: list[tuple[str, Callable[[], Any], str]] = [
    (
        "to_torch",
        lambda: torch.arrange(of("grpo"), pad_token_id=0, length=3),
        "filters: [{field: tokens, op: le, value: …}]",
    ),
    (
        "to_verl",
        lambda: verl.arrange(of("grpo"), pad_token_id=0, prompt_length=1),
        "filters: [{field: tokens, op: le, value: …}]",
    ),
    (
        "to_areal",
        lambda: areal.arrange(of("grpo"), pad_token_id=0, length=3),
        "filters: [{field: tokens, op: le, value: …}]",
    ),
    (
        "to_openrlhf",
        lambda: openrlhf.arrange(of("grpo"), pad_token_id=0, length=3),
        "filters: [{field: tokens, op: le, value: …}]",
    ),
    (
        "to_openrlhf",
        lambda: openrlhf.arrange(partly("ref_log_probs"), pad_token_id=0),
        "annotations: {required: [ref_log_probs]}",
    ),
    ("to_openrlhf", lambda: openrlhf.arrange(partly("values"), pad_token_id=0), "annotations: {required: [values]}"),
    ("to_slime", lambda: partly("teacher_log_probs").to_slime(), "annotations: {required: [teacher_log_probs]}"),
    ("to_prime_rl", lambda: partly("ref_log_probs").to_prime_rl(**PRIME), "annotations: {required: [ref_log_probs]}"),
    ("to_prime_rl", lambda: of("ppo").to_prime_rl(**PRIME), "annotations: {required: [values]}"),
    ("to_prime_rl", lambda: of("dpo").to_prime_rl(**PRIME), "algorithm: grpo"),
    ("to_prime_rl", lambda: of("kto").to_prime_rl(**PRIME), "algorithm: grpo"),
    ("to_trl", lambda: of("grpo").to_trl(num_generations=4), "group: {size: 4}"),
    ("to_trl", lambda: of("grpo", samples=2).to_trl(num_generations=2), "filters: [{field: chains, op: eq, value: 1}]"),
    ("to_sft", lambda: hf.list_sft(of("grpo")), "algorithm: sft"),
    ("to_dpo", lambda: hf.list_dpo(of("grpo")), "algorithm: dpo"),
    ("to_dpo", lambda: hf.list_dpo(of("dpo", samples=2)), "filters: [{field: chains, op: eq, value: 1}]"),
    ("to_dpo", lambda: hf.list_dpo(partly("ref_log_probs", "dpo")), "annotations: {required: [ref_log_probs]}"),
    ("to_kto", lambda: hf.list_kto(of("grpo")), "algorithm: kto"),
]
WITHOUT = {
    "to_tree": "it takes what a batch has; pictures it refuses",
    "to_arrow": "it takes what a batch has",
    "to_hf": "it takes what a batch has",
    "to_verl_agent_loop": "routed experts and pictures are no line of a recipe: tested below",
    "to_verl_rows": "it is made of to_verl_agent_loop",
}
"""Formats that need nothing that a recipe could supply, and why."""


@pytest.mark.parametrize(("method", "make", "line"), TABLE)
def test_the_line_that_would_supply_it_is_named_and_is_one(method: str, make: Callable[[], Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        make()
    lines = re.findall(r"`([^`]*: [^`]*)`", str(caught.value))
    assert line in lines
    for one in lines:
        Recipe.model_validate({"name": "r"} | msgspec.yaml.decode(one.replace("…", "1000")))


def test_every_format_is_in_the_table_or_it_is_said_why_not() -> None:
    methods = {name for name in vars(Formats) if name.startswith("to_")}
    assert methods == {method for method, _, _ in TABLE} | WITHOUT.keys()
    assert not {method for method, _, _ in TABLE} & WITHOUT.keys()


@pytest.mark.parametrize(
    "make",
    [
        lambda batch, blobs: batch.to_verl_agent_loop(blobs=blobs),
        lambda batch, blobs: batch.to_slime(blobs=blobs),
        lambda batch, blobs: batch.to_prime_rl(**PRIME, blobs=blobs),
        lambda batch, blobs: batch.open_media(blobs).experts(1),
    ],
)
def test_experts_that_nobody_recorded_name_the_setting_of_the_run(make: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match='set `"routed_experts": true` for the run'):
        make(of("grpo"), LocalBlobs(tmp_path))
