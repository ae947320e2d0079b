"""A group's facts and the time become its fate for one recipe."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client import REGISTRY

from claw_r1.codec import encode_body, unpack_floats, unpack_ids, unpack_mask
from claw_r1.events import GroupCancel, GroupFact, GroupReady, Outcome, Sample, Sampling, Step, StepStarted
from claw_r1.recipes import Recipe
from streams.partition import count_output
from streams.readiness import MAX_METADATA_BYTES, ORPHAN_WAIT, allowed
from streams.state import PartitionState
from tests.factories import (
    PROMPT,
    RUN,
    a_group,
    a_group_open,
    a_ready_group,
    a_recipe,
    a_reward,
    a_started,
    a_step,
    a_trajectory,
    an_end,
    an_open,
)
from tests.unit.streams.partition_log import FAR, START, set_recipe


class Play:
    """One partition with recipes; facts are taken in at `now`."""

    def __init__(self, *recipes: Recipe) -> None:
        self.state = PartitionState(0)
        self.events: list[Any] = []
        self.now = START
        for recipe in recipes:
            self.take([set_recipe(recipe)])

    def take(self, facts: Sequence[Any], now: float | None = None) -> "Play":
        self.now = self.now if now is None else now
        for fact in facts:
            self.events += [o.event for o in self.state.apply(fact, self.state.position, self.now)]
        return self

    def tick(self, now: float) -> "Play":
        self.events += [o.event for o in self.state.tick(now)]
        return self

    @property
    def samples(self) -> list[Sample]:
        return [e for e in self.events if isinstance(e, Sample)]

    @property
    def ready(self) -> list[GroupReady]:
        return [e for e in self.events if isinstance(e, GroupReady)]

    @property
    def fates(self) -> dict[str | None, tuple[str, str]]:
        """By trajectory; the group's own is under None."""
        outcomes = [e for e in self.events if isinstance(e, Outcome)]
        return {o.trajectory_uid: (o.outcome, o.reason) for o in outcomes if o.recipe is not None}


def rule(**over: Any) -> Recipe:
    group: dict[str, Any] = {"size": 2, "idle": 600, "max_age": 3600, "end_grace": 5}
    return a_recipe(group=group | over, rewards={"timeout": 120})


T0, T1 = f"{PROMPT}-t0", f"{PROMPT}-t1"


def test_a_group_of_its_size_is_ready_at_its_last_fact() -> None:
    facts = a_group((1.0, 0.0))
    play = Play(rule()).take(facts[:-1])
    assert play.ready == []
    (ready,) = play.take(facts[-1:]).ready
    assert ready.reason == "size"
    assert (ready.reward_mean, ready.reward_std) == (0.5, 0.5)
    assert (ready.min_version, ready.max_version) == (1, 1)
    assert (ready.at, ready.pos) == (START, 1 + len(facts))
    assert ready.sample_ids == tuple(s.sample_id for s in play.samples)
    assert (ready.tokens, ready.trained_tokens) == (26, 12)
    assert play.fates == {T0: ("emitted", "complete"), T1: ("emitted", "complete"), None: ("emitted", "size")}


def test_a_sample_holds_the_tokens_and_who_they_are_from() -> None:
    facts: list[GroupFact] = [a_reward(0.25, trajectory_uid=T0, source="style", revision=3), *a_trajectory(T0, 2, 0.5)]
    facts.insert(0, an_open(trajectory_uid=T0, task_id="task", metadata={"env": "game"}))
    step = next(f for f in facts if isinstance(f, Step))
    facts.insert(4, a_reward(4.0, trajectory_uid=T0, step_id=step.step_id, source="style"))
    recipe = a_recipe(group={"size": 1}, rewards={"required": ["reward", "style"], "weights": {"style": 10.0}})
    (sample,) = Play(recipe).take(facts).samples
    assert unpack_ids(sample.token_ids).tolist() == [1, 2, 3, 10, 11, 21, 22, 11, 12]
    assert unpack_mask(sample.loss_mask).tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1]
    assert unpack_floats(sample.rollout_log_probs).tolist() == [0, 0, 0, -0.5, -0.5, 0, 0, -0.5, -0.5]
    assert [(s.step_index, s.start, s.end, s.reward) for s in sample.spans] == [(0, 3, 5, 4.0), (1, 7, 9, None)]
    assert (sample.reward, sample.reward_components) == (3.0, {"reward": 0.5, "style": 0.25})
    assert (sample.task_id, sample.metadata, sample.channel) == ("task", {"env": "game"}, "train")
    assert (sample.sample_index, sample.n_samples, sample.group_id) == (0, 1, PROMPT)


