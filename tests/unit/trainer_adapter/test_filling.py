"""Whatever the sizes and kinds of ready groups: batches are never above their size, in their shares, and lose nothing."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from claw_r1.codec import MAX_RECORD_BYTES, encode, encode_body
from claw_r1.events import BatchCut, Decision, Event, GroupReady, Sample
from claw_r1.reasons import BATCH_EXCLUSIONS
from claw_r1.recipes import MEMBER_BYTES, Recipe, list_unhonoured
from tests.factories import a_ready_group, a_recipe
from tests.unit.streams.partition_log import a_decision
from tests.unit.trainer_adapter.test_cut import Log, a_cut, run
from trainer_adapter import outlook as outlooks
from trainer_adapter.cut import fill, go_on, select, take
from trainer_adapter.filling import AHEAD, EXCLUDED_BYTES
from trainer_adapter.groups import (
    MAX_APPLIED,
    ReadyGroup,
    Remembered,
    Shelf,
    places_of,
)
from trainer_adapter.held import MAX_FACET, MAX_FACETS, list_facets
from trainer_adapter.ledger import Ledger
from trainer_adapter.outlook import Outlook
from trainer_adapter.waiting import explain_wait

KINDS = ("web", "shell", "chess")
MIX = {"by": "metadata.env.kind", "weights": {"web": 2, "shell": 1}}


def a_group(name: str, tokens: int = 8, kind: str = "web", **over: Any) -> Log:
    """A ready group's records; each of its two rows has half of the tokens."""
    n = tokens // 2
    rows = {"ids": tuple(range(1, n + 1)), "mask": (0,) * (n - 1) + (1,), "metadata": {"env": {"kind": kind}}}
    samples, marker = a_ready_group(name, (1.0, 0.0), **(rows | over))
    return [*samples, marker]


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Groups of several sizes and kinds, one behind another."""
    sizes = draw(st.lists(st.tuples(st.sampled_from([4, 6, 10, 16, 40]), st.sampled_from(KINDS)), max_size=40))
    groups = [a_group(f"g{number}", tokens, kind) for number, (tokens, kind) in enumerate(sizes)]
    return [event for group in groups for event in group]


recipes = st.sampled_from(
    [
        a_recipe(batch=batch)
        for batch in (
            {"tokens": 30},
            {"tokens": 30, "mix": MIX},
            {"groups": 3, "mix": MIX},
            {"groups": 4, "mix": {"by": "metadata.env.kind", "weights": {"web": 1, "shell": 1, "chess": 2}}},
        )
    ]
)


def shelve(log: Log) -> list[ReadyGroup]:
    shelf = Shelf(Remembered())
    for offset, event in enumerate(log):
        shelf.put(offset, event, 1.0)
    return shelf.ready


@settings(deadline=None)
@given(logs(), recipes, st.data())
def test_restarts_anywhere_give_the_same_cuts(log: Log, recipe: Recipe, data: st.DataObject) -> None:
    undisturbed = run(log, recipe, [], [], 2**30)
    ends = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=6)))
    stops = data.draw(st.lists(st.booleans(), min_size=len(ends), max_size=len(ends)))
    disturbed = run(log, recipe, ends, stops, data.draw(st.sampled_from([0, 3000, 2**30])))
    assert [(c.members, c.excluded, c.cursor) for c in disturbed] == [
        (c.members, c.excluded, c.cursor) for c in undisturbed
    ]


@settings(deadline=None)
@given(logs(), recipes)
def test_each_group_is_in_one_cut_and_none_below_the_cursor_in_none(log: Log, recipe: Recipe) -> None:
    cuts = run(log, recipe, [], [], 2**30)
    offsets = {event.group_id: offset for offset, event in enumerate(log) if isinstance(event, GroupReady)}
    taken = [group_id for cut in cuts for _, group_id in places_of(cut)]
    assert len(set(taken)) == len(taken)
    cursors = [cut.cursor for cut in cuts]
    assert cursors == sorted(cursors)
    assert {name for name, offset in offsets.items() if offset < max(cursors, default=0)} <= set(taken)
    for cut in cuts:
        assert [m.offset for m in cut.members] == sorted(m.offset for m in cut.members)
        assert {e.reason for e in cut.excluded} <= set(BATCH_EXCLUSIONS)


@settings(deadline=None)
@given(logs(), recipes)
def test_a_batch_is_full_and_not_above_its_shares(log: Log, recipe: Recipe) -> None:
    groups = {group.mark.group_id: group for group in shelve(log)}
    for cut in run(log, recipe, [], [], 2**30):
        for name, size in recipe.batch.shares.items():
            assert 0 < used(cut, recipe, groups, name) <= size
            if recipe.batch.tokens is None:
                assert used(cut, recipe, groups, name) == size


def used(cut: BatchCut, recipe: Recipe, groups: dict[str, ReadyGroup], share: str | None) -> int:
    members = [groups[member.group_id] for member in cut.members]
    mix = recipe.batch.mix
    mine = [group for group in members if mix is None or group.value_of(mix.by) == share]
    return len(mine) if recipe.batch.tokens is None else sum(group.tokens_left(None) for group in mine)


@settings(deadline=None)
@given(logs(), recipes)
def test_what_is_said_of_the_wait_is_why_there_is_no_batch(log: Log, recipe: Recipe) -> None:
    ready = shelve(log)
    waiting = explain_wait(recipe, fill(ready, recipe, None, on=True), sequence=1, strays=0, ended=False)
    selection = select(ready, recipe, None)
    if waiting.mix:
        assert (selection is None) == any(not share.full for share in waiting.mix.values())
    assert waiting.ready + sum(waiting.excluded.values()) == len(ready)
    if selection is None:  # who samples may go on: what is there is below what a batch takes
        assert waiting.usable < waiting.a_batch


def names(recipe: Recipe, *groups: Log) -> tuple[list[str], dict[str, str]] | None:
    selection = select(shelve([event for group in groups for event in group]), recipe, None)
    if selection is None:
        return None
    return [g.marker.group_id for g in selection.members], {g.marker.group_id: r for g, r in selection.excluded}


def test_a_batch_by_tokens_ends_before_the_group_that_would_go_beyond() -> None:
    recipe = a_recipe(batch={"tokens": 20})
    assert names(recipe, a_group("a", 8), a_group("b", 8)) is None
    assert names(recipe, a_group("a", 8), a_group("b", 8), a_group("c", 6)) == (["a", "b"], {})
    assert names(recipe, a_group("a", 8), a_group("b", 12)) == (["a", "b"], {})  # nothing can follow


def test_a_group_above_the_batch_is_left_out() -> None:
    recipe = a_recipe(batch={"tokens": 20})
    said = names(recipe, a_group("a", 22), a_group("b", 8), a_group("c", 14))
    assert said == (["b"], {"a": "above_batch_tokens"})


def test_rows_that_are_too_stale_do_not_count() -> None:
    def versions(version: int) -> dict[str, Any]:
        return {"version_spans": ({"version": version, "start": 0, "end": 4},)}

    (stale, _, marker), (_, fresh, _) = a_group("a", 8, **versions(1)), a_group("a", 8, **versions(3))
    ready = shelve([stale, fresh, marker, *a_group("b", 4, **versions(3))])
    assert [group.tokens_left(2) for group in ready] == [4, 4]
    for max_versions, members in ((1, ["a", "b"]), (2, ["a"])):
        staleness = {"max_versions": max_versions, "mode": "mask_tokens"}
        selection = select(ready, a_recipe(batch={"tokens": 8}, staleness=staleness), 3)
        assert selection is not None
        assert [group.mark.group_id for group in selection.members] == members


def test_a_share_that_is_short_holds_the_batch_up_and_is_named() -> None:
    recipe = a_recipe(batch={"groups": 3, "mix": MIX})
    log = [a_group("a"), a_group("b"), a_group("c"), a_group("d")]
    assert names(recipe, *log) is None
    filling = fill(shelve([e for group in log for e in group]), recipe, None, on=True)
    waiting = explain_wait(recipe, filling, sequence=1, strays=0, ended=False)
    assert "short of shell: 0 of 1 groups" in waiting.describe(2.0)
    assert "short of web" not in waiting.describe(2.0)
    assert names(recipe, *log, a_group("e", kind="shell")) == (["a", "b", "e"], {})


def test_what_has_no_share_and_what_is_far_ahead_is_left_out() -> None:
    recipe = a_recipe(batch={"groups": 3, "mix": MIX})
    many = [a_group(f"w{number}") for number in range(2 + 2 * AHEAD + 1)]
    said = names(recipe, a_group("chess", kind="chess"), *many, a_group("s", kind="shell"))
    assert said == (["w0", "w1", "s"], {"chess": "outside_mix", f"w{2 + 2 * AHEAD}": "beyond_mix"})


def test_the_value_of_a_group() -> None:
    (group,) = shelve(a_group("a", kind="web", task_id="sum-7"))
    assert [group.value_of(field) for field in ("task_id", "metadata.env.kind", "metadata.env", "metadata.x")] == [
        group.marker.task_id,
        "web",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("metadata", "facets"),
    [
        ({"a": "x", "b": 3, "c": True, "d": 0.5, "e": None, "f": [1]}, {"a": "x", "b": "3", "c": "true", "d": "0.5"}),
        ({"a": {"b": {"c": "x"}}}, {"a.b.c": "x"}),
        ({"a": "x" * MAX_FACET, "b": "x" * (MAX_FACET + 1)}, {"a": "x" * MAX_FACET}),
        ({f"k{n:03}": n for n in range(MAX_FACETS + 1)}, {f"k{n:03}": str(n) for n in range(MAX_FACETS)}),
    ],
)
def test_facets(metadata: dict[str, Any], facets: dict[str, str]) -> None:
    assert list_facets(metadata) == facets


# ------------------------------------------------------------------------------------------------------ memory and change


@st.composite
def decided_logs(draw: st.DrawFn) -> Log:
    """Groups of several sizes and kinds, some of another version's algorithm, and decisions behind them."""
    log: Log = []
    for number in range(draw(st.integers(1, 12))):
        tokens, kind = draw(st.sampled_from([4, 6, 10, 16, 40])), draw(st.sampled_from(KINDS))
        log += a_group(f"g{number}", tokens, kind, label=draw(st.sampled_from(["desirable", "gold"])))
        for index in range(draw(st.integers(0, 2))):
            about = f"g{draw(st.integers(0, number))}"
            uid = draw(st.sampled_from([None, f"{about}-t0", f"{about}-t1"]))
            action, value = draw(st.sampled_from([("veto", None), ("relabel", "desirable"), ("relabel", "odd")]))
            log.append(a_decision(about, uid, action, 10 * number + index, value=value))
    return log


