"""A group's rows become a prefix tree, in which each row finds its tokens, and sees them alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.codec import pack_floats, pack_ids
from claw_r1.errors import UserError
from claw_r1.events import BlobRef
from tests.unit.trainer_adapter.test_batch import a_batch, a_pair
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.targets.tree import arrange


def a_group(*rows: list[int], group_id: str = "g", trained: int = 1, **over: Any) -> TrainingBatch:
    """Rows of these tokens; the last `trained` ones of each are trained."""
    marker, samples = a_pair(group_id, tuple(map(float, range(len(rows)))))
    made = []
    for number, (sample, ids) in enumerate(zip(samples, rows, strict=True)):
        mask = [0] * (len(ids) - trained) + [1] * trained
        columns = {"token_ids": pack_ids(ids), "loss_mask": bytes(mask), "spans": (), "version_spans": ()}
        known = pack_floats([-(number + 1.0) * bit for bit in mask])
        made.append(sample.model_copy(update=columns | {"rollout_log_probs": known} | over))
    return a_batch((marker, made))


def test_what_rows_begin_with_alike_stands_once() -> None:
    (tree,) = arrange(a_group([1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 6], trained=2))
    assert tree["input_ids"].tolist() == [1, 2, 3, 4, 6, 5]
    assert tree["position_ids"].tolist() == [0, 1, 2, 3, 3, 2]
    assert tree["parents"].tolist() == [-1, 0, 1, 2, 2, 1]
    assert tree["subtree_ends"].tolist() == [6, 6, 5, 4, 5, 6]
    assert tree["node_index"].tolist() == [0, 0, 1, 2, 3, 4]
    assert tree["node_parents"].tolist() == [-1, 0, 1, 1, 0]
    assert tree["paths"].tolist() == [
        [True, True, True, False, False],
        [True, False, False, False, True],
        [True, True, False, True, False],
    ]
    assert (tree["places"].tolist(), tree["cu_seqlens"].tolist()) == ([0, 1, 2, 3, 0, 1, 5, 0, 1, 2, 4], [0, 4, 7, 11])
    assert tree["trained_places"].tolist() == [2, 3, 1, 5, 2, 4]
    assert tree["trained_rows"].tolist() == [0, 0, 1, 1, 2, 2]
    assert tree["rollout_log_probs"].tolist() == [-1, -1, -2, -2, -3, -3], "a shared token has an entry for each row"
    assert (tree["reward"].tolist(), tree["loss_weight"].tolist()) == ([0, 1, 2], [1] * 6)
    kinds = {name: str(column.dtype) for name, column in tree.items()}
    assert kinds == {
        **dict.fromkeys(("input_ids", "position_ids", "parents", "subtree_ends", "node_index"), "int64"),
        **dict.fromkeys(("node_parents", "places", "trained_places", "trained_rows", "policy_version"), "int64"),
        **dict.fromkeys(("row_index", "group_index", "trajectory_index"), "int64"),
        **dict.fromkeys(("rollout_log_probs", "advantages", "token_rewards", "loss_weight", "reward"), "float32"),
        "paths": "bool",
        "cu_seqlens": "int32",
    }


def test_rows_that_are_others_or_begin_others() -> None:
    (tree,) = arrange(a_group([1, 2, 3], [1, 2], [1, 2, 3]))
    assert (tree["input_ids"].tolist(), tree["places"].tolist()) == ([1, 2, 3], [0, 1, 2, 0, 1, 0, 1, 2])
    assert tree["node_index"].tolist() == [0, 0, 1]
    assert tree["paths"].tolist() == [[True, True], [True, False], [True, True]]


@st.composite
def groups(draw: st.DrawFn) -> TrainingBatch:
    rows = draw(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=6))
    return a_group(*rows)


@given(groups())
def test_each_row_finds_its_tokens_and_sees_them_alone(batch: TrainingBatch) -> None:
    (tree,) = arrange(batch)
    ids, ends = tree["input_ids"], tree["subtree_ends"]
    at = np.arange(len(ids))
    sees = (at[None, :] <= at[:, None]) & (at[:, None] < ends[None, :])
    prefixes = {tuple(row[: n + 1]) for row in batch.rows(batch.token_ids) for n in range(len(row))}
    assert len(ids) == len(prefixes), "nothing that is shared stands twice"
    for number, (first, last) in enumerate(zip(tree["cu_seqlens"], tree["cu_seqlens"][1:], strict=False)):
        places = tree["places"][first:last]
        assert ids[places].tolist() == batch.rows(batch.token_ids)[number].tolist()
        assert tree["position_ids"][places].tolist() == list(range(len(places)))
        assert tree["parents"][places].tolist() == [-1, *places[:-1]]
        for n, place in enumerate(places):
            assert np.flatnonzero(sees[place]).tolist() == places[: n + 1].tolist()
        assert np.unique(tree["node_index"][places]).tolist() == np.flatnonzero(tree["paths"][number]).tolist()
    for node, above in enumerate(tree["node_parents"]):
        head = int(np.flatnonzero(tree["node_index"] == node)[0])
        assert above == (-1 if tree["parents"][head] < 0 else tree["node_index"][tree["parents"][head]])
    branches = {int(p) for p in tree["parents"][1:] if p >= 0 and np.count_nonzero(tree["parents"] == p) > 1}
    for place in range(1, len(ids)):
        if tree["parents"][place] in branches:
            assert tree["node_index"][place] != tree["node_index"][tree["parents"][place]]


def test_each_group_is_a_tree_and_so_is_a_padding_row() -> None:
    marker, samples = a_pair("a")
    other, others = a_pair("b")
    batch = a_batch((marker, samples), (other, others))
    assert [tree["row_index"].tolist() for tree in arrange(batch)] == [[0, 1], [2, 3]]
    shards = [batch.shard(rank, 3) for rank in range(3)]
    assert sum(shard.n_padding for shard in shards) == 2
    for shard in shards:
        trees = arrange(shard)
        assert sum(len(tree["trained_places"]) for tree in trees) == shard.loss_mask.sum()
        if shard.n_padding:
            assert (len(trees[-1]["trained_places"]), trees[-1]["row_index"].tolist()) == (0, [len(shard) - 1])


def test_what_a_tree_cannot_say() -> None:
    with pytest.raises(UserError, match="trains its first token"):
        arrange(a_group([1, 2], trained=2))
    with pytest.raises(UserError, match="to_tree carries no pictures"):
        arrange(a_group([1, 2], multi_modal_data=(BlobRef(sha256="a", bytes=1, kind="image/png"),)))