def test_a_sub_agents_chain_is_a_second_sample_of_the_trajectory() -> None:
    main, sub = a_step((1, 2), (3,), step_index=0), a_step((7,), (8,), step_index=1)
    play = Play(rule(size=1)).take([main, sub, a_reward(1.0), an_end()])
    assert [(s.sample_index, s.n_samples, s.reward) for s in play.samples] == [(0, 2, 1.0), (1, 2, 1.0)]
    (member,) = play.ready[0].members
    assert member.samples == tuple(s.sample_id for s in play.samples)


def test_rows_without_a_token_to_train_give_no_sample() -> None:
    main, judge = a_step((1, 2), (3,)), a_step((7,), (8,), role="frozen", policy_version=77)
    play = Play(rule(size=1)).take([main, judge, a_reward(1.0), an_end()])
    assert [(s.n_samples, s.loss_mask) for s in play.samples] == [(1, b"\0\0\1")]
    assert (play.ready[0].min_version, play.ready[0].max_version) == (1, 1)


def test_versions_of_masked_tokens_do_not_count() -> None:
    frozen = a_step((1, 2), (3,), role="frozen", policy_version=77)
    policy = a_step((1, 2, 3), (4,), policy_version=5)
    (ready,) = Play(rule(size=1)).take([frozen, policy, a_reward(1.0), an_end()]).ready
    assert (ready.min_version, ready.max_version) == (5, 5)


def test_a_group_of_one_is_ready_at_once() -> None:
    (ready,) = Play(rule(size=1)).take(a_trajectory()).ready
    assert (ready.reward_mean, ready.reward_std) == (1.0, 0.0)


def test_the_announced_size_goes_before_the_recipes() -> None:
    play = Play(rule(size=2)).take([a_group_open(size=3)]).take(a_group((1.0, 0.0)))
    assert play.ready == []
    play.take(a_trajectory(f"{PROMPT}-t2"))
    assert len(play.ready[0].members) == 3


def test_an_idle_group_closes_with_what_it_has_if_that_is_enough() -> None:
    play = Play(rule(size=3, min_size=2)).take(a_group((1.0, 0.0)))
    assert play.tick(START + 599).ready == []
    (ready,) = play.tick(START + 600).ready
    assert (ready.reason, ready.at, len(ready.members)) == ("idle", START + 600, 2)


def test_an_idle_group_that_is_too_small_is_discarded_with_its_reasons() -> None:
    play = Play(rule(size=3)).take(a_trajectory(T0)).take([a_step(trajectory_uid=T1)]).tick(FAR)
    assert play.samples == []
    assert play.fates == {
        T0: ("discarded", "too_small_at_idle"),
        T1: ("discarded", "not_ended_at_idle"),
        None: ("discarded", "too_small_at_idle"),
    }


def test_a_group_that_goes_on_and_on_closes_at_its_age() -> None:
    play = Play(rule(size=2, min_size=1, idle=30, max_age=100)).take(a_trajectory(T0))
    for second in range(10, 100, 10):
        play.take([a_step((second,), (1,), trajectory_uid=T1)], START + second)
    (ready,) = play.tick(START + 1000).ready
    assert (ready.reason, ready.at) == ("max_age", START + 100)
    assert play.fates[T1] == ("discarded", "straggler")


def test_a_reward_that_never_comes_is_waited_for_and_then_discards() -> None:
    play = Play(rule(min_size=1)).take(a_group((1.0, None)))
    assert play.tick(START + 119).ready == []
    (ready,) = play.tick(START + 120).ready
    assert ready.reason == "size"
    assert play.fates[T1] == ("discarded", "reward_missing")
    assert (ready.reward_mean, ready.reward_std) == (1.0, 0.0)


def test_a_reward_in_time_saves_the_trajectory() -> None:
    play = Play(rule()).take(a_group((1.0, None))).take([a_reward(0.0, trajectory_uid=T1)], START + 119)
    assert [m.reward for m in play.ready[0].members] == [1.0, 0.0]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_reward_that_is_no_number_is_a_missing_one(value: float | None) -> None:
    play = Play(rule(min_size=1)).take(a_trajectory(T0)).take(a_trajectory(T1, reward=None))
    play.take([a_reward(value, trajectory_uid=T1)]).tick(START + 120)
    assert play.fates[T1] == ("discarded", "reward_missing")
    assert play.ready[0].reward_mean == 1.0


