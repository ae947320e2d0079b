"""A partition's facts become decisions: the same in any order, at any pace, once each; what is late is said once."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.codec import encode
from claw_r1.events import (
    Decision,
    Event,
    Fact,
    GroupReady,
    Outcome,
    RecipeActive,
    RunPurged,
    Sample,
    Step,
    Trajectory,
    TrajectoryFact,
)
from claw_r1.topics import OUTCOMES, TRAJECTORIES, batch_topic
from streams import state as state_module
from streams.ended import MAX_MESSAGES_BYTES
from streams.ledger import Closed
from streams.state import PartitionState
from tests.factories import (
    PROMPT,
    RUN,
    a_child,
    a_group,
    a_group_open,
    a_recipe,
    a_reward,
    a_started,
    a_step,
    a_trajectory,
    an_end,
    an_open,
)
from tests.unit.streams.partition_log import (
    CHANNELS,
    FAR,
    START,
    Entry,
    Worker,
    a_decision,
    a_log,
    check_one_fate,
    effects,
    interleave,
    play,
    set_recipe,
    some_decisions,
    some_rules,
    some_trajectory,
)

T0, T1 = f"{PROMPT}-t0", f"{PROMPT}-t1"
SEEDS = st.integers(0, 2**32)


def entries(facts: list[Fact], time: float = START) -> list[Entry]:
    return [Entry(time, fact) for fact in facts]


def outcomes(events: list[Event], kind: str) -> list[Outcome]:
    return [e for e in events if isinstance(e, Outcome) and e.outcome == kind]


# ---------------------------------------------------------------------------------------------------------------- order


def some_groups(rng: random.Random, gated: bool) -> list[list[Fact]]:
    """Threads of facts of groups that nothing decides before the reward `gate` of the whole group, if they are gated, else
    before they are idle. People's decisions may settle a trajectory without its reward, so they are in the latter only."""
    threads: list[list[Fact]] = []
    for number in range(rng.randint(1, 3)):
        prompt = f"p{number}"
        for n in range(rng.randint(1, 4)):
            facts = some_trajectory(rng, prompt, f"{prompt}-t{n}")
            threads.append([f for f in facts if not (gated and isinstance(f, Decision))])
        if rng.random() < 0.5:
            size = rng.choice((None, 1, 3)) if gated else None
            threads.append([a_group_open(prompt_uid=prompt, size=size, channel=rng.choice(CHANNELS))])
        if not gated and rng.random() < 0.5:
            threads.append([*some_decisions(rng, prompt, None)])
    return threads