KTO = {"algorithm": "kto", "group": {"size": 2, "min_size": 1}}
deciding_recipes = st.sampled_from(
    [a_recipe(batch=batch, **KTO) for batch in ({"groups": 2}, {"tokens": 30}, {"tokens": 30, "mix": MIX})]
)


def cut_all(log: Log, recipe: Recipe, max_bytes: int, ends: list[int]) -> list[BatchCut]:
    """The cuts of a trainer that looks whenever it has read on to one of `ends`."""
    shelf, cuts, at = Shelf(taken := Remembered(), max_bytes=max_bytes), list[BatchCut](), 0
    bodies = {event.sample_id: event for event in log if isinstance(event, Sample)}
    for end in ends:
        for offset in range(at, end):
            shelf.put(offset, log[offset], 1.0)
        at = max(at, end)
        while True:
            while (filling := fill(shelf.decide(lambda _: recipe), recipe, None)).lacking:
                shelf.fill({sample.sample_id: bodies[sample.sample_id] for sample in filling.lacking})
            if (selection := take(filling)) is None:
                break
            cuts.append(a_cut(len(cuts) + 1, selection, shelf))
            taken.take(cuts[-1])
            shelf.settle(selection.cursor)
    return cuts


@settings(deadline=None)
@given(decided_logs(), deciding_recipes, st.data())
def test_what_a_trainer_has_memory_for_changes_nothing(log: Log, recipe: Recipe, data: st.DataObject) -> None:
    ends = [*sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=3))), len(log)]
    plenty = cut_all(log, recipe, 2**30, ends)
    assert cut_all(log, recipe, data.draw(st.sampled_from([0, 3000])), ends) == plenty


