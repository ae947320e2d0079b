"""Random logs of one partition, and a worker around PartitionState that can crash: what the shell does, without a broker."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from claw_r1.events import (
    Annotation,
    Decision,
    Event,
    Fact,
    GroupCancel,
    GroupCarried,
    GroupFact,
    GroupReady,
    Outcome,
    RecipeActive,
    RecipeSet,
    RunPurged,
    Sample,
    Step,
    Trajectory,
)
from claw_r1.ids import derived_id
from claw_r1.recipes import Recipe
from claw_r1.topics import OUTCOMES
from streams.carry import Copied, draft, hold, open_groups, settle
from streams.state import Key, Output, PartitionState
from tests.factories import (
    RUN,
    a_group_open,
    a_recipe,
    a_reward,
    a_started,
    a_step,
    a_trajectory,
    an_end,
    an_open,
)

FAR = 1_000_000.0
"""A stream time after every deadline."""
START = 1000.0


@dataclass(frozen=True)
class Entry:
    """A record of the log at a time; without a fact it is a tick, with a key alone a record that cannot be read."""

    time: float
    fact: Fact | None = None
    spoiled: Key | None = None
    copied: Copied | None = None
    """The record is a copy of that: it is no fact."""

    @property
    def is_record(self) -> bool:
        return self.fact is not None or self.spoiled is not None or self.copied is not None


@dataclass
class Worker:
    """A stream worker's shell: outputs wait, become durable together, then the offset may be committed."""

    state: PartitionState = field(default_factory=lambda: PartitionState(0))
    pending: list[Output] = field(default_factory=list)
    durable: list[Event] = field(default_factory=list)
    safe: int = 0
    committed: int = 0
    carrying: list[tuple[GroupCarried, int, frozenset[str]]] = field(default_factory=list)
    """Drafts whose copies are not on the log yet, each with its group's oldest needed offset and its fact ids."""

    def fold(self, entry: Entry) -> list[Output]:
        state = self.state
        if entry.copied is not None:
            outputs = state.skip(state.position, entry.time)
        elif entry.fact is not None:
            outputs = state.apply(entry.fact, state.position, entry.time)
        elif entry.spoiled is not None:
            outputs = state.spoil(entry.spoiled, state.position, entry.time, "undecodable")
        else:
            outputs = state.tick(entry.time)
        self.pending += outputs
        assert state.committable <= min((g.first_offset for g in state.groups.values()), default=state.position)
        return outputs

    def begin_carry(self, rng: random.Random) -> None:
        """Say what some open groups are now."""
        for group in self.state.groups.values():
            if group.opened and rng.random() < 0.7:
                self.carrying.append((draft(self.state, group), group.first_offset, frozenset(group.seen)))

    def end_carry(self, records: list[Entry], time: float) -> None:
        """Put the copies on the log, and tell the ledger; the group may have changed, or closed, meanwhile."""
        for carried, first, fact_ids in self.carrying:
            copies = copies_of(records, carried, first, carried.pos, fact_ids)
            placed = carried.model_copy(update={"first": len(records), "last": len(records) + len(copies) - 1})
            records += [Entry(time, copied=copy) for copy in copies]
            self.pending.append(Output(OUTCOMES, placed, b"key"))
        self.carrying = []

    def flush(self) -> None:
        """One transaction."""
        self.durable += [output.event for output in self.pending]
        carried = [output.event for output in self.pending if isinstance(output.event, GroupCarried)]
        self.pending = []
        self.safe = self.state.committable
        for one in carried:
            settle(self.state, one)

    def commit(self) -> None:
        self.committed = max(self.committed, self.safe)

    def crash(self, records: Sequence[Entry]) -> None:
        """Begin anew: what was not durable is lost; `records` is the log so far."""
        self.pending = []
        self.carrying = []
        self.state = state = PartitionState(self.state.partition, position=self.committed)
        self.safe = self.committed
        active = [e for e in self.durable if isinstance(e, RecipeActive)]
        state.load_recipes(active, before=self.committed)
        ledger = [e for e in self.durable if isinstance(e, Outcome | GroupCarried)]
        state.load_ledger(ledger)
        for carried in open_groups(ledger, state.partition):
            copies = [e.copied for e in records[carried.first : carried.last + 1] if e.copied is not None]
            mine = [c for c in copies if _is_of(c.fact, carried) and c.offset < carried.pos]
            hold(state, carried, mine, {(a.name, a.version): a for a in active})
        for record in records[self.committed :]:
            self.fold(record)
        self.pending += state.end_replay()


