"""What a recipe says beyond sizes and rewards: filters, review, annotations, shapes, stragglers; and what people decide."""

from collections.abc import Sequence
from typing import Any

import pytest

from claw_r1.codec import pack_floats, unpack_mask
from claw_r1.events import Annotation, Decision, GroupFact, Outcome, Step
from claw_r1.recipes import Recipe
from streams.readiness import ORPHAN_WAIT
from tests.factories import PROMPT, RUN, a_group, a_recipe, a_reward, a_step, a_trajectory, an_end, an_open
from tests.unit.streams.partition_log import START, a_decision
from tests.unit.streams.test_readiness import Play

T0, T1, T2 = f"{PROMPT}-t0", f"{PROMPT}-t1", f"{PROMPT}-t2"


def rule(group: dict[str, Any] | None = None, rewards: dict[str, Any] | None = None, **over: Any) -> Recipe:
    sizes = {"size": 2, "idle": 600, "max_age": 3600, "end_grace": 5} | (group or {})
    return a_recipe(group=sizes, rewards={"timeout": 120} | (rewards or {}), **over)


def decide(action: str, uid: str | None = None, number: int = 0, **over: Any) -> Decision:
    return a_decision(PROMPT, uid, action, number, **over)


def members(play: Play) -> dict[str, tuple[str, str]]:
    return {m.trajectory_uid: (m.outcome, m.reason) for m in play.ready[-1].members}


def held(play: Play) -> list[str | None]:
    return [e.trajectory_uid for e in play.events if isinstance(e, Outcome) and e.outcome == "held"]


# ------------------------------------------------------------------------------------------------------ missing rewards


def test_a_missing_reward_counts_zero_once_its_time_is_over() -> None:
    play = Play(rule(rewards={"on_missing": "zero", "required": ["reward"]})).take(a_group((1.0, None)))
    assert play.tick(START + 119).ready == []
    assert [m.reward for m in play.tick(START + 120).ready[0].members] == [1.0, 0.0]


def test_without_a_required_source_zero_waits_for_nothing() -> None:
    play = Play(rule(rewards={"on_missing": "zero", "required": []})).take(a_group((None, None)))
    assert [m.reward for m in play.ready[0].members] == [0.0, 0.0]


def test_a_masked_trajectory_counts_and_is_not_trained() -> None:
    play = Play(rule(rewards={"on_missing": "mask"})).take(a_group((1.0, None))).tick(START + 120)
    assert members(play) == {T0: ("emitted", "complete"), T1: ("emitted", "reward_masked")}
    assert {s.trajectory_uid for s in play.samples} == {T0}
    assert [m.reward for m in play.ready[0].members] == [1.0, None]


@pytest.mark.parametrize("algorithm", ["grpo", "sft", "dpo", "kto"])
def test_a_group_of_masked_trajectories_has_nothing_to_train(algorithm: str) -> None:
    play = Play(rule(rewards={"on_missing": "mask"}, algorithm=algorithm)).take(a_group((None, None))).tick(START + 120)
    assert play.fates[None] == ("discarded", "nothing_to_train")


# ---------------------------------------------------------------------------------------------------------- annotations


def annotate(facts: Sequence[GroupFact], name: str = "ref_log_probs", tokens: int | None = None) -> list[GroupFact]:
    return [
        Annotation(
            fact_id=f"{name}-{step.step_id}",
            run_id=RUN,
            at=1.0,
            prompt_uid=PROMPT,
            trajectory_uid=step.trajectory_uid,
            step_id=step.step_id,
            name=name,
            source="reference",
            values=pack_floats([-1.0] * (step.response_len if tokens is None else tokens)),
        )
        for step in facts
        if isinstance(step, Step)
    ]


ANNOTATED: dict[str, Any] = {"required": ["ref_log_probs"], "timeout": 300}


def test_required_annotations_are_waited_for() -> None:
    facts = a_group()
    play = Play(rule(annotations=ANNOTATED)).take(facts).tick(START + 200)
    arrays = annotate(facts)
    assert play.take(arrays[:-1], START + 200).ready == []
    assert len(play.take(arrays[-1:], START + 201).ready) == 1


