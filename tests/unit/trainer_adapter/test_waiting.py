"""What a wait is for reads well."""

from dataclasses import replace

from claw_r1.recipes import Recipe
from tests.factories import a_ready_group, a_recipe
from trainer_adapter.cut import fill
from trainer_adapter.filling import Filling
from trainer_adapter.groups import Remembered, Shelf
from trainer_adapter.waiting import OpenGroups, explain_wait


def filled(recipe: Recipe) -> Filling:
    shelf = Shelf(Remembered())
    one, two = a_ready_group("a"), a_ready_group("b", mask=(0, 0, 0, 0))
    for offset, event in enumerate([*one[0], one[1], *two[0], two[1]]):
        shelf.put(offset, event, 1.0)
    return fill(shelf.ready, recipe, None, on=True)


def test_waiting_reads_well() -> None:
    recipe = a_recipe(batch={"groups": 3})
    waiting = explain_wait(recipe, filled(recipe), sequence=4, strays=2, ended=True, full=True)
    assert waiting.describe(now=11.0) == (
        "batch 4 of recipe test: 1 of 3 groups are ready; the last became ready 10.0 s ago; left out: 1 no_trained_tokens; "
        "2 samples wait for their group's marker; no more is read until they are in a cut: apply the recipe with other shares "
        "or another staleness; the recipe has ended, so no more groups will come"
    )
    nothing = explain_wait(a_recipe(), fill([], a_recipe(), None), sequence=1, strays=0, ended=False)
    assert "none has become ready since the last cut" in nothing.describe(now=0.0)
    assert "groups are open" not in nothing.describe(now=0.0)


def test_a_wait_for_tokens_says_what_it_waits_for() -> None:
    recipe = a_recipe(batch={"tokens": 20})
    waiting = explain_wait(recipe, filled(recipe), sequence=1, strays=0, ended=False)
    assert "with 8 of at most 20 tokens: it is full when the next does not fit" in waiting.describe(now=11.0)
    assert (waiting.a_batch, waiting.usable) == (3, 1)


def test_open_groups_and_what_they_are_short_of() -> None:
    waiting = explain_wait(a_recipe(), fill([], a_recipe(), None), sequence=1, strays=0, ended=False)
    some = OpenGroups(5, 2, {"answer": 3, "annotation values": 1}, held=1, oldest_at=1.0)
    assert (
        replace(waiting, open=some)
        .describe(now=61.0)
        .endswith(
            "5 groups are open, the oldest since 60 s: 2 with trajectories to come or to end, 1 short of annotation values, "
            "3 short of answer, 1 held for review"
        )
    )
    assert "no group is open" in replace(waiting, open=OpenGroups(0, 0)).describe(now=1.0)
    assert "does not tell which groups are open: it is away" in replace(waiting, open_unknown="it is away").describe(
        1.0
    )