def copies_of(
    records: Sequence[Entry], carried: GroupCarried, first: int, end: int, fact_ids: frozenset[str]
) -> list[Copied]:
    """Copies of a group's facts, all of them, that lie in [first, end) of the log."""
    found: dict[str, Copied] = {}
    for offset in range(first, end):
        record = records[offset]
        copied = record.copied
        if isinstance(record.fact, GroupFact):
            copied = Copied(offset, record.time, record.fact)
        if copied is not None and copied.fact.fact_id in fact_ids and _is_of(copied.fact, carried):
            found.setdefault(copied.fact.fact_id, copied)
    assert found.keys() == fact_ids
    return list(found.values())


def play(log: Iterable[Entry], until: float = FAR) -> Worker:
    """Run a log through one worker, undisturbed, and let time pass behind it."""
    worker = Worker()
    for entry in log:
        worker.fold(entry)
    worker.fold(Entry(until))
    worker.flush()
    return worker


def _is_of(fact: GroupFact, carried: GroupCarried) -> bool:
    return (fact.run_id, fact.prompt_uid) == (carried.run_id, carried.prompt_uid)


def play_with_crashes(log: Sequence[Entry], rng: random.Random, crashes: int, *, carries: bool = False) -> Worker:
    """With `carries`, open groups are carried at any moment, whatever their age."""
    worker = Worker()
    at = Counter(rng.randrange(len(log) + 1) for _ in range(crashes))
    records: list[Entry] = []
    for index, entry in enumerate([*log, Entry(FAR)]):
        for _ in range(at[index]):
            worker.crash(records)
            if rng.random() < 0.3:
                worker.flush()
            if rng.random() < 0.3:
                worker.commit()
        worker.fold(entry)
        if entry.is_record:
            records.append(entry)
        if carries and rng.random() < 0.15:
            worker.begin_carry(rng)
        if carries and worker.carrying and rng.random() < 0.3:
            before = len(records)
            worker.end_carry(records, entry.time)
            for copy in records[before:]:
                worker.fold(copy)
        if rng.random() < 0.3:
            worker.flush()
        if rng.random() < 0.3:
            worker.commit()
    worker.flush()
    return worker


# ------------------------------------------------------------------------------------------------------------- comparing


def identity(event: Event) -> tuple[str, ...]:
    match event:
        case Sample():
            return ("sample", event.sample_id)
        case GroupReady():
            return ("ready", event.recipe, event.group_id)
        case Outcome():
            return ("outcome", event.outcome_id)
        case RecipeActive():
            return ("recipe", event.name, str(event.version))
        case Trajectory():
            return ("trajectory", event.group_id, event.trajectory_uid)
        case Decision():
            return ("decision", event.fact_id)
        case RunPurged():
            return ("purge", event.fact_id)
        case GroupCarried():
            return ("carried", event.group_id, str(event.pos))
    raise AssertionError(event)


def effects(events: Iterable[Event], *, ignore: frozenset[str] = frozenset()) -> dict[tuple[str, ...], Event]:
    """What readers that deduplicate by id see; the lowest offset of an id wins. Trajectories may repeat: left out."""
    found: dict[tuple[str, ...], Event] = {}
    for event in events:
        if not isinstance(event, Trajectory | GroupCarried):
            kept = event.model_copy(update=dict.fromkeys(ignore & set(type(event).model_fields), 0))
            found.setdefault(identity(event), kept)
    return found


