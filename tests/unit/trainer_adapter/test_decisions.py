"""What people decide behind an emitted group is applied as if they had decided before, or it is late, and never both."""

import random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from claw_r1.codec import unpack_floats
from claw_r1.events import (
    BatchCut,
    CutExclusion,
    CutMember,
    Decision,
    Event,
    GroupReady,
    Outcome,
    Sample,
    Step,
    StepSpan,
)
from claw_r1.recipes import Recipe
from tests.factories import RUN, a_group, a_ready_group, a_recipe
from tests.unit.streams.partition_log import Entry, a_decision, play, set_recipe, some_decisions
from trainer_adapter.cut import call_futile, call_late, fill, name_exclusions, name_members, select, take
from trainer_adapter.decisions import Curated, curate_group
from trainer_adapter.groups import Place, Remembered, Shelf, TooLate, places_of
from trainer_adapter.records import rewards_of


def decide(action: str, uid: str | None = None, number: int = 0, **over: Any) -> Decision:
    return a_decision("g", uid, action, number, **over)


def curate(
    *later: Decision, rewards: tuple[float, ...] = (1.0, 0.0, 0.5), rewards_rule: Any = None, **recipe: Any
) -> Curated:
    samples, marker = a_ready_group("g", rewards)
    recipe = recipe | {"rewards": rewards_rule or {}}
    return curate_group(marker, samples, later, a_recipe(**{"group": {"size": 3, "min_size": 2}} | recipe))


# ------------------------------------------------------------------------------------------------------ what they change


def test_a_vetoed_group_is_no_group_until_the_veto_is_undone() -> None:
    veto = decide("veto")
    undo = decide("undo", number=1, undoes=veto.fact_id)
    assert curate(veto).reason == "vetoed"
    assert curate(veto, undo).reason is None
    assert curate(veto, undo, decide("undo", number=2, undoes=undo.fact_id)).reason == "vetoed"


def test_a_vetoed_trajectory_is_left_out_and_stays_in_the_baseline() -> None:
    curated = curate(decide("veto", "g-t0"))
    assert [sample.trajectory_uid for sample in curated.samples] == ["g-t1", "g-t2"]
    assert rewards_of(curated.marker) == {"g-t0": 1.0, "g-t1": 0.0, "g-t2": 0.5}
    assert [(m.outcome, m.reason) for m in curated.marker.members[:1]] == [("discarded", "vetoed")]
    assert curate(decide("veto", "g-t0"), decide("veto", "g-t1")).reason == "too_small"


def test_a_keep_of_a_trajectory_goes_before_an_earlier_veto_of_it() -> None:
    assert len(curate(decide("veto", "g-t0"), decide("keep", "g-t0", 1)).samples) == 3


def test_an_overridden_reward_is_the_samples_and_the_baselines() -> None:
    curated = curate(decide("override_reward", "g-t1", value=2.0))
    assert [sample.reward for sample in curated.samples] == [1.0, 2.0, 0.5]
    assert rewards_of(curated.marker) == {"g-t0": 1.0, "g-t1": 2.0, "g-t2": 0.5}
    whole = curate(decide("override_reward", value=3.0))
    assert set(rewards_of(whole.marker).values()) == {3.0}


def test_a_reward_that_is_taken_away_leaves_the_trajectory_out() -> None:
    none = decide("override_reward", "g-t1", value=None)
    assert [s.trajectory_uid for s in curate(none).samples] == ["g-t0", "g-t2"]
    assert curate(none).marker.members[1].reason == "reward_missing"
    masked = curate(none, decide("veto", "g-t0"), rewards_rule={"on_missing": "mask"})
    assert masked.reason is None  # the masked one counts towards the least
    assert [s.trajectory_uid for s in masked.samples] == ["g-t2"]


def test_labels_tags_and_quality_are_in_the_samples() -> None:
    said = [decide("relabel", "g-t0", value="gold"), decide("tag", value="seen"), decide("quality", "g-t1", value=0.5)]
    first, second, _ = curate(*said).samples
    assert (first.label, first.tags, first.quality) == ("gold", ("seen",), None)
    assert (second.label, second.tags, second.quality) == (None, ("seen",), 0.5)