def test_the_group_that_closed_a_batch_is_judged_with_its_decisions() -> None:
    veto = a_decision("b", "b-t0", "veto")
    log: Log = [*a_group("a", 20), *a_group("b", 20), veto]
    recipe = a_recipe(batch={"tokens": 30}, group={"size": 2, "min_size": 1})
    for max_bytes in (0, 2**30):  # without the veto b does not fit
        (cut,) = cut_all([*log, *a_group("c", 20)], recipe, max_bytes, [len(log), len(log) + 3])
        assert [member.group_id for member in cut.members] == ["a", "b"]


def an_outlook(recipe: Recipe, shelf: Shelf) -> Outlook:
    """Of a shelf that is filled by hand."""
    ledger = Ledger(recipe.name, kafka="127.0.0.1:1", holder="me")
    outlook = Outlook(recipe.name, ledger, kafka="127.0.0.1:1", prefetch_bytes=0, deadline=1.0)
    outlook._shelf = shelf
    outlook.source.recipes = {1: recipe}
    return outlook


@settings(deadline=None)
@given(decided_logs(), deciding_recipes)
def test_going_on_is_filling_anew(log: Log, recipe: Recipe) -> None:
    shelf = Shelf(Remembered())
    outlook = an_outlook(recipe, shelf)
    for offset, event in enumerate(log):
        shelf.put(offset, event, 1.0)
        for on in (False, True):
            assert outlook.fill(on=on) == fill(shelf.decide(lambda _: recipe), recipe, None, on=on)