def check_one_fate(events: Iterable[Event]) -> None:
    """No sample, marker or fate twice; a group's fate and markers agree; every closed round is closed once."""
    events = list(events)
    once = [e for e in events if isinstance(e, Sample | GroupReady | Outcome)]
    once = [e for e in once if not (isinstance(e, Outcome) and e.outcome == "late")]
    held = [(e.recipe, e.group_id, e.trajectory_uid) for e in once if isinstance(e, Outcome) and e.outcome == "held"]
    twice = [name for name, n in Counter(identity(e) for e in once).items() if n > 1]
    assert twice == []
    fates = [e for e in once if isinstance(e, Outcome) and e.recipe is not None and e.outcome != "held"]
    named = Counter((o.recipe, o.group_id, o.trajectory_uid) for o in fates)
    assert [name for name, n in named.items() if n > 1] == []
    emitted = {(o.recipe, o.group_id) for o in fates if o.trajectory_uid is None and o.outcome == "emitted"}
    ready = [e for e in once if isinstance(e, GroupReady)]
    assert {(r.recipe, r.group_id) for r in ready} == emitted
    assert {s for r in ready for s in r.sample_ids} == {e.sample_id for e in once if isinstance(e, Sample)}
    closed = Counter(e.group_id for e in once if isinstance(e, Outcome) and e.outcome == "closed")
    assert set(closed.values()) <= {1}
    assert {o.group_id.partition("+")[0] for o in fates} <= closed.keys()
    assert {name for name in held if name[2] is None} <= {(o.recipe, o.group_id, o.trajectory_uid) for o in fates}


# ------------------------------------------------------------------------------------------------------------ random logs

CHANNELS = (None, None, None, "train", "val")


def set_recipe(recipe: Recipe | None, version: int = 1, name: str | None = None) -> RecipeSet:
    name = recipe.name if recipe is not None else name or "test"
    identity = derived_id("set", name, version)
    return RecipeSet(fact_id=identity, run_id=RUN, at=1.0, name=name, version=version, recipe=recipe)


FILTERS = (
    {"field": "reward", "op": "ge", "value": 1.0},
    {"field": "reward_std", "op": "gt", "value": 0},
    {"field": "turns", "op": "le", "value": 2},
    {"field": "tags", "op": "lacks", "value": "odd"},
    {"field": "quality", "op": "gt", "value": 0.5},
    {"field": "n_trajectories", "op": "ge", "value": 2},
)


def some_rules(rng: random.Random, size: int) -> dict[str, Any]:
    """Half of the recipes have none; the others any of filters, review, annotations and a shape."""
    if rng.random() < 0.5:
        return {}
    rules: dict[str, Any] = {"filters": rng.sample(FILTERS, rng.choice((0, 0, 1, 2)))}
    if rng.random() < 0.4:
        rules |= {"review": "required", "review_deadline": rng.choice((20, 500))}
    if rng.random() < 0.3:
        on_missing = rng.choice(("discard", "mask"))
        rules["annotations"] = {"required": ["ref_log_probs"], "timeout": rng.choice((5, 80)), "on_missing": on_missing}
    shape = rng.choice(("grpo", "grpo", "sft", "dpo", "kto"))
    if shape != "dpo" or size > 1:
        rules["algorithm"] = shape
    return rules


def some_recipes(rng: random.Random) -> list[RecipeSet]:
    """Two recipes at once, a new version of the first, and the end of the second."""

    def recipe(name: str) -> Recipe:
        size = rng.randint(1, 4)
        rules = some_rules(rng, size)
        return a_recipe(
            name=name,
            channel=rng.choice(("train", "train", "val")),
            group={
                "size": size,
                "min_size": rng.choice((None, 2 if rules.get("algorithm") == "dpo" else 1)),
                "idle": rng.choice((30, 150, 600)),
                "max_age": rng.choice((200, 1000)),
                "end_grace": rng.choice((2, 5, 40)),
                "stragglers": rng.choice(("late", "extra_group")),
            },
            rewards={
                "required": rng.choice((("reward",), (), ("reward", "style"))),
                "timeout": rng.choice((10, 100)),
                "on_missing": rng.choice(("discard", "discard", "zero", "mask")),
            },
            **rules,
        )

    return [
        set_recipe(recipe("first")),
        set_recipe(recipe("second")),
        set_recipe(recipe("first"), 2),
        set_recipe(None, 2, "second"),
    ]


