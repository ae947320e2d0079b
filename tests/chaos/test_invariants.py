"""Each invariant is spoilt in every way that it names, and is then reported with the thing's whole history."""

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from claw_r1 import topics
from claw_r1.events import (
    BatchCut,
    BatchTrained,
    Decision,
    GroupReady,
    Outcome,
    Reward,
    Sample,
    Step,
    StepSpan,
    StepStarted,
    TrajectoryEnd,
)
from tests.chaos.invariants import check, counts
from tests.chaos.ledger import Entry, Evidence, Lag, Stored, TableCount, Total, Watermark, read_entries
from tests.chaos.world import PARTITION, PLACE, POS, UIDS, a_world, changed, repeated, rewritten, without

Spoil = Callable[[Evidence], Evidence]
UID = UIDS[0]
NOBODY = b'[{"role":"user","content":"[call nobody]"}]'


def _stored(change: Callable[[list[Stored]], list[Stored]]) -> Spoil:
    return lambda e: replace(e, stored=change(list(e.stored)))


def _unsent(kind: str) -> Spoil:
    return lambda e: replace(e, entries=[one for one in e.entries if one.kind != kind])


def _second_attempt(e: Evidence) -> Evidence:
    """A step of the same call as another one, which was sent once."""
    return repeated(e, Step, {}, step_id="other", fact_id="other")


def _override(value: float) -> Decision:
    said = {"action": "override_reward", "value": value, "author": "ada", "at": 1.0}
    return Decision.model_validate(PLACE | {"fact_id": "override", "trajectory_uid": UID} | said)