def some_gated_recipes(rng: random.Random, gated: bool) -> list[Fact]:
    def gate(name: str, channel: str) -> Fact:
        size = rng.randint(1, 4) if gated else 99
        rules = some_rules(rng, size)
        group = {
            "size": size,
            "min_size": 2 if rules.get("algorithm") == "dpo" else 1,
            "idle": 5000,
            "max_age": rng.choice((4000, 9000)),
            "stragglers": rng.choice(("late", "extra_group")),
        }
        rewards = {
            "required": ["gate", *rng.choice(([], ["reward"]))],
            "timeout": 3000,
            "on_missing": rng.choice(("discard", "mask", "zero")),
        }
        return set_recipe(a_recipe(name=name, channel=channel, group=group, rewards=rewards, **rules))

    return [gate("one", "train"), gate("two", rng.choice(("train", "val")))]


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_any_order_and_duplication_before_the_close_gives_the_same_outputs(seed: int) -> None:
    rng = random.Random(seed)
    gated = rng.random() < 0.5
    recipes, threads = some_gated_recipes(rng, gated), some_groups(rng, gated)
    prompts = {fact.prompt_uid for thread in threads for fact in thread if isinstance(fact, TrajectoryFact)}
    gates: list[Fact] = [a_reward(0.0, prompt_uid=p, trajectory_uid=None, source="gate") for p in sorted(prompts)]

    def outputs(facts: list[Fact]) -> dict[tuple[str, ...], Event]:
        worker = play(entries([*recipes, *facts, *gates]))
        check_one_fate(worker.durable)
        assert worker.state.groups == {}
        return effects(worker.durable, ignore=frozenset(("pos", "at")))

    in_order = [fact for thread in threads for fact in thread]
    expected = outputs(in_order)
    shuffled = interleave(rng, threads) if rng.random() < 0.5 else rng.sample(in_order, len(in_order))
    for copy in rng.sample(in_order, min(5, len(in_order))):
        shuffled.insert(rng.randrange(len(shuffled)), copy)
    assert outputs(shuffled) == expected


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_how_often_time_is_told_changes_nothing(seed: int) -> None:
    rng = random.Random(seed)
    log = a_log(seed)
    often: list[Entry] = []
    for entry in log:
        last = often[-1].time if often else entry.time
        often += [Entry(at) for at in sorted(rng.uniform(last, entry.time) for _ in range(rng.randint(0, 3)))]
        often.append(entry)
    expected = effects(play(e for e in log if e.is_record).durable)
    assert effects(play(often).durable) == expected
    often += [Entry(log[-1].time + n * 7.3) for n in range(300)]
    assert effects(play(often).durable) == expected


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_every_fate_is_said_once_and_every_late_fact_once(seed: int) -> None:
    worker = play(a_log(seed))
    events = worker.durable
    check_one_fate(events)
    late = Counter((o.prompt_uid, o.fact_id, o.recipe) for o in outcomes(events, "late") if o.reason != "never_opened")
    assert set(late.values()) <= {1}
    rounds: dict[tuple[str | None, str, str], set[str]] = {}
    for outcome in events:
        if isinstance(outcome, Outcome) and outcome.trajectory_uid is not None:
            fate = outcome.outcome if outcome.outcome == "held" else "fate"
            rounds.setdefault((outcome.recipe, outcome.trajectory_uid, fate), set()).add(outcome.group_id)
    assert [name for name, groups in rounds.items() if len(groups) > 1] == []
    assert worker.state.groups == {}
    assert worker.state.committable == worker.state.position


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_committable_is_the_oldest_fact_of_an_open_group(seed: int) -> None:
    """By a book of its own: a group opens with the first fact taken in after none was open, and ends with its close."""
    worker = Worker()
    oldest: dict[tuple[str, str], int] = {}
    before = 0
    for entry in a_log(seed):
        worker.fold(entry)
        state = worker.state
        for key in [key for key in oldest if key not in state.groups]:
            del oldest[key]
        for key in state.groups:
            oldest.setdefault(key, state.position - 1)
        for key, group in state.groups.items():
            if group.first_offset > oldest[key]:  # closed and opened anew by the same record
                oldest[key] = state.position - 1
        assert state.committable == min(oldest.values(), default=state.position)
        assert state.committable >= before
        before = state.committable


# --------------------------------------------------------------------------------------------------------- late, rounds


def one_recipe(**over: object) -> Fact:
    return set_recipe(a_recipe(group={"size": 2} | over))


def test_outputs_of_a_decision_come_together_and_in_order() -> None:
    state = PartitionState(3)
    facts = [one_recipe(), *a_group((1.0, 0.0), 1)]
    for offset, fact in enumerate(facts[:-1]):
        state.apply(fact, offset, START)
    outputs = state.apply(facts[-1], len(facts) - 1, START)
    kinds = [(o.topic, type(o.event).__name__) for o in outputs]
    batch = batch_topic("test")
    assert kinds == [
        (TRAJECTORIES, "Trajectory"),
        (batch, "Sample"),
        (batch, "Sample"),
        (batch, "GroupReady"),
        (OUTCOMES, "Outcome"),
        (OUTCOMES, "Outcome"),
        (OUTCOMES, "Outcome"),
        (OUTCOMES, "Outcome"),
    ]
    assert {o.key for o in outputs} == {b"default/prompt-1"}
    assert {o.partition for o in outputs if o.topic != batch} == {3}
    closed = outputs[-1].event
    assert isinstance(closed, Outcome)
    assert (closed.outcome, closed.reason, closed.trajectories) == ("closed", "decided", (T0, T1))


def test_a_late_fact_is_late_once_and_opens_nothing() -> None:
    reward = a_reward(5.0, trajectory_uid=T0, revision=1)
    end = an_end(trajectory_uid=T0, fact_id="again")
    facts = [one_recipe(), *a_group(), reward, reward, end, reward]
    worker = play(entries(facts))
    late = outcomes(worker.durable, "late")
    assert [(o.fact_id, o.reason, o.round) for o in late] == [
        (reward.fact_id, "reward", 1),
        ("again", "trajectory-end", 1),
    ]
    assert worker.state.duplicates == 2
    assert len([e for e in worker.durable if isinstance(e, GroupReady)]) == 1


