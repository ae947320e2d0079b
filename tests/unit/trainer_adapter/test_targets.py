"""A batch in each trainer's format: names, shapes, dtypes, masks and values; with numpy only."""

import json
import sys
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.codec import pack_floats, pack_ids
from claw_r1.errors import UserError
from claw_r1.events import BlobRef, StepSpan, VersionSpan
from tests.unit.trainer_adapter.test_batch import a_batch, a_pair
from tests.unit.trainer_adapter.test_shard import batches
from trainer_adapter.batch import NoColumn, TrainingBatch
from trainer_adapter.targets import areal, openrlhf, torch, tree, verl
from trainer_adapter.targets.layout import split_points
from trainer_adapter.targets.trl import claw_reward

PAD = 99


def two_turns(**over: Any) -> TrainingBatch:
    """Two rows of one group: two turns with a tool's result between them, and one turn. Advantages are ±0.7071."""
    marker, (long, short) = a_pair("my_group")
    long = long.model_copy(
        update={
            "token_ids": pack_ids([1, 2, 3, 4, 5, 6, 7]),
            "loss_mask": bytes([0, 0, 1, 1, 0, 1, 0]),
            "rollout_log_probs": pack_floats([0, 0, -1, -2, 0, -3, 0]),
            "annotations": {"ref_log_probs": pack_floats([0, 0, -4, -5, 0, -6, 0])},
            "version_spans": (VersionSpan(version=3, start=2, end=4), VersionSpan(version=4, start=5, end=6)),
            "spans": tuple(
                StepSpan(step_id=f"s{i}", step_index=i, start=a, end=b) for i, a, b in ((0, 2, 4), (1, 5, 6))
            ),
            "metadata": {"env": "sokoban"},
        }
        | over
    )
    short = short.model_copy(
        update={
            "token_ids": pack_ids([8, 9, 10]),
            "loss_mask": bytes([0, 0, 1]),
            "rollout_log_probs": pack_floats([0, 0, -7]),
            "annotations": {"ref_log_probs": pack_floats([0, 0, -8])},
            "version_spans": (),
            "spans": (StepSpan(step_id="s2", step_index=0, start=2, end=3),),
        }
    )
    return a_batch((marker, [long, short]))


def told(arrays: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (str(array.dtype), array.shape) for name, array in arrays.items()}


A = pytest.approx(0.7071058)


