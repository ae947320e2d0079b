"""A prompt group as one packed prefix tree: what its rows begin with alike is computed once; checked with transformers 5.19.

The tokens stand in depth-first order, so that the tokens behind a token are the run up to its `subtree_ends`, and the whole
attention mask is two comparisons. Two rows share a token where all their tokens up to it are the same.

A loss is not of the tree, but of its rows: a shared token may be trained by several of them, with other advantages and other
rollout log-probs. So every trained token of every row has an entry of its own, with the place of its token in the tree. The
loss over the entries is the one over the unpacked rows, term for term, and so is its gradient.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from claw_r1.errors import UserError
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.targets.layout import Array, name_groups, need, refuse_media, to_tensors
from trainer_adapter.targets.torch import arrange as arrange_rows

_OF_TREE = ("input_ids", "position_ids", "labels", "loss_mask", "cu_seqlens", "max_seqlen")
"""Columns of packed rows that a tree has in another form."""


def to_tree(batch: TrainingBatch) -> list[dict[str, Any]]:
    """By group CPU tensors; see `arrange`."""
    torch = need("torch", "to_tree")
    return [to_tensors(tree, torch) for tree in arrange(batch)]


def arrange(batch: TrainingBatch) -> list[dict[str, Array]]:
    """A tree for each group, in the batch's order; a padding row is a tree of its own. A group of n rows with T tokens in
    all, M of them trained, makes S ≤ T places and N nodes (runs of places without a branch):

    - places, int64 [S]: `input_ids`; `position_ids`, from 0 at each root; `parents`, the place before, -1 at a root;
      `subtree_ends`, the first place behind all that goes on from this one; `node_index`.
    - nodes: `node_parents` int64 [N], -1 at a root. Paths: `paths` bool [n, N], the nodes of each row; `places` int64 [T] with
      `cu_seqlens` int32 [n + 1], the place of each token of each row, row after row.
    - entries, one for each trained token of each row, in the order of the rows, [M]: `trained_places` and `trained_rows`
      (from 0 in the group) int64; `rollout_log_probs` float32, nats; `advantages` float32, where the algorithm has them;
      `token_rewards` float32; `policy_version` int64, -1 where it is not known; each annotation as `annotations.NAME`, float32;
      `loss_weight` float32, of the row.
    - rows, [n]: `reward` float32; `row_index`, `group_index`, `trajectory_index` int64; of dpo `chosen` bool and `pair_index`
      int64; of kto `desirable` bool.

    Raises UserError for pictures, since tokens do not tell them apart, and for a row whose first token is trained.
    """
    refuse_media(batch, "to_tree")
    for row, mask in enumerate(batch.rows(batch.loss_mask)):
        if len(mask) and mask[0]:
            raise UserError(
                f"sample {batch.sample_ids[row]} trains its first token, which nothing predicts: a step needs a prompt"
            )
    packed = arrange_rows(batch, layout="packed")
    names = name_groups(batch)
    bounds = [row for row in range(len(batch)) if row == 0 or names[row] != names[row - 1]]
    return [_grow(batch, packed, first, last) for first, last in pairwise([*bounds, len(batch)])]


def _grow(batch: TrainingBatch, packed: dict[str, Array], first: int, last: int) -> dict[str, Array]:
    rows = batch.rows(batch.token_ids)[first:last]
    start, end = int(batch.offsets[first]), int(batch.offsets[last])
    trained = np.flatnonzero(batch.loss_mask[start:end])
    lengths = batch.lengths[first:last]
    tree = _merge(rows)
    numbers = np.repeat(np.arange(last - first), lengths)
    for name, column in packed.items():
        if name in _OF_TREE:
            continue
        tree[name] = column[first:last].copy() if name in _ROW_COLUMNS else column[start:end][trained]
    return tree | {
        "trained_places": tree["places"][trained],
        "trained_rows": numbers[trained],
        "loss_weight": batch.loss_weight[first:last][numbers[trained]],
        "row_index": np.arange(first, last),
        "cu_seqlens": (batch.offsets[first : last + 1] - start).astype(np.int32),
    }


_ROW_COLUMNS = ("reward", "loss_weight", "group_index", "trajectory_index", "chosen", "pair_index", "desirable")


def _merge(rows: list[Array]) -> dict[str, Array]:
    """The columns of places, nodes and paths: rows by their tokens, each behind the one that it begins most like."""
    total = sum(map(len, rows))
    input_ids, positions, parents, ends = np.empty((4, total), np.int64)
    begins = np.zeros(total + 1, np.bool_)
    places = [np.zeros(0, np.int64)] * len(rows)
    size, path, before = 0, np.zeros(0, np.int64), np.zeros(0, np.int32)
    for row in sorted(range(len(rows)), key=lambda row: rows[row].astype(">u4").tobytes()):
        same = _common(before, rows[row])
        before, new = rows[row], len(rows[row]) - same
        path = places[row] = np.concatenate((path[:same], np.arange(size, size + new)))
        if not new:
            continue
        added = slice(size, size + new)
        input_ids[added] = before[same:]
        positions[added] = np.arange(same, len(path))
        parents[added] = np.concatenate(([-1], path))[same:-1]
        ends[path] = size + new
        begins[size] = True
        if same:
            begins[path[same - 1] + 1] = True  # what stood behind the branch is a node of its own
        size += new
    node_index = np.cumsum(begins[:size]) - 1
    above = parents[:size][begins[:size]]
    paths = np.zeros((len(rows), len(above)), np.bool_)
    for number, of_row in enumerate(places):
        paths[number, node_index[of_row]] = True
    return {
        "input_ids": input_ids[:size].copy(),
        "position_ids": positions[:size].copy(),
        "parents": parents[:size].copy(),
        "subtree_ends": ends[:size].copy(),
        "node_index": node_index,
        "node_parents": np.array([-1 if place < 0 else node_index[place] for place in above], np.int64),
        "paths": paths,
        "places": np.concatenate([*places, np.zeros(0, np.int64)]),
    }


def _common(a: Array, b: Array) -> int:
    """How many tokens both begin with."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if len(differ) else n


# -------------------------------------------------------------------------------------- on the trainer's device, with torch


def dense_mask(tree: dict[str, Any]) -> Any:
    """bool [1, 1, S, S], True where the query (row) sees the key (column): for eager and scaled-dot-product attention."""
    torch = need("torch", "dense_mask")
    ends = tree["subtree_ends"]
    at = torch.arange(len(ends), device=ends.device)
    return ((at[None, :] <= at[:, None]) & (at[:, None] < ends[None, :]))[None, None]


def mask_mod(tree: dict[str, Any]) -> Any:
    """The same as the function of (batch, head, query, key) that `flex_attention.create_block_mask` takes; `subtree_ends`
    must be on the device of the queries."""
    ends = tree["subtree_ends"]

    def sees(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (key <= query) & (query < ends[key])

    return sees


def trained_log_probs(logits: Any, tree: dict[str, Any]) -> Any:
    """[M], nats: the model's log-prob of each entry, of its `logits` [S, vocabulary] or [1, S, vocabulary] over the tree."""
    flat = logits.reshape(-1, logits.shape[-1])
    places = tree["trained_places"]
    said = flat[tree["parents"][places]].log_softmax(-1)
    return said.gather(-1, tree["input_ids"][places][:, None])[:, 0]