@pytest.mark.parametrize(
    ("on_missing", "fate"),
    [("discard", ("discarded", "annotation_missing")), ("mask", ("emitted", "annotation_masked"))],
)
def test_annotations_that_do_not_come(on_missing: str, fate: tuple[str, str]) -> None:
    facts = a_group()
    play = Play(rule({"min_size": 1}, annotations=ANNOTATED | {"on_missing": on_missing})).take(facts)
    play.take(annotate(facts[:8]))
    assert play.tick(START + 299).ready == []
    assert members(play.tick(START + 300)) == {T0: ("emitted", "complete"), T1: fate}
    assert {s.trajectory_uid for s in play.samples} == {T0}


def test_an_annotation_of_another_length_is_none() -> None:
    facts = a_group()
    play = Play(rule(annotations=ANNOTATED)).take(facts).take(annotate(facts, tokens=1)).tick(START + 300)
    assert play.fates[None] == ("discarded", "too_small")


# -------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ({"field": "reward", "op": "ge", "value": 1}, {T0}),
        ({"field": "rewards.reward", "op": "lt", "value": 1}, {T1}),
        ({"field": "turns", "op": "eq", "value": 3}, {T0, T1}),
        ({"field": "tokens", "op": "le", "value": 12}, set()),
        ({"field": "tokens", "op": "le", "value": 13}, {T0, T1}),
        ({"field": "response_tokens", "op": "eq", "value": 6}, {T0, T1}),
        ({"field": "chains", "op": "eq", "value": 1}, {T0, T1}),
        ({"field": "drift", "op": "eq", "value": 0}, {T0, T1}),
        ({"field": "status", "op": "in", "value": ["completed"]}, {T0, T1}),
        ({"field": "capture", "op": "eq", "value": True}, {T0, T1}),
        ({"field": "policy_version", "op": "ge", "value": 1}, {T0, T1}),
        ({"field": "policy_lag", "op": "eq", "value": 0}, {T0, T1}),
        ({"field": "self_reported", "op": "eq", "value": False}, {T0, T1}),
        ({"field": "task_id", "op": "eq", "value": "task"}, {T0}),
        ({"field": "metadata.env", "op": "ne", "value": "web"}, {T0}),
        ({"field": "tags", "op": "lacks", "value": "odd"}, {T0}),
        ({"field": "quality", "op": "exists", "value": True}, {T1}),
    ],
)
def test_a_filter_discards_trajectories_with_its_fields_name(condition: dict[str, Any], kept: set[str]) -> None:
    play = Play(rule({"min_size": 1}, filters=[condition]))
    play.take([an_open(trajectory_uid=T0, task_id="task", metadata={"env": "game"})])
    play.take([decide("tag", T1, value="odd"), decide("quality", T1, value=0.5)])
    play.take(a_group())
    reason = "filtered_" + condition["field"].split(".")[0]
    assert {uid for uid in (T0, T1) if play.fates[uid][0] == "emitted"} == kept
    assert {play.fates[uid] for uid in {T0, T1} - kept} <= {("discarded", reason), ("discarded", "too_small")}
    if kept:
        assert play.ready[0].reward_mean == 0.5, "the filtered ones stay in the baseline"


def test_a_filter_of_the_group_discards_it_whole() -> None:
    flat = rule(filters=[{"field": "reward_std", "op": "gt", "value": 0}])
    assert Play(flat).take(a_group((0.1, 0.1))).fates == {
        T0: ("discarded", "filtered_reward_std"),
        T1: ("discarded", "filtered_reward_std"),
        None: ("discarded", "filtered_reward_std"),
    }
    assert len(Play(flat).take(a_group((0.1, 0.2))).ready) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reward_mean", 0.5),
        ("reward_min", 0),
        ("reward_max", 1),
        ("n_trajectories", 2),
        ("n_rewarded", 2),
        ("group_tokens", 12),
        ("group_policy_lag", 0),
    ],
)
def test_fields_of_a_group(field: str, value: float) -> None:
    one, other = ({"field": field, "op": op, "value": value} for op in ("eq", "ne"))
    assert len(Play(rule(filters=[one])).take(a_group()).ready) == 1
    assert Play(rule(filters=[other])).take(a_group()).fates[None] == ("discarded", f"filtered_{field}")