def test_padded_tensors() -> None:
    out = torch.arrange(two_turns(), pad_token_id=PAD)
    assert told(out) == {
        **dict.fromkeys(("input_ids", "position_ids", "labels", "policy_version", "attention_mask"), ("int64", (2, 7))),
        "loss_mask": ("bool", (2, 7)),
        **dict.fromkeys(("rollout_log_probs", "token_rewards", "advantages"), ("float32", (2, 7))),
        "annotations.ref_log_probs": ("float32", (2, 7)),
        **dict.fromkeys(("reward", "loss_weight"), ("float32", (2,))),
        **dict.fromkeys(("group_index", "trajectory_index"), ("int64", (2,))),
    }
    assert out["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, PAD, PAD, PAD, PAD]]
    assert out["labels"].tolist() == [[-100, -100, 3, 4, -100, 6, -100], [-100, -100, 10, -100, -100, -100, -100]]
    assert out["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 0, 0, 0]]
    assert out["attention_mask"].tolist() == [[1] * 7, [1] * 3 + [0] * 4]
    assert out["policy_version"].tolist() == [[-1, -1, 3, 3, -1, 4, -1], [-1] * 7]
    assert out["advantages"].tolist() == [[0, 0, A, A, 0, A, 0], [0, 0, -out["advantages"][0, 2], 0, 0, 0, 0]]


def test_padding_on_the_left_and_to_a_length() -> None:
    out = torch.arrange(two_turns(), pad_token_id=PAD, side="left", length=8)
    assert out["input_ids"].tolist() == [[PAD, 1, 2, 3, 4, 5, 6, 7], [PAD] * 5 + [8, 9, 10]]
    assert out["attention_mask"].tolist() == [[0] + [1] * 7, [0] * 5 + [1] * 3]
    assert out["loss_mask"].tolist() == [[0, 0, 0, 1, 1, 0, 1, 0], [0] * 7 + [1]]
    assert out["rollout_log_probs"][1].tolist() == [0] * 7 + [-7]


def test_packed_tensors() -> None:
    out = torch.arrange(two_turns(), layout="packed")
    assert out["input_ids"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert out["position_ids"].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert (out["cu_seqlens"].tolist(), int(out["max_seqlen"]), str(out["cu_seqlens"].dtype)) == (
        [0, 7, 10],
        7,
        "int32",
    )
    assert "attention_mask" not in out


@given(batches())
def test_padded_and_packed_hold_the_same(batch: TrainingBatch) -> None:
    packed = torch.arrange(batch, layout="packed")
    for side in ("left", "right"):
        padded = torch.arrange(batch, pad_token_id=PAD, side=side)
        inside = padded["attention_mask"] == 1
        for name, column in packed.items():
            if padded.get(name) is not None and padded[name].ndim == 2:
                assert np.array_equal(padded[name][inside], column), name


@given(batches(), st.integers(20, 60), st.sampled_from(["padded", "packed"]))
def test_micro_batches_are_the_rows_that_they_name(batch: TrainingBatch, most: int, layout: torch.Layout) -> None:
    whole = torch.arrange(batch, layout="packed")
    for rows in batch.pack(most):
        part = torch.arrange(batch, pad_token_id=PAD, layout=layout, rows=rows)
        inside = part["attention_mask"] == 1 if layout == "padded" else slice(None)
        for name, column in whole.items():
            if name in ("cu_seqlens", "max_seqlen"):
                continue
            if len(column) == batch.tokens != len(batch):
                known = np.concatenate([batch.rows(column)[row] for row in rows])
                assert np.array_equal(part[name][inside], known), name
            else:
                assert np.array_equal(part[name], column[rows]), name
        if layout == "packed":
            assert np.diff(part["cu_seqlens"]).tolist() == batch.lengths[rows].tolist()
            assert part["max_seqlen"] == batch.lengths[rows].max()
            assert part["cu_seqlens"][-1] <= most


def test_an_annotation_may_have_the_name_of_a_column() -> None:
    batch = two_turns()
    names = ("advantages", "labels", "input_ids", "reward", "places", "cu_seqlens")
    known = {
        "torch": torch.arrange(batch, pad_token_id=PAD),
        "packed": torch.arrange(batch, layout="packed"),
        "tree": tree.arrange(batch)[0],
    }
    nines = np.full(batch.tokens, 9, np.float32)
    object.__setattr__(batch, "annotations", dict.fromkeys(names, nines) | batch.annotations)
    made = {
        "torch": torch.arrange(batch, pad_token_id=PAD),
        "packed": torch.arrange(batch, layout="packed"),
        "tree": tree.arrange(batch)[0],
    }
    for form, arrays in known.items():
        for name, array in arrays.items():
            assert np.array_equal(made[form][name], array), (form, name)
        assert set(made[form]) - set(arrays) == {f"annotations.{name}" for name in names}
        assert {float(made[form][f"annotations.{name}"].max()) for name in names} == {9.0}
    table = batch.to_arrow().to_pylist()[0]
    assert (table["reward"], table["annotations.reward"]) == (1.0, [9.0] * 7)


def test_pairs_and_labels_go_along() -> None:
    marker, samples = a_pair()
    both = [s.model_copy(update={"label": x}) for s, x in zip(samples, ("chosen", "rejected"), strict=True)]
    out = torch.arrange(a_batch((marker, both), algorithm="dpo"), layout="packed")
    assert (out["chosen"].tolist(), out["pair_index"].tolist(), "advantages" in out) == ([True, False], [0, 0], False)
    wanted = [samples[0].model_copy(update={"label": "desirable"})]
    assert torch.arrange(a_batch((marker, wanted), algorithm="kto"), layout="packed")["desirable"].tolist() == [True]


def test_verl() -> None:
    out = verl.arrange(two_turns(), pad_token_id=PAD, prompt_length=3)
    tensors, non_tensors = out["tensors"], out["non_tensors"]
    assert told(tensors) == {
        "prompts": ("int64", (2, 3)),
        **dict.fromkeys(("responses", "response_mask"), ("int64", (2, 5))),
        **dict.fromkeys(("rollout_log_probs", "rm_scores", "advantages"), ("float32", (2, 5))),
        **dict.fromkeys(("attention_mask", "input_ids", "position_ids"), ("int64", (2, 8))),
    }
    assert tensors["prompts"].tolist() == [[PAD, 1, 2], [PAD, 8, 9]]
    assert tensors["responses"].tolist() == [[3, 4, 5, 6, 7], [10, PAD, PAD, PAD, PAD]]
    assert tensors["response_mask"].tolist() == [[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]]
    assert tensors["rollout_log_probs"].tolist() == [[-1, -2, 0, -3, 0], [-7, 0, 0, 0, 0]]
    assert tensors["rm_scores"].tolist() == [[0, 0, 0, 1, 0], [0] * 5]
    assert tensors["attention_mask"].tolist() == [[0, 1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0, 0]]
    assert tensors["position_ids"].tolist() == [[0, 0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 2, 2, 2, 2, 2]]
    assert non_tensors["uid"].tolist() == ["my~group"] * 2
    assert non_tensors["__num_turns__"].tolist() == [4, 2]
    assert non_tensors["min_global_steps"].tolist() == [3, None]
    assert non_tensors["max_global_steps"].tolist() == [4, None]
    assert non_tensors["multi_modal_inputs"].tolist() == [{}, {}]
    assert non_tensors["extra_info"][0]["metadata"] == {"env": "sokoban"}
    assert {name: str(array.dtype) for name, array in non_tensors.items() if array.dtype != object} == {
        "__num_turns__": "int32"
    }
    assert out["meta_info"] == {"reward_extra_keys": []}


def test_trl() -> None:
    out = two_turns().to_trl()
    assert out == {
        "prompt_ids": [[1, 2], [8, 9]],
        "completion_ids": [[3, 4, 5, 6, 7], [10]],
        "logprobs": [[-1, -2, 0, -3, 0], [-7]],
        "env_mask": [[1, 1, 0, 1, 0], [1]],
        "claw_reward": [1.0, 0.0],
        "claw_group": ["my_group"] * 2,
        "claw_trajectory": ["my_group-t0", "my_group-t1"],
        "claw_task": [None, None],
    }
    assert claw_reward(completions=[], **out) == [1.0, 0.0]


def test_slime() -> None:
    assert two_turns().to_slime() == {
        "tokens": [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10]],
        "response_lengths": [5, 1],
        "rewards": [A, pytest.approx(-0.7071058)],
        "raw_reward": [1.0, 0.0],
        "sample_indices": [0, 1],
        "rollout_ids": [0, 1],
        "loss_masks": [[1, 1, 0, 1, 0], [1]],
        "rollout_log_probs": [[-1, -2, 0, -3, 0], [-7]],
    }


def test_prime_rl() -> None:
    batch = two_turns()
    first, second = batch.to_prime_rl(env_name="sokoban", temperature=0.5)
    assert first == {
        "token_ids": [1, 2, 3, 4, 5, 6, 7],
        "mask": [False, False, True, True, False, True, False],
        "logprobs": [0, 0, -1, -2, 0, -3, 0],
        "temperatures": [0.5] * 7,
        "advantages": [0, 0, A, A, 0, A, 0],
        "ref_logprobs": [0, 0, -4, -5, 0, -6, 0],
        "routed_experts": None,
        "env_name": "sokoban",
        "reward": 1.0,
        "sample_id": batch.sample_ids[0],
    }
    assert second["token_ids"] == [8, 9, 10]
    with pytest.raises(NoColumn, match="critic"):
        a_batch(a_pair(), algorithm="ppo").to_prime_rl(env_name="x", temperature=1.0)


def test_openrlhf() -> None:
    out = openrlhf.arrange(two_turns(), pad_token_id=PAD)
    assert told(out) == {
        **dict.fromkeys(("sequences", "attention_mask"), ("int64", (2, 7))),
        "action_mask": ("int64", (2, 6)),
        **dict.fromkeys(("rollout_log_probs", "advantages", "base_action_log_probs"), ("float32", (2, 6))),
        "rewards": ("float32", (2,)),
        **dict.fromkeys(("total_length", "response_length"), ("int64", (2,))),
    }
    assert out["sequences"][1].tolist() == [8, 9, 10, PAD, PAD, PAD, PAD]
    assert out["action_mask"].tolist() == [[0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 0, 0]]
    assert out["rollout_log_probs"][0].tolist() == [0, -1, -2, 0, -3, 0]
    assert (out["total_length"].tolist(), out["response_length"].tolist()) == ([7, 3], [4, 1])


def test_areal() -> None:
    out = areal.arrange(two_turns(), pad_token_id=PAD)
    assert told(out) == {
        **dict.fromkeys(("input_ids", "loss_mask", "versions"), ("int32", (2, 7))),
        "logprobs": ("float32", (2, 7)),
        "attention_mask": ("bool", (2, 7)),
        "rewards": ("float32", (2,)),
    }
    assert out["versions"].tolist() == [[-1, -1, 3, 3, -1, 4, -1], [-1] * 7]
    assert out["loss_mask"].tolist() == [[0, 0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0]]


def test_arrow() -> None:
    batch = two_turns()
    table = batch.to_arrow()
    first = table.to_pylist()[0]
    assert first["token_ids"] == [1, 2, 3, 4, 5, 6, 7]
    assert first["policy_version"] == [None, None, 3, 3, None, 4, None]
    assert first["annotations.ref_log_probs"] == [0, 0, -4, -5, 0, -6, 0]
    assert [(s["step_id"], s["start"], s["end"]) for s in first["spans"]] == [("s0", 2, 4), ("s1", 5, 6)]
    assert (first["group_id"], first["label"], json.loads(first["metadata"])) == ("my_group", None, {"env": "sokoban"})
    assert table.schema.metadata[b"digest"] == batch.digest.encode()
    assert str(table.schema.field("token_ids").type) == "large_list<item: int32>"
    values = table.column("token_ids").chunk(0).values
    assert values.buffers()[1].address == batch.token_ids.ctypes.data, "tokens are not copied"


@given(batches())
def test_every_format_takes_shards_with_padding_rows(batch: TrainingBatch) -> None:
    shard = batch.shard(0, len(batch) + 1)
    n = len(shard)
    out = verl.arrange(shard, pad_token_id=PAD)
    assert len(set(out["non_tensors"]["uid"])) >= shard.n_padding
    assert openrlhf.arrange(shard, pad_token_id=PAD)["action_mask"].shape[0] == n
    assert areal.arrange(shard, pad_token_id=PAD)["loss_mask"].sum() == shard.loss_mask.sum()
    assert len(shard.to_prime_rl(env_name="x", temperature=1.0)) == n
    assert sum(map(sum, shard.to_slime()["loss_masks"])) == shard.loss_mask.sum()
    assert shard.to_arrow().num_rows == n


@given(batches())
def test_a_prompt_ends_where_training_begins(batch: TrainingBatch) -> None:
    for mask, end in zip(batch.rows(batch.loss_mask), split_points(batch), strict=True):
        assert not mask[:end].any()
        assert end == len(mask) - 1 or mask[end] == 1


MAKERS: dict[str, Callable[[TrainingBatch], Any]] = {
    "to_verl": lambda batch: verl.arrange(batch, pad_token_id=PAD),
    "to_trl": lambda batch: batch.to_trl(),
    "to_slime": lambda batch: batch.to_slime(),
    "to_prime_rl": lambda batch: batch.to_prime_rl(env_name="x", temperature=1.0),
    "to_openrlhf": lambda batch: openrlhf.arrange(batch, pad_token_id=PAD),
    "to_areal": lambda batch: areal.arrange(batch, pad_token_id=PAD),
}


@pytest.mark.parametrize("method", MAKERS)
def test_pictures_are_not_lost_in_silence(method: str) -> None:
    batch = two_turns(multi_modal_data=(BlobRef(sha256="a", bytes=1, kind="image/png"),))
    with pytest.raises(UserError, match=f"{method}.* carries no pictures"):
        MAKERS[method](batch)


def test_verl_takes_pictures_that_a_processor_read() -> None:
    batch = two_turns(multi_modal_data=(BlobRef(sha256="a", bytes=1, kind="image/png"),))
    out = verl.arrange(batch, pad_token_id=PAD, multi_modal_inputs=[{"pixel_values": 1}, {}])
    assert out["non_tensors"]["multi_modal_inputs"].tolist() == [{"pixel_values": 1}, {}]
    with pytest.raises(UserError, match="has 1 entries, and the batch 2 rows"):
        verl.arrange(batch, pad_token_id=PAD, multi_modal_inputs=[{}])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda b: torch.arrange(b), "needs pad_token_id"),
        (lambda b: torch.arrange(b, pad_token_id=0, length=6), "has 7 tokens, and length is 6"),
        (lambda b: torch.arrange(b, pad_token_id=0, layout=cast("Any", "flat")), "no layout 'flat'"),
        (lambda b: verl.arrange(b, pad_token_id=0, prompt_length=1), "has 2 tokens, and prompt_length is 1"),
        (lambda b: verl.arrange(b, pad_token_id=0, response_length=4), "has 5 tokens, and response_length is 4"),
        (lambda b: b.to_trl(num_generations=4), "group my_group has 2 rows, and TRL takes 4"),
        (lambda b: b.shard(0, 3).to_trl() and b.shard(2, 3).to_trl(), "padding rows are in none"),
    ],
)
def test_what_does_not_fit_is_said(make: Callable[[TrainingBatch], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(two_turns())


TORCH: list[tuple[str, dict[str, Any]]] = [
    *((method, {"pad_token_id": 0}) for method in ("to_torch", "to_verl", "to_openrlhf", "to_areal")),
    ("to_tree", {}),
    ("to_verl_rows", {"global_steps": 1}),
]


@pytest.mark.parametrize(("method", "arguments"), TORCH)
def test_a_missing_package_is_named(method: str, arguments: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=f"{method} needs the package torch: `pip install torch`"):
        getattr(two_turns(), method)(**arguments)


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "kto"])
def test_a_missing_datasets_package_is_named(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=f"to_{algorithm} needs the package datasets: `pip install datasets`"):
        getattr(a_batch(a_pair(), algorithm=algorithm), f"to_{algorithm}")()
    with pytest.raises(UserError, match="to_hf needs the package datasets"):
        two_turns().to_hf()


def test_missing_pyarrow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="to_arrow needs the package pyarrow"):
        two_turns().to_arrow()