def test_without_required_rewards_a_missing_one_is_still_not_zero() -> None:
    recipe = a_recipe(group={"size": 1}, rewards={"required": [], "timeout": 120})
    play = Play(recipe).take(a_trajectory(T0, reward=None)).tick(START + 119)
    assert play.fates == {}
    assert play.tick(START + 120).fates[T0] == ("discarded", "reward_missing")


def test_rewards_beyond_what_trainers_compute_with_discard_and_do_not_raise() -> None:
    for weight in (1e20, 1e300):
        recipe = a_recipe(group={"size": 3, "min_size": 1}, rewards={"weights": {"reward": weight}})
        play = Play(recipe).take(a_group((1e38, 0.0, 0.0)))
        assert play.fates[T0] == ("discarded", "reward_not_finite")
    beyond = Play(rule(size=3)).take(a_group((1.7e308, 1.7e308, -1.7e308)))
    assert beyond.fates == {}, "as of an infinite one, another revision may come"
    beyond.tick(START + 120)
    assert {beyond.fates[f"{PROMPT}-t{number}"] for number in range(3)} == {("discarded", "reward_missing")}
    large = Play(rule(size=3)).take(a_group((1e38, 1e38, -1e38))).ready[0]
    assert large.reward_mean == pytest.approx(1e38 / 3)
    assert large.reward_std == pytest.approx(1e38 * (8 / 9) ** 0.5)


def test_an_end_before_its_steps_waits_for_those_that_were_started() -> None:
    step = a_step()
    play = Play(rule(size=1)).take([a_started(step), an_end(), a_reward()])
    assert play.tick(START + 4).ready == []
    (ready,) = play.take([step], START + 4).ready
    assert ready.trained_tokens == 2


def test_a_started_step_that_never_arrives_makes_the_trajectory_incomplete() -> None:
    facts = [f for f in a_trajectory(T1) if not isinstance(f, Step)]
    play = Play(rule(min_size=1)).take(a_trajectory(T0)).take(facts)
    assert play.tick(START + 4).ready == []
    (ready,) = play.tick(START + 5).ready
    assert play.fates[T1] == ("discarded", "incomplete")
    assert [m.reward for m in ready.members] == [1.0, 1.0]
    assert ready.reward_mean == 1.0


def test_a_step_after_the_grace_still_counts_while_the_group_is_open() -> None:
    facts = a_trajectory(T0, 1)
    step = next(f for f in facts if isinstance(f, Step))
    play = Play(rule()).take([f for f in facts if f is not step]).tick(START + 50)
    play.take([step], START + 60).take(a_trajectory(T1))
    assert play.fates[T0] == ("emitted", "complete")


def test_a_lost_context_discards_the_trajectory() -> None:
    facts = a_trajectory(T1, 2)
    first = next(f for f in facts if isinstance(f, Step))
    facts = [f for f in facts if f is not first and not (isinstance(f, StepStarted) and f.step_id == first.step_id)]
    play = Play(rule(min_size=1)).take(a_trajectory(T0)).take(facts)
    assert play.fates[T1] == ("discarded", "context_lost")


def test_a_trajectory_with_nothing_to_train_counts_in_the_baseline() -> None:
    facts = [a_step(trajectory_uid=T1, role="frozen"), a_reward(0.0, trajectory_uid=T1), an_end(trajectory_uid=T1)]
    (ready,) = (play := Play(rule(min_size=1)).take(a_trajectory(T0)).take(facts)).ready
    assert play.fates[T1] == ("discarded", "nothing_to_train")
    assert (ready.reward_mean, ready.reward_std) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("status", "fate"),
    [
        ("completed", ("emitted", "complete")),
        ("failed", ("emitted", "complete")),
        ("truncated", ("emitted", "complete")),
        ("aborted", ("discarded", "aborted")),
    ],
)
def test_how_a_trajectory_ended_decides_whether_it_counts(status: str, fate: tuple[str, str]) -> None:
    facts = [*a_trajectory(T1)[:-1], an_end(trajectory_uid=T1, status=status)]
    play = Play(rule(min_size=1)).take(a_trajectory(T0)).take(facts)
    assert play.fates[T1] == fate
    assert len(play.ready) == 1


