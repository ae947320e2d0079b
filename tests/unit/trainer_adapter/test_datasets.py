"""Rows for trainers of SFT, DPO and KTO: the batch's own tokens with their masks, or conversations."""

from typing import Any

import numpy as np
import pytest

from claw_r1.chats import part_chats
from claw_r1.codec import pack_floats, pack_ids
from claw_r1.errors import UserError
from claw_r1.events import StepSpan
from tests.unit.trainer_adapter.test_batch import a_batch, a_pair
from trainer_adapter.batch import NoColumn, TrainingBatch
from trainer_adapter.targets.hf import list_dpo, list_kto, list_sft

ASKED = {"role": "user", "content": "2 + 3?"}
GOOD = [ASKED, {"role": "assistant", "content": "5"}]
BAD = [
    ASKED,
    {"role": "assistant", "content": "let me see"},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "4"},
]
CHATS: list[dict[str, Any]] = [
    {"step_id": "bad-1", "messages": BAD, "tools": [{"type": "function"}]},
    {"step_id": "good-0", "messages": GOOD, "tools": None},
    {"step_id": "of another trajectory", "messages": GOOD, "tools": None},
]


def two_rows(algorithm: str, labels: tuple[str | None, str | None] = (None, None), **over: Any) -> TrainingBatch:
    """A better row of one turn and a worse one of two turns, which begin alike."""
    marker, samples = a_pair("g")
    columns: tuple[dict[str, Any], ...] = (
        {
            "token_ids": pack_ids([1, 2, 3, 4]),
            "loss_mask": bytes([0, 0, 1, 1]),
            "rollout_log_probs": pack_floats([0, 0, -1, -1]),
            "annotations": {"ref_log_probs": pack_floats([0, 0, -0.5, -1])},
            "spans": (StepSpan(step_id="good-0", step_index=0, start=2, end=4),),
        },
        {
            "token_ids": pack_ids([1, 2, 7, 8, 9]),
            "loss_mask": bytes([0, 0, 1, 0, 1]),
            "rollout_log_probs": pack_floats([0, 0, -2, 0, -2]),
            "annotations": {"ref_log_probs": pack_floats([0, 0, -2, -9, -4])},
            "spans": (
                StepSpan(step_id="bad-0", step_index=0, start=2, end=3),
                StepSpan(step_id="bad-1", step_index=1, start=4, end=5),
            ),
        },
    )
    rows = [
        sample.model_copy(update=column | {"label": label} | over)
        for sample, column, label in zip(samples, columns, labels, strict=True)
    ]
    return a_batch((marker, rows), algorithm=algorithm)


def test_sft() -> None:
    batch = two_rows("sft")
    assert list_sft(batch) == [
        {"sample_id": batch.sample_ids[0], "input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]},
        {"sample_id": batch.sample_ids[1], "input_ids": [1, 2, 7, 8, 9], "labels": [-100, -100, 7, -100, 9]},
    ]
    assert list_sft(batch, chats=CHATS) == [
        {"sample_id": batch.sample_ids[0], "messages": GOOD},
        {"sample_id": batch.sample_ids[1], "messages": BAD, "tools": '[{"type": "function"}]'},
    ]


@pytest.mark.parametrize("swapped", [False, True])
def test_dpo(swapped: bool) -> None:
    batch = two_rows("dpo", ("rejected", "chosen") if swapped else ("chosen", "rejected"))
    sides = ("rejected", "chosen") if swapped else ("chosen", "rejected")
    assert list_dpo(batch) == [
        {
            "group_id": "g",
            "prompt_ids": [1, 2],
            f"{sides[0]}_ids": [3, 4],
            f"{sides[0]}_mask": [1, 1],
            f"{sides[1]}_ids": [7, 8, 9],
            f"{sides[1]}_mask": [1, 0, 1],
            f"ref_{sides[0]}_logps": -1.5,
            f"ref_{sides[1]}_logps": -6.0,
        }
    ]
    (row,) = list_dpo(batch, chats=CHATS)
    told = {"group_id": "g", "prompt": [ASKED], sides[0]: GOOD[1:], sides[1]: BAD[1:]}
    assert row == told | ({"tools": '[{"type": "function"}]'} if swapped else {})


def test_kto() -> None:
    batch = two_rows("kto", ("desirable", "undesirable"))
    good, bad = list_kto(batch)
    assert good == {
        "sample_id": batch.sample_ids[0],
        "prompt_ids": [1, 2],
        "completion_ids": [3, 4],
        "completion_mask": [1, 1],
        "label": True,
    }
    assert (bad["completion_ids"], bad["completion_mask"], bad["label"]) == ([7, 8, 9], [1, 0, 1], False)
    (_, worse) = list_kto(batch, chats=CHATS)
    assert (worse["prompt"], worse["completion"], worse["label"]) == ([ASKED], BAD[1:], False)


def test_padding_rows_are_no_rows() -> None:
    for algorithm, make, labels in (
        ("sft", list_sft, (None, None)),
        ("kto", list_kto, ("desirable", "undesirable")),
        ("dpo", list_dpo, ("chosen", "rejected")),
    ):
        batch = two_rows(algorithm, labels)
        parts = [make(batch.shard(rank, 3)) for rank in range(3)]
        assert sum(map(len, parts)) == len(make(batch)), algorithm


def test_what_is_missing_is_said() -> None:
    for make, algorithm in ((list_sft, "sft"), (list_dpo, "dpo"), (list_kto, "kto")):
        with pytest.raises(NoColumn, match=f"write `algorithm: {algorithm}` in the recipe"):
            make(two_rows("grpo"))
    with pytest.raises(
        UserError, match="ends with step bad-1, and no chat does: give to_sft the rows of `claw export --run run"
    ):
        list_sft(two_rows("sft"), chats=CHATS[1:])
    with pytest.raises(UserError, match="group g is no pair of one row each"):
        list_dpo(two_rows("dpo", ("chosen", "chosen")))
    with pytest.raises(UserError, match="no prompt before its first reply"):
        list_kto(two_rows("kto"), chats=[{**chat, "messages": GOOD[1:]} for chat in CHATS])
    batch = two_rows("dpo", ("chosen", "rejected"))
    object.__setattr__(batch, "token_ids", np.array([1, 2, 3, 4, 6, 2, 7, 8, 9], np.int32))
    with pytest.raises(UserError, match="begin with different tokens"):
        list_dpo(batch)


def test_chats_part_at_the_first_reply_or_before() -> None:
    system = {"role": "system", "content": "s"}
    assert part_chats([system, *GOOD]) == 2
    assert part_chats([system, *GOOD], [system, *BAD]) == 2
    assert part_chats([system, *GOOD], [system, {"role": "user", "content": "another"}]) == 1
    assert part_chats(GOOD, [ASKED]) == 1
    assert part_chats([], GOOD) == 0