def some_trajectory(rng: random.Random, prompt: str, uid: str) -> list[GroupFact]:
    facts: list[GroupFact] = list(
        a_trajectory(uid, rng.randint(1, 3), rng.choice((None, 0.0, 1.0, 2.5, float("nan"))), prompt_uid=prompt)
    )
    status = rng.choice(("completed", "completed", "failed", "aborted", "truncated"))
    facts[-1] = an_end(prompt_uid=prompt, trajectory_uid=uid, status=status)
    if rng.random() < 0.3:
        facts.insert(0, an_open(prompt_uid=prompt, trajectory_uid=uid, channel=rng.choice(CHANNELS), task_id="task"))
    if rng.random() < 0.2:
        facts = [f for f in facts if not isinstance(f, Step)] if rng.random() < 0.3 else _without_a_step(rng, facts)
    if rng.random() < 0.15:
        facts.pop()
    if rng.random() < 0.3:
        facts.append(a_reward(0.25, prompt_uid=prompt, trajectory_uid=uid, source="style"))
    if rng.random() < 0.3:
        facts.append(a_reward(rng.choice((None, 7.0)), prompt_uid=prompt, trajectory_uid=uid, revision=1))
    if rng.random() < 0.2:
        step = next((f for f in facts if isinstance(f, Step)), None)
        if step is not None:
            facts.append(a_reward(0.5, prompt_uid=prompt, trajectory_uid=uid, step_id=step.step_id))
            facts.append(_an_annotation(step))
    if rng.random() < 0.15:
        facts += [_an_annotation(step) for step in facts if isinstance(step, Step)]
    if rng.random() < 0.3:
        facts += some_decisions(rng, prompt, uid, [f.step_id for f in facts if isinstance(f, Step)])
    if rng.random() < 0.4:
        rng.shuffle(facts)
    return facts


def _without_a_step(rng: random.Random, facts: list[GroupFact]) -> list[GroupFact]:
    lost = rng.choice([f for f in facts if isinstance(f, Step)])
    return [f for f in facts if f is not lost]


def _an_annotation(step: Step) -> Annotation:
    return Annotation(
        fact_id=derived_id("annotation", step.step_id),
        run_id=step.run_id,
        at=1.0,
        prompt_uid=step.prompt_uid,
        trajectory_uid=step.trajectory_uid,
        step_id=step.step_id,
        name="ref_log_probs",
        source="reference",
        values=b"\0" * len(step.response_ids),
    )


def a_decision(prompt: str, uid: str | None, action: str, number: int = 0, **over: Any) -> Decision:
    """A person's; its id follows from what it is about, its action and its number."""
    fields: dict[str, Any] = {
        "run_id": RUN,
        "at": 1.0 + number,
        "prompt_uid": prompt,
        "trajectory_uid": uid,
        "action": action,
        "author": "a person",
    } | over
    name = (prompt, uid, fields.get("step_id"), action, number)
    return Decision.model_validate({"fact_id": derived_id("decision", *name)} | fields)


def some_decisions(rng: random.Random, prompt: str, uid: str | None, steps: Sequence[str] = ()) -> list[Decision]:
    """A few about one trajectory or its steps, or (None) about the whole group; some contradict, some undo others."""
    made: list[Decision] = []
    for number in range(rng.randint(1, 3)):
        action = rng.choice(("veto", "keep", "keep", "relabel", "override_reward", "tag", "quality", "note", "undo"))
        value = {
            "relabel": rng.choice(("good", "chosen", 7)),
            "override_reward": rng.choice((0.0, 3.0, None, "much")),
            "tag": rng.choice(("odd", "fine", "")),
            "quality": rng.choice((0.1, 0.9, "best")),
        }.get(action)
        undoes = rng.choice(made).fact_id if made and action == "undo" else None
        step = rng.choice(steps) if steps and rng.random() < 0.3 else None
        at = float(rng.randint(1, 3))
        made.append(a_decision(prompt, uid, action, number, value=value, undoes=undoes, step_id=step, at=at))
    return made


