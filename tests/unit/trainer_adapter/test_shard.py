"""Data-parallel ranks have each row of a batch once, equally many rows, and the same numbers in them."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.codec import pack_floats, pack_ids
from claw_r1.errors import UserError
from claw_r1.events import BlobRef, StepSpan
from tests.unit.trainer_adapter.test_batch import Pair, a_batch, a_pair
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.shard import Shard, assign_rows, pack_rows

TOKEN_COLUMNS = ("token_ids", "loss_mask", "rollout_log_probs", "advantages", "token_rewards", "policy_version")
ROW_COLUMNS = ("reward", "advantage", "loss_weight", "sample_index", "n_samples")
ROW_VALUES = ("sample_ids", "trajectory_uids", "prompt_uids", "task_ids", "spans", "metadata", "labels")


@st.composite
def batches(draw: st.DrawFn) -> TrainingBatch:
    """Ragged groups of forked trajectories, each step with a reward of its own."""
    pairs: list[Pair] = []
    for number in range(draw(st.integers(1, 5))):
        n = draw(st.integers(1, 4))
        marker, samples = a_pair(f"g{number}", tuple(map(float, range(n))), samples=draw(st.integers(1, 2)))
        rows = []
        for sample in samples:
            length = draw(st.integers(2, 20))
            mask = [0, *draw(st.lists(st.integers(0, 1), min_size=length - 1, max_size=length - 1))]
            span = StepSpan(step_id="s", step_index=sample.sample_index, start=1, end=length, reward=0.25)
            columns = {
                "token_ids": pack_ids(draw(st.lists(st.integers(0, 99), min_size=length, max_size=length))),
                "loss_mask": bytes(mask),
                "rollout_log_probs": pack_floats(-0.5 * bit for bit in mask),
                "annotations": {"values": pack_floats(0.1 * bit for bit in mask)},
                "spans": (span,),
            }
            rows.append(sample.model_copy(update=columns))
        pairs.append((marker, rows))
    return a_batch(*pairs)


def shards_of(batch: TrainingBatch, world: int, **how: Any) -> list[Shard]:
    return [batch.shard(rank, world, **how) for rank in range(world)]


@given(batches(), st.integers(1, 6), st.sampled_from(["tokens", "count"]), st.booleans())
def test_the_ranks_together_have_the_batch(batch: TrainingBatch, world: int, balance: Any, keep_groups: bool) -> None:
    shards = shards_of(batch, world, balance=balance, keep_groups=keep_groups)
    rows = np.concatenate([shard.row_index for shard in shards])
    assert sorted(rows[rows >= 0].tolist()) == list(range(len(batch)))
    assert len({len(shard) for shard in shards}) == 1
    for shard in shards:
        for here, row in enumerate(shard.row_index.tolist()):
            if row < 0:
                continue
            for name in TOKEN_COLUMNS:
                mine, whole = shard.rows(getattr(shard, name))[here], batch.rows(getattr(batch, name))[row]
                assert np.array_equal(mine, whole), name
            assert np.array_equal(shard.rows(shard.values)[here], batch.rows(batch.values)[row])
            for name in (*ROW_COLUMNS, *ROW_VALUES):
                assert getattr(shard, name)[here] == getattr(batch, name)[row], name
            group, whole_group = shard.groups[shard.group_index[here]], batch.groups[batch.group_index[row]]
            assert (group.group_id, group.rewards) == (whole_group.group_id, whole_group.rewards)
            assert group.first <= here < group.last
    assert sum(shard.loss_mask.sum() for shard in shards) == batch.loss_mask.sum()
    assert sum(shard.loss_weight.sum() for shard in shards) == pytest.approx(batch.loss_weight.sum())


@given(batches(), st.integers(1, 6), st.sampled_from(["tokens", "count"]), st.booleans())
def test_padding_rows_weigh_nothing(batch: TrainingBatch, world: int, balance: Any, keep_groups: bool) -> None:
    shards = shards_of(batch, world, balance=balance, keep_groups=keep_groups)
    for shard in shards:
        for here in range(len(shard) - shard.n_padding, len(shard)):
            assert shard.row_index[here] == -1
            assert shard.lengths[here] == batch.lengths.min()
            for name in ("loss_mask", "rollout_log_probs", "advantages", "token_rewards", "values"):
                assert not shard.rows(getattr(shard, name))[here].any()
            assert (shard.loss_weight[here], shard.reward[here], shard.advantage[here]) == (0, 0, 0)
            assert shard.prompt_uids[here] not in batch.prompt_uids
            assert shard.group_index[here] == -1
    names = [name for shard in shards for name in shard.sample_ids]
    assert len(set(names)) == len(names)
    if not keep_groups:
        assert sum(shard.n_padding for shard in shards) == -len(batch) % world


@given(batches(), st.integers(1, 6), st.sampled_from(["tokens", "count"]))
def test_groups_are_kept_whole_when_asked(batch: TrainingBatch, world: int, balance: Any) -> None:
    seen = [
        group.group_id for shard in shards_of(batch, world, balance=balance, keep_groups=True) for group in shard.groups
    ]
    assert sorted(seen) == sorted(group.group_id for group in batch.groups)


@given(batches(), st.integers(1, 6))
def test_the_same_call_gives_the_same_shard(batch: TrainingBatch, world: int) -> None:
    assert [s.digest for s in shards_of(batch, world)] == [s.digest for s in shards_of(batch, world)]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(1, 6))
def test_no_rank_has_a_row_more_than_needed_of_the_tokens(lengths: list[int], world: int) -> None:
    parts = assign_rows(np.array(lengths), np.zeros(len(lengths), np.int32), world, "tokens", False)
    numbers = [len(part) for part in parts]
    assert max(numbers) == -(-len(lengths) // world)
    free = [rank for rank in range(world) if numbers[rank] < max(numbers)]
    loads = [sum(lengths[row] for row in part) for part in parts]
    for rank in free:
        assert max(loads) - loads[rank] <= max(lengths), "a rank with room never stays further behind than one row"


def test_tokens_and_count_differ_as_they_should() -> None:
    lengths, group_index = np.array([9, 1, 1, 1, 4, 4]), np.array([0, 0, 0, 0, 1, 2], np.int32)
    assert [p.tolist() for p in assign_rows(lengths, group_index, 2, "tokens", False)] == [[0, 2, 3], [1, 4, 5]]
    assert [p.tolist() for p in assign_rows(lengths, group_index, 2, "count", False)] == [[0, 2, 4], [1, 3, 5]]
    assert [p.tolist() for p in assign_rows(lengths, group_index, 2, "tokens", True)] == [[0, 1, 2, 3], [4, 5]]
    assert [p.tolist() for p in assign_rows(lengths, group_index, 2, "count", True)] == [[0, 1, 2, 3], [4, 5]]


def test_pairs_of_dpo_stay_together_unless_asked_otherwise() -> None:
    pairs = []
    for number in range(3):
        marker, samples = a_pair(f"g{number}")
        labels = ("chosen", "rejected")
        pairs.append((marker, [s.model_copy(update={"label": x}) for s, x in zip(samples, labels, strict=True)]))
    shards = shards_of(a_batch(*pairs, algorithm="dpo"), 2)
    assert [[(c.tolist(), r.tolist()) for c, r in shard.pairs] for shard in shards] == [
        [([0], [1]), ([2], [3])],
        [([0], [1])],
    ]
    assert [shard.n_padding for shard in shards] == [0, 2]


def test_a_padding_row_has_what_its_tokens_stand_for() -> None:
    picture = BlobRef(sha256="a" * 64, bytes=1, kind="image/png")
    batch = a_batch(a_pair(rewards=(1.0,), multi_modal_data=(picture,)))
    assert batch.shard(1, 2).multi_modal_data == ((picture,),)


def test_a_shard_goes_to_another_process() -> None:
    shard = a_batch(a_pair()).shard(1, 3)
    again = pickle.loads(pickle.dumps(shard))
    assert (again.digest, again.row_index.tolist(), again.n_padding) == (shard.digest, shard.row_index.tolist(), 0)


def test_a_batch_of_nothing_has_shards_of_nothing() -> None:
    assert [len(shard) for shard in shards_of(a_batch(), 3)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("rank", "world", "balance"), [(2, 2, "tokens"), (-1, 2, "tokens"), (0, 0, "tokens"), (0, 1, "rows")]
)
def test_what_is_no_shard_is_said(rank: int, world: int, balance: Any) -> None:
    with pytest.raises(UserError, match=r"ranks count|write tokens or count"):
        a_batch(a_pair()).shard(rank, world, balance)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 120), st.integers(0, 70))
def test_micro_batches_hold_each_row_once_within_their_bound(sizes: list[int], bound: int, at_least: int) -> None:
    lengths = np.array(sizes, np.int64)
    packed = pack_rows(lengths, bound, at_least)
    assert sorted(row for rows in packed for row in rows.tolist()) == list(range(len(sizes)))
    assert all(0 < lengths[rows].sum() <= bound and (np.diff(rows) > 0).all() for rows in packed)
    least = pack_rows(lengths, bound)
    assert len(packed) == max(min(at_least, len(sizes)), len(least))
    assert len(least) <= 2 * sum(sizes) / bound + 1  # all but one are more than half full
    assert [rows.tolist() for rows in packed] == [rows.tolist() for rows in pack_rows(lengths, bound, at_least)]


@given(batches(), st.integers(1, 6), st.booleans(), st.integers(20, 60))
def test_all_ranks_have_equally_many_micro_batches(
    batch: TrainingBatch, world: int, keep_groups: bool, bound: int
) -> None:
    shards = shards_of(batch, world, keep_groups=keep_groups)
    packed = [pickle.loads(pickle.dumps(shard)).pack(bound) for shard in shards]
    assert len({len(one) for one in packed}) == 1
    for shard, micro in zip(shards, packed, strict=True):
        assert sorted(row for rows in micro for row in rows.tolist()) == list(range(len(shard)))
        assert all(shard.lengths[rows].sum() <= bound for rows in micro)
    assert len(packed[0]) == max(len(pack_rows(shard.lengths, bound)) for shard in shards)


def test_a_row_above_the_bound_of_micro_batches_is_named() -> None:
    with pytest.raises(UserError, match="row 1 has 9 tokens and a micro-batch at most 8"):
        pack_rows(np.array([3, 9, 5], np.int64), 8)
    assert [rows.tolist() for rows in pack_rows(np.array([3, 9, 5, 2], np.int64), 10)] == [[1], [0, 2, 3]]
    assert pack_rows(np.zeros(0, np.int64), 8, 3) == []
