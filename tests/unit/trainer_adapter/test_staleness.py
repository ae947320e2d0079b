"""Old tokens are masked as the cut says, and a batch that is made again is masked the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.codec import unpack_floats
from claw_r1.events import BatchCut, Sample, VersionSpan
from tests.factories import a_ready_group, a_recipe, a_sample
from tests.unit.trainer_adapter.test_cut import a_cut
from trainer_adapter.batch import build_columns
from trainer_adapter.cut import Selection, name_members, reason_against, select
from trainer_adapter.groups import ReadyGroup, Remembered, Shelf
from trainer_adapter.remake import Parts, remake_columns
from trainer_adapter.staleness import floor_of, mask_stale

MASKING = {"max_versions": 2, "mode": "mask_tokens"}


def spans(*versions: int | None) -> tuple[VersionSpan, ...]:
    """One token each."""
    return tuple(VersionSpan(version=version, start=at, end=at + 1) for at, version in enumerate(versions))


def sampled(*versions: int | None, **over: Any) -> Sample:
    """A sample of as many tokens, all trained."""
    n = len(versions)
    return a_sample(ids=range(n), mask=[1] * n, version_spans=spans(*versions), **over)


@pytest.mark.parametrize(
    ("staleness", "trained", "floor"),
    [
        (MASKING, 7, 5),
        (MASKING, None, None),
        ({"max_versions": 2}, 7, None),
        ({"mode": "mask_tokens"}, 7, None),
        (MASKING | {"max_versions": 0}, 7, 7),
    ],
)
def test_the_oldest_version_that_is_trained(staleness: dict[str, Any], trained: int | None, floor: int | None) -> None:
    assert floor_of(a_recipe(staleness=staleness), trained) == floor


def test_tokens_of_old_versions_are_masked() -> None:
    (masked,) = mask_stale([sampled(4, 5, None, 3, 6)], 5)
    assert list(masked.loss_mask) == [0, 1, 1, 0, 1]
    assert unpack_floats(masked.rollout_log_probs).tolist() == [0, -0.5, -0.5, 0, -0.5]


def test_a_sample_of_old_tokens_only_is_left_out_and_the_others_are_numbered_anew() -> None:
    place: dict[str, Any] = {"n_samples": 3, "trajectory_uid": "a"}
    rows = [sampled(*versions, sample_index=i, **place) for i, versions in enumerate([(1, 1), (5, 1), (5,)])]
    other = sampled(5, trajectory_uid="b")
    left = mask_stale([*rows, other], 5)
    assert [(s.trajectory_uid, s.sample_index, s.n_samples) for s in left] == [("a", 0, 2), ("a", 1, 2), ("b", 0, 1)]
    assert [s.sample_id for s in left] == [rows[1].sample_id, rows[2].sample_id, other.sample_id]


def ready_group(*versions: tuple[int | None, ...], **over: Any) -> ReadyGroup:
    """A group of a trajectory for each, with as many trained tokens."""
    samples, marker = a_ready_group(rewards=tuple(map(float, range(len(versions)))), **over)
    shelf = Shelf(Remembered())
    told = [
        sampled(
            *of_one,
            **s.model_dump(include={"sample_id", "trajectory_uid", "prompt_uid", "group_id", "reward", "label"}),
        )
        for s, of_one in zip(samples, versions, strict=True)
    ]
    for offset, event in enumerate([*told, marker]):
        shelf.put(offset, event, 1.0)
    return shelf.ready[0]


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ([(5, 5), (1, 5)], None),
        ([(1, 1), (1, 5)], None),
        ([(1, 1), (4, 4)], "stale"),
        ([(1, 1), (None, 1)], None),
    ],
)
def test_a_group_is_left_out_if_nothing_is_left(versions: list[tuple[int | None, ...]], reason: str | None) -> None:
    assert reason_against(ready_group(*versions), a_recipe(staleness=MASKING), 7) == reason


def test_half_a_pair_is_no_pair() -> None:
    recipe = a_recipe(staleness=MASKING, algorithm="dpo")
    group = ready_group((1, 1), (5, 5), label="chosen")
    assert reason_against(group, recipe, 7) == "no_pair"


version = st.one_of(st.none(), st.integers(0, 9))


@given(st.lists(st.lists(version, min_size=1, max_size=4).map(tuple), min_size=1, max_size=4), st.integers(0, 9))
def test_a_cut_says_which_samples_are_left_and_is_made_again_from_that(
    versions: list[tuple[int | None, ...]], trained: int
) -> None:
    recipe = a_recipe(staleness=MASKING)
    group = ready_group(*versions)
    selection = select([group], recipe, trained)
    floor = floor_of(recipe, trained)
    bodies = [sample.body for sample in group.samples if sample.body is not None]
    masked = mask_stale(bodies, floor)
    if selection is None:
        assert masked == []
        return
    (member,) = name_members(selection)
    assert [sample.sample_id for sample in masked] == list(member.sample_ids)
    assert sorted([*member.sample_ids, *member.left_out]) == sorted(group.marker.sample_ids)
    kept = sum(v is None or floor is None or v >= floor for of_one in versions for v in of_one)
    columns = build_columns([(group.marker, masked)])
    assert columns["loss_mask"].sum() == kept
    cut = the_cut(selection, trained)
    parts = Parts({s.sample_id: s for s in bodies}, {group.key: group.marker})
    again = remake_columns(cut, parts, lambda _: recipe)
    assert again["groups"] == columns["groups"]
    for name in (
        "offsets",
        "token_ids",
        "loss_mask",
        "rollout_log_probs",
        "trajectory_advantages",
        "loss_weight",
        "n_samples",
    ):
        assert again[name].tobytes() == columns[name].tobytes(), name


def the_cut(selection: Selection, trained: int) -> BatchCut:
    return a_cut(1, selection, Shelf(Remembered())).model_copy(update={"policy_version": trained})