def test_a_recipe_says_what_failed_trajectories_count_as() -> None:
    facts = [*a_trajectory(T1)[:-1], an_end(trajectory_uid=T1, status="failed")]
    play = Play(rule(min_size=1, on_end={"failed": "discard"})).take(a_trajectory(T0)).take(facts)
    assert play.fates[T1] == ("discarded", "failed")


def test_enough_kept_trajectories_do_not_wait_for_stragglers() -> None:
    play = Play(rule()).take([a_step(trajectory_uid="slow")]).take(a_group((1.0, 0.0)))
    assert play.fates["slow"] == ("discarded", "straggler")
    assert [m.outcome for m in play.ready[0].members] == ["emitted", "emitted", "discarded"]


def test_a_whole_group_with_too_few_trainable_is_too_small() -> None:
    facts = [*a_trajectory(T1)[:-1], an_end(trajectory_uid=T1, status="aborted")]
    play = Play(rule()).take(a_trajectory(T0)).take(facts)
    assert play.fates == {
        T0: ("discarded", "too_small"),
        T1: ("discarded", "aborted"),
        None: ("discarded", "too_small"),
    }


def test_a_cancelled_group_is_discarded_at_once() -> None:
    cancel = GroupCancel(fact_id="c", run_id=RUN, at=1.0, prompt_uid=PROMPT)
    play = Play(rule()).take(a_trajectory(T0)).take([cancel])
    assert play.fates == {T0: ("discarded", "cancelled"), None: ("discarded", "cancelled")}


def test_a_cancel_that_came_first_acts_as_soon_as_the_group_opens() -> None:
    cancel = GroupCancel(fact_id="c", run_id=RUN, at=1.0, prompt_uid=PROMPT)
    play = Play(rule()).take([cancel])
    assert play.fates == {}
    assert play.take([a_started(a_step())]).fates[None] == ("discarded", "cancelled")


def test_a_recipe_judges_its_own_channel_only() -> None:
    train, val = rule(size=1).model_copy(update={"name": "t"}), a_recipe(name="v", channel="val", group={"size": 1})
    facts: list[GroupFact] = [an_open(trajectory_uid=T0, channel="val"), *a_trajectory(T0), *a_trajectory(T1)]
    play = Play(train, val).take(facts)
    assert {r.recipe: [m.trajectory_uid for m in r.members] for r in play.ready} == {"v": [T0], "t": [T1]}
    assert {s.channel for s in play.samples if s.recipe == "v"} == {"val"}


def test_a_groups_channel_holds_for_trajectories_that_name_none() -> None:
    play = Play(rule(size=1)).take([a_group_open(channel="val")]).take(a_trajectory(T0)).tick(FAR)
    assert (play.ready, play.fates) == ([], {})


def test_a_channel_that_becomes_known_is_heeded_at_once() -> None:
    """Two trajectories are settled, the third turns out to be another channel's: nothing more is awaited."""
    aborted = [*a_trajectory(T1)[:-1], an_end(trajectory_uid=T1, status="aborted")]
    play = Play(rule(min_size=1)).take([a_started(a_step(trajectory_uid="other"))]).take(a_trajectory(T0)).take(aborted)
    assert play.ready == []
    assert len(play.take([an_open(trajectory_uid="other", channel="val")]).ready) == 1


def test_another_runs_groups_concern_no_recipe() -> None:
    play = Play(rule(size=1)).take(a_trajectory(run_id="another")).tick(FAR)
    assert play.fates == {}


def test_orphans_wait_for_what_opens_their_group() -> None:
    play = Play(rule(size=1)).take([a_reward(), an_end()]).tick(START + ORPHAN_WAIT - 1)
    assert play.take([a_step()], START + ORPHAN_WAIT - 1).fates[None] == ("emitted", "size")
    lost = Play(rule(size=1)).take([a_reward(), an_end()]).tick(START + ORPHAN_WAIT)
    outcomes = [e for e in lost.events if isinstance(e, Outcome)]
    assert sorted(str(o.fact_id) for o in outcomes) == sorted([a_reward().fact_id, an_end().fact_id])
    assert {(o.outcome, o.reason) for o in outcomes} == {("late", "never_opened")}
    assert lost.state.committable == lost.state.position