def test_copies_of_facts_that_were_taken_in_are_not_late() -> None:
    facts: list[Fact] = [*a_group(), a_group_open(size=2)]
    worker = play(entries([one_recipe(), facts[-1], *facts[:-1], *facts]))
    assert outcomes(worker.durable, "late") == []
    assert worker.state.duplicates == len(facts)
    assert worker.state.reused_prompts == 0


def test_a_prompt_that_is_used_again_opens_the_next_round() -> None:
    again = [*a_trajectory("u0"), *a_trajectory("u1")]
    worker = play(entries([one_recipe(), *a_group(), *again]))
    ready = [e for e in worker.durable if isinstance(e, GroupReady)]
    assert [(r.group_id, [m.trajectory_uid for m in r.members]) for r in ready] == [
        (PROMPT, [T0, T1]),
        (f"{PROMPT}#2", ["u0", "u1"]),
    ]
    assert worker.state.reused_prompts == 1
    assert len({s for r in ready for s in r.sample_ids}) == 4


def test_a_late_step_of_an_earlier_round_stays_out_of_the_open_one() -> None:
    late = a_step((9, 9), (9,), trajectory_uid=T0)
    group = [*a_group(), an_open(trajectory_uid="u0"), late, *a_trajectory("u0"), *a_trajectory("u1")]
    worker = play(entries([one_recipe(), *group, late]))
    ready = [e for e in worker.durable if isinstance(e, GroupReady)]
    assert [[m.trajectory_uid for m in r.members] for r in ready] == [[T0, T1], ["u0", "u1"]]
    assert [(o.fact_id, o.round) for o in outcomes(worker.durable, "late")] == [(late.fact_id, 1)]
    after = a_step((9, 9), (8,), trajectory_uid=T0)
    worker.fold(Entry(FAR, after))
    assert worker.state.groups == {}


def test_a_prompt_that_is_used_for_ever_takes_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "MAX_EARLIER", 20)
    worker = play(entries([set_recipe(a_recipe(group={"size": 1}))]), until=START)
    for number in range(100):
        for fact in a_trajectory(f"t{number}", steps=1):
            worker.fold(Entry(START, fact))
        closed = worker.state.closed[RUN, PROMPT]
        assert f"t{number}" in closed.trajectories
        assert len(closed.trajectories) <= 20
    assert closed.round == 100


def test_a_slow_group_holds_back_the_offset_and_no_other_group() -> None:
    facts = [one_recipe(), a_started(a_step(prompt_uid="slow")), *a_group(prompt_uid="fast")]
    worker = play(entries(facts), until=START)
    assert [e.group_id for e in worker.durable if isinstance(e, GroupReady)] == ["fast"]
    assert worker.state.committable == 1
    worker.fold(Entry(FAR))
    assert worker.state.committable == worker.state.position


def test_a_trajectory_that_opens_between_two_decisions_has_a_fate_for_both_recipes() -> None:
    small = set_recipe(a_recipe(name="small", group={"size": 1}))
    large = set_recipe(a_recipe(name="large", group={"size": 2}))
    worker = play(entries([small, large, *a_group()]))
    fates = [e for e in worker.durable if isinstance(e, Outcome) and e.trajectory_uid is not None]
    assert {(o.recipe, o.trajectory_uid, o.outcome, o.reason) for o in fates} == {
        ("small", T0, "emitted", "complete"),
        ("small", T1, "discarded", "straggler"),
        ("large", T0, "emitted", "complete"),
        ("large", T1, "emitted", "complete"),
    }
    check_one_fate(worker.durable)


def test_facts_about_a_trajectory_that_never_opened_are_late_when_the_group_closes() -> None:
    lost = a_reward(trajectory_uid="nobody")
    worker = play(entries([one_recipe(), lost, *a_group()]))
    assert [(o.fact_id, o.reason) for o in outcomes(worker.durable, "late")] == [(lost.fact_id, "never_opened")]


def test_a_group_that_no_recipe_concerns_is_closed_and_forgotten() -> None:
    worker = play(entries([*a_group()]))
    (closed,) = outcomes(worker.durable, "closed")
    assert (closed.reason, closed.recipe) == ("no_recipe", None)
    assert worker.state.committable == worker.state.position


