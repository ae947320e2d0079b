"""token_stats are checked against the batch before anything is recorded."""

from typing import Any

import numpy as np
import pytest

from claw_r1.codec import unpack_floats
from claw_r1.errors import UserError
from claw_r1.events import BatchTrained
from tests.unit.trainer_adapter.test_batch import a_batch, a_pair
from trainer_adapter import stats
from trainer_adapter.stats import list_stats, read_stats

BATCH = a_batch(a_pair("g1"), a_pair("g2", (1.0,), ids=(1, 2, 3), mask=(0, 1, 1)))
"""Samples of 4, 4 and 3 tokens."""


def test_one_array_or_one_for_each_sample_become_records_of_the_samples() -> None:
    flat = np.arange(11)
    columns = read_stats(BATCH, {"log_probs": flat, "clipped": [row > 5 for row in BATCH.rows(flat)]})
    trained = BatchTrained(
        batch_id="b", recipe="test", run_id="run", sequence=4, cursor=9, policy_version=3, holder="me", at=2.0
    )
    found = list(list_stats(BATCH, columns, trained))
    assert [(s.name, s.sample_id) for s in found] == [
        (name, sample_id) for name in ("log_probs", "clipped") for sample_id in BATCH.sample_ids
    ]
    assert [unpack_floats(s.values).tolist() for s in found] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10],
        [0, 0, 0, 0],
        [0, 0, 1, 1],
        [1, 1, 1],
    ]
    assert {(s.sequence, s.policy_version, s.holder, s.at) for s in found} == {(4, 3, "me", 2.0)}
    assert [s.group_id for s in found[:3]] == ["g1", "g1", "g2"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros(10), r"has the shape \(10,\) and not \(11,\)"),
        (np.zeros((3, 4)), "of padded rows give"),
        ([np.zeros(4), np.zeros(4)], "has 2 rows, and the batch 3 samples"),
        (
            [np.zeros(4), np.zeros(3), np.zeros(3)],
            rf"\[1\] has 3 values, and sample {BATCH.sample_ids[1]} has 4 tokens",
        ),
        (["a"] * 11, "holds no numbers"),
        (None, "and not"),
    ],
)
def test_what_does_not_fit_the_batch_is_refused(value: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_stats(BATCH, {"log_probs": value})


def test_a_name_is_an_id_and_the_whole_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not an id"):
        read_stats(BATCH, {"log probs": np.zeros(11)})
    monkeypatch.setattr(stats, "MAX_BYTES", 43)
    with pytest.raises(UserError, match="44 bytes; a commit takes 43"):
        read_stats(BATCH, {"log_probs": np.zeros(11)})
