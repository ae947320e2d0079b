"""One partition's facts become decisions: the fold that a stream worker runs, and rebuilds by replay.

`apply` takes in one record, `tick` lets stream time pass; both return outputs, which the shell writes in one transaction.
Groups whose fate the ledger (the outcomes topic) already knows are never decided again: a fact below the decision's `pos` was
taken in, one at or above it is late. `committable` is the offset of the oldest fact that a replay still needs.
"""

import heapq
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from claw_r1.codec import encode_body
from claw_r1.events import (
    Decision,
    Event,
    GroupCancel,
    GroupCarried,
    GroupFact,
    GroupOpen,
    GroupReady,
    Outcome,
    RecipeActive,
    RecipeSet,
    Reward,
    RunPurged,
    Step,
    StepStarted,
    TrajectoryFact,
    TrajectoryOpen,
)
from claw_r1.ids import derived_id, event_key, group_id, recipe_key
from claw_r1.recipes import GroupRule
from claw_r1.topics import OUTCOMES, RECIPES, TRAJECTORIES, batch_topic
from streams.ended import ended_trajectory
from streams.join import TrajectoryState, add_reward, differs
from streams.ledger import Closed, Ledger
from streams.ledger import Key as Key
from streams.readiness import ORPHAN_WAIT, GroupState, judge, settles_at
from streams.verdicts import ActiveRecipe, Discard, Emit, Hold, Nobody, Standing, Wait

CLOSED_KEPT = 5_000
"""Closed groups that are remembered for telling late from new; an older group's facts open a round or become late."""
MAX_SEEN = 20_000
"""Fact ids that a closed round hands on to the prompt's next; with more, a copy of an old fact is reported as late."""
MAX_EARLIER = 1_000
"""Trajectories that a prompt's closed rounds hand on to its next; with more, a late step of one of them opens a round."""
MAX_TRAJECTORIES = 8_192
"""Of a group, twice as many as a recipe may ask for: what is said of a group must fit into one record."""
MAX_READY_BYTES = 15 * 2**19
"""Of a group's marker: with very many samples, or decisions with long texts, it would not fit into a record."""
_NO_RECIPE = GroupRule()
OPENERS = (GroupOpen, TrajectoryOpen, StepStarted, Step)


@dataclass(frozen=True, slots=True)
class Output:
    """An event for a topic; `partition` None lets the key decide."""

    topic: str
    event: Event
    key: bytes
    partition: int | None = None