def test_a_sample_that_no_record_holds_is_discarded_and_stops_nobody() -> None:
    """Metadata travels with every sample: too much of it must not make a record that the broker refuses for ever."""
    heavy = an_open(trajectory_uid=T1, metadata={"log": "x" * MAX_METADATA_BYTES})
    play = Play(rule(size=2, min_size=1)).take(a_trajectory(T0)).take([heavy]).take(a_trajectory(T1))
    (ready,) = play.ready
    assert [(m.trajectory_uid, m.reason) for m in ready.members] == [(T0, "complete"), (T1, "too_large")]
    assert max(len(encode_body(event)) for event in play.events) < MAX_METADATA_BYTES


def test_each_step_is_a_sample_where_rows_are_steps() -> None:
    recipe = a_recipe(rows="step", group={"size": 2}, filters=[{"field": "chains", "op": "eq", "value": 1}])
    play = Play(recipe).take(a_trajectory(T0, steps=2)).take(a_trajectory(T1, steps=1))
    assert [(s.trajectory_uid, s.sample_index, s.n_samples, len(s.loss_mask)) for s in play.samples] == [
        (T0, 0, 2, 5),
        (T0, 1, 2, 9),
        (T1, 0, 1, 5),
    ]
    assert [[(span.step_index, span.start, span.end) for span in s.spans] for s in play.samples] == [
        [(0, 3, 5)],
        [(1, 7, 9)],
        [(0, 3, 5)],
    ]


def test_rows_of_too_many_long_steps_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.readiness.MAX_STEP_ROWS_BYTES", 9 * 20)
    play = Play(a_recipe(rows="step", group={"size": 2, "min_size": 1}))
    (ready,) = play.take(a_trajectory(T0, steps=2)).take(a_trajectory(T1, steps=3)).ready
    assert [(m.trajectory_uid, m.reason) for m in ready.members] == [(T0, "complete"), (T1, "too_large")]


# ---------------------------------------------------------------------------------------------------- what may be trained


def test_what_a_recipe_says_of_unknown_versions_decides_where_they_are_dropped() -> None:
    recipe = a_recipe()
    assert allowed(recipe) == {"unknown_version"}
    dropping = recipe.staleness.model_copy(update={"unknown": "drop"})
    assert allowed(recipe.model_copy(update={"staleness": dropping})) == {"unknown_version"}, "the cut drops the group"
    by_token = dropping.model_copy(update={"mode": "mask_tokens"})
    assert allowed(recipe.model_copy(update={"staleness": by_token})) == frozenset()


def test_a_trajectory_of_which_nothing_can_be_trained_says_why() -> None:
    guided = [
        fact.model_copy(update={"sampling": Sampling(temperature=1.0, guided=True)}) if isinstance(fact, Step) else fact
        for fact in a_trajectory(T1)
    ]
    (ready,) = Play(rule(min_size=1)).take([*a_trajectory(T0), *guided]).ready
    first, second = ready.members
    assert (first.reason, first.links, first.holes, first.step_tokens) == ("complete", {"exact": 2, "root": 1}, 0, 27)
    assert (second.reason, second.mask_reasons) == ("nothing_to_train", {"guided": 6})


def test_durable_outputs_are_counted() -> None:
    def count(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    named: list[tuple[str, dict[str, str], float]] = [
        ("claw_streams_links_total", {"kind": "exact"}, 2),
        ("claw_streams_holes_total", {}, 3),
        ("claw_streams_masked_tokens_total", {"reason": "guided"}, 4),
        ("claw_streams_tokens_total", {"form": "steps"}, 30),
        ("claw_streams_tokens_total", {"form": "samples"}, 8),
        ("claw_streams_annotations_unused_total", {"reason": "annotation_length"}, 5),
    ]
    before = [count(name, **labels) for name, labels, _ in named]
    _, ready = a_ready_group()
    merged = {"links": {"exact": 1}, "step_tokens": 15, "mask_reasons": {"guided": 2}}
    first, second = (member.model_copy(update=merged) for member in ready.members)
    first = first.model_copy(update={"holes": 3, "unused": {"annotation_length": 5}})
    count_output(ready.model_copy(update={"members": (first, second)}))
    after = [count(name, **labels) for name, labels, _ in named]
    assert [b - a for a, b in zip(before, after, strict=True)] == [added for _, _, added in named]
