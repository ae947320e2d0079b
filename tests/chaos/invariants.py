"""The ten invariants of docs/chaos.md, judged on what clients wrote down and what was read afterwards: pure.

Nothing here computes as the system does where it can be said otherwise: contexts are put together from deltas, rewards from
their revisions, fates from counts.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from claw_r1 import topics
from claw_r1.events import (
    BatchCut,
    Decision,
    GroupCarried,
    GroupFact,
    GroupReady,
    Member,
    Outcome,
    Reward,
    Step,
    StepStarted,
    TrajectoryEnd,
)
from tests.chaos.index import Index
from tests.chaos.ledger import Entry, Evidence, Violation, batch_name, digest_of

Check = Callable[[Index], Iterator[Violation]]


def check(evidence: Evidence) -> list[Violation]:
    """Every violation, invariant by invariant."""
    index = Index(evidence)
    return [violation for one in CHECKS for violation in one(index)]


def counts(evidence: Evidence) -> dict[str, int]:
    """How much there is of what, for people."""
    index = Index(evidence)
    said = Counter(f"{entry.kind} {entry.event}" for entry in evidence.entries)
    return dict(sorted(said.items())) | {
        "trajectories": len(index.begun),
        "groups ready": len(index.ready),
        "steps on the log": len(index.steps),
        "steps in the pool": len(evidence.stored),
        "batches trained": len({trained.sequence for _record, trained in index.trained}),
        "facts late": len(index.late),
        "records": len(evidence.records),
    }


# ------------------------------------------------------------------------------------------------------- I1, I2, I3


def acknowledged_is_there(index: Index) -> Iterator[Violation]:
    """I1. What was acknowledged is on the log and in the pool, once, and has a part in its trajectory's one fate."""
    stored = Counter(step.step_id for step in index.evidence.stored)
    members = {m.trajectory_uid: (r, m) for _record, r in index.ready for m in r.members if m.outcome == "emitted"}
    for entry in _heard(index.evidence.entries):
        if entry.kind == "call":
            yield from _call_is_there(index, entry, stored, members)
        elif entry.kind != "batch" and entry.name not in index.first:
            about = (entry.trajectory_uid, entry.prompt_uid)
            yield index.violation("I1", entry.name, f"an acknowledged {entry.kind} is not on the log", *about)
    for step_id, many in Counter(e.step_id for e in _heard(index.evidence.entries) if e.kind == "call").items():
        if step_id is not None and many > 1:
            yield index.violation("I1", step_id, f"{many} calls were answered with one step")
    for step_id, places in index.spans.items():
        if len(training := [sample.sample_id for sample, trains, _ in places if trains]) > 1:
            yield index.violation("I1", step_id, f"trained by {len(training)} samples: {', '.join(training)}")


def _heard(entries: Iterable[Entry]) -> Iterator[Entry]:
    return (entry for entry in entries if entry.event == "acknowledged")


def _call_is_there(
    index: Index, entry: Entry, stored: Mapping[str, int], members: Mapping[str, tuple[GroupReady, Member]]
) -> Iterator[Violation]:
    step = index.steps.get(entry.step_id or "")
    if step is None:
        yield index.violation(
            "I1", entry.name, f"its acknowledged step {entry.step_id} is not on the log", entry.step_id
        )
        return
    if step.status != "complete":
        text = f"its acknowledged step {step.step_id} is {step.status} on the log"
        yield index.violation("I1", entry.name, text, step.step_id)
    if (many := stored.get(step.step_id, 0)) != 1:
        text = f"its acknowledged step {step.step_id} is {many} times in the pool"
        yield index.violation("I1", entry.name, text, step.step_id)
    ready, member = members.get(step.trajectory_uid, (None, None))
    if ready is None or member is None or not index.below(step.fact_id, ready.partition, ready.pos):
        return  # its trajectory's fate is judged by itself
    if step.step_id not in index.spans and not member.mask_reasons:
        text = f"its trajectory is emitted, and no sample has its step {step.step_id}"
        yield index.violation("I1", entry.name, text, step.step_id, step.trajectory_uid)