def test_a_person_may_keep_what_a_filter_would_discard() -> None:
    strict = rule(
        filters=[{"field": "reward", "op": "gt", "value": 0}, {"field": "reward_std", "op": "eq", "value": 0}]
    )
    assert Play(strict).take(a_group()).fates[T1] == ("discarded", "filtered_reward")
    play = Play(strict).take([decide("keep")]).take(a_group())
    assert members(play) == {T0: ("emitted", "complete"), T1: ("emitted", "complete")}


# --------------------------------------------------------------------------------------------------------------- shapes


def test_dpo_pairs_the_best_and_the_worst() -> None:
    play = Play(rule({"size": 3}, algorithm="dpo")).take(a_group((0.5, 1.0, 0.0)))
    assert {s.trajectory_uid: s.label for s in play.samples} == {T1: "chosen", T2: "rejected"}
    assert members(play)[T0] == ("discarded", "not_picked")
    assert Play(rule(algorithm="dpo")).take(a_group((1.0, 1.0))).fates[None] == ("discarded", "no_pair")


def test_sft_picks_by_reward() -> None:
    play = Play(rule({"size": 3}, algorithm="sft", pick={"min_reward": 0.6})).take(a_group((0.5, 1.0, 0.7)))
    assert [s.trajectory_uid for s in play.samples] == [T1]
    assert members(play)[T2] == ("discarded", "not_picked")
    play = Play(rule(algorithm="sft", pick={"min_reward": 0.6})).take(a_group((0.5, 0.1)))
    assert play.fates[None] == ("discarded", "nothing_picked")


def test_kto_labels_by_reward_and_a_person_relabels() -> None:
    play = Play(rule(algorithm="kto", pick={"threshold": 0.5})).take([decide("relabel", T0, value="undesirable")])
    play.take([decide("relabel", T0, 1, value="desirable")]).take(a_group((0.1, 0.4)))
    assert {s.trajectory_uid: s.label for s in play.samples} == {T0: "desirable", T1: "undesirable"}


def test_distill_asks_for_the_teachers_log_probs_and_for_no_reward() -> None:
    facts = a_group((None, None))
    play = Play(rule(algorithm="distill", rewards={})).take(facts)
    assert play.ready == []
    play.take(annotate(facts, "teacher_log_probs"))
    assert [s.reward for s in play.samples] == [0.0, 0.0]


# ----------------------------------------------------------------------------------------------------------- stragglers

EXTRA: dict[str, Any] = {"size": 2, "min_size": 2, "stragglers": "extra_group"}


def slow(*uids: str) -> list[Step]:
    return [a_step(trajectory_uid=uid) for uid in uids]


def test_stragglers_form_a_further_group_if_they_are_enough() -> None:
    play = Play(rule(EXTRA)).take(slow("s0", "s1")).take(a_group())
    assert members(play) == {T0: ("emitted", "complete"), T1: ("emitted", "complete")}
    for uid in ("s0", "s1"):
        play.take([a_reward(trajectory_uid=uid), an_end(trajectory_uid=uid)], START + 500)
    first, extra = play.ready
    assert (first.group_id, extra.group_id, extra.reason) == (PROMPT, f"{PROMPT}+2", "extra_group")
    assert [m.trajectory_uid for m in extra.members] == ["s0", "s1"]
    assert {s.group_id for s in play.samples if s.trajectory_uid == "s0"} == {f"{PROMPT}+2"}
    assert play.state.groups == {}


def test_stragglers_that_are_too_few_are_discarded_at_their_deadline() -> None:
    play = Play(rule(EXTRA)).take(slow("s0", "s1")).take(a_group())
    play.take([a_reward(trajectory_uid="s0"), an_end(trajectory_uid="s0")], START + 10)
    assert list(play.state.groups) == [(RUN, PROMPT)]
    play.tick(START + 10 + 600)
    assert play.fates["s0"] == ("discarded", "straggler")
    assert play.fates["s1"] == ("discarded", "straggler")
    assert [e.group_id for e in play.ready] == [PROMPT]
    assert play.state.groups == {}


