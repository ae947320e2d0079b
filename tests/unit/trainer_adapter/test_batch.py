"""Columns hold exactly what the samples held, sample after sample."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.codec import pack_floats, pack_ids, unpack_floats, unpack_ids, unpack_mask
from claw_r1.events import BlobRef, ExpertsSpan, GroupReady, Sample, StepSpan, VersionSpan
from tests.factories import a_ready_group
from trainer_adapter.batch import TrainingBatch, build_columns
from trainer_adapter.credit import Gae

Pair = tuple[GroupReady, list[Sample]]


def a_batch(*pairs: Pair, algorithm: str = "grpo", gae: Gae | None = None) -> TrainingBatch:
    head: dict[str, Any] = {"batch_id": "b", "recipe": "test", "recipe_version": 1, "run_id": "run", "sequence": 1}
    return TrainingBatch(**head, trained_version=None, **build_columns(pairs, algorithm, gae))


def a_pair(group_id: str = "g", rewards: tuple[float | None, ...] = (1.0, 0.0), **over: Any) -> Pair:
    samples, marker = a_ready_group(group_id, rewards, **over)
    return marker, samples


@st.composite
def pairs(draw: st.DrawFn) -> list[Pair]:
    out: list[Pair] = []
    for number in range(draw(st.integers(0, 4))):
        n = draw(st.integers(1, 3))
        marker, samples = a_pair(
            f"g{number}", tuple(float(reward) for reward in range(n)), samples=draw(st.integers(1, 3))
        )
        rows = []
        for sample in samples:
            length = draw(st.integers(0, 12))
            ids = draw(st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length))
            mask = draw(st.lists(st.integers(0, 1), min_size=length, max_size=length))
            probs = draw(st.lists(st.floats(-20, 0, width=32), min_size=length, max_size=length))
            columns = {"token_ids": pack_ids(ids), "loss_mask": bytes(mask), "rollout_log_probs": pack_floats(probs)}
            rows.append(sample.model_copy(update=columns))
        out.append((marker, rows))
    return out


@given(pairs())
def test_rows_of_the_columns_are_the_samples(drawn: list[Pair]) -> None:
    batch = a_batch(*drawn)
    samples = [sample for _, rows in drawn for sample in rows]
    assert len(batch) == len(samples)
    assert batch.tokens == sum(len(sample.loss_mask) for sample in samples)
    for index, sample in enumerate(samples):
        assert np.array_equal(batch.rows(batch.token_ids)[index], unpack_ids(sample.token_ids))
        assert np.array_equal(batch.rows(batch.loss_mask)[index], unpack_mask(sample.loss_mask))
        assert np.array_equal(batch.rows(batch.rollout_log_probs)[index], unpack_floats(sample.rollout_log_probs))
        assert batch.groups[batch.group_index[index]].group_id == sample.group_id
    padded = batch.padded(batch.token_ids, -100)
    assert [list(row[:n]) for row, n in zip(padded, batch.lengths, strict=True)] == [
        list(row) for row in batch.rows(batch.token_ids)
    ]
    for trajectory in set(batch.trajectory_index.tolist()):
        mine = batch.trajectory_index == trajectory
        trained = sum(int(batch.rows(batch.loss_mask)[i].sum()) for i in np.flatnonzero(mine))
        assert batch.loss_weight[mine].sum() == pytest.approx(1.0 if trained else 0.0)


@given(pairs())
def test_the_same_groups_have_the_same_digest_and_others_another(drawn: list[Pair]) -> None:
    assert a_batch(*drawn).digest == a_batch(*drawn).digest
    if drawn:
        assert a_batch(*drawn[:-1]).digest != a_batch(*drawn).digest


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": pack_ids([1, 2, 3, 5])},
        {"loss_mask": bytes([0, 0, 0, 1])},
        {"rollout_log_probs": pack_floats([0, 0, -0.5, -0.5000001])},
        {"reward": 0.5},
        {"metadata": {"a": 1}},
        {"version_spans": (VersionSpan(version=2, start=0, end=4),)},
    ],
)
def test_a_change_in_any_column_changes_the_digest(change: dict[str, Any]) -> None:
    marker, samples = a_pair(ids=(1, 2, 3, 4))
    changed = [samples[0].model_copy(update=change), *samples[1:]]
    assert a_batch((marker, changed)).digest != a_batch((marker, samples)).digest


def test_columns_of_a_forked_trajectory() -> None:
    marker, samples = a_pair(rewards=(1.0, 0.0, None), samples=2)
    fork = samples[1].model_copy(update={"loss_mask": bytes([0, 1, 1, 0]), "rollout_log_probs": pack_floats([0] * 4)})
    longer = [samples[0].model_copy(update={"loss_mask": bytes([0, 0, 0, 1])}), fork, *samples[2:]]
    batch = a_batch((marker, longer))
    assert batch.trajectory_index.tolist() == [0, 0, 1, 1]
    assert batch.sample_index.tolist() == [0, 1, 0, 1]
    assert batch.n_samples.tolist() == [2, 2, 2, 2]
    assert batch.loss_weight.tolist() == pytest.approx([1 / 3, 2 / 3, 0.5, 0.5])
    assert batch.advantage.tolist() == pytest.approx([0.7071058] * 2 + [-0.7071058] * 2)
    assert batch.advantages.tolist() == pytest.approx(
        [0, 0, 0, 0.7071058, 0, 0.7071058, 0.7071058, 0, 0, 0, -0.7071058, -0.7071058, 0, 0, -0.7071058, -0.7071058]
    )
    assert batch.reward.tolist() == [1, 1, 0, 0]


def test_a_rewarded_member_without_a_sample_counts_in_the_baseline() -> None:
    marker, samples = a_pair(rewards=(1.0, 0.0))
    batch = a_batch((marker, samples[:1]))
    assert batch.advantage.tolist() == pytest.approx([0.7071058])
    assert batch.groups[0].rewards == {"g-t0": 1.0, "g-t1": 0.0}


def test_versions_are_known_only_where_a_span_says_so() -> None:
    spans = (VersionSpan(version=3, start=1, end=2), VersionSpan(version=None, start=2, end=3))
    batch = a_batch(a_pair(rewards=(1.0,), version_spans=spans))
    assert batch.policy_version.tolist() == [-1, 3, -1, -1]
    assert batch.policy_version_known.tolist() == [False, True, False, False]


def test_dtypes_are_those_of_the_docstrings_and_columns_are_read_only() -> None:
    batch = a_batch(a_pair())
    expected = {
        "offsets": "int64",
        "token_ids": "int32",
        "loss_mask": "uint8",
        "rollout_log_probs": "float32",
        "reward": "float32",
        "advantage": "float32",
        "loss_weight": "float32",
        "group_index": "int32",
        "trajectory_index": "int32",
        "sample_index": "int32",
        "n_samples": "int32",
        "advantages": "float32",
        "policy_version": "int64",
        "policy_version_known": "bool",
    }
    assert {name: str(getattr(batch, name).dtype) for name in expected} == expected
    assert not any(getattr(batch, name).flags.writeable for name in expected)


def test_a_batch_of_nothing_is_whole() -> None:
    batch = a_batch()
    assert (len(batch), batch.tokens, batch.advantages.shape, batch.padded(batch.token_ids).shape) == (
        0,
        0,
        (0,),
        (0, 0),
    )


def test_an_unrewarded_sample_and_an_unknown_algorithm_are_refused() -> None:
    marker, samples = a_pair()
    (other,), _ = a_ready_group("other", (1.0,))
    with pytest.raises(ValueError, match="other-t0 has a sample and no reward"):
        build_columns([(marker, [*samples, other])])
    with pytest.raises(ValueError, match="magic"):
        build_columns([(marker, samples)], "magic")


# ----------------------------------------------------------------------------------------------- annotations, references


def test_annotations_that_every_sample_has_are_columns() -> None:
    values = {"values": pack_floats([0.0, 0.0, 0.5, 0.25])}
    batch = a_batch(a_pair(annotations=values | {"ref_log_probs": pack_floats([0.0, 0.0, -1.0, -2.0])}))
    assert sorted(batch.annotations) == ["ref_log_probs", "values"]
    assert batch.annotations["values"].tolist() == [0.0, 0.0, 0.5, 0.25] * 2
    assert batch.annotations["values"].dtype == np.float32
    assert batch.annotations_missing == {}


def test_annotations_that_some_samples_lack_are_named_and_are_no_columns() -> None:
    values = {"values": pack_floats([0.0, 0.0, 0.5, 0.25])}
    pairs = [a_pair("g", annotations=values), a_pair("h"), a_pair("i", annotations_missing={"values": 1})]
    batch = a_batch(*pairs)
    assert batch.annotations == {}
    assert batch.annotations_missing == {"values": 2 * 2 + 2 * 1}


def test_what_a_batch_got_since_the_first_release_changes_the_digest_only_where_it_is() -> None:
    marker, samples = a_pair()
    plain = a_batch((marker, samples)).digest
    span = StepSpan(step_id="s", step_index=0, start=2, end=4)
    ref = BlobRef(sha256="ab", bytes=1, kind="npy")

    def digest(**over: Any) -> str:
        return a_batch((marker, [samples[0].model_copy(update=over), *samples[1:]])).digest

    labelled = span.model_copy(update={"link": "drift", "link_to": "r", "differs_at": 1})
    assert digest(spans=(span,)) == digest(spans=(labelled,)) != plain
    experts = ExpertsSpan(step_id="s", blob=ref, start=0, end=3)
    changed: list[dict[str, Any]] = [{"multi_modal_data": (ref,)}, {"routed_experts": (experts,)}]
    assert len({plain, *(digest(**change) for change in changed)}) == 3
    values = a_pair(annotations={"values": pack_floats([0, 0, 1, 1])})
    assert a_batch(values).digest != plain


def test_the_digest_of_a_batch_is_that_of_the_first_release() -> None:
    """A batch that was cut before an upgrade is compared with what is made of it after."""
    span = StepSpan(step_id="s", step_index=0, start=2, end=4, reward=0.5)
    assert a_batch(a_pair(spans=(span,))).digest == ("ecd875218dd57dbad756d3bf4f965855c355fa2766b7debaab8f19758a5153fb")