SPOILT: dict[str, tuple[str, str, Spoil]] = {
    "an acknowledged step is lost": ("I1", "is not on the log", lambda e: without(e, Step, depth=1)),
    "an acknowledged step is partial": ("I1", "is partial", lambda e: changed(e, Step, {}, status="partial")),
    "an acknowledged step is not in the pool": ("I1", "is 0 times in the pool", _stored(lambda s: s[1:])),
    "a step is in the pool twice": ("I1", "is 2 times in the pool", _stored(lambda s: [*s, s[0]])),
    "an acknowledged reward is lost": ("I1", "reward is not on the log", lambda e: without(e, Reward)),
    "an acknowledged end is lost": ("I1", "end is not on the log", lambda e: without(e, TrajectoryEnd)),
    "an acknowledged decision is lost": ("I1", "decision is not on the log", lambda e: without(e, Decision)),
    "two calls have one step": (
        "I1",
        "answered with one step",
        lambda e: rewritten(e, "call", "acknowledged", step_id=e.entries[3].step_id),
    ),
    "an emitted step is in no sample": ("I1", "no sample has its step", lambda e: changed(e, Sample, {}, spans=())),
    "a step is trained twice": ("I1", "trained by 2 samples", lambda e: repeated(e, Sample, {}, sample_id="again")),
    "a trajectory has no fate": ("I1", "0 fates", lambda e: without(e, Outcome, trajectory_uid=UID)),
    "a trajectory has two fates": (
        "I1",
        "2 fates: emitted (complete), discarded (straggler)",
        lambda e: repeated(e, Outcome, {"trajectory_uid": UID}, outcome="discarded", reason="straggler"),
    ),
    "a fate has no reason": (
        "I1",
        "without a reason",
        lambda e: changed(e, Outcome, {"trajectory_uid": UID}, reason=""),
    ),
    "a fate is not what the group says": (
        "I1",
        "has it as emitted",
        lambda e: changed(e, Outcome, {"trajectory_uid": UID}, outcome="discarded"),
    ),
    "an emitted fate has no group": ("I1", "no ready group", lambda e: without(e, GroupReady)),
    "an attempt has two steps": ("I2", "2 steps of 1 attempts", _second_attempt),
    "a step is in the pool alone": (
        "I2",
        "not on the log",
        _stored(lambda s: [*s, Stored("ghost", UID, "complete", None)]),
    ),
    "a step is another one in the pool": (
        "I2",
        "partial in the pool",
        _stored(lambda s: [replace(s[0], status="partial"), *s[1:]]),
    ),
    "a step of no call": ("I3", "nobody sent: nobody", lambda e: changed(e, Step, {"depth": 1}, new_messages=NOBODY)),
    "a reward of nobody": ("I3", "a reward that nobody sent", _unsent("reward")),
    "an end of nobody": ("I3", "an end that nobody sent", _unsent("end")),
    "a decision of nobody": ("I3", "a decision that nobody sent", _unsent("decision")),
    "a batch of nobody": ("I3", "no trainer was handed it", _unsent("batch")),
    "a call is announced twice": (
        "I3",
        "3 calls announced, 2 sent",
        lambda e: repeated(e, StepStarted, {}, step_id="more", fact_id="more"),
    ),
    "a fate of a trajectory that nobody began": (
        "I3",
        "that no fact began",
        lambda e: repeated(e, Outcome, {"trajectory_uid": UID}, trajectory_uid="ghost"),
    ),
    "a record has two rows": (
        "I4",
        "5 rows of 4 records",
        lambda e: replace(e, tables=[TableCount("steps", 5, 4, 4, 4)]),
    ),
    "a key has two rows": ("I4", "4 rows under FINAL", lambda e: replace(e, tables=[TableCount("steps", 4, 4, 4, 3)])),
    "the pool shrinks": ("I4", "4 steps and later 3", lambda e: replace(e, looks=[1, 4, 3])),
    "a context lacks its parent": ("I5", "cannot be restored", lambda e: without(e, Step, depth=0)),
    "the log has other tokens": (
        "I5",
        "the client saw",
        lambda e: changed(e, Step, {"depth": 1}, response_ids=b"\0" * 8),
    ),
    "the pool has other tokens": ("I5", "the pool other", _stored(lambda s: [replace(s[0], digest="other"), *s[1:]])),
    "a number is missing": (
        "I5",
        "are numbered [0, 2]",
        lambda e: changed(
            e, Sample, {}, spans=tuple(s.model_copy(update={"step_index": 2 * s.step_index}) for s in _spans(e))
        ),
    ),
    "a group is emitted twice": ("I6", "emitted 2 times", lambda e: repeated(e, GroupReady, {})),
    "a sample has no marker": (
        "I6",
        "named by 0 ready",
        lambda e: repeated(e, Sample, {}, sample_id="loose", spans=()),
    ),
    "a sample is missing": ("I6", "0 such samples", lambda e: without(e, Sample)),
    "a hole is emitted": (
        "I6",
        "calls have no step",
        lambda e: changed(e, StepStarted, {}, step_id="never"),
    ),
    "a running trajectory is emitted": ("I6", "before it had ended", lambda e: without(e, TrajectoryEnd)),
    "a trajectory without reward is emitted": ("I6", "without its rewards: reward", lambda e: without(e, Reward)),
    "a later reward is in the group": (
        "I6",
        "is 1.0, and 0.25 stood",
        lambda e: changed(e, Reward, {"revision": 0}, value=0.25),
    ),
    "a decided reward is not in the group": (
        "I6",
        "and [0.125] was decided",
        lambda e: changed(e, GroupReady, {}, curation=(_override(0.125),)),
    ),
    "a late reward is not said": (
        "I6",
        "neither taken in nor called late",
        lambda e: without(e, Outcome, reason="reward"),
    ),
    "a fact in time is called late": (
        "I6",
        "came before its group's end",
        lambda e: changed(e, Outcome, {"reason": "reward"}, fact_id=_first_reward(e)),
    ),
    "a decision has no answer": (
        "I6",
        "has no answer",
        lambda e: _not_forwarded(changed(e, Outcome, {"reason": "decision"}, fact_id="other")),
    ),
    "streams commit what is not done": (
        "I7",
        "nothing was said by then",
        lambda e: replace(e, watermarks=[Watermark(1.0, "streams", PARTITION, POS, done=3)]),
    ),
    "sinks commit what is not stored": (
        "I7",
        "the pool had 3 of 4 steps",
        lambda e: replace(e, watermarks=[Watermark(1.0, "sinks", PARTITION, POS, done=3)]),
    ),
    "a batch is cut twice": ("I8", "cut twice", lambda e: repeated(e, BatchCut, {})),
    "a cut is missing": ("I8", "there is no cut", lambda e: without(e, BatchCut)),
    "a batch comes as another": ("I8", "handed out as other", lambda e: rewritten(e, "batch", "sent", digest="other")),
    "a batch comes with less": ("I8", "handed out with samples", lambda e: rewritten(e, "batch", "sent", samples=())),
    "a batch is committed twice": (
        "I8",
        "committed as [1, 1]",
        lambda e: repeated(e, BatchTrained, {}, policy_version=2),
    ),
    "versions fall": (
        "I8",
        "do not rise",
        lambda e: repeated(e, BatchTrained, {}, policy_version=1, sequence=2),
    ),
    "a commit is lost": ("I8", "the log has no commit", lambda e: without(e, BatchTrained)),
    "a commit is of no cut": ("I8", "without its cut", lambda e: changed(e, BatchTrained, {}, batch_id="other")),
    "a group is in two cuts": ("I8", "in 2 cuts", lambda e: repeated(e, BatchCut, {}, sequence=2, batch_id="b2")),
    "a group is in no cut": ("I8", "in no cut", lambda e: changed(e, BatchCut, {}, members=())),
    "a cut has a group that is none": ("I8", "never emitted", lambda e: without(e, GroupReady)),
    "a cut has samples of others": (
        "I8",
        "that it has not",
        lambda e: changed(e, GroupReady, {}, sample_ids=("other",)),
    ),
    "a consumer is behind": ("I9", "3 records behind", lambda e: replace(e, lags=[Lag("sinks", topics.EVENTS, 0, 3)])),
    "a group stays open": ("I9", "still open", lambda e: without(e, Outcome, outcome="closed")),
    "a view adds up wrong": ("I10", "4 in the pool, 3 on the log", lambda e: replace(e, totals=[Total("fates", 4, 3)])),
}