def fates_are_one(index: Index) -> Iterator[Violation]:
    """I1. Every trajectory has one fate, with a reason, and the ready group says the same."""
    for uid in sorted(index.begun | index.fates.keys()):
        fates = index.fates.get(uid, [])
        if len(fates) != 1:
            named = ", ".join(f"{fate.outcome} ({fate.reason})" for fate in fates) or "none"
            yield index.violation("I1", uid, f"{len(fates)} fates: {named}")
        if any(not fate.reason for fate in fates):
            yield index.violation("I1", uid, "a fate without a reason")
        if uid not in index.begun:
            yield index.violation("I3", uid, "a fate of a trajectory that no fact began")
    said = {(m.trajectory_uid, r.group_id): m.outcome for _record, r in index.ready for m in r.members}
    told = {(uid, f.group_id): f.outcome for uid, fates in index.fates.items() for f in fates}
    for uid, group in sorted(said):
        if told.get((uid, group)) != said[uid, group]:
            text = f"{group} has it as {said[uid, group]}, its outcome is {told.get((uid, group))}"
            yield index.violation("I1", uid, text, group)
    for (uid, group), outcome in sorted(told.items()):
        if outcome == "emitted" and (uid, group) not in said:
            yield index.violation("I1", uid, f"its outcome is emitted, and no ready group {group} has it", group)


def nothing_twice(index: Index) -> Iterator[Violation]:
    """I2. Each attempt has one step at most, and the pool has the steps that the log has."""
    attempts: Counter[str] = Counter()
    for entry in index.evidence.entries:
        if entry.kind == "call" and entry.event == "sent":
            attempts[entry.name] += 1
    by_mark: dict[str, list[str]] = defaultdict(list)
    for step_id, name in index.marks.items():
        if name is not None:
            by_mark[name].append(step_id)
    for name, found in by_mark.items():
        if len(found) > attempts[name] > 0:
            text = f"{len(found)} steps of {attempts[name]} attempts: {', '.join(found)}"
            yield index.violation("I2", name, text, *found)
    stored = {step.step_id: step.status for step in index.evidence.stored}
    for step_id in sorted(index.steps.keys() ^ stored.keys()):
        where = "on the log and not in the pool" if step_id in index.steps else "in the pool and not on the log"
        yield index.violation("I2", step_id, where, index.marks.get(step_id))
    for step_id in sorted(index.steps.keys() & stored.keys()):
        if index.steps[step_id].status != stored[step_id]:
            text = f"{index.steps[step_id].status} on the log, {stored[step_id]} in the pool"
            yield index.violation("I2", step_id, text)


def nothing_unsent(index: Index) -> Iterator[Violation]:
    """I3. What is on the log, and what was trained, somebody sent."""
    sent: dict[str, set[str]] = defaultdict(set)
    calls: Counter[str] = Counter()
    for entry in index.evidence.entries:
        if entry.event == "sent":
            sent[entry.kind].add(entry.name)
            calls[entry.trajectory_uid or ""] += entry.kind == "call"
    begun: Counter[str] = Counter()
    for fact_id, record in index.first.items():
        match record.event:
            case Step() as step if index.marks.get(step.step_id) not in sent["call"]:
                yield index.violation(
                    "I3", step.step_id, f"of a call that nobody sent: {index.marks.get(step.step_id)}"
                )
            case StepStarted() as started:
                begun[started.trajectory_uid] += 1
            case Reward() as reward if reward.source in index.evidence.sources and fact_id not in sent["reward"]:
                yield index.violation("I3", fact_id, "a reward that nobody sent", reward.trajectory_uid)
            case TrajectoryEnd() as end if fact_id not in sent["end"]:
                yield index.violation("I3", fact_id, "an end that nobody sent", end.trajectory_uid)
            case Decision() as decision if fact_id not in sent["decision"]:
                yield index.violation("I3", fact_id, "a decision that nobody sent", decision.prompt_uid)
    for uid, many in begun.items():
        if many > calls[uid]:
            yield index.violation("I3", uid, f"{many} calls announced, {calls[uid]} sent")
    for name in sorted({batch_name(trained) for _record, trained in index.trained} - sent["batch"]):
        yield index.violation("I3", name, "trained, and no trainer was handed it")


