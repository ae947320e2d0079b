"""A recipe that comes later, folded over a random log as a backfill does it, without a pool."""

import random
from collections.abc import Iterable, Mapping, Sequence

from claw_r1.events import Event, GroupFact, GroupReady, Outcome, Sample
from claw_r1.recipes import Recipe
from streams.backfill.pool import Known
from streams.backfill.rounds import Closing, Folded, Logged, fold, is_over, split
from streams.state import Key
from streams.verdicts import ActiveRecipe
from tests.unit.streams.partition_log import FAR, START, Entry, a_log, effects, set_recipe, some_recipes

PLACE = frozenset({"pos"})
"""A deadline passes at the same time, but what else has come to the partition by then is not known of the group alone."""


def logged(log: Iterable[Entry]) -> dict[Key, list[Logged]]:
    """The facts by prompt as the pool has them, each id once, with what could not be read."""
    found: dict[Key, list[Logged]] = {}
    seen: set[str] = set()
    for offset, entry in enumerate(entry for entry in log if entry.is_record):
        if entry.spoiled is not None:
            found.setdefault(entry.spoiled, []).append(Logged(offset, entry.time, None, "undecodable"))
        elif isinstance(entry.fact, GroupFact) and entry.fact.fact_id not in seen:
            seen.add(entry.fact.fact_id)
            key = (entry.fact.run_id, entry.fact.prompt_uid)
            found.setdefault(key, []).append(Logged(offset, entry.time, entry.fact))
    return found


def known_of(key: Key, ledger: Iterable[Event], recipe: str) -> Known:
    known = Known()
    for one in ledger:
        if not isinstance(one, Outcome) or (one.run_id, one.prompt_uid) != key or one.pos is None:
            continue
        if one.recipe == recipe:
            known.said[one.round].append(one)
        elif one.outcome == "closed":
            known.closings.append(Closing(one.round, one.pos, one.at))
        elif one.reason == "never_opened" and one.fact_id is not None:
            known.orphans[one.fact_id] = one.pos
    return known


def backfill(log: Sequence[Entry], ledger: Sequence[Event], recipe: Recipe, *, now: float = FAR) -> list[Folded]:
    """What the recipe says of every closed group of the log, by what the ledger says."""
    facts = logged(log)
    return judge_all(facts, {key: known_of(key, ledger, recipe.name) for key in facts}, recipe, now=now)


def judge_all(
    logs: Mapping[Key, Sequence[Logged]], ledger: Mapping[Key, Known], recipe: Recipe, *, now: float = FAR
) -> list[Folded]:
    active = ActiveRecipe(10**6, recipe.name, 1, recipe)
    found = []
    for key, facts in logs.items():
        known = ledger[key]
        for round_ in split(filter(known.opened, facts), known.closings):
            if round_.closing is not None:
                said = known.said[round_.number]
                found.append(fold(key, round_, active, said, partition=0, now=now))
                assert not is_over(said, active) or found[-1].left == "decided"
    return found


def events_of(folded: Iterable[Folded]) -> list[Event]:
    return [output.event for one in folded for output in one.outputs]


def mine(events: Iterable[Event], recipe: str) -> dict[tuple[str, ...], Event]:
    """What concerns a recipe, and can be told from its topic and the ledger."""
    return effects(
        [
            e
            for e in events
            if (isinstance(e, Sample | GroupReady) and e.recipe == recipe)
            or (isinstance(e, Outcome) and e.recipe == recipe)
        ],
        ignore=PLACE,
    )


def a_log_of(seed: int, recipes: Sequence[Recipe]) -> list[Entry]:
    """A random log with these recipes, and no others, in force from its beginning; and with every fact once: the pool does
    not know of the copy of a fact that waited in vain for one to open its group."""
    log, seen = [Entry(START, set_recipe(recipe)) for recipe in recipes], set[str]()
    for entry in a_log(seed):
        if entry.fact is None or (isinstance(entry.fact, GroupFact) and entry.fact.fact_id not in seen):
            log.append(entry)
            seen |= set() if entry.fact is None else {entry.fact.fact_id}
    return log


def some_recipe(rng: random.Random, name: str) -> Recipe:
    recipe = some_recipes(rng)[0].recipe
    assert recipe is not None
    return recipe.model_copy(update={"name": name})
