"""Whatever the log holds and wherever a trainer stops, every ready group is in exactly one cut, in ready order."""

import mmap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.events import BatchCut, BatchTrained, Event, GroupReady, Reward, Sample
from claw_r1.reasons import BATCH_EXCLUSIONS
from claw_r1.recipes import Recipe
from tests.factories import a_ready_group, a_recipe, a_reward
from trainer_adapter import groups
from trainer_adapter import groups as groups_module
from trainer_adapter.cut import (
    History,
    Selection,
    name_exclusions,
    name_members,
    reason_against,
    select,
)
from trainer_adapter.groups import ReadyGroup, Remembered, Shelf, places_of

Log = list[Event]


def a_cut(sequence: int, selection: Selection, shelf: Shelf) -> BatchCut:
    return BatchCut(
        batch_id=f"b{sequence}",
        recipe="test",
        recipe_version=1,
        run_id="default",
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


def trained(sequence: int, version: int) -> BatchTrained:
    return BatchTrained(
        batch_id=f"b{sequence}",
        recipe="test",
        run_id="default",
        sequence=sequence,
        cursor=0,
        policy_version=version,
        holder="me",
        at=1.0,
    )


class Trainer:
    """The stream's order of things on an in-memory log: open, read up to an end, cut, forget everything."""

    def __init__(self, log: Log, recipe: Recipe, history: list[BatchCut], max_bytes: int) -> None:
        self.log, self.recipe, self.cuts = log, recipe, history
        taken = Remembered()
        for cut in history:
            taken.take(cut)
        last = history[-1] if history else None
        self.next = 0 if last is None or last.resume is None else last.resume
        self.shelf = Shelf(taken, floor=0 if last is None else last.cursor, max_bytes=max_bytes)
        self.taken = taken

    def read(self, end: int) -> None:
        for offset in range(self.next, end):
            self.shelf.put(offset, self.log[offset], 1.0)
        self.next = max(self.next, end)

    def cut(self) -> bool:
        selection = select(self.shelf.ready, self.recipe, 10)
        if selection is None:
            return False
        cut = a_cut(len(self.cuts) + 1, selection, self.shelf)
        self.cuts.append(cut)
        self.taken.take(cut)
        self.shelf.settle(cut.cursor)
        return True


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Groups whose records interleave, samples before their marker; some groups come twice, some are stale or masked."""
    queues: list[Log] = []
    for number in range(draw(st.integers(0, 12))):
        version = draw(st.sampled_from([1, 8, 9]))
        mask = draw(st.sampled_from([(0, 0, 1, 1), (0, 0, 1, 1), (0, 0, 0, 0)]))
        spans = ({"version": version, "start": 0, "end": 4},)
        samples, marker = a_ready_group(f"g{number}", (1.0, 0.0), version_spans=spans, mask=mask)
        once: Log = [*samples, marker]
        queues.append(once * draw(st.sampled_from([1, 1, 1, 2])))
    log: Log = []
    while queues:
        queue = queues[draw(st.integers(0, min(2, len(queues) - 1)))]
        log.append(queue.pop(0))
        queues = [queue for queue in queues if queue]
    return log


def run(log: Log, recipe: Recipe, ends: list[int], stops: list[bool], max_bytes: int) -> list[BatchCut]:
    """The cuts of a trainer that reads on to each of `ends`, and starts anew where `stops` says so."""
    cuts: list[BatchCut] = []
    trainer = Trainer(log, recipe, cuts, max_bytes)
    for end, stop in [*zip(ends, stops, strict=True), (len(log), False)]:
        if stop:
            trainer = Trainer(log, recipe, cuts, max_bytes)
        trainer.read(end)
        while trainer.cut():
            if stop:
                trainer = Trainer(log, recipe, cuts, max_bytes)
                trainer.read(end)
    return cuts


RECIPE = a_recipe(batch={"groups": 2}, staleness={"max_versions": 4})


@given(logs(), st.data())
def test_restarts_anywhere_give_the_same_cuts(log: Log, data: st.DataObject) -> None:
    undisturbed = run(log, RECIPE, [], [], 2**30)
    ends = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=6)))
    stops = data.draw(st.lists(st.booleans(), min_size=len(ends), max_size=len(ends)))
    disturbed = run(log, RECIPE, ends, stops, data.draw(st.sampled_from([0, 3000, 2**30])))
    assert [cut.members for cut in disturbed] == [cut.members for cut in undisturbed]
    assert [cut.excluded for cut in disturbed] == [cut.excluded for cut in undisturbed]
    assert [cut.cursor for cut in disturbed] == [cut.cursor for cut in undisturbed]


@given(logs())
def test_every_ready_group_up_to_the_cursor_is_in_exactly_one_cut(log: Log) -> None:
    cuts = run(log, RECIPE, [], [], 2**30)
    order = list(dict.fromkeys(event.group_id for event in log if isinstance(event, GroupReady)))
    first = {
        name: log.index(next(e for e in log if isinstance(e, GroupReady) and e.group_id == name)) for name in order
    }
    cursor = cuts[-1].cursor if cuts else 0
    in_cuts = [group_id for cut in cuts for _, group_id in places_of(cut)]
    assert sorted(in_cuts) == sorted(name for name in order if first[name] < cursor)
    members = [member.group_id for cut in cuts for member in cut.members]
    assert members == [name for name in order if name in members]
    for cut in cuts:
        assert [member.offset for member in cut.members] == [first[member.group_id] for member in cut.members]
        wanted = {sample_id for member in cut.members for sample_id in member.sample_ids}
        held = {e.sample_id for e in log[cut.needs : cut.cursor] if isinstance(e, Sample)}
        assert wanted <= held


def a_ready(**over: Any) -> ReadyGroup:
    shelf = Shelf(Remembered())
    samples, marker = a_ready_group(**over)
    for offset, event in enumerate([*samples, marker]):
        shelf.put(offset, event, 1.0)
    return shelf.ready[0]


@pytest.mark.parametrize(
    ("over", "staleness", "newest", "reason"),
    [
        ({}, {}, None, None),
        ({"mask": (0, 0, 0, 0)}, {}, None, "no_trained_tokens"),
        ({"ids": (1, 2, 3, 2**31)}, {}, None, "token_id_too_large"),
        ({}, {"max_versions": 4}, 5, None),
        ({}, {"max_versions": 4}, 6, "stale"),
        ({}, {"max_versions": 0}, None, None),
        ({"version_spans": ()}, {"max_versions": 4}, 6, None),
        ({"version_spans": ()}, {"unknown": "drop"}, None, "unknown_version"),
        ({"version_spans": ({"version": 1, "start": 2, "end": 3},)}, {"unknown": "drop"}, None, "unknown_version"),
        ({"version_spans": ({"version": 1, "start": 0, "end": 2},)}, {"max_versions": 4}, 9, None),  # masked tokens
        ({"version_spans": ({"version": 1, "start": 2, "end": 4},)}, {"unknown": "drop"}, None, None),
    ],
)
def test_reasons(over: dict[str, Any], staleness: dict[str, Any], newest: int | None, reason: str | None) -> None:
    assert reason_against(a_ready(**over), a_recipe(staleness=staleness), newest) == reason
    assert reason is None or reason in BATCH_EXCLUSIONS


@pytest.mark.parametrize(
    ("over", "recipe", "reason"),
    [
        ({"label": "chosen"}, {"algorithm": "dpo"}, "no_pair"),
        ({"label": "desirable"}, {"algorithm": "kto"}, None),
        ({"label": "gold"}, {"algorithm": "kto"}, "no_label"),
        ({}, {"algorithm": "distill"}, "annotation_missing"),
        ({"annotations": {"teacher_log_probs": bytes(16)}}, {"algorithm": "distill"}, None),
        ({}, {"algorithm": "ppo"}, None),
        ({}, {"algorithm": "ppo", "annotations": {"required": ["values"]}}, "annotation_missing"),
        ({"annotations": {"values": bytes(16)}}, {"algorithm": "ppo", "annotations": {"required": ["values"]}}, None),
    ],
)
def test_a_group_of_another_version_may_lack_what_the_algorithm_needs(
    over: dict[str, Any], recipe: dict[str, Any], reason: str | None
) -> None:
    assert reason_against(a_ready(**over), a_recipe(**recipe), None) == reason
    assert reason is None or reason in BATCH_EXCLUSIONS


def test_missing_samples_and_rewards_are_faults() -> None:
    samples, marker = a_ready_group()
    shelf = Shelf(Remembered())
    shelf.put(0, samples[0], 1.0)
    shelf.put(1, marker, 1.0)
    assert shelf.ready[0].fault == "samples_missing"
    silent = tuple(member.model_copy(update={"reward": None}) for member in marker.members)
    shelf = Shelf(Remembered())
    for offset, event in enumerate([*samples, marker.model_copy(update={"members": silent})]):
        shelf.put(offset, event, 1.0)
    assert shelf.ready[0].fault == "no_reward"


def test_what_is_not_taken_in_is_counted() -> None:
    samples, marker = a_ready_group()
    extra, _ = a_ready_group(rewards=(1.0, 1.0, 1.0))
    shelf = Shelf(Remembered())
    log: Log = [samples[0], samples[0], samples[1], extra[2], marker, marker, samples[0], a_reward()]
    for offset, event in enumerate(log):
        shelf.put(offset, event, 1.0)
    assert isinstance(log[-1], Reward)
    assert +shelf.counts == {"duplicate_sample": 2, "unnamed_sample": 1, "duplicate_group": 1, "other_event": 1}
    assert (len(shelf.ready), shelf.strays) == (1, 0)


def test_bounds_hold() -> None:
    shelf = Shelf(Remembered(), max_bytes=5000, max_strays=3)
    for number in range(4):
        for sample in a_ready_group(f"g{number}")[0]:
            shelf.put(number, sample, 1.0)
    assert shelf.strays <= 3
    assert shelf.counts["stray_sample"] == 6
    assert shelf.held_bytes <= 5000
    remembered = Remembered(bound=2)
    for sequence, name in enumerate("abc", 1):
        remembered.take(a_cut(sequence, Selection((a_ready(group_id=name),), ()), shelf))
    assert [("default", name) in remembered for name in "abc"] == [False, True, True]


def test_a_prompt_that_is_used_for_ever_does_not_slow_its_trainer_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "MAX_FURTHER", 10)
    shelf = Shelf(Remembered())
    remembered = Remembered()
    names = ["p", *(f"p#{round_}" for round_ in range(2, 101))]
    for sequence, name in enumerate(names, 1):
        remembered.take(a_cut(sequence, Selection((a_ready(group_id=name),), ()), shelf))
    found = [name for name, _ in remembered.of_prompt("default", "p")]
    assert found == ["p", *names[-10:]]
    assert [name for name, _ in remembered.of_prompt("default", "p", "p#7")] == ["p#7"], "what is named is found"
    assert remembered.of_prompt("default", "p", "other#7") == []


def test_large_bodies_lie_apart_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MAX_APART", 3)
    shelf = Shelf(Remembered())
    ids = tuple(range(20_000))
    for number in range(3):
        samples, marker = a_ready_group(f"g{number}", ids=ids, mask=(1,) * len(ids))
        for offset, event in enumerate([*samples, marker], 10 * number):
            shelf.put(offset, event, 1.0)
        if number == 1:
            wires = [sample.wire for group in shelf.ready for sample in group.samples]
            assert [type(wire) for wire in wires] == [mmap.mmap, mmap.mmap, mmap.mmap, bytes]
            assert [sample.body for group in shelf.ready for sample in group.samples][2:] == a_ready_group(
                "g1", ids=ids, mask=(1,) * len(ids)
            )[0]
            shelf.settle(13)  # what is let go of makes room
    (group,) = shelf.ready
    assert [type(sample.wire) for sample in group.samples] == [mmap.mmap, mmap.mmap]


def test_bytes_are_given_back() -> None:
    shelf = Shelf(Remembered())
    for number in range(4):
        samples, marker = a_ready_group(f"g{number}")
        for offset, event in enumerate([*samples, marker]):
            shelf.put(10 * number + offset, event, 1.0)
    assert shelf.held_bytes > 0
    shelf.settle(100)
    assert (shelf.held_bytes, shelf.ready) == (0, [])


def test_history_knows_where_the_trainer_is() -> None:
    shelf = Shelf(Remembered())
    for number in range(2):
        samples, marker = a_ready_group(f"g{number}")
        for offset, event in enumerate([*samples, marker]):
            shelf.put(10 * number + offset, event, 1.0)
    history = History()
    assert (history.position, history.last_sequence, history.newest) == (0, 0, None)
    cuts = []
    for sequence in (1, 2):
        selection = select(shelf.ready, a_recipe(), None)
        assert selection is not None
        cuts.append(a_cut(sequence, selection, shelf))
        shelf.settle(selection.cursor)
    for offset, event in enumerate([cuts[0], cuts[1], trained(1, 5), trained(2, 6), trained(1, 7), cuts[0]]):
        history.put(offset, event)
    assert (history.position, history.last_sequence) == (1, 2)
    assert history.cuts == {1: 0, 2: 1}
    assert history.newest is not None
    assert history.newest.policy_version == 7
    assert ("default", "g1") in history.taken