def test_a_group_is_judged_once_while_no_batch_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = 0

    def count(*arguments: Any, **options: Any) -> None:
        nonlocal judged
        before = arguments[0].judged
        go_on(*arguments, **options)
        judged += arguments[0].judged - before

    monkeypatch.setattr(outlooks, "go_on", count)
    shelf = Shelf(Remembered())
    outlook = an_outlook(a_recipe(batch={"groups": 100}), shelf)
    for number in range(50):
        for offset, event in enumerate(a_group(f"g{number}")):
            shelf.put(3 * number + offset, event, 1.0)
        assert len(outlook.fill().members) == number + 1
    assert judged == 49  # the first was put in with the filling
    outlook.source.recipes[2] = a_recipe(batch={"groups": 50})
    assert outlook.fill().full


# ------------------------------------------------------------------------------------------------------ a cut is one record


def many(group: ReadyGroup, number: int, first: int = 0) -> list[ReadyGroup]:
    """Copies of a group under other names."""
    named = [f"g{first + index}" for index in range(number)]
    return [
        structs.replace(group, mark=structs.replace(group.mark, group_id=name, prompt_uid=name), offset=first + index)
        for index, name in enumerate(named)
    ]


def test_what_a_cut_cannot_leave_out_waits_for_the_next() -> None:
    (fit,), (unfit,) = shelve(a_group("fit")), shelve(a_group("unfit", mask=(0, 0, 0, 0)))
    ready = [*many(unfit, 12_000), *many(fit, 4, 12_000)]
    seen: list[str] = []
    shelf = Shelf(Remembered())
    cursor = 0
    for sequence in (1, 2, 3):
        selection = select(ready, a_recipe(), None)
        assert selection is not None
        cut = a_cut(sequence, selection, shelf)
        encode(cut, source="test")
        assert cut.cursor >= cursor
        cursor = cut.cursor
        gone = [group.mark.group_id for group in selection.groups]
        seen += gone
        ready = [group for group in ready if group.mark.group_id not in set(gone)]
        assert all(group.offset >= cursor for group in ready)
    assert sorted(seen) == sorted({f"g{number}" for number in range(12_003)})