def test_a_group_without_stragglers_closes_at_once() -> None:
    assert Play(rule(EXTRA)).take(a_group()).state.groups == {}


# --------------------------------------------------------------------------------------------------------------- review

REVIEWED: dict[str, Any] = {"review": "required", "review_deadline": 1000}


def test_a_ready_group_is_held_until_a_person_keeps_it() -> None:
    play = Play(rule(**REVIEWED)).take(a_group()).tick(START + 900)
    assert (play.ready, held(play)) == ([], [T0, T1, None])
    assert play.state.committable == 1, "its facts are still needed"
    play.take([a_reward(5.0, trajectory_uid=T1, revision=1)], START + 900)
    play.take([decide("keep", number=7)], START + 901)
    assert [m.reward for m in play.ready[0].members] == [1.0, 5.0]
    assert play.ready[0].decisions == (decide("keep", number=7).fact_id,)
    assert held(play) == [T0, T1, None]
    assert play.state.groups == {}


def test_a_held_group_is_discarded_at_its_deadline_or_by_a_veto() -> None:
    play = Play(rule(**REVIEWED)).take(a_group()).tick(START + 999)
    assert None not in play.fates or play.fates[None][0] == "held"
    assert play.tick(START + 1000).fates[None] == ("discarded", "review_expired")
    play = Play(rule(**REVIEWED)).take(a_group()).take([decide("veto")])
    assert play.fates == dict.fromkeys((T0, T1, None), ("discarded", "vetoed"))


def test_a_keep_that_came_first_needs_no_hold() -> None:
    play = Play(rule(**REVIEWED)).take([decide("keep")]).take(a_group())
    assert (len(play.ready), held(play)) == (1, [])


# ------------------------------------------------------------------------------------------------------------ decisions


def test_a_vetoed_trajectory_is_out_and_stays_in_the_baseline() -> None:
    play = Play(rule({"min_size": 1})).take([decide("veto", T1)]).take(a_group())
    assert members(play) == {T0: ("emitted", "complete"), T1: ("discarded", "vetoed")}
    assert play.ready[0].reward_mean == 0.5


def test_a_vetoed_group_is_discarded_once_it_is_decided_unless_the_veto_is_undone() -> None:
    veto = decide("veto", number=1)
    play = Play(rule()).take([veto]).take(a_group()[:-1])
    assert play.fates == {}
    play.take([decide("undo", number=2, undoes=veto.fact_id)]).take(a_group()[-1:])
    assert len(play.ready) == 1
    assert Play(rule()).take([veto]).take(a_group()).fates[None] == ("discarded", "vetoed")


def test_a_vetoed_steps_tokens_are_masked() -> None:
    facts = a_trajectory(T0)
    step = [f for f in facts if isinstance(f, Step)][1]
    play = Play(rule({"size": 1})).take([decide("veto", T0, step_id=step.step_id)]).take(facts)
    (sample,) = play.samples
    assert unpack_mask(sample.loss_mask).tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    assert sample.mask_reasons == {"vetoed": 2}
    assert sample.rollout_log_probs[4 * 7 : 4 * 9] == bytes(8)


def test_a_trajectory_whose_steps_are_all_vetoed_has_nothing_to_train() -> None:
    facts = a_trajectory(T1)
    vetoes = [decide("veto", T1, step_id=step.step_id) for step in facts if isinstance(step, Step)]
    play = Play(rule({"min_size": 1})).take(vetoes).take(a_trajectory(T0)).take(facts)
    assert members(play) == {T0: ("emitted", "complete"), T1: ("discarded", "nothing_to_train")}


def test_a_reward_is_overridden() -> None:
    play = Play(rule()).take([decide("override_reward", T1, value=3.5)]).take(a_group((1.0, None)))
    assert [m.reward for m in play.ready[0].members] == [1.0, 3.5]
    none = decide("override_reward", T1, value=None)
    play = Play(rule({"min_size": 1})).take([none]).take(a_group()).tick(START + 120)
    assert play.fates[T1] == ("discarded", "reward_missing")