@dataclass(slots=True)
class PartitionState:
    """The open groups of one partition of `claw.events.v1`, and what is needed to judge them."""

    partition: int
    position: int = 0
    """Next input offset."""
    now: float = 0.0
    """Stream time, seconds since the epoch."""
    groups: dict[Key, GroupState] = field(default_factory=dict)
    closed: OrderedDict[Key, Closed] = field(default_factory=OrderedDict)
    recipes: list[ActiveRecipe] = field(default_factory=list)
    """The newest version of each."""
    runs: dict[str, set[str]] = field(default_factory=dict)
    """By recipe the runs of all its versions: what an earlier one emitted may wait on the recipe's topic still."""
    ledger: Ledger = field(default_factory=Ledger)
    """Empty but during a replay."""
    restored: dict[Key, GroupState] = field(default_factory=dict)
    """During a replay: groups that were carried, whole as they were at their `first_offset`; from there on they are open."""
    keeps_open: bool = False
    """Groups do not close, whatever was decided of them: for a fold of a group up to where it did."""
    duplicates: int = 0
    conflicts: int = 0
    """Steps of an id that was there before with another response, or of another trajectory: the first counts."""
    reused_prompts: int = 0
    _due: list[tuple[float, int, Key]] = field(default_factory=list)
    """When to look at which group again; stale entries are skipped."""

    # ------------------------------------------------------------------------------------------------------------- start

    def load_recipes(self, records: Iterable[RecipeActive], before: int) -> None:
        """Take the recipe versions that began in this partition before offset `before`; later ones come by replay."""
        mine = [r for r in records if r.partition == self.partition and r.begins < before]
        for r in sorted(mine, key=lambda r: (r.begins, r.version)):
            self._activate(ActiveRecipe(r.begins, r.name, r.version, r.recipe, r.run_id))

    def load_ledger(self, entries: Iterable[Outcome | GroupCarried]) -> None:
        """Take what this partition's earlier owners wrote, before the replay."""
        self.ledger = Ledger()
        closed = self.ledger.load(entry for entry in entries if entry.partition == self.partition)
        for key, one in sorted(closed.items(), key=lambda item: item[1].pos):
            self._keep_closed(key, one)

    def end_replay(self) -> list[Output]:
        """The replay reached the log's end: what is on the ledger has been honoured."""
        outputs = self._release(self.position)
        assert not self.restored, "nothing was carried behind the log's end"
        self.ledger = Ledger()
        for closed in self.closed.values():
            closed.pack()
        return outputs

    # -------------------------------------------------------------------------------------------------------------- fold

    def apply(self, event: Event, offset: int, time: float) -> list[Output]:
        """Take in the fact at `offset`, appended at `time`; deadlines that passed before it are honoured first."""
        outputs = self._release(offset) + self.tick(time) if self.restored else self.tick(time)
        self.position = offset + 1
        match event:
            case GroupFact():
                return outputs + self._take(event, offset)
            case RecipeSet():
                return outputs + self._set_recipe(event, offset)
            case RunPurged():
                return outputs + self._purge(event)
        return outputs

    def spoil(self, key: Key | None, offset: int, time: float, reason: str) -> list[Output]:
        """A record at `offset` cannot be read: the open group it belongs to, if known, is discarded with that
        reason once it is decided."""
        outputs = self.skip(offset, time)
        if key is None or offset < self.ledger.closed.get(key, 0) or key in self.restored:
            return outputs
        group = self.groups.get(key)
        if group is None and key not in self.closed:
            group = self._open(key, 1, offset)
        if group is not None:
            group.spoiled = reason
            group.last_at = self.now
        return outputs

    def skip(self, offset: int, time: float) -> list[Output]:
        """Pass over the record at `offset`: it is no fact."""
        outputs = self._release(offset) + self.tick(time)
        self.position = offset + 1
        return outputs

    def tick(self, now: float) -> list[Output]:
        """Let stream time pass and decide what fell due, each at its own time: how often time is told changes nothing."""
        now = max(self.now, now)
        outputs: list[Output] = []
        while self._due and self._due[0][0] <= now:
            entry = heapq.heappop(self._due)
            if self._is_awaited(entry):
                group = self.groups[entry[2]]
                group.look_at = None
                self.now = max(self.now, entry[0])
                outputs += self._judge(group)
        self.now = now
        return outputs

    def look(self) -> list[Output]:
        """Judge every open group again: those that were kept open may close."""
        return [output for group in list(self.groups.values()) for output in self._judge(group)]

    @property
    def committable(self) -> int:
        """The offset below which no fact is needed any more. Valid once the outputs returned so far are durable."""
        first = min((g.first_offset for g in self.groups.values()), default=self.position)
        return min(first, self.position) if self.restored else first

    def _release(self, offset: int) -> list[Output]:
        outputs: list[Output] = []
        for key in [key for key, group in self.restored.items() if group.first_offset <= offset]:
            group = self.groups[key] = self.restored.pop(key)
            group.written = self.ledger.decided.get((key, group.round), {})
            group.held = self.ledger.held.get((key, group.round), {})
            outputs += self._judge(group)
        return outputs

    # ----------------------------------------------------------------------------------------------------------- recipes

    def _set_recipe(self, fact: RecipeSet, offset: int) -> list[Output]:
        if any(r.name == fact.name and r.version >= fact.version for r in self.recipes):
            self.duplicates += 1
            return []
        self._activate(ActiveRecipe(offset, fact.name, fact.version, fact.recipe, fact.run_id))
        known = RecipeActive(
            name=fact.name,
            version=fact.version,
            recipe=fact.recipe,
            run_id=fact.run_id,
            partition=self.partition,
            begins=offset,
        )
        return [Output(RECIPES, known, recipe_key(fact.name, fact.version, self.partition))]

    def _activate(self, active: ActiveRecipe) -> None:
        self.recipes = [r for r in self.recipes if r.name != active.name] + [active]
        run_id = active.run_id if active.recipe is None else active.recipe.run_id
        if run_id is not None:
            self.runs.setdefault(active.name, set()).add(run_id)

    def _purge(self, fact: RunPurged) -> list[Output]:
        """The run's open groups are discarded; trainers are told, since what was emitted before waits on their topics."""
        outputs: list[Output] = []
        for group in [g for g in self.groups.values() if g.run_id == fact.run_id]:
            group.stopped = "run_purged"
            outputs += self._judge(group)
        told = sorted(name for name, runs in self.runs.items() if fact.run_id in runs)
        return outputs + [Output(batch_topic(name), fact, fact.run_id.encode()) for name in told]

    # ------------------------------------------------------------------------------------------------------------ groups

    def _take(self, fact: GroupFact, offset: int) -> list[Output]:
        key = (fact.run_id, fact.prompt_uid)
        closed = self.closed.get(key)
        if self._is_settled(fact, key, offset):
            if closed is not None:
                closed.fact_ids.add(fact.fact_id)
            return []
        if key in self.restored:
            return []  # it has this fact
        group = self.groups.get(key)
        if closed is not None and not (_opens_round(fact, closed) if group is None else _of_round(fact, group, closed)):
            return self._late(fact, closed)
        if group is None:
            group = self._open(key, 1 if closed is None else closed.round + 1, offset)
        if fact.fact_id in group.seen:
            self.duplicates += 1
            self.conflicts += isinstance(fact, Step) and differs(fact, group.trajectories.get(fact.trajectory_uid))
            return []
        group.seen.add(fact.fact_id)
        group.last_at = self.now
        uid = _trajectory_of(fact)
        if uid is None or isinstance(fact, Decision):
            self._add(group, fact)
            return (self._forward(group, fact, offset) if isinstance(fact, Decision) else []) + self._judge(group)
        before = _naming(group.trajectories.get(uid))
        self._add(group, fact)
        trajectory = group.trajectories[uid]
        if len(group.trajectories) > MAX_TRAJECTORIES:
            group.stopped = group.stopped or "too_many_trajectories"
            return self._judge(group)
        # Who judges the group, or its fate, cannot change with a step of a rollout that goes on.
        return self._judge(group) if trajectory.end is not None or _naming(trajectory) != before else []

    def _is_settled(self, fact: GroupFact, key: Key, offset: int) -> bool:
        """In a replay: whether the ledger says all of this fact: it was late, or a round of its group closed after it."""
        return offset < self.ledger.closed.get(key, 0) or offset < self.ledger.late.get((key, fact.fact_id), 0)

    def _open(self, key: Key, round_: int, offset: int) -> GroupState:
        active = tuple(r for r in self.recipes if r.recipe is not None and r.recipe.run_id == key[0])
        group = GroupState(key[0], key[1], round_, offset, self.now, self.now, active)
        group.written = self.ledger.decided.get((key, round_), {})
        group.held = self.ledger.held.get((key, round_), {})
        self.groups[key] = group
        self.reused_prompts += round_ > 1
        rules = [r.recipe.group for r in active if r.recipe is not None] or [_NO_RECIPE]
        self._look_again(group, self.now + min([ORPHAN_WAIT, *(min(rule.idle, rule.max_age) for rule in rules)]))
        return group

    def _look_again(self, group: GroupState, at: float) -> None:
        """Judge the group at stream time `at` again; if it is looked at earlier, it is asked anew then."""
        if group.look_at is not None and group.look_at <= at:
            return
        group.look_at = at
        heapq.heappush(self._due, (at, group.round, (group.run_id, group.prompt_uid)))
        if len(self._due) > 2 * len(self.groups) + 64:
            self._due = [entry for entry in self._due if self._is_awaited(entry)]
            heapq.heapify(self._due)

    def _is_awaited(self, entry: tuple[float, int, Key]) -> bool:
        at, round_, key = entry
        group = self.groups.get(key)
        return group is not None and group.round == round_ and group.look_at == at

    def _add(self, group: GroupState, fact: GroupFact) -> None:
        match fact:
            case TrajectoryFact() | Reward(trajectory_uid=str()):
                uid = fact.trajectory_uid
                assert uid is not None
                trajectory = group.trajectories.get(uid)
                if trajectory is None:
                    trajectory = group.trajectories[uid] = TrajectoryState(uid)
                if isinstance(fact, Step):
                    self.conflicts += fact.step_id in trajectory.steps
                    group.merged.pop(uid, None)
                trajectory.add(fact, self.now)
            case Reward():
                add_reward(group.rewards, fact)
            case GroupOpen():
                group.opens[fact.fact_id] = fact
            case GroupCancel():
                group.cancel = fact
            case Decision():
                group.decisions[fact.fact_id] = fact

    def _late(self, fact: GroupFact, closed: Closed) -> list[Output]:
        if closed.knows(fact.fact_id):
            self.duplicates += 1
            return []
        closed.fact_ids.add(fact.fact_id)
        key = (fact.run_id, fact.prompt_uid)
        outputs: list[Output] = []
        if isinstance(fact, Decision):
            outputs += [_forwarded(fact, name, closed.round) for name in sorted(closed.emitted)]
        outcome = self._outcome(key, closed.round, "late", fact.TYPE, None, None, fact_id=fact.fact_id)
        return [*outputs, self._write(outcome)]

    def _forward(self, group: GroupState, fact: Decision, offset: int) -> list[Output]:
        """A person's decision on a group that some recipes have emitted and others have not: the former are told."""
        key = (group.run_id, group.prompt_uid)
        emitted = {name for name, standing in group.standings.items() if standing.emitted}
        emitted |= {name for (name, _part), w in group.written.items() if w.emitted and w.pos <= offset}
        outputs: list[Output] = []
        for active in group.recipes:
            if active.name in emitted and (key, fact.fact_id, active.name) not in self.ledger.forwarded:
                late = self._outcome(key, group.round, "late", fact.TYPE, active, None, fact_id=fact.fact_id)
                outputs += [_forwarded(fact, active.name, group.round), self._write(late)]
        return outputs

    # ---------------------------------------------------------------------------------------------------------- verdicts

    def _judge(self, group: GroupState) -> list[Output]:
        key = (group.run_id, group.prompt_uid)
        if self.groups.get(key) is not group:
            return []
        if not group.opened and group.stopped is None:
            return self._judge_orphans(group)
        concerned = group.concerned()
        outputs, look_again = self._announce(group, concerned)
        for active in concerned:
            said, again = self._judge_for(group, active)
            outputs += said
            look_again = min(look_again, again)
        if not concerned:
            look_again = min(look_again, self._without_recipe(group))
        if not math.isinf(look_again):
            self._look_again(group, look_again)
        elif not self.keeps_open:
            outputs += self._close(group)
        return outputs

    def _judge_for(self, group: GroupState, active: ActiveRecipe) -> tuple[list[Output], float]:
        """What one recipe says of the group now, and when it wants to look again; inf: never."""
        standing = group.standing(active.name)
        outputs: list[Output] = []
        while not standing.done:
            verdict = judge(group, active, self.now, partition=self.partition, pos=self.position)
            written = group.written.get((active.name, standing.part))
            if isinstance(verdict, Nobody):
                standing.done = True
            elif written is not None and (self.position >= written.pos or not isinstance(verdict, Wait | Hold)):
                self._settle(group, active, written.members, max(self.now, written.at), emitted=written.emitted)
            elif isinstance(verdict, Wait):
                return outputs, verdict.until
            elif isinstance(verdict, Hold):
                return outputs + self._hold(group, active, standing, verdict), verdict.until
            else:
                outputs += self._decide(group, active, verdict)
        return outputs, math.inf

    def _settle(
        self, group: GroupState, active: ActiveRecipe, members: Iterable[str], at: float, *, emitted: bool
    ) -> None:
        """A part of the group was decided at stream time `at`: done, or those that are left may form a further group."""
        standing = group.standing(active.name)
        standing.fated |= set(members)
        standing.emitted |= emitted
        standing.held_at = None
        assert active.recipe is not None
        if emitted and standing.part == 1 and active.recipe.group.stragglers == "extra_group" and group.stop is None:
            standing.part, standing.since = 2, at
        else:
            standing.done = True

    def _hold(self, group: GroupState, active: ActiveRecipe, standing: Standing, verdict: Hold) -> list[Output]:
        """Say once that the group waits for a person; the ledger knows whether and when it was said."""
        if standing.held_at is not None:
            return []
        said = group.held.get((active.name, standing.part))
        standing.held_at = self.now if said is None else said
        if said is not None:
            return []
        key = (group.run_id, group.prompt_uid)
        about: list[str | None] = [*verdict.kept, None]
        held = [self._outcome(key, group.round, "held", "review", active, uid, part=standing.part) for uid in about]
        return [self._write(one) for one in held]

    def _without_recipe(self, group: GroupState) -> float:
        """When a group that no recipe concerns closes; inf: now."""
        if group.stop is not None:
            return math.inf
        until = min(group.last_at + _NO_RECIPE.idle, group.opened_at + _NO_RECIPE.max_age)
        return math.inf if until <= self.now else until

    def _judge_orphans(self, group: GroupState) -> list[Output]:
        key = (group.run_id, group.prompt_uid)
        until = group.opened_at + ORPHAN_WAIT
        if self.now < until:
            self._look_again(group, until)
            return []
        del self.groups[key]
        outputs = [
            _forwarded(decision, active.name, None)
            for fact_id, decision in sorted(group.decisions.items())
            for active in group.recipes
        ]  # of a group that is long closed, perhaps: who has it knows
        return outputs + self._write_orphans(key, group.round, group.seen)

    def _announce(self, group: GroupState, concerned: Iterable[ActiveRecipe]) -> tuple[list[Output], float]:
        """Trajectories that just ended, for reward workers, at least once, named by their uid; and when the next one is
        announced, that waits for started steps: once its grace is over. inf: none does."""
        outputs: list[Output] = []
        next_at = math.inf
        ended = _unannounced(group)
        grace = _grace(concerned) if ended else 0.0
        for t in ended:
            if (at := settles_at(t, grace)) > self.now:
                next_at = min(next_at, at) if group.stop is None else next_at
                continue
            group.announced.add(t.trajectory_uid)
            event = ended_trajectory(group, t, self.partition, self.position, self.now)
            outputs.append(Output(TRAJECTORIES, event, event_key(group.run_id, group.prompt_uid), self.partition))
        return outputs, next_at

    def _decide(self, group: GroupState, active: ActiveRecipe, verdict: Emit | Discard) -> list[Output]:
        key = (group.run_id, group.prompt_uid)
        record_key = event_key(*key)
        if isinstance(verdict, Emit) and len(encode_body(verdict.ready)) > MAX_READY_BYTES:
            verdict = _too_large(verdict.ready)
        fate = "emitted" if isinstance(verdict, Emit) else "discarded"
        members = verdict.ready.members if isinstance(verdict, Emit) else verdict.members
        reason = verdict.ready.reason if isinstance(verdict, Emit) else verdict.reason
        part = group.standing(active.name).part
        self._settle(group, active, [m.trajectory_uid for m in members], self.now, emitted=fate == "emitted")
        outputs: list[Output] = []
        if isinstance(verdict, Emit):
            topic = batch_topic(active.name)
            outputs += [Output(topic, sample, record_key) for sample in verdict.samples]
            outputs.append(Output(topic, verdict.ready, record_key))
        for member in members:
            uid = member.trajectory_uid
            one = self._outcome(key, group.round, member.outcome, member.reason, active, uid, part=part)
            outputs.append(self._write(one))
        whole = self._outcome(key, group.round, fate, reason, active, None, part=part)
        return [*outputs, self._write(whole)]

    def _close(self, group: GroupState) -> list[Output]:
        key = (group.run_id, group.prompt_uid)
        decided = any(standing.done for standing in group.standings.values())
        reason = "decided" if decided else (group.stop or "no_recipe")
        outcome = self._outcome(key, group.round, "closed", reason, None, None, trajectories=sorted(group.trajectories))
        outputs = self._write_stragglers(group)
        orphans = [f for t in group.trajectories.values() if not t.opened for f in t.orphans]
        outputs += self._write_orphans(key, group.round, orphans)
        del self.groups[key]
        before = self.closed.get(key) or Closed(0, 0)
        trajectories = set(group.trajectories)
        if len(before.trajectories) + len(trajectories) <= MAX_EARLIER:
            trajectories |= before.trajectories
        emitted = before.emitted | {name for name, standing in group.standings.items() if standing.emitted}
        kept = Closed(group.round, self.position, group.seen, trajectories=trajectories, emitted=emitted)
        if len(before.packed) + len(before.fact_ids) < MAX_SEEN:
            kept.fact_ids |= before.fact_ids
            kept.packed = before.packed
        kept.pack()
        self._keep_closed(key, kept)
        return [*outputs, self._write(outcome)]

    def _write_stragglers(self, group: GroupState) -> list[Output]:
        """Trajectories that opened after a recipe had decided and before the last one did: none is without a fate."""
        outputs: list[Output] = []
        for active in group.recipes:
            standing = group.standings.get(active.name)
            if standing is None or not standing.done or active.recipe is None:
                continue
            for uid in sorted(group.trajectories.keys() - standing.fated):
                t = group.trajectories[uid]
                if t.opened and active.recipe.concerns(group.run_id, group.channel_of(t)):
                    key = (group.run_id, group.prompt_uid)
                    one = self._outcome(key, group.round, "discarded", "straggler", active, uid)
                    outputs.append(self._write(one))
        return outputs

    def _write_orphans(self, key: Key, round_: int, fact_ids: Iterable[str]) -> list[Output]:
        """Facts about a trajectory or a group that nothing opened."""
        outputs: list[Output] = []
        for fact_id in sorted(fact_ids):
            outcome = self._outcome(key, round_, "late", "never_opened", None, None, fact_id=fact_id)
            outputs.append(self._write(outcome))
        return outputs

    def _keep_closed(self, key: Key, closed: Closed) -> None:
        self.closed[key] = closed
        self.closed.move_to_end(key)
        while len(self.closed) > CLOSED_KEPT:
            self.closed.popitem(last=False)

    # ---------------------------------------------------------------------------------------------------------- outcomes

    def _outcome(
        self,
        key: Key,
        round_: int,
        outcome: str,
        reason: str,
        active: ActiveRecipe | None,
        trajectory_uid: str | None,
        fact_id: str | None = None,
        trajectories: Sequence[str] = (),
        part: int = 1,
    ) -> Outcome:
        recipe = active.name if active is not None else None
        kind = outcome if outcome in ("late", "closed", "held") else "fate"
        further = (part,) if part > 1 else ()
        return Outcome.model_validate(
            {
                "outcome_id": derived_id(kind, recipe, *key, round_, trajectory_uid, fact_id, *further),
                "recipe": recipe,
                "recipe_version": active.version if active is not None else None,
                "run_id": key[0],
                "prompt_uid": key[1],
                "group_id": group_id(key[1], round_, part),
                "round": round_,
                "part": part,
                "trajectory_uid": trajectory_uid,
                "fact_id": fact_id,
                "outcome": outcome,
                "reason": reason,
                "trajectories": trajectories,
                "partition": self.partition,
                "pos": self.position,
                "at": self.now,
            }
        )

    def _write(self, outcome: Outcome) -> Output:
        return Output(OUTCOMES, outcome, event_key(outcome.run_id, outcome.prompt_uid), self.partition)