# ------------------------------------------------------------------------------------------------------- I4, I5, I10


def rows_are_single(index: Index) -> Iterator[Violation]:
    """I4. A table has one row for each record, one for each key under FINAL, and never fewer than before."""
    for table in index.evidence.tables:
        if table.raw != table.places:
            yield index.violation("I4", table.name, f"{table.raw} rows of {table.places} records")
        if table.final != table.keys:
            yield index.violation("I4", table.name, f"{table.final} rows under FINAL for {table.keys} keys")
    looks = index.evidence.looks
    for before, after in itertools.pairwise(looks):
        if after < before:
            yield index.violation("I4", "steps", f"an analyst counted {before} steps and later {after}")


def contexts_are_whole(index: Index) -> Iterator[Violation]:
    """I5. The log and the pool give back the tokens that the client saw, and steps are numbered without a gap."""
    seen = {e.step_id: e.digest for e in _heard(index.evidence.entries) if e.kind == "call" and e.digest is not None}
    stored = {step.step_id: step.digest for step in index.evidence.stored}
    for step_id, step in index.steps.items():
        if step.status == "failed":
            continue
        context = index.contexts[step_id]
        if isinstance(context, str):
            yield index.violation("I5", step_id, f"its context cannot be restored: {context}")
            continue
        logged = digest_of(context[0], step.response_ids)
        if step_id in seen and seen[step_id] != logged:
            yield index.violation("I5", step_id, f"the client saw {seen[step_id]}, the log has {logged}")
        if step_id in stored and stored[step_id] != logged:
            yield index.violation("I5", step_id, f"the log has {logged}, the pool {stored[step_id]}")
    for _record, ready in index.ready:
        for member in ready.members:
            yield from _numbered(index, ready, member)


def _numbered(index: Index, ready: GroupReady, member: Member) -> Iterator[Violation]:
    if member.outcome != "emitted":
        return
    mine = [s for s in index.complete[member.trajectory_uid] if index.below(s.fact_id, ready.partition, ready.pos)]
    named = [{number for _sample, _trains, number in index.spans.get(step.step_id, ())} for step in mine]
    found = Counter(number for numbers in named for number in numbers)
    whole = set(range(len(mine)))
    # A step all of whose rows are masked has no sample, and leaves its number out.
    gaps = bool(whole - found.keys()) and not member.mask_reasons
    if gaps or found.keys() - whole or any(many > 1 for many in found.values()):
        text = f"{len(mine)} steps are numbered {sorted(found.elements())}"
        yield index.violation("I5", member.trajectory_uid, text, ready.group_id)


def totals_agree(index: Index) -> Iterator[Violation]:
    """I10. What the pool's views add up is what the log gives."""
    for total in index.evidence.totals:
        if not math.isclose(total.pool, total.log, rel_tol=1e-9, abs_tol=1e-9):
            yield index.violation("I10", total.name, f"{total.pool:g} in the pool, {total.log:g} on the log")


# ----------------------------------------------------------------------------------------------------------------- I6