def test_a_batch_that_a_cut_cannot_name_is_closed_before() -> None:
    (group,) = shelve(a_group("one"))
    names = tuple(f"{number:032x}" for number in range(4096))
    mark = structs.replace(group.mark, sample_ids=names)
    wide = structs.replace(
        group, mark=mark, samples=tuple(structs.replace(group.samples[0], sample_id=name) for name in names)
    )
    recipe = a_recipe(batch={"groups": 100})
    assert select(many(wide, 40), recipe, None) is None
    selection = select(many(wide, 60), recipe, None)
    assert selection is not None
    assert 40 < len(selection.members) < 60
    assert selection.cursor == selection.members[-1].offset + 1
    value = encode(a_cut(1, selection, Shelf(Remembered())), source="test").value
    assert 0.8 * MEMBER_BYTES < len(value) < MEMBER_BYTES + EXCLUDED_BYTES < MAX_RECORD_BYTES
    mixed = a_recipe(batch={"groups": 100, "mix": {"by": "metadata.env.kind", "weights": {"web": 1, "shell": 99}}})
    assert fill(many(wide, 60), mixed, None).shares["web"].full


@settings(deadline=None)
@given(decided_logs(), deciding_recipes)
def test_a_cut_takes_no_more_than_was_reckoned_with(log: Log, recipe: Recipe) -> None:
    groups = shelve(log)
    reckoned = {group.mark.group_id: (group.member_bytes, group.excluded_bytes) for group in groups}
    for cut in cut_all(log, recipe, 2**30, [len(log)]):
        bare = len(encode_body(cut.model_copy(update={"members": (), "excluded": ()})))
        named = sum(reckoned[one.group_id][0] for one in cut.members)
        named += sum(reckoned[one.group_id][1] for one in cut.excluded)
        assert len(encode_body(cut)) <= bare + named


def test_a_group_that_no_cut_can_name_is_left_out() -> None:
    (group,) = shelve(a_group("one"))
    mark = structs.replace(group.mark, sample_ids=group.mark.sample_ids * 100_000)
    filling = fill([structs.replace(group, mark=mark, samples=group.samples * 100_000)], a_recipe(), None)
    assert [reason for _, reason in filling.excluded] == ["above_cut"]
    assert "above_cut" in BATCH_EXCLUSIONS


def test_decisions_beyond_what_a_cut_applies_are_late() -> None:
    said: list[Event] = [a_decision("a", None, "tag", number, value=f"t{number}") for number in range(MAX_APPLIED + 2)]
    (cut,) = cut_all([*a_group("a"), *said], a_recipe(), 2**30, [MAX_APPLIED + 5])
    assert len(cut.members[0].decisions) == MAX_APPLIED
    shelf = Shelf(taken := Remembered())
    for offset, event in enumerate([*a_group("a"), *said]):
        shelf.put(offset, event, 1.0)
    taken.take(cut)
    shelf.settle(cut.cursor)
    late = {one.late.decision.fact_id for one in shelf.too_late.values()}
    assert late == {one.fact_id for one in said[MAX_APPLIED:] if isinstance(one, Decision)}


@pytest.mark.parametrize(("groups", "is_said"), [(8192, False), (32768, True)])
def test_a_batch_of_more_samples_than_a_cut_can_name_is_refused(groups: int, is_said: bool) -> None:
    (sentence,) = list_unhonoured(a_recipe(batch={"groups": groups}, group={"size": 8})) or [""]
    assert sentence.startswith("batch.groups: ") == is_said
    assert list_unhonoured(a_recipe(batch={"tokens": 10, "groups": groups}, group={"size": 8})) == []