# -------------------------------------------------------------------------------------------------------------- recipes


def test_a_version_judges_the_groups_whose_first_fact_follows_it() -> None:
    first, second = set_recipe(a_recipe(group={"size": 2})), set_recipe(a_recipe(group={"size": 1}), 2)
    opening = a_started(a_step(prompt_uid="a"))
    worker = play(
        entries([first, opening, second, *a_trajectory("b0", prompt_uid="b"), *a_trajectory("a0", prompt_uid="a")])
    )
    ready = [e for e in worker.durable if isinstance(e, GroupReady)]
    assert [(r.prompt_uid, r.recipe_version) for r in ready] == [("b", 2)]
    active = [e for e in worker.durable if isinstance(e, RecipeActive)]
    assert [(a.version, a.begins) for a in active] == [(1, 0), (2, 2)]


def test_a_copy_of_an_old_version_does_not_bring_it_back() -> None:
    first, second = set_recipe(a_recipe(group={"size": 2})), set_recipe(a_recipe(group={"size": 1}), 2)
    worker = play(entries([first, second, first, *a_trajectory()]))
    assert [e.recipe_version for e in worker.durable if isinstance(e, GroupReady)] == [2]


def test_an_ended_recipe_judges_no_later_group() -> None:
    worker = play(entries([one_recipe(), set_recipe(None, 2), *a_group()]))
    assert [e for e in worker.durable if isinstance(e, GroupReady)] == []


def test_a_purged_run_is_discarded_at_once_and_others_are_not() -> None:
    purge = RunPurged(fact_id="purge", run_id=RUN, at=1.0)
    other = a_started(a_step(run_id="other"))
    worker = play(entries([one_recipe(), a_step(), other, purge]), until=START)
    assert [o.reason for o in outcomes(worker.durable, "discarded")] == ["run_purged", "run_purged"]
    assert list(worker.state.groups) == [("other", PROMPT)]


def test_a_purge_is_told_to_the_trainers_of_the_run_also_of_ended_recipes() -> None:
    of_another = set_recipe(a_recipe(name="another", run_id="other"))
    purge = RunPurged(fact_id="purge", run_id=RUN, at=1.0)
    log = [one_recipe(), of_another, *a_group(), set_recipe(None, 2), purge]
    state = PartitionState(0)
    outputs = [o for offset, fact in enumerate(log) for o in state.apply(fact, offset, START + offset)]
    told = [(o.topic, o.event) for o in outputs if isinstance(o.event, RunPurged)]
    assert told == [(batch_topic("test"), purge)]


@pytest.mark.parametrize("is_loaded", [False, True])
def test_a_purge_is_told_to_recipes_that_were_of_the_run_before(is_loaded: bool) -> None:
    state = PartitionState(0)
    log = [one_recipe(), set_recipe(a_recipe(run_id="next"), 2)]
    outputs = [o for offset, fact in enumerate(log) for o in state.apply(fact, offset, START)]
    if is_loaded:
        state = PartitionState(0)
        state.load_recipes([o.event for o in outputs if isinstance(o.event, RecipeActive)], before=2)
    told = [
        (o.topic, o.event.run_id)
        for run_id in (RUN, "next", "other")
        for o in state.apply(RunPurged(fact_id=f"purge-{run_id}", run_id=run_id, at=1.0), 2, START)
        if isinstance(o.event, RunPurged)
    ]
    assert told == [(batch_topic("test"), RUN), (batch_topic("test"), "next")]


def test_a_fact_that_cannot_be_read_discards_its_group_once_it_is_decided() -> None:
    log = entries([one_recipe(), *a_group()])
    log.insert(2, Entry(START, spoiled=(RUN, PROMPT)))
    worker = play(log)
    assert {o.reason for o in outcomes(worker.durable, "discarded")} == {"undecodable"}
    assert [e for e in worker.durable if isinstance(e, GroupReady)] == []


# ---------------------------------------------------------------------------------------------------------- trajectories