def test_filters_are_asked_again_of_what_decisions_change() -> None:
    flat: dict[str, Any] = {
        "filters": [{"field": "reward_std", "op": "gt", "value": 0}, {"field": "turns", "op": "le", "value": 2}]
    }
    assert curate(decide("override_reward", value=1.0), **flat).reason == "filtered_reward_std"
    assert curate(decide("override_reward", value=1.0), decide("keep"), **flat).reason is None
    tagged: dict[str, Any] = {"filters": [{"field": "tags", "op": "lacks", "value": "odd"}]}
    assert len(curate(decide("tag", "g-t0", value="odd"), **tagged).samples) == 2


def test_a_pair_is_picked_again() -> None:
    recipe = {"algorithm": "dpo", "group": {"size": 2}}
    turned = curate(decide("override_reward", "g-t0", value=-1.0), rewards=(1.0, 0.0), **recipe)
    assert [(s.trajectory_uid, s.label) for s in turned.samples] == [("g-t0", "rejected"), ("g-t1", "chosen")]
    assert curate(decide("override_reward", value=1.0), rewards=(1.0, 0.0), **recipe).reason == "no_pair"


def test_a_vetoed_step_is_masked_and_a_steps_reward_is_the_spans() -> None:
    spans = (StepSpan(step_id="a", step_index=0, start=1, end=2), StepSpan(step_id="b", step_index=1, start=3, end=4))
    samples, marker = a_ready_group("g", (1.0, 0.0), spans=spans, mask=(0, 1, 0, 1))
    recipe = a_recipe()
    said = [decide("veto", "g-t0", step_id="a"), decide("override_reward", "g-t0", step_id="b", value=0.25)]
    first, second = curate_group(marker, samples, said, recipe).samples
    assert (first.loss_mask, first.mask_reasons) == (bytes([0, 0, 0, 1]), {"vetoed": 1})
    assert unpack_floats(first.rollout_log_probs).tolist() == [0, 0, 0, -0.5]
    assert [span.reward for span in first.spans] == [None, 0.25]
    assert second == samples[1]
    both = [*said, decide("veto", "g-t0", step_id="b")]
    assert curate_group(marker, samples, both, recipe).reason == "too_small"
    everything = [*both, *(decide("veto", "g-t1", step_id=step) for step in "ab")]
    assert curate_group(marker, samples, everything, a_recipe(group={"size": 2, "min_size": 1})).reason == "too_small"


def test_a_trajectory_keeps_the_rest_of_its_samples() -> None:
    samples, marker = a_ready_group("g", (1.0, 0.0), samples=2)
    span = StepSpan(step_id="a", step_index=0, start=2, end=4)
    samples[0] = samples[0].model_copy(update={"spans": (span,)})
    curated = curate_group(marker, samples, [decide("veto", "g-t0", step_id="a")], a_recipe())
    assert [(s.trajectory_uid, s.sample_index, s.n_samples) for s in curated.samples] == [
        ("g-t0", 0, 1),
        ("g-t1", 0, 2),
        ("g-t1", 1, 2),
    ]
    assert curated.marker.sample_ids == tuple(s.sample_id for s in curated.samples)


# ------------------------------------------------------------------------------------------------------ before and behind


def emit(recipe: Recipe, before: list[Decision], facts: list[Any], behind: list[Decision]) -> list[Event]:
    log = [set_recipe(recipe), *before, *facts, *behind]
    return play([Entry(1000.0 + index, fact) for index, fact in enumerate(log)]).durable


