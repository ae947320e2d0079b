"""Steps on disk change no decision, are forgotten with their group, and are missed when they are gone."""

import gc
import random
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claw_r1.codec import decode_body, encode_body, pack_ids
from claw_r1.events import Sample, Step
from streams.readiness import GroupState
from streams.spill import Budget, SpilledStep, SpillLost, in_memory, size_of
from tests.factories import PROMPT, RUN, a_group, a_recipe, a_reward, a_step, a_trajectory, an_end
from tests.unit.streams.partition_log import FAR, START, Entry, Worker, a_log, effects, play, set_recipe

KEY = (RUN, PROMPT)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_steps_on_disk_change_no_output(seed: int) -> None:
    log = a_log(seed)
    rng = random.Random(seed)
    worker = Worker()
    with TemporaryDirectory() as folder:
        budget = Budget(1, Path(folder) / "spill")
        for entry in log:
            worker.fold(entry)
            if rng.random() < 0.5:
                budget.keep(worker.state, 2)
                assert in_memory(worker.state.groups.values()) == 0
        worker.fold(Entry(FAR))
        worker.flush()
        assert budget.tidy(worker.state) == 0
        budget.close()
    assert effects(worker.durable) == effects(play(log).durable)


def an_open_group() -> Worker:
    worker = Worker()
    for fact in (set_recipe(a_recipe(group={"size": 2})), *a_group()[:-1]):
        worker.fold(Entry(START, fact))
    return worker


def steps_of(group: GroupState) -> list[Step]:
    return [step for trajectory in group.trajectories.values() for step in trajectory.steps.values()]


def test_the_oldest_groups_go_first_and_only_as_many_as_must(tmp_path: Path) -> None:
    worker = Worker()
    names = [f"p{number}" for number in range(4)]
    for name in names:
        for fact in a_group(prompt_uid=name)[:-1]:
            worker.fold(Entry(START, fact))
    groups = [worker.state.groups[RUN, name] for name in names]
    each = in_memory(groups[:1])
    budget = Budget(3 * each, tmp_path / "spill")
    assert budget.keep(worker.state, 3 * each) == 0
    assert budget.keep(worker.state, each) == 3 * each
    assert [isinstance(steps_of(group)[0], SpilledStep) for group in groups] == [True, True, True, False]
    assert budget.tidy(worker.state) == 18


def test_a_spilled_step_says_what_the_step_said(tmp_path: Path) -> None:
    worker = an_open_group()
    before = steps_of(worker.state.groups[KEY])
    budget = Budget(1, tmp_path / "spill")
    budget.keep(worker.state, sum(size_of(step) for step in before))
    after = steps_of(worker.state.groups[KEY])
    for one, other in zip(before, after, strict=True):
        assert isinstance(other, SpilledStep)
        assert {name: getattr(other, name) for name in Step.model_fields} == dict(one)
        assert (other.prompt_len, other.response_len) == (one.prompt_len, one.response_len)
        with pytest.raises(AttributeError):
            other.nothing_like_it  # noqa: B018 - the look is what is tested


def test_steps_of_one_id_in_two_groups_stay_what_they_are(tmp_path: Path) -> None:
    worker = Worker()
    worker.fold(Entry(START, set_recipe(a_recipe(group={"size": 1}))))
    places = [{"prompt_uid": f"p{number}", "trajectory_uid": f"t{number}"} for number in range(2)]
    for number, place in enumerate(places):
        worker.fold(Entry(START, a_step((1, 2), (number, number), step_id="step-0", **place)))
    budget = Budget(1, tmp_path / "spill")
    budget.keep(worker.state, 2)
    for place in places:
        worker.fold(Entry(START, a_reward(1.0, **place)))
        worker.fold(Entry(START, an_end(**place)))
        budget.tidy(worker.state)  # forgets the first group's, and nothing else
    worker.flush()
    budget.close()
    samples = [event for event in worker.durable if isinstance(event, Sample)]
    assert [sample.token_ids for sample in samples] == [pack_ids((1, 2, 0, 0)), pack_ids((1, 2, 1, 1))]


def test_what_stays_in_memory_of_a_step_on_disk_is_little(tmp_path: Path) -> None:
    worker = Worker()
    budget = Budget(1, tmp_path / "spill")
    facts = [fact for n in range(40) for fact in a_trajectory(f"{PROMPT}-{n:030d}", steps=20)]
    steps = sum(isinstance(fact, Step) for fact in facts)
    gc.collect()
    tracemalloc.start()
    try:
        for fact in facts:
            from_the_log = decode_body(type(fact), encode_body(fact))  # with texts of its own
            worker.fold(Entry(START, from_the_log))
            budget.keep(worker.state, 2)
        assert budget.spill is not None
        budget.spill._read.clear()  # a few, however many there are
        worker.pending.clear()
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        budget.close()
    assert held / steps < 1700


def test_a_step_that_is_gone_is_missed(tmp_path: Path) -> None:
    worker = an_open_group()
    budget = Budget(1, tmp_path / "spill")
    budget.keep(worker.state, 2)
    assert budget.spill is not None
    with budget.spill._env.begin(write=True) as transaction:
        for name, _ in list(transaction.cursor()):
            transaction.delete(name)
    with pytest.raises(SpillLost, match="read from the log again"):
        worker.fold(Entry(START, a_group()[-1]))
    budget.close()
    assert not (tmp_path / "spill").exists()