def test_an_ended_trajectory_is_announced_once_with_its_conversation() -> None:
    first = a_step((1, 2), (3,), new_messages=b'["hi"]', reply=b'"ho"')
    second = a_child(first, (1, 2), (4,), (5,), messages_kept=2, new_messages=b'["more"]', reply=b'"done"')
    facts = [one_recipe(), an_open(task_id="task"), first, a_started(second), an_end(), a_reward()]
    worker = play(entries(facts), until=START)
    assert [e for e in worker.durable if isinstance(e, Trajectory)] == []
    worker.fold(Entry(START + 1, second))
    worker.fold(Entry(START + 2, a_reward(2.0, revision=1)))
    worker.flush()
    (announced,) = [e for e in worker.durable if isinstance(e, Trajectory)]
    assert announced.messages == b'["hi","ho","more","done"]'
    assert announced.complete
    assert announced.step_ids == (first.step_id, second.step_id)
    assert (announced.task_id, announced.status) == ("task", "completed")


NESTED = b"[" * 5000 + b"]" * 5000
"""More than a parser goes down."""
LATIN = b'[{"role":"user","content":"caf\xe9"}]'
"""As an agent sent it that does not write UTF-8: its engine refuses it, and the step is recorded."""


@pytest.mark.parametrize(
    "messages", [b"{}", b"7", b"[", b'["' + b"x" * MAX_MESSAGES_BYTES + b'"]', LATIN, b"[%b]" % NESTED]
)
def test_a_conversation_that_cannot_be_read_or_sent_stays_out(messages: bytes) -> None:
    worker = play(entries([one_recipe(), a_step(new_messages=messages), an_end()]), until=START)
    (announced,) = [e for e in worker.durable if isinstance(e, Trajectory)]
    assert announced.messages is None
    assert announced.complete


@pytest.mark.parametrize("reply", [b"{", LATIN[1:-1], NESTED])
def test_a_reply_that_cannot_be_read_stays_out_too(reply: bytes) -> None:
    worker = play(entries([one_recipe(size=1), a_step(reply=reply), a_reward(), an_end()]))
    (announced,) = [e for e in worker.durable if isinstance(e, Trajectory)]
    assert announced.messages is None
    assert len([e for e in worker.durable if isinstance(e, GroupReady)]) == 1, "its tokens are whole"


def test_an_incomplete_trajectory_is_announced_after_its_grace() -> None:
    worker = play(entries([one_recipe(), a_started(a_step()), an_end()]), until=START + 4)
    assert [e for e in worker.durable if isinstance(e, Trajectory)] == []
    worker.fold(Entry(START + 5))
    worker.flush()
    (announced,) = [e for e in worker.durable if isinstance(e, Trajectory)]
    assert (announced.complete, announced.messages, announced.at) == (False, None, START + 5)


# --------------------------------------------------------------------------------------------------------------- bounds


def check_records(events: list[Event]) -> None:
    """Each fits into a record: one that did not would end its worker, at every start."""
    for event in events:
        encode(event, source="test")


def test_a_group_of_too_many_trajectories_is_discarded_and_the_next_ones_open_a_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state_module, "MAX_TRAJECTORIES", 10)
    openers = [an_open(trajectory_uid=f"t{number}") for number in range(12)]
    worker = play(entries([one_recipe(), a_reward(trajectory_uid="nobody"), *openers]), until=START)
    worker.flush()
    fates = outcomes(worker.durable, "discarded")
    assert {o.reason for o in fates} == {"too_many_trajectories"}
    assert {o.trajectory_uid for o in fates} == {None, *(f"t{number}" for number in range(10))}
    assert {group.round: set(group.trajectories) for group in worker.state.groups.values()} == {2: {"t10", "t11"}}
    check_one_fate(worker.durable)


def test_what_is_said_of_a_group_of_as_many_trajectories_as_it_may_have_fits_into_records() -> None:
    names = [f"{number:0128d}" for number in range(state_module.MAX_TRAJECTORIES + 1)]
    worker = play(entries([one_recipe(), *a_group()]))
    (closed,) = outcomes(worker.durable, "closed")
    (ready,) = [e for e in worker.durable if isinstance(e, GroupReady)]
    members = tuple(ready.members[0].model_copy(update={"trajectory_uid": name}) for name in names)
    samples = ready.sample_ids * len(names)
    check_records([closed.model_copy(update={"trajectories": tuple(names)})])
    check_records([ready.model_copy(update={"members": members, "sample_ids": samples})])