def some_recipe(rng: random.Random) -> Recipe:
    asked = [
        {"field": "reward", "op": "ge", "value": 0.5},
        {"field": "reward_std", "op": "gt", "value": 0},
        {"field": "tags", "op": "lacks", "value": "odd"},
        {"field": "quality", "op": "ge", "value": 0.0},
    ]
    algorithm = rng.choice(("grpo", "kto", "dpo", "sft"))
    size = 2 if algorithm == "dpo" else 3
    return a_recipe(
        algorithm=algorithm,
        group={"size": size, "min_size": rng.choice((None, size - 1 if size > 2 else 2))},
        filters=rng.sample(asked, rng.choice((0, 0, 1, 2))),
        rewards={"on_missing": rng.choice(("discard", "zero", "mask"))},
        pick={"how": "all", "min_reward": rng.choice((None, 0.5))} if algorithm == "sft" else {},
    )


REASONS = {"no_trained_tokens": "nothing_to_train"}
"""As a batch says it: as the streams say it."""


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32))
def test_deciding_behind_the_group_is_deciding_before_it(seed: int) -> None:
    rng = random.Random(seed)
    recipe = some_recipe(rng)
    facts = a_group([rng.choice((0.0, 1.0, 2.0)) for _ in range(recipe.group.size)], steps=2, prompt_uid="g")
    steps: dict[str, list[str]] = {"g-t0": [], "g-t1": []}
    for fact in facts:
        if isinstance(fact, Step) and fact.trajectory_uid in steps:
            steps[fact.trajectory_uid].append(fact.step_id)
    said = [
        *some_decisions(rng, "g", None),
        *(d for uid, ids in steps.items() for d in some_decisions(rng, "g", uid, ids)),
    ]
    said = list({d.fact_id: d for d in said}.values())
    rng.shuffle(said)
    early = said[: rng.randint(0, len(said))]
    behind = said[len(early) :]
    emitted = emit(recipe, early, list(facts), behind)
    marker = next((e for e in emitted if isinstance(e, GroupReady)), None)
    assume(marker is not None and all(m.outcome == "emitted" and m.reason == "complete" for m in marker.members))
    assert marker is not None
    samples = [e for e in emitted if isinstance(e, Sample)]
    assume(not any("vetoed" in sample.mask_reasons for sample in samples))  # what is masked does not come back
    forwarded = [e for e in emitted if isinstance(e, Decision)]
    assume({d.fact_id for d in forwarded} == {d.fact_id for d in behind})  # else the group waited for a deadline

    curated = curate_group(marker, samples, forwarded, recipe)
    expected = emit(recipe, said, list(facts), [])
    ready = next((e for e in expected if isinstance(e, GroupReady)), None)
    if ready is None:
        whole = next(
            e for e in expected if isinstance(e, Outcome) and e.recipe and not e.trajectory_uid and not e.fact_id
        )
        assert curated.reason is not None
        assert whole.reason.startswith(REASONS.get(curated.reason, curated.reason))
        return
    assert curated.reason is None
    assert _members(curated.marker) == _members(ready)
    assert _rows(curated.samples) == _rows([e for e in expected if isinstance(e, Sample)])


def _members(marker: GroupReady) -> list[Any]:
    return [(m.trajectory_uid, m.outcome, m.reason, m.reward, len(m.samples)) for m in marker.members]


def _rows(samples: Any) -> list[Any]:
    return [sample.model_dump(exclude={"sample_id"}) for sample in samples]


def test_a_steps_override_that_was_emitted_is_undone_behind_it() -> None:
    facts = list(a_group((1.0, 0.0), prompt_uid="g"))
    step_id = next(f.step_id for f in facts if isinstance(f, Step) and f.trajectory_uid == "g-t0")
    override = decide("override_reward", "g-t0", step_id=step_id, value=9.0)
    undo = decide("undo", "g-t0", 1, undoes=override.fact_id)
    emitted = emit(a_recipe(), [override], facts, [undo])
    marker = next(e for e in emitted if isinstance(e, GroupReady))
    samples = [e for e in emitted if isinstance(e, Sample)]
    assert samples[0].spans[0].reward == 9.0
    assert curate_group(marker, samples, [undo], a_recipe()).samples[0].spans[0].reward is None