def some_group(rng: random.Random, prompt: str) -> list[list[GroupFact]]:
    """Threads of facts: what one sender writes in order."""
    threads = [some_trajectory(rng, prompt, f"{prompt}-t{n}") for n in range(rng.randint(1, 4))]
    if rng.random() < 0.3:
        threads.append([a_group_open(prompt_uid=prompt, size=rng.choice((None, 2, 3)), channel=rng.choice(CHANNELS))])
    if rng.random() < 0.1:
        threads.append([GroupCancel(fact_id=derived_id("cancel", prompt), run_id=RUN, at=1.0, prompt_uid=prompt)])
    if rng.random() < 0.2:
        threads.append([a_reward(1.0, prompt_uid=prompt, trajectory_uid=None, source="style")])
    if rng.random() < 0.2:
        threads.append([a_reward(1.0, prompt_uid=prompt, trajectory_uid=f"{prompt}-unknown")])
    if rng.random() < 0.3:
        threads.append([*some_decisions(rng, prompt, None)])
    if rng.random() < 0.3:  # late, or a straggler, or another round
        uid = f"{prompt}-t{rng.randint(0, 5)}"
        step = a_step((7, 8), (9,), prompt_uid=prompt, trajectory_uid=uid)
        threads.append([*threads[0], a_started(step), step])
        threads[0] = []
    return threads


def interleave(rng: random.Random, threads: Sequence[Sequence[Fact]]) -> list[Fact]:
    rest = [list(thread) for thread in threads if thread]
    found: list[Fact] = []
    while rest:
        thread = rng.choice(rest)
        found.append(thread.pop(0))
        if not thread:
            rest.remove(thread)
    return found


def a_log(seed: int) -> list[Entry]:
    """Several groups with their recipes, late facts, ticks, duplicates, spoiled records; times never fall."""
    rng = random.Random(seed)
    recipes = some_recipes(rng)
    threads: list[list[GroupFact]] = []
    for number in range(rng.randint(1, 3)):
        threads += some_group(rng, f"p{number}")
    facts: list[Fact] = interleave(rng, threads)
    for recipe, where in zip(recipes, (0.0, 0.1, 0.5, 0.7), strict=True):
        facts.insert(int(len(facts) * where * rng.random()), recipe)
    if rng.random() < 0.1:
        facts.insert(rng.randrange(len(facts)), RunPurged(fact_id="purge", run_id=RUN, at=1.0))
    for _ in range(rng.randint(0, 6)):
        index = rng.randrange(len(facts))
        facts.insert(rng.randint(index + 1, min(len(facts), index + 12)), facts[index])
    time = START
    log: list[Entry] = []
    slow = rng.choice((0.05, 0.3))
    for fact in facts:
        if rng.random() < slow:
            time += rng.choice((1, 2, 5, 20, 61, 150))
            if rng.random() < 0.5:
                log.append(Entry(time))
        log.append(Entry(time, fact))
        if rng.random() < 0.01:
            log.append(Entry(time, spoiled=(RUN, "p0")))
    return _without_forgotten_copies(log)


def _without_forgotten_copies(log: Sequence[Entry]) -> list[Entry]:
    """A worker that began anew cannot know a copy of a fact whose group closed before; such copies become ticks."""
    worker, seen, late, kept = Worker(), set[str](), set[str](), []
    for entry in log:
        fact = entry.fact
        if isinstance(fact, RunPurged) and fact.fact_id in seen:
            entry = Entry(entry.time)
        if isinstance(fact, GroupFact) and fact.fact_id in seen - late:
            worker.state.tick(entry.time)
            group = worker.state.groups.get((fact.run_id, fact.prompt_uid))
            if group is None or fact.fact_id not in group.seen:
                entry = Entry(entry.time)
        outputs = worker.fold(entry)
        if fact is not None:
            seen.add(fact.fact_id)
        late |= {e.fact_id for o in outputs if isinstance(e := o.event, Outcome) and e.fact_id and e.outcome == "late"}
        kept.append(entry)
    return kept