def _not_forwarded(e: Evidence) -> Evidence:
    batches = topics.batch_topic("test")
    return replace(e, records=[r for r in e.records if not (r.topic == batches and isinstance(r.event, Decision))])


def _spans(e: Evidence) -> tuple[StepSpan, ...]:
    return next(r.event.spans for r in e.records if isinstance(r.event, Sample))


def _first_reward(e: Evidence) -> str:
    return next(r.event.fact_id for r in e.records if isinstance(r.event, Reward))


def test_nothing_is_reported_of_a_run_in_which_all_holds() -> None:
    assert check(a_world()) == []


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_spoilt_is_reported(name: str) -> None:
    invariant, text, spoil = SPOILT[name]
    found = check(spoil(a_world()))
    assert [v for v in found if v.invariant == invariant and text in v.text], [str(violation) for violation in found]


def test_every_invariant_is_spoilt() -> None:
    assert {invariant for invariant, _text, _spoil in SPOILT.values()} == {f"I{number}" for number in range(1, 11)}


def test_a_violation_has_the_whole_history_of_its_fact() -> None:
    spoilt = repeated(a_world(), Outcome, {"trajectory_uid": UID}, outcome="discarded", reason="straggler")
    violation = next(v for v in check(spoilt) if "2 fates" in v.text)
    text = str(violation)
    ordered = [
        "client call",
        "@0 step-started ",
        "@1 step ",
        "@4 reward ",
        "@5 trajectory-end ",
        "reason=straggler",
    ]
    places = [next(n for n, line in enumerate(violation.history) if part in line) for part in ordered]
    assert places == sorted(places)
    assert text.startswith(f"I1 {UID}: 2 fates")
    about = [line for line in violation.history if "claw.events.v1" in line]
    assert len(about) == 7  # two calls and their steps, two rewards, the end
    assert not any(UIDS[1] in line for line in about)


def test_a_retry_may_have_a_step_of_its_own() -> None:
    world = a_world()
    call = world.entries[0]
    again = msgspec.structs.replace(call, attempt=2)
    spoilt = replace(_second_attempt(world), entries=[*world.entries, again])
    assert not [v for v in check(spoilt) if "attempts" in v.text]


def test_rewards_of_a_group_and_of_steps_stand_behind_the_trajectorys_own() -> None:
    world = a_world()
    steps = [r.event.step_id for r in world.records if isinstance(r.event, Step)][:2]
    for step_id in steps:
        early = next(r for r in world.records if isinstance(r.event, Reward))
        more = replace(
            early, event=early.event.model_copy(update={"step_id": step_id, "fact_id": step_id + "r", "value": 9.0})
        )
        world = replace(world, records=[*world.records, more])
    assert not [v for v in check(world) if v.invariant == "I6" and "its reward" in v.text]


def test_a_decided_reward_stands_whatever_the_sources_say() -> None:
    world = without(without(a_world(), Reward), Reward)
    ready = next(r.event for r in world.records if isinstance(r.event, GroupReady))
    decided = [m.model_copy(update={"reward": 0.125, "source_reward": None}) for m in ready.members]
    told = changed(world, GroupReady, {}, members=tuple(decided), curation=(_override(0.125),))
    about = [v.text for v in check(told) if v.invariant == "I6" and v.subject == UID]
    assert not [text for text in about if "reward" in text]


def test_a_line_that_is_still_being_written_is_left_out() -> None:
    lines = [msgspec.json.encode(entry) + b"\n" for entry in a_world().entries]
    assert read_entries([*lines, b'{"at":1,"kind"']) == sorted(a_world().entries, key=lambda entry: entry.at)
    assert isinstance(read_entries(lines)[0], Entry)


def test_what_there_is_is_counted() -> None:
    found = counts(a_world())
    assert (found["call sent"], found["call acknowledged"], found["groups ready"], found["batches trained"]) == (
        4,
        4,
        1,
        1,
    )