def test_an_override_that_was_emitted_is_undone_behind_it() -> None:
    override = decide("override_reward", "g-t0", value=9.0)
    undo = decide("undo", "g-t0", 1, undoes=override.fact_id)
    emitted = emit(a_recipe(), [override], list(a_group((1.0, 0.0), prompt_uid="g")), [undo])
    marker = next(e for e in emitted if isinstance(e, GroupReady))
    assert rewards_of(marker) == {"g-t0": 9.0, "g-t1": 0.0}
    curated = curate_group(marker, [e for e in emitted if isinstance(e, Sample)], [undo], a_recipe())
    assert [sample.reward for sample in curated.samples] == [1.0, 0.0]


# ------------------------------------------------------------------------------------------------------ the cut


def put(shelf: Shelf, log: list[Event], start: int = 0) -> None:
    for offset, event in enumerate(log[start:], start):
        shelf.put(offset, event, 1.0)


def test_a_decision_waits_with_its_group_and_is_late_behind_the_cut() -> None:
    samples, marker = a_ready_group("g")
    taken = Remembered()
    shelf = Shelf(taken)
    log: list[Event] = [*samples, marker, decide("veto", "g-t0"), decide("note", value="odd"), decide("veto", "g-t0")]
    put(shelf, log)
    recipe = a_recipe(group={"size": 2, "min_size": 1})
    selection = select(shelf.decide(lambda _: recipe), recipe, None)
    assert selection is not None
    (member,) = name_members(selection)
    assert (member.sample_ids, member.left_out) == ((samples[1].sample_id,), (samples[0].sample_id,))
    assert [named.offset for named in member.decisions] == [3, 4]
    assert shelf.counts["duplicate_decision"] == 1
    taken.take(a_cut(7, selection, shelf))
    shelf.settle(selection.cursor)
    assert (shelf.n_ready, shelf.held_bytes) == (0, 0)
    put(shelf, [*log, decide("keep", "g-t1", 5)], len(log))
    (late,) = call_late("test", shelf.too_late.values(), 1.0)
    assert (late.outcome, late.reason, late.batch, late.group_id, late.trajectory_uid) == (
        "late",
        "in_batch",
        7,
        "g",
        "g-t1",
    )
    assert (late.partition, late.pos) == (None, None)


def a_cut(sequence: int, selection: Any, shelf: Shelf) -> BatchCut:
    return BatchCut(
        batch_id=f"b{sequence}",
        recipe="test",
        recipe_version=1,
        run_id=RUN,
        sequence=sequence,
        members=name_members(selection),
        excluded=name_exclusions(selection),
        start=0,
        cursor=selection.cursor,
        needs=selection.needs,
        resume=shelf.resume_at(selection.cursor, selection.groups),
        digest="",
        holder="me",
        at=1.0,
    )


@pytest.mark.parametrize("is_known", [True, False])
def test_a_decision_that_comes_while_its_groups_cut_is_written_is_late(is_known: bool) -> None:
    """`is_known`: the cut was confirmed; else it is found on the history later."""
    samples, marker = a_ready_group("g")
    unfit, masked = a_ready_group("h", mask=(0, 0, 0, 0))
    taken = Remembered()
    shelf = Shelf(taken)
    put(shelf, [*unfit, masked, *samples, marker, decide("tag", value="before")])
    recipe = a_recipe(group={"size": 2, "min_size": 1})
    selection = select(shelf.decide(lambda _: recipe), recipe, None)
    assert selection is not None
    cut = a_cut(7, selection, shelf)
    during = [decide("veto", "g-t0", 1), a_decision("h", None, "keep", 2)]
    for offset, decision in enumerate(during, 7):
        shelf.put(offset, decision, 1.0)
    taken.take(cut)
    shelf.settle(cut.cursor, [group.key for group in selection.groups] if is_known else None)
    told = {(one.late.decision.fact_id, one.place) for one in shelf.too_late.values()}
    assert told == {(during[0].fact_id, Place(7, True)), (during[1].fact_id, Place(7, False))}
    assert not +shelf.counts


