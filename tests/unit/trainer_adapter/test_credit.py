"""Rewards in their places, advantages per token, pairs and labels, against numbers worked out by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.codec import pack_floats
from claw_r1.events import GroupReady, Sample, StepSpan
from tests.factories import a_ready_group, a_recipe
from tests.unit.trainer_adapter.test_batch import Pair, a_batch
from trainer_adapter import NoColumn
from trainer_adapter.batch import build_columns
from trainer_adapter.credit import Gae, gae_of


def span(index: int, start: int, end: int, reward: float | None = None) -> StepSpan:
    return StepSpan(step_id=f"s{index}", step_index=index, start=start, end=end, reward=reward)


def a_rollout(
    mask: tuple[int, ...], spans: tuple[StepSpan, ...], values: tuple[float, ...], reward: float = 1.0, name: str = "g"
) -> Pair:
    samples, marker = a_ready_group(
        name, (reward,), ids=range(len(mask)), mask=mask, spans=spans, annotations={"values": pack_floats(values)}
    )
    return marker, samples


# ------------------------------------------------------------------------------------------------------------ rewards


def test_a_steps_reward_is_at_its_last_trained_token_and_the_rest_at_the_end() -> None:
    batch = a_batch(a_rollout((0, 1, 1, 0, 1, 1), (span(0, 1, 3, 0.25), span(1, 4, 6, -0.5)), (0,) * 6))
    # 1.0 - 0.25 + 0.5 = 1.25 lacks, and stands with -0.5 at the last token
    assert batch.token_rewards.tolist() == [0, 0, 0.25, 0, 0, 0.75]


def test_without_step_rewards_the_last_token_has_it_all() -> None:
    batch = a_batch(a_rollout((0, 1, 1, 0), (span(0, 1, 4),), (0,) * 4, reward=2.0))
    assert batch.token_rewards.tolist() == [0, 0, 2.0, 0]
    assert not batch.token_rewards.flags.writeable


def test_a_step_that_is_not_trained_gives_its_reward_to_the_rest() -> None:
    batch = a_batch(a_rollout((0, 1, 1, 0, 0, 0), (span(0, 1, 3, 0.25), span(1, 4, 6, -0.5)), (0,) * 6))
    assert batch.token_rewards.tolist() == [0, 0, 1.0, 0, 0, 0]


# ------------------------------------------------------------------------------------------------------------ ppo


def test_token_level_estimates() -> None:
    rollout = a_rollout((0, 1, 1, 0, 1), (span(0, 1, 3), span(1, 4, 5)), (9, 0.5, 0.6, 9, 0.7))
    batch = a_batch(rollout, algorithm="ppo", gae=Gae(gamma=0.9, lam=0.8))
    # deltas: 1 - 0.7 = 0.3; 0.9 * 0.7 - 0.6 = 0.03; 0.9 * 0.6 - 0.5 = 0.04
    # 0.3; 0.03 + 0.72 * 0.3 = 0.246; 0.04 + 0.72 * 0.246 = 0.21712
    assert batch.advantages.tolist() == pytest.approx([0, 0.21712, 0.246, 0, 0.3], abs=1e-6)
    assert (str(batch.advantages.dtype), batch.advantages.flags.writeable) == ("float32", False)


def test_step_level_estimates() -> None:
    rollout = a_rollout((0, 1, 1, 0, 1), (span(0, 1, 3, 0.5), span(1, 4, 5)), (9, 0.5, 0.6, 9, 0.7))
    batch = a_batch(rollout, algorithm="ppo", gae=Gae("step", gamma=0.9, lam=0.8))
    # rewards 0.5 and 0.5, values 0.5 and 0.7: 0.5 - 0.7 = -0.2; 0.5 + 0.63 - 0.5 = 0.63, 0.63 + 0.72 * -0.2 = 0.486
    assert batch.advantages.tolist() == pytest.approx([0, 0.486, 0.486, 0, -0.2], abs=1e-6)


def test_a_forked_trajectory_goes_on_in_the_order_of_its_steps() -> None:
    samples, marker = a_ready_group("g", (1.0,), samples=2, mask=(0, 0, 1, 1))
    values = [pack_floats([0, 0, 0.5, 0.7]), pack_floats([0, 0, 0.6, 0.8])]
    spans = [(span(0, 2, 3), span(2, 3, 4)), (span(1, 2, 3), span(3, 3, 4))]
    rows = [
        sample.model_copy(update={"spans": s, "annotations": {"values": v}})
        for sample, s, v in zip(samples, spans, values, strict=True)
    ]
    batch = a_batch((marker, rows), algorithm="ppo", gae=Gae(gamma=1.0, lam=0.0))
    # V in order 0.5, 0.6, 0.7, 0.8: each delta 0.1, the last 1 - 0.8 = 0.2
    assert batch.advantages.tolist() == pytest.approx([0, 0, 0.1, 0.1, 0, 0, 0.1, 0.2], abs=1e-6)
    assert batch.token_rewards.tolist() == [0, 0, 0, 0, 0, 0, 0, 1]


@st.composite
def rollouts(draw: st.DrawFn, name: str = "g") -> Pair:
    steps = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    mask, spans, values = [0], [], [0.0]
    for index, length in enumerate(steps):
        own = draw(st.none() | st.floats(-2, 2, width=32))
        spans.append(span(index, len(mask), len(mask) + length, own))
        mask += [1] * length + [0]
        values += [*draw(st.lists(st.floats(-3, 3, width=32), min_size=length, max_size=length)), 0.0]
    return a_rollout(tuple(mask), tuple(spans), tuple(values), draw(st.floats(-5, 5, width=32)), name)


def gae_batch(*pairs: Pair, level: Any = "token", gamma: float = 1.0, lam: float = 1.0) -> Any:
    return a_batch(*pairs, algorithm="ppo", gae=Gae(level, gamma, lam))


@given(rollouts(), st.floats(0, 1))
def test_tokens_add_up_to_the_reward_and_estimates_have_their_limits(rollout: Pair, gamma: float) -> None:
    batch = gae_batch(rollout, gamma=gamma)
    tokens = np.flatnonzero(batch.loss_mask)
    rewards, values = batch.token_rewards[tokens].astype(float), batch.values[tokens].astype(float)
    assert rewards.sum() == pytest.approx(batch.reward[0], abs=1e-4)
    # lambda 1: the discounted return less the value (arXiv 1506.02438, equation 18)
    returns = [float(sum(gamma**k * r for k, r in enumerate(rewards[t:]))) for t in range(len(tokens))]
    assert batch.advantages[tokens].tolist() == pytest.approx((np.array(returns) - values).tolist(), abs=1e-3)
    # lambda 0: the temporal difference (equation 17)
    deltas = rewards + gamma * np.append(values[1:], 0.0) - values
    assert gae_batch(rollout, gamma=gamma, lam=0.0).advantages[tokens].tolist() == pytest.approx(
        deltas.tolist(), abs=1e-4
    )
    assert not batch.advantages[batch.loss_mask == 0].any()


@given(rollouts("a"), rollouts("b"), st.sampled_from(["token", "step"]))
def test_trajectories_do_not_see_each_other(first: Pair, second: Pair, level: str) -> None:
    n = gae_batch(first).tokens
    together = gae_batch(first, second, level=level, lam=0.9).advantages
    turned = gae_batch(second, first, level=level, lam=0.9).advantages
    assert (
        together[:n].tobytes() == turned[-n:].tobytes() == gae_batch(first, level=level, lam=0.9).advantages.tobytes()
    )


@given(rollouts())
def test_steps_of_one_token_are_tokens(rollout: Pair) -> None:
    marker, (sample,) = rollout
    spans = tuple(
        span(index, at, at + 1) for index, at in enumerate(np.flatnonzero(bytearray(sample.loss_mask)).tolist())
    )
    single = (marker, [sample.model_copy(update={"spans": spans})])
    assert (
        gae_batch(single, lam=0.5).advantages.tobytes() == gae_batch(single, level="step", lam=0.5).advantages.tobytes()
    )


def test_advantages_of_ppo_without_values_are_the_trainers() -> None:
    batch = a_batch(a_rollout((0, 1), (span(0, 1, 2),), (0, 0)), algorithm="ppo")
    assert not hasattr(batch, "advantages")
    with pytest.raises(NoColumn, match=r"annotations: \{required: \[values\]\}"):
        batch.advantages  # noqa: B018
    with pytest.raises(NoColumn, match="no advantage by trajectory: it has `advantages`, by token"):
        gae_batch(a_rollout((0, 1), (span(0, 1, 2),), (0, 0))).advantage  # noqa: B018
    samples, marker = a_ready_group()
    with pytest.raises(NoColumn, match="not every sample has values"):
        build_columns([(marker, samples)], "ppo", Gae())
    with pytest.raises(NoColumn, match="not every sample has values"):
        a_batch((marker, samples)).values  # noqa: B018


def test_a_recipe_says_how_values_become_advantages() -> None:
    asked = {"annotations": {"required": ["values"]}, "gae": "step", "gamma": 0.9, "lam": 0.8}
    assert gae_of(a_recipe(algorithm="ppo", **asked)) == Gae("step", 0.9, 0.8)
    assert gae_of(a_recipe(algorithm="ppo")) is None
    assert gae_of(a_recipe(annotations={"required": ["values"]})) is None


# ------------------------------------------------------------------------------------------------------------ dpo, kto


def labelled(name: str, *labels: str, samples: int = 1) -> tuple[GroupReady, list[Sample]]:
    rows, marker = a_ready_group(name, [1.0] * len(labels), samples=samples)
    said = [label for label in labels for _ in range(samples)]
    return marker, [row.model_copy(update={"label": label}) for row, label in zip(rows, said, strict=True)]


def test_pairs_are_the_rows_of_chosen_and_rejected() -> None:
    batch = a_batch(
        labelled("a", "rejected", "chosen"), labelled("b", "chosen", "rejected", samples=2), algorithm="dpo"
    )
    assert batch.chosen.tolist() == [False, True, True, True, False, False]
    assert batch.pair_index.tolist() == [0, 0, 1, 1, 1, 1]
    assert [(chosen.tolist(), rejected.tolist()) for chosen, rejected in batch.pairs] == [([1], [0]), ([2, 3], [4, 5])]
    assert (str(batch.pair_index.dtype), str(batch.chosen.dtype)) == ("int32", "bool")
    for column in ("advantage", "advantages", "desirable", "teacher_log_probs"):
        with pytest.raises(NoColumn):
            getattr(batch, column)


@given(st.permutations(range(4)))
def test_pairs_go_with_their_groups(order: list[int]) -> None:
    made = [labelled(f"g{n}", *(("chosen", "rejected") if n % 2 else ("rejected", "chosen"))) for n in range(4)]
    batch = a_batch(*(made[n] for n in order), algorithm="dpo")
    for number, (chosen, rejected) in zip(order, batch.pairs, strict=True):
        assert batch.labels[chosen.item()] == "chosen"
        assert batch.labels[rejected.item()] == "rejected"
        assert {batch.groups[batch.group_index[row.item()]].group_id for row in (chosen, rejected)} == {f"g{number}"}


def test_labels_of_kto() -> None:
    batch = a_batch(labelled("a", "desirable", "undesirable"), labelled("b", "undesirable"), algorithm="kto")
    assert batch.desirable.tolist() == [True, False, False]
    with pytest.raises(NoColumn, match="algorithm: dpo"):
        batch.pairs  # noqa: B018


def test_labels_tags_and_quality_are_in_the_digest_where_they_are() -> None:
    marker, samples = labelled("a", "desirable", "undesirable")
    bare = [sample.model_copy(update={"label": None}) for sample in samples]
    changes: list[dict[str, Any]] = [{"label": "desirable"}, {"tags": ("t",)}, {"quality": 0.5}, {}]
    digests = {a_batch((marker, [bare[0].model_copy(update=change), bare[1]])).digest for change in changes}
    assert len(digests) == 4


# ------------------------------------------------------------------------------------------------------------ distill


def test_the_teachers_less_the_rollouts_log_prob() -> None:
    teacher = pack_floats([0.0, -9.0, -0.25, -2.0])
    samples, marker = a_ready_group("g", (0.0,), annotations={"teacher_log_probs": teacher})
    batch = a_batch((marker, samples), algorithm="distill")
    assert batch.teacher_log_probs.tolist() == [0.0, -9.0, -0.25, -2.0]
    assert batch.advantages.tolist() == [0.0, 0.0, 0.25, -1.5]  # rollout: -0.5 each; the first two are not trained
    assert batch.reward.tolist() == [0.0]
    samples, marker = a_ready_group("g", (0.0,))
    with pytest.raises(NoColumn, match=r"required: \[teacher_log_probs\]"):
        build_columns([(marker, samples)], "distill")


@pytest.mark.parametrize("algorithm", ["ppo", "dpo", "kto", "distill"])
def test_a_batch_of_nothing_is_whole_for_every_algorithm(algorithm: str) -> None:
    batch = a_batch(algorithm=algorithm, gae=Gae() if algorithm == "ppo" else None)
    assert (len(batch), batch.tokens, batch.token_rewards.shape) == (0, 0, (0,))
    assert batch.digest == a_batch(algorithm=algorithm, gae=Gae() if algorithm == "ppo" else None).digest