def groups_are_right(index: Index) -> Iterator[Violation]:
    """I6. A group is emitted once, whole or at a deadline, with the rewards that stood then."""
    for group_id, many in Counter(ready.group_id for _record, ready in index.ready).items():
        if many > 1:
            yield index.violation("I6", group_id, f"emitted {many} times")
    named = Counter(name for _record, ready in index.ready for name in ready.sample_ids)
    there = Counter(sample.sample_id for _record, sample in index.samples)
    for name in sorted(named.keys() | there.keys()):
        if named[name] != 1 or there[name] != 1:
            yield index.violation("I6", name, f"{there[name]} such samples, named by {named[name]} ready groups")
    for _record, ready in index.ready:
        for member in ready.members:
            if member.outcome == "emitted":
                yield from _member_is_right(index, ready, member)


def _member_is_right(index: Index, ready: GroupReady, member: Member) -> Iterator[Violation]:
    uid = member.trajectory_uid
    facts = index.by_prompt[ready.prompt_uid]
    taken = [fact for fact in facts if index.below(fact.fact_id, ready.partition, ready.pos)]
    mine = [fact for fact in taken if getattr(fact, "trajectory_uid", None) == uid]
    arrived = {fact.step_id for fact in mine if isinstance(fact, Step)}
    missing = {fact.step_id for fact in mine if isinstance(fact, StepStarted)} - arrived
    if missing:
        text = f"emitted with {ready.group_id}, and calls have no step: {', '.join(sorted(missing))}"
        yield index.violation("I6", uid, text, ready.group_id, *missing)
    if not any(isinstance(fact, TrajectoryEnd) for fact in mine):
        yield index.violation("I6", uid, f"emitted with {ready.group_id} before it had ended", ready.group_id)
    rewards = _effective(fact for fact in taken if isinstance(fact, Reward) and fact.trajectory_uid in (uid, None))
    overrides = [d.value for d in ready.curation if d.action == "override_reward" and d.trajectory_uid in (uid, None)]
    lacking = sorted(set(index.evidence.required) - rewards.keys())
    if lacking and not overrides:
        text = f"emitted with {ready.group_id} without its rewards: {', '.join(lacking)}"
        yield index.violation("I6", uid, text, ready.group_id)
    if overrides and member.reward not in overrides:
        text = f"its reward in {ready.group_id} is {member.reward}, and {overrides} was decided"
        yield index.violation("I6", uid, text, ready.group_id)
    said = member.source_reward if overrides else member.reward
    expected = math.fsum(rewards.values()) if rewards and not (overrides and lacking) else None
    if not _same(said, expected):
        text = f"its reward in {ready.group_id} is {said}, and {expected} stood at position {ready.pos}"
        yield index.violation("I6", uid, text, ready.group_id)


def _same(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6)


def _effective(facts: Iterable[Reward]) -> dict[str, float]:
    """By source: the trajectory's own, else the sum of its steps', else its group's; the newest revision of each."""
    newest: dict[tuple[str | None, str | None, str], Reward] = {}
    for fact in facts:
        key = (fact.trajectory_uid, fact.step_id, fact.source)
        if key not in newest or newest[key].revision < fact.revision:
            newest[key] = fact
    by_level: tuple[dict[str, list[float]], ...] = (defaultdict(list), defaultdict(list), defaultdict(list))
    for (uid, step_id, source), fact in newest.items():
        level = 0 if uid is None else 1 if step_id is not None else 2
        by_level[level][source] += [] if fact.value is None else [fact.value]
    found: dict[str, float] = {}
    for sources in by_level:
        for source, values in sources.items():
            found.pop(source, None)
            if values:
                found[source] = math.fsum(values)
    return found