def test_rounds_and_parts_are_told_apart() -> None:
    shelf = Shelf(taken := Remembered())
    for number, name in enumerate(("g", "g#2", "g#2+2")):
        samples, marker = a_ready_group(name, prompt_uid="g")
        marker = marker.model_copy(update={"prompt_uid": "g"})
        for offset, event in enumerate([*samples, marker]):
            shelf.put(10 * number + offset, event, 1.0)
    shelf.put(40, decide("veto", group_id="g#2"), 1.0)
    shelf.put(41, decide("tag", "g#2+2-t0", value="one"), 1.0)
    shelf.put(42, decide("veto", "of-none"), 1.0)
    assert [len(group.decisions) for group in shelf.ready] == [0, 1, 2]
    assert shelf.counts["groupless_decision"] == 1
    taken.take(a_cut(1, select(shelf.ready, a_recipe(batch={"groups": 3}), None), shelf))
    shelf.settle(50)
    shelf.put(50, decide("veto", number=1, group_id="g#2"), 1.0)
    shelf.put(51, decide("veto", "g-t0", 1), 1.0)  # its round is not said: none of them has it any more
    told = {(late.decision.trajectory_uid, group_id) for late, group_id, _ in shelf.too_late.values()}
    assert told == {(None, "g#2"), (None, "g#2+2"), ("g-t0", "g"), ("g-t0", "g#2"), ("g-t0", "g#2+2")}


def test_what_was_not_emitted_does_not_come_back_and_that_is_said() -> None:
    veto = decide("veto", "g-t0")
    emitted = emit(a_recipe(group={"size": 2, "min_size": 1}), [veto], list(a_group((1.0, 0.0), prompt_uid="g")), [])
    undo, keep = decide("undo", "g-t0", 1, undoes=veto.fact_id), decide("keep", "g-t1", 2)
    shelf = Shelf(Remembered())
    log = [e for e in emitted if isinstance(e, Sample | GroupReady)]
    put(shelf, [*log, undo, keep])
    recipe = a_recipe(group={"size": 2, "min_size": 1})
    selection = select(shelf.decide(lambda _: recipe), recipe, None)
    assert selection is not None
    (late,) = call_futile("test", selection, 4, 1.0)
    assert (late.fact_id, late.reason, late.batch) == (undo.fact_id, "not_emitted", 4)


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Groups, and decisions behind them, some of which come twice."""
    log: list[Event] = []
    for number in range(draw(st.integers(1, 8))):
        samples, marker = a_ready_group(f"g{number}", (1.0, 0.0))
        log += [*samples, marker]
        for index in range(draw(st.integers(0, 2))):
            about = f"g{draw(st.integers(0, number))}"
            uid = draw(st.sampled_from([None, f"{about}-t0"]))
            action, value = draw(
                st.sampled_from([("veto", None), ("override_reward", 5.0), ("tag", "t"), ("keep", None)])
            )
            decision = a_decision(about, uid, action, 10 * number + index, value=value)
            log += [decision] * draw(st.sampled_from([1, 1, 2]))
    return log


@settings(max_examples=200, deadline=None)
@given(logs(), st.data())
def test_every_decision_is_applied_once_or_late_and_each_cut_can_be_made_again(
    log: list[Event], data: st.DataObject
) -> None:
    recipe = a_recipe(batch={"groups": 2}, group={"size": 2, "min_size": 1})
    cuts: list[BatchCut] = []
    made: list[list[Any]] = []
    told: set[tuple[str, str]] = set()
    ends = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=6)))
    shelf, at = Shelf(Remembered()), 0
    for end in [*ends, len(log)]:
        if data.draw(st.booleans()):  # begin anew
            taken = Remembered()
            for cut in cuts:
                taken.take(cut)
            last = cuts[-1] if cuts else None
            at = 0 if last is None or last.resume is None else last.resume
            shelf = Shelf(taken, floor=0 if last is None else last.cursor)
        for offset in range(at, end):
            shelf.put(offset, log[offset], 1.0)
        at = max(at, end)
        while (selection := select(shelf.decide(lambda _: recipe), recipe, None)) is not None:
            cuts.append(a_cut(len(cuts) + 1, selection, shelf))
            made.append([sample.body for group in selection.members for sample in group.samples])
            told |= {(one.late.decision.fact_id, one.group_id) for one in shelf.too_late.values()}
            shelf._taken.take(cuts[-1])
            shelf.settle(selection.cursor)
    told |= {(one.late.decision.fact_id, one.group_id) for one in shelf.too_late.values()}
    groups: list[CutMember | CutExclusion] = [member for cut in cuts for member in cut.members]
    groups += [excluded for cut in cuts for excluded in cut.excluded]
    applied = [(decision.fact_id, group.group_id) for group in groups for decision in group.decisions]
    assert len(applied) == len(set(applied))
    assert not told & set(applied)
    in_cuts = {group_id for cut in cuts for _, group_id in places_of(cut)}
    said = {(e.fact_id, e.prompt_uid) for e in log if isinstance(e, Decision) and e.prompt_uid in in_cuts}
    assert said == told | set(applied)
    for cut, bodies in zip(cuts, made, strict=True):
        assert [sample for member in cut.members for sample in make_again(log, member, recipe)] == bodies


def make_again(log: list[Event], member: Any, recipe: Recipe) -> list[Sample]:
    """A cut's group from the log alone, whatever was decided later."""
    marker = log[member.offset]
    assert isinstance(marker, GroupReady)
    bodies = {e.sample_id: e for e in log if isinstance(e, Sample)}
    later = [e for named in member.decisions if isinstance(e := log[named.offset], Decision)]
    if not later:
        return [bodies[name] for name in member.sample_ids]
    return list(curate_group(marker, [bodies[name] for name in marker.sample_ids], later, recipe).samples)