def _forwarded(decision: Decision, recipe: str, round_: int | None) -> Output:
    """A decision for a recipe's topic: whoever cuts batches applies it, or says that it came too late."""
    if decision.group_id is None and decision.trajectory_uid is None and round_ is not None:
        decision = decision.model_copy(update={"group_id": group_id(decision.prompt_uid, round_)})
    return Output(batch_topic(recipe), decision, event_key(decision.run_id, decision.prompt_uid))


def _too_large(ready: GroupReady) -> Discard:
    update = {"outcome": "discarded", "reason": "too_large", "samples": ()}
    return Discard("too_large", [member.model_copy(update=update) for member in ready.members])


def _trajectory_of(fact: GroupFact) -> str | None:
    """The trajectory that a fact is about; None: its group."""
    return getattr(fact, "trajectory_uid", None)


def _naming(trajectory: TrajectoryState | None) -> int | None:
    """How many channels a trajectory's facts name, its channel changing only with that; None: it is not open."""
    return len(trajectory.channels) if trajectory is not None and trajectory.opened else None


def _of_round(fact: GroupFact, group: GroupState, closed: Closed) -> bool:
    """Whether a fact belongs to the open round, and not to one that closed before it."""
    if closed.knows(fact.fact_id):
        return False
    if isinstance(fact, Decision) and fact.group_id is not None and fact.group_id != group.group_id:
        return False
    uid = _trajectory_of(fact)
    return uid is None or uid in group.trajectories or uid not in closed.trajectories


def _opens_round(fact: GroupFact, closed: Closed) -> bool:
    """A prompt that is used again after its group closed: a new opener about a trajectory that the group did not have."""
    if not isinstance(fact, OPENERS) or closed.knows(fact.fact_id):
        return False
    return not (isinstance(fact, TrajectoryFact) and fact.trajectory_uid in closed.trajectories)


def _unannounced(group: GroupState) -> list[TrajectoryState]:
    """Trajectories that ended and were not announced, by uid."""
    found = [t for uid, t in group.trajectories.items() if t.end is not None and uid not in group.announced]
    return sorted(found, key=lambda t: t.trajectory_uid)


def _grace(concerned: Iterable[ActiveRecipe]) -> float:
    """The longest grace of the recipes that judge a group."""
    graces = [a.recipe.group.end_grace for a in concerned if a.recipe is not None]
    return max(graces, default=_NO_RECIPE.end_grace)
