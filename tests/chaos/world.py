"""A small run in which every invariant holds: what its clients wrote down, and what was read of log, pool and trainer."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import msgspec

from claw_r1 import topics
from claw_r1.events import (
    BatchCut,
    BatchTrained,
    CutMember,
    Decision,
    Event,
    GroupReady,
    Member,
    Outcome,
    Sample,
    Step,
    StepSpan,
)
from claw_r1.ids import derived_id
from tests.chaos.ledger import (
    Entry,
    Evidence,
    Kind,
    Lag,
    Logged,
    Stored,
    TableCount,
    Total,
    Watermark,
    decision_id,
    digest_of,
    end_id,
    mark,
    reward_id,
)
from tests.factories import RUN, a_child, a_reward, a_sample, a_started, a_step, an_end

PROMPT, RECIPE = "p1", "test"
UIDS = ("p1-t0", "p1-t1")
PARTITION, POS = 1, 12
"""Of the events; the group is decided behind twelve facts, and two come late."""
IDS, MASK = (1, 2, 3, 4, 5, 6, 7, 8), (0, 0, 0, 1, 1, 0, 1, 1)
PLACE = {"run_id": RUN, "prompt_uid": PROMPT}


def _steps(uid: str) -> tuple[Step, Step]:
    def said(number: int) -> bytes:
        return msgspec.json.encode([{"role": "user", "content": f"go on {mark(f'{uid}.{number}')}"}])

    about = PLACE | {"trajectory_uid": uid}
    first = a_step(IDS[:3], IDS[3:5], **about, new_messages=said(0))
    return first, a_child(first, IDS[:3], IDS[5:6], IDS[6:], prompt_uid=PROMPT, new_messages=said(1))


def _facts() -> Iterator[Event]:
    for uid in UIDS:
        about = PLACE | {"trajectory_uid": uid}
        for step in _steps(uid):
            yield a_started(step)
            yield step
        yield a_reward(1.0, **about, fact_id=reward_id(RUN, PROMPT, uid, "reward", 0))
        yield an_end(**about, fact_id=end_id(RUN, PROMPT, uid))
    late = {"trajectory_uid": UIDS[0], "revision": 1, "fact_id": reward_id(RUN, PROMPT, UIDS[0], "reward", 1)}
    yield a_reward(0.5, **PLACE, **late)
    yield _decision()


def _decision() -> Decision:
    fact_id = decision_id("d1", RUN, PROMPT, UIDS[1])
    return Decision(fact_id=fact_id, at=1.0, trajectory_uid=UIDS[1], action="tag", value="odd", author="ada", **PLACE)


def _samples() -> list[Sample]:
    found = []
    for uid in UIDS:
        first, second = _steps(uid)
        spans = (
            StepSpan(step_id=first.step_id, step_index=0, start=3, end=5),
            StepSpan(step_id=second.step_id, step_index=1, start=6, end=8),
        )
        found.append(a_sample(IDS, MASK, **PLACE, group_id=PROMPT, trajectory_uid=uid, spans=spans))
    return found


def _batch() -> list[Event]:
    samples = _samples()
    members = tuple(
        Member(
            trajectory_uid=s.trajectory_uid, outcome="emitted", reason="complete", reward=1.0, samples=(s.sample_id,)
        )
        for s in samples
    )
    ready = GroupReady(
        recipe=RECIPE,
        recipe_version=1,
        group_id=PROMPT,
        channel="train",
        reason="size",
        members=members,
        sample_ids=tuple(s.sample_id for s in samples),
        tokens=16,
        trained_tokens=8,
        partition=PARTITION,
        pos=POS,
        at=1.0,
        **PLACE,
    )
    return [*samples, ready, _decision()]


def _outcomes() -> list[Outcome]:
    def one(outcome: str, reason: str, **more: object) -> Outcome:
        fields = PLACE | {"group_id": PROMPT, "outcome": outcome, "reason": reason, "partition": PARTITION, "pos": POS}
        name = derived_id("outcome", outcome, sorted(map(str, more.items())))
        return Outcome.model_validate(fields | {"outcome_id": name, "at": 1.0} | more)

    mine = {"recipe": RECIPE, "recipe_version": 1}
    return [
        *(one("emitted", "complete", trajectory_uid=uid, **mine) for uid in UIDS),
        one("emitted", "size", **mine),
        one("closed", "decided", trajectories=UIDS),
        one("late", "reward", fact_id=reward_id(RUN, PROMPT, UIDS[0], "reward", 1), pos=POS + 1),
        one("late", "decision", fact_id=_decision().fact_id, pos=POS + 2),
    ]


def _cuts() -> list[Event]:
    samples = tuple(sample.sample_id for sample in _samples())
    common = {
        "batch_id": "b1",
        "recipe": RECIPE,
        "run_id": RUN,
        "sequence": 1,
        "cursor": 3,
        "holder": "trainer",
        "at": 1.0,
    }
    member = CutMember(group_id=PROMPT, run_id=RUN, offset=2, sample_ids=samples)
    cut = {"recipe_version": 1, "members": (member,), "start": 0, "needs": 0, "digest": "d" * 64}
    return [BatchCut.model_validate(common | cut), BatchTrained.model_validate(common | {"policy_version": 1})]


def _entries() -> Iterator[Entry]:
    clock = itertools.count(1)

    def pair(kind: Kind, name: str, uid: str | None = None, **more: object) -> Iterator[Entry]:
        about = {"kind": kind, "name": name, "prompt_uid": PROMPT, "trajectory_uid": uid}
        yield msgspec.convert(about | {"at": float(next(clock)), "event": "sent"}, Entry)
        yield msgspec.convert(about | {"at": float(next(clock)), "event": "acknowledged"} | more, Entry)

    for uid in UIDS:
        prompts = (IDS[:3], IDS[:6])
        for number, (step, prompt) in enumerate(zip(_steps(uid), prompts, strict=True)):
            packed = b"".join(i.to_bytes(4, "little") for i in prompt)
            seen = digest_of(packed, step.response_ids)
            yield from pair("call", f"{uid}.{number}", uid, step_id=step.step_id, digest=seen)
        yield from pair("reward", reward_id(RUN, PROMPT, uid, "reward", 0), uid)
        yield from pair("end", end_id(RUN, PROMPT, uid), uid)
    yield from pair("reward", reward_id(RUN, PROMPT, UIDS[0], "reward", 1), UIDS[0])
    yield from pair("decision", _decision().fact_id, UIDS[1])
    samples = tuple(sample.sample_id for sample in _samples())
    for entry in pair("batch", f"{RECIPE}/1"):
        yield msgspec.structs.replace(entry, digest="d" * 64, samples=samples)


def a_world() -> Evidence:
    entries = list(_entries())
    topic_events: tuple[tuple[str, int, list[Event]], ...] = (
        (topics.EVENTS, PARTITION, list(_facts())),
        (topics.batch_topic(RECIPE), 0, _batch()),
        (topics.OUTCOMES, PARTITION, [*_outcomes()]),
        (topics.CUTS, 0, _cuts()),
    )
    records = [
        Logged(topic, partition, offset, 100.0 * number + offset, event)
        for number, (topic, partition, events) in enumerate(topic_events, 1)
        for offset, event in enumerate(events)
    ]
    digests = {entry.step_id: entry.digest for entry in entries if entry.event == "acknowledged"}
    return Evidence(
        run_id=RUN,
        recipe=RECIPE,
        entries=entries,
        records=records,
        stored=[Stored(step.step_id, uid, "complete", digests[step.step_id]) for uid in UIDS for step in _steps(uid)],
        tables=[TableCount("steps", 4, 4, 4, 4)],
        totals=[Total("fates", 3, 3)],
        watermarks=[
            Watermark(1.0, "streams", PARTITION, committed=POS + 2, done=6),
            Watermark(1.0, "sinks", PARTITION, committed=POS + 2, done=4),
        ],
        lags=[Lag("claw-streams", topics.EVENTS, PARTITION, 0)],
        looks=[1, 4, 4],
    )


def without(evidence: Evidence, what: type[Event], **having: object) -> Evidence:
    """The first such record is missing."""
    place = _find(evidence, what, having)
    return replace(evidence, records=[r for n, r in enumerate(evidence.records) if n != place])


def changed(evidence: Evidence, what: type[Event], having: dict[str, object], **over: object) -> Evidence:
    """The first such record says something else."""
    place = _find(evidence, what, having)
    records = list(evidence.records)
    records[place] = replace(records[place], event=records[place].event.model_copy(update=over))
    return replace(evidence, records=records)


def repeated(evidence: Evidence, what: type[Event], having: dict[str, object], **over: object) -> Evidence:
    """The first such record is there again at the end of its partition, saying something else."""
    found = evidence.records[_find(evidence, what, having)]
    end = 1 + max(r.offset for r in evidence.records if (r.topic, r.partition) == (found.topic, found.partition))
    again = replace(found, offset=end, event=found.event.model_copy(update=over))
    return replace(evidence, records=[*evidence.records, again])


def _find(evidence: Evidence, what: type[Event], having: dict[str, object]) -> int:
    for place, record in enumerate(evidence.records):
        fits = all(getattr(record.event, name, None) == value for name, value in having.items())
        if type(record.event) is what and fits:
            return place
    raise LookupError(f"no {what.__name__} with {having}")


def rewritten(evidence: Evidence, kind: Kind, event: str, **over: object) -> Evidence:
    """The first such line of a client says something else."""
    entries = list(evidence.entries)
    place = next(n for n, e in enumerate(entries) if (e.kind, e.event) == (kind, event))
    entries[place] = msgspec.structs.replace(entries[place], **over)
    return replace(evidence, entries=entries)