def test_a_group_whose_marker_no_record_holds_is_discarded() -> None:
    said = [
        a_decision(PROMPT, None, "tag", number, value="odd").model_copy(update={"reason": "x" * 16_384})
        for number in range(520)
    ]
    worker = play(entries([one_recipe(), *a_group()[:-1], *said, a_group()[-1]]))
    assert [e for e in worker.durable if isinstance(e, Sample | GroupReady)] == []
    fates = outcomes(worker.durable, "discarded")
    assert {(o.trajectory_uid, o.reason) for o in fates} == {(uid, "too_large") for uid in (T0, T1, None)}
    check_records(worker.durable)
    check_one_fate(worker.durable)


def test_rewards_of_very_many_sources_keep_their_trajectory_out_and_nobody_else() -> None:
    rewards = [a_reward(source=f"{number:0128d}", trajectory_uid=T0) for number in range(40_000)]
    metadata = {"reason": "x" * 2**19}
    facts = [*a_trajectory(T0)[:-1], an_open(trajectory_uid=T0, metadata=metadata), *rewards, an_end(trajectory_uid=T0)]
    worker = play(entries([one_recipe(min_size=1), *facts, *a_trajectory(T1)]), until=START)
    fates = {o.trajectory_uid: (o.outcome, o.reason) for o in worker.durable if isinstance(o, Outcome)}
    assert (fates[T0], fates[T1]) == (("discarded", "too_large"), ("emitted", "complete"))
    assert [e.rewards == () for e in worker.durable if isinstance(e, Trajectory)] == [True, False]
    check_records(worker.durable)


def test_rewards_of_very_many_components_are_told_without_them() -> None:
    reward = a_reward(components={f"{number:0128d}": 1.0 for number in range(40_000)})
    messages = b'["' + b"x" * (MAX_MESSAGES_BYTES - 100) + b'"]'
    worker = play(entries([one_recipe(), a_step(new_messages=messages), reward, an_end()]), until=START)
    (announced,) = [e for e in worker.durable if isinstance(e, Trajectory)]
    assert [(r.value, r.components) for r in announced.rewards] == [(1.0, {})]
    check_records(worker.durable)


def test_many_facts_on_one_open_group_do_not_pile_up_times() -> None:
    worker = Worker()
    worker.fold(Entry(START, one_recipe(max_age=100_000, idle=50_000)))
    worker.fold(Entry(START, a_step(trajectory_uid=T0)))
    worker.fold(Entry(START, an_end(trajectory_uid=T0)))
    for n in range(2000):
        worker.fold(Entry(START + n, a_reward(1.0, trajectory_uid=T0, revision=n)))
        assert len(worker.state._due) <= 80
    for n in range(500):
        for fact in a_group(prompt_uid=f"g{n}", steps=1):
            worker.fold(Entry(START + 2000, fact))
        assert len(worker.state._due) <= 80


def test_closed_groups_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "CLOSED_KEPT", 10)
    facts = [fact for n in range(30) for fact in a_group(prompt_uid=f"g{n}", steps=1)]
    worker = play(entries([one_recipe(), *facts]))
    assert [key[1] for key in worker.state.closed] == [f"g{n}" for n in range(20, 30)]


def test_a_closed_group_knows_the_facts_of_every_round_in_little_memory() -> None:
    rounds = [[f"{round_}-{n}" for n in range(200)] for round_ in range(3)]
    closed = Closed(1, 0)
    for one in rounds:
        closed.fact_ids.update(one)
        assert all(map(closed.knows, one))
        closed.pack()
    assert not closed.fact_ids
    assert closed.packed.itemsize * len(closed.packed) == 3 * 200 * 8
    assert all(closed.knows(fact_id) for one in rounds for fact_id in one)
    assert not any(closed.knows(f"other-{n}") for n in range(1000))


def test_a_step_id_with_another_payload_is_counted() -> None:
    step = a_step(step_id="s")
    other = Step.model_validate(step.model_dump() | {"fact_id": "f2"})
    worker = play(entries([one_recipe(), step, other]))
    assert worker.state.conflicts == 1


def test_a_step_of_a_known_id_that_says_the_same_is_a_copy_and_another_is_a_conflict() -> None:
    step = a_step(step_id="s")
    others = [a_step(step_id="s", response=(7, 8)), a_step(step_id="s", trajectory_uid="another")]
    worker = play(entries([one_recipe(), step, step]), until=START)
    assert (worker.state.duplicates, worker.state.conflicts) == (1, 0)
    worker = play(entries([one_recipe(), step, *others]), until=START)
    assert (worker.state.duplicates, worker.state.conflicts) == (2, 2)