def lateness_is_said(index: Index) -> Iterator[Violation]:
    """I6. A fact is taken in, or called late; what is called late had come too late; a decision has an answer."""
    for fact_id, records in index.facts.items():
        fact = records[0].event
        assert isinstance(fact, GroupFact)
        uid = getattr(fact, "trajectory_uid", None)
        rounds = index.closed.get(fact.prompt_uid, [])
        ends = [o.pos or 0 for _record, o in rounds if uid is None or uid in o.trajectories]
        said = index.late.get(fact_id, [])
        taken = any(records[0].offset < pos for pos in ends)
        if rounds and not taken and not said:
            text = f"a {fact.TYPE} at {records[0].offset} was neither taken in nor called late (ends: {ends})"
            yield index.violation("I6", fact_id, text, uid, fact.prompt_uid)
        false = [o for _record, o in said if o.recipe is None and o.reason != "never_opened"]
        if false and ends and all(record.offset < max(ends) for record in records):
            text = f"a {fact.TYPE} was called late, and came before its group's end at {max(ends)}"
            yield index.violation("I6", fact_id, text, uid, fact.prompt_uid)
    yield from _decisions_are_answered(index)


def _decisions_are_answered(index: Index) -> Iterator[Violation]:
    ready = {r.prompt_uid: {d.fact_id for d in r.curation} | set(r.decisions) for _record, r in index.ready}
    for fact_id, record in index.first.items():
        decision = record.event
        if not isinstance(decision, Decision) or decision.prompt_uid not in ready or decision.action == "note":
            continue
        known = fact_id in ready[decision.prompt_uid] or fact_id in index.forwarded
        if not known and fact_id not in index.late:
            yield index.violation("I6", fact_id, "a decision on an emitted group has no answer", decision.prompt_uid)


# ------------------------------------------------------------------------------------------------------------- I7, I9


def commits_are_behind(index: Index) -> Iterator[Violation]:
    """I7. A committed offset never passes what is done."""
    for one in index.evidence.watermarks:
        where = f"{one.stage}/{one.partition}"
        if one.stage == "sinks":
            mine = (r for r in index.evidence.records if (r.topic, r.partition) == (topics.EVENTS, one.partition))
            owed = len({r.event.step_id for r in mine if isinstance(r.event, Step) and r.offset < one.committed})
            if one.done < owed:
                text = f"committed {one.committed}, and the pool had {one.done} of {owed} steps below it"
                yield index.violation("I7", where, text)
        else:
            for fact_id in _undone(index, one.partition, one.committed, one.done):
                fact = index.first[fact_id]
                text = f"committed {one.committed}, and nothing was said by then of {fact_id} at {fact.offset}"
                yield index.violation("I7", where, text, fact_id, getattr(fact.event, "prompt_uid", None))


def _undone(index: Index, partition: int, committed: int, done: int) -> Iterator[str]:
    """Facts below a committed offset whose group was neither closed nor carried, and that were not called late, by then."""
    said: dict[str, int] = defaultdict(int)
    late: set[str] = set()
    for record in index.evidence.records:
        if record.topic == topics.OUTCOMES and record.partition == partition and record.offset < done:
            match record.event:
                case Outcome(outcome="closed") | GroupCarried() as event:
                    said[event.prompt_uid] = max(said[event.prompt_uid], event.pos or 0)
                case Outcome(outcome="late", fact_id=str(fact_id)):
                    late.add(fact_id)
    for fact_id, record in index.first.items():
        fact = record.event
        if record.partition != partition or record.offset >= committed or fact_id in late:
            continue
        if isinstance(fact, GroupFact) and record.offset >= said[fact.prompt_uid]:
            yield fact_id


def all_is_done(index: Index) -> Iterator[Violation]:
    """I9. After the faults have stopped nothing is behind and no group is open."""
    for lag in index.evidence.lags:
        if lag.behind:
            yield index.violation("I9", f"{lag.group} {lag.topic}/{lag.partition}", f"{lag.behind} records behind")
    ended = {uid for rounds in index.closed.values() for _record, closed in rounds for uid in closed.trajectories}
    for uid in sorted(index.begun - ended):
        yield index.violation("I9", uid, "its group is still open")


# ----------------------------------------------------------------------------------------------------------------- I8