def test_a_steps_reward_is_overridden() -> None:
    facts = a_trajectory(T0, 1)
    step = next(f for f in facts if isinstance(f, Step))
    facts.insert(2, a_reward(4.0, trajectory_uid=T0, step_id=step.step_id, source="style"))
    play = Play(rule({"size": 1})).take([decide("override_reward", T0, step_id=step.step_id, value=-1.0)]).take(facts)
    assert play.samples[0].spans[0].reward == -1.0


def test_tags_quality_and_label_travel_with_the_samples() -> None:
    said = [decide("tag", T0, value="b"), decide("tag", None, 1, value="a"), decide("quality", T0, value=0.9)]
    play = Play(rule()).take([*said, decide("note", T0, value="hm")]).take(a_group())
    assert (play.samples[0].tags, play.samples[0].quality, play.samples[0].label) == (("a", "b"), 0.9, None)
    assert (play.samples[1].tags, play.samples[1].quality) == (("a",), None)
    assert set(play.ready[0].decisions) == {d.fact_id for d in said}


def test_a_decision_on_an_emitted_group_is_forwarded_and_late() -> None:
    veto = decide("veto", T1)
    play = Play(rule()).take(a_group()).take([veto, veto, decide("veto")])
    assert [e for e in play.events if isinstance(e, Decision)] == [
        veto,
        decide("veto").model_copy(update={"group_id": PROMPT}),
    ]
    late = [e for e in play.events if isinstance(e, Outcome) and e.outcome == "late"]
    assert [(o.fact_id, o.reason) for o in late] == [(veto.fact_id, "decision"), (decide("veto").fact_id, "decision")]


def test_a_decision_on_a_discarded_group_is_late_and_goes_nowhere() -> None:
    play = Play(rule()).take([decide("veto")]).take(a_group()).take([decide("keep", number=3)])
    assert [e for e in play.events if isinstance(e, Decision)] == []
    assert [e.reason for e in play.events if isinstance(e, Outcome) and e.outcome == "late"] == ["decision"]


def test_a_decision_changes_one_recipe_and_is_forwarded_to_the_other() -> None:
    small = rule({"size": 1}).model_copy(update={"name": "small"})
    play = Play(small, rule()).take(a_trajectory(T0, reward=1.0)).take([decide("tag", T0, value="seen")])
    assert len([e for e in play.events if isinstance(e, Decision)]) == 1
    late = [e for e in play.events if isinstance(e, Outcome) and e.outcome == "late"]
    assert [(o.recipe, o.reason) for o in late] == [("small", "decision")]
    play.take(a_trajectory(T1, reward=0.0))
    tags = {(s.recipe, s.trajectory_uid): s.tags for s in play.samples}
    assert (tags["small", T0], tags["test", T0]) == ((), ("seen",))


def test_a_decision_on_a_group_that_nobody_remembers_is_forwarded_to_every_recipe_of_the_run() -> None:
    play = Play(rule()).take([decide("veto", T0)]).tick(START + ORPHAN_WAIT)
    assert [e for e in play.events if isinstance(e, Decision)] == [decide("veto", T0)]
    assert [e.reason for e in play.events if isinstance(e, Outcome)] == ["never_opened"]


# ---------------------------------------------------------------------------------------------------------- ready order


@pytest.mark.parametrize("groups", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_one_open_group_holds_back_no_other(groups: int) -> None:
    play = Play(rule({"size": 1})).take([a_step(prompt_uid="slow", trajectory_uid="slow")])
    for number in range(groups):
        uid = f"p{number}-t"
        play.take(
            [
                a_step(prompt_uid=f"p{number}", trajectory_uid=uid),
                a_reward(prompt_uid=f"p{number}", trajectory_uid=uid),
                an_end(prompt_uid=f"p{number}", trajectory_uid=uid),
            ]
        )
    assert [e.prompt_uid for e in play.ready] == [f"p{number}" for number in range(groups)]
    assert list(play.state.groups) == [(RUN, "slow")]