def test_bodies_beyond_the_bound_are_asked_for_before_decisions_are_applied() -> None:
    samples, marker = a_ready_group("g")
    shelf = Shelf(Remembered(), max_bytes=0)
    put(shelf, [*samples, marker, decide("veto", "g-t0")])
    recipe = a_recipe(group={"size": 2, "min_size": 1})
    filling = fill(shelf.decide(lambda _: recipe), recipe, None)
    assert filling.full
    assert [sample.sample_id for sample in filling.lacking] == list(marker.sample_ids)
    shelf.fill({sample.sample_id: sample for sample in samples})
    filling = fill(shelf.decide(lambda _: recipe), recipe, None)
    selection = take(filling)
    assert selection is not None
    assert (filling.lacking, name_members(selection)[0].sample_ids) == ([], (samples[1].sample_id,))
    assert shelf.held_bytes > 0
    shelf.settle(10)
    assert shelf.held_bytes == 0


def test_a_group_that_a_cut_left_out_is_said_to_be() -> None:
    samples, marker = a_ready_group("g", mask=(0, 0, 0, 0))
    taken = Remembered()
    shelf = Shelf(taken)
    other, ready = a_ready_group("h")
    put(shelf, [*samples, marker, *other, ready])
    selection = select(shelf.ready, a_recipe(), None)
    taken.take(a_cut(3, selection, shelf))
    shelf.settle(6)
    shelf.put(6, decide("keep"), 1.0)
    ((late, _, place),) = [TooLate(*one) for one in shelf.too_late.values()]
    assert (place.sequence, place.trained) == (3, False)
    (outcome,) = call_late("test", shelf.too_late.values(), 1.0)
    assert (outcome.reason, outcome.batch, outcome.fact_id) == ("left_out", 3, late.decision.fact_id)


@pytest.mark.parametrize("action", ["note", "undo"])
def test_what_says_nothing_of_the_data_changes_nothing(action: str) -> None:
    samples, marker = a_ready_group("g", (1.0, 0.0))
    curated = curate_group(
        marker, samples, [decide(action, undoes="nothing" if action == "undo" else None)], a_recipe()
    )
    assert (curated.marker, list(curated.samples), curated.reason) == (marker, samples, None)