def batches_are_once(index: Index) -> Iterator[Violation]:
    """I8. A batch is cut once, handed out as it was cut, committed once, and no group is in two."""
    cuts: dict[int, BatchCut] = {}
    for _record, cut in index.cuts:
        if cut.sequence in cuts:
            yield index.violation("I8", batch_name(cut), "cut twice")
        cuts.setdefault(cut.sequence, cut)
    if sorted(cuts) != list(range(1, len(cuts) + 1)):
        yield index.violation("I8", index.evidence.recipe, f"cuts are numbered {sorted(cuts)}")
    yield from _groups_are_cut_once(index, cuts)
    yield from _commits_are_once(index, cuts)
    for entry in index.evidence.entries:
        if entry.kind != "batch" or entry.event != "sent":
            continue
        mine = cuts.get(_sequence(entry))
        if mine is None:
            yield index.violation("I8", entry.name, "handed out, and there is no cut of it")
        else:
            yield from _is_as_cut(index, entry, mine)


def _sequence(entry: Entry) -> int:
    return int(entry.name.rpartition("/")[2])


def _is_as_cut(index: Index, entry: Entry, cut: BatchCut) -> Iterator[Violation]:
    if entry.digest != cut.digest:
        yield index.violation("I8", entry.name, f"handed out as {entry.digest}, cut as {cut.digest}")
    held = Counter(name for member in cut.members for name in member.sample_ids)
    if Counter(entry.samples) != held:
        text = f"handed out with samples {sorted(entry.samples)}, cut with {sorted(held)}"
        yield index.violation("I8", entry.name, text)


def _groups_are_cut_once(index: Index, cuts: Mapping[int, BatchCut]) -> Iterator[Violation]:
    markers = {ready.group_id: (record, ready) for record, ready in index.ready}
    places = Counter(part.group_id for cut in cuts.values() for part in cut.members)
    places += Counter(part.group_id for cut in cuts.values() for part in cut.excluded)
    for group_id, many in places.items():
        if many > 1:
            yield index.violation("I8", group_id, f"in {many} cuts")
        if group_id not in markers:
            yield index.violation("I8", group_id, "in a cut, and never emitted")
    cursor = max((cut.cursor for cut in cuts.values()), default=0)
    for group_id, (record, _ready) in markers.items():
        if record.offset < cursor and group_id not in places:
            yield index.violation(
                "I8", group_id, f"emitted at {record.offset}, below the cursor {cursor}, and in no cut"
            )
    for cut in cuts.values():
        for member in cut.members:
            _record, ready = markers.get(member.group_id, (None, None))
            if ready is not None and not {*member.sample_ids, *member.left_out} <= set(ready.sample_ids):
                yield index.violation("I8", member.group_id, f"{batch_name(cut)} has samples of it that it has not")


def _commits_are_once(index: Index, cuts: Mapping[int, BatchCut]) -> Iterator[Violation]:
    sequences = [trained.sequence for _record, trained in index.trained]
    if sequences != list(range(1, len(sequences) + 1)):
        yield index.violation("I8", index.evidence.recipe, f"batches were committed as {sequences}")
    versions = [trained.policy_version for _record, trained in index.trained]
    if versions != sorted(set(versions)):
        yield index.violation("I8", index.evidence.recipe, f"policy versions do not rise: {versions}")
    for record, trained in index.trained:
        mine = cuts.get(trained.sequence)
        if mine is None or mine.batch_id != trained.batch_id:
            yield index.violation("I8", batch_name(trained), f"committed at {record.offset} without its cut")
    for entry in _heard(index.evidence.entries):
        if entry.kind == "batch" and _sequence(entry) not in sequences:
            yield index.violation(
                "I8", entry.name, "its trainer was told that it is committed, and the log has no commit"
            )


CHECKS: Final[tuple[Check, ...]] = (
    acknowledged_is_there,
    fates_are_one,
    nothing_twice,
    nothing_unsent,
    rows_are_single,
    contexts_are_whole,
    groups_are_right,
    lateness_is_said,
    commits_are_behind,
    batches_are_once,
    all_is_done,
    totals_agree,
)
