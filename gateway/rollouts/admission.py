"""What trainers want and which groups are open become the answer to one question: may another group begin?

Invariants:
- no clock here: times are given, in seconds since the epoch;
- a group counts from its admission, or from the first record of it, until the streams say its fate for the recipe, the
  recipe's max_age is over, or, if no record of it ever came, UNSEEN;
- a group that is known stays admitted, whatever is wanted;
- memory is bounded; a group that is forgotten counts as over.
"""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Final

from claw_r1.events import Demand, Outcome
from gateway.places import Session

DEFAULT_CHANNEL: Final = "train"
"""Of a group whose facts name none."""
UNSEEN: Final = 30.0
"""Seconds for which an admitted group counts of which no record came: its caller gave up, or could not be recorded."""
MAX_RETRY_AFTER: Final = 30.0
MAX_RECIPES: Final = 10_000
"""Recipes whose demand is held; beyond it the one that was heard of longest ago is forgotten."""
MAX_SETTLING: Final = 100_000

GroupKey = tuple[str, str]
"""(run_id, prompt_uid)"""
Place = tuple[str, str]
"""(run_id, channel)"""


@dataclass(slots=True, eq=False)
class Group:
    """A group that was admitted or seen."""

    key: GroupKey
    channel: str | None
    since: float
    seen: bool
    """A record of it came."""
    announced: bool = False
    """It is open without any trajectory."""
    trajectories: int = 0
    """That have begun."""
    size: int | None = None
    """As it was announced."""
    over: set[str] = field(default_factory=set)
    """Recipes for which its fate is known."""

    @property
    def place(self) -> Place:
        return self.key[0], self.channel or DEFAULT_CHANNEL


class Groups:
    """The groups of all runs that may still be open."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: OrderedDict[GroupKey, Group] = OrderedDict()
        self._places: dict[Place, OrderedDict[GroupKey, Group]] = {}
        self._over: dict[Place, Counter[str]] = {}
        """Groups among a place's that are over, by recipe."""
        self._unseen: OrderedDict[GroupKey, Group] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, run_id: str, prompt_uid: str) -> Group | None:
        return self._known.get((run_id, prompt_uid))

    def admit(self, run_id: str, prompt_uid: str, channel: str | None, now: float) -> None:
        """Count a group before any record of it."""
        self._hold(run_id, prompt_uid, channel, now, seen=False)

    def announce(
        self, run_id: str, prompt_uid: str, channel: str | None, at: float, *, size: int | None = None
    ) -> None:
        """A record says that the group was opened."""
        group = self._hold(run_id, prompt_uid, channel, at, seen=True)
        group.announced = True
        group.size = size or group.size

    def enter(self, session: Session, before: Session | None, at: float) -> None:
        """A record says where a trajectory belongs; `before`: where it belonged until then."""
        if before is not None and before.provisional:
            before = None
        if before is not None and (before.run_id, before.prompt_uid) != (session.run_id, session.prompt_uid):
            self._leave(before)
            before = None
        if session.provisional:
            return
        group = self._hold(session.run_id, session.prompt_uid, session.channel, at, seen=True)
        group.trajectories += before is None

    def end(self, outcome: Outcome) -> bool:
        """Take in a group's fate; whether a group that is known here became ready by it."""
        group = self._known.get((outcome.run_id, outcome.prompt_uid))
        if group is None or outcome.trajectory_uid is not None or outcome.fact_id is not None:
            return False
        if outcome.outcome == "closed":
            self._drop(group)
        elif outcome.recipe is not None and outcome.outcome != "late" and outcome.recipe not in group.over:
            group.over.add(outcome.recipe)
            self._over[group.place][outcome.recipe] += 1
            return outcome.outcome == "emitted"
        return False

    def count(self, place: Place, recipe: str) -> int:
        """Groups of a place whose fate for a recipe is not known yet."""
        return len(self._places.get(place, ())) - self._over.get(place, Counter())[recipe]

    def has_room(self, place: Place, recipe: str, size: int) -> bool:
        """Whether a group of a place that is open for a recipe has fewer trajectories than it will have."""
        here = self._places.get(place, OrderedDict[GroupKey, Group]())
        return any(g.trajectories < (g.size or size) for g in here.values() if recipe not in g.over)

    def forget(self, before: float) -> None:
        """Let go of groups that began before then."""
        while self._known and (group := next(iter(self._known.values()))).since < before:
            self._drop(group)

    def sweep(self, place: Place, now: float, max_age: float) -> None:
        """Let go of the place's groups that are older, and of those of which no record came."""
        while self._unseen and now - (group := next(iter(self._unseen.values()))).since > UNSEEN:
            self._drop(group)
        while (here := self._places.get(place)) and now - (group := next(iter(here.values()))).since > max_age:
            self._drop(group)

    def _hold(self, run_id: str, prompt_uid: str, channel: str | None, at: float, *, seen: bool) -> Group:
        key = (run_id, prompt_uid)
        group = self._known.get(key)
        if group is None:
            group = Group(key, channel, at, seen)
            self._known[key] = group
            self._put(group)
            if not seen:
                self._unseen[key] = group
            while len(self._known) > self._limit:
                self._drop(next(iter(self._known.values())))
            return group
        if channel is not None and group.channel is None:
            self._take_out(group)
            group.channel = channel
            self._put(group)
        if seen and not group.seen:
            group.seen = True
            del self._unseen[key]
        return group

    def _leave(self, session: Session) -> None:
        group = self._known.get((session.run_id, session.prompt_uid))
        if group is None:
            return
        group.trajectories -= 1
        if group.trajectories <= 0 and not group.announced:
            self._drop(group)  # its only trajectory turned out to belong elsewhere

    def _put(self, group: Group) -> None:
        self._places.setdefault(group.place, OrderedDict())[group.key] = group
        self._over.setdefault(group.place, Counter()).update(group.over)

    def _take_out(self, group: Group) -> None:
        here = self._places[group.place]
        del here[group.key]
        self._over[group.place].subtract(group.over)
        if not here:
            del self._places[group.place], self._over[group.place]

    def _drop(self, group: Group) -> None:
        del self._known[group.key]
        self._unseen.pop(group.key, None)
        self._take_out(group)


@dataclass(slots=True, eq=False)
class Want:
    """A recipe's demand as it was last said."""

    demand: Demand
    appended: float
    """When the broker had it."""
    expires: float
    settling: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_SETTLING))
    """When groups became ready that the trainer may not have counted yet."""
    full_since: float | None = None
    """Of the first refusal since a group was last wanted."""

    @property
    def place(self) -> Place:
        return self.demand.run_id, self.demand.channel

    @property
    def capacity(self) -> int | None:
        """Groups that may be open, ready or cut; None: any number."""
        demand = self.demand
        return None if demand.max_versions is None else demand.batch_groups * (demand.max_versions + 1)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a recipe's demand stands."""

    want: Want
    live: bool
    open: int
    """Groups that are on their way to being ready."""
    wanted: int | None
    """New groups that may begin now; None: any number."""


class Admissions:
    """Demand, and what is there to meet it."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._wants: OrderedDict[str, Want] = OrderedDict()
        self._by_place: dict[Place, dict[str, Want]] = {}

    def take(self, demand: Demand, appended: float, now: float) -> None:
        """A record of demand that the broker had at `appended`; it counts from `now` on."""
        known = self._wants.get(demand.recipe)
        if known is not None:
            if demand.since < known.demand.since and now < known.expires:
                return  # another trainer took the recipe over from this one
            self._forget(known)
        if demand.closed:
            return
        want = Want(demand, appended, now + demand.ttl)
        if known is not None:
            want.full_since = known.full_since
            want.settling.extend(at for at in known.settling if at > appended)
        self._wants[demand.recipe] = want
        self._by_place.setdefault(want.place, {})[demand.recipe] = want
        if len(self._wants) > MAX_RECIPES:
            self._forget(next(iter(self._wants.values())))

    def end(self, outcome: Outcome, appended: float) -> None:
        """A group's fate, that the broker had at `appended`."""
        became_ready = self._groups.end(outcome)
        want = self._wants.get(outcome.recipe or "")
        if became_ready and want is not None and appended > want.appended:
            want.settling.append(appended)

    def stand(self, recipe: str, now: float) -> Standing | None:
        """How a recipe's demand stands; None if it was never heard of, or has ended."""
        want = self._wants.get(recipe)
        return None if want is None else self._stand(want, now)

    def all(self, now: float) -> list[Standing]:
        """All recipes, by name."""
        return [self._stand(want, now) for _, want in sorted(self._wants.items())]

    def refuse(self, run_id: str, prompt_uid: str | None, channel: str | None, now: float) -> float | None:
        """None if a group may begin, or has begun; else after how many seconds its caller had better come back.

        Without a prompt: for a trajectory that may yet turn out to be of any group, also of one that has begun.
        """
        place = (run_id, channel or DEFAULT_CHANNEL)
        group = None if prompt_uid is None else self._groups.get(run_id, prompt_uid)
        if group is not None:
            place = group.place
        live = [want for want in self._by_place.get(place, {}).values() if now < want.expires]
        if not live or (group is not None and any(want.demand.recipe not in group.over for want in live)):
            return None
        for want in live:
            wanted = self._stand(want, now).wanted
            if wanted is None or wanted > 0:
                want.full_since = None
                return None
        if prompt_uid is None and any(
            self._groups.has_room(place, want.demand.recipe, want.demand.group_size) for want in live
        ):
            return None
        for want in live:
            want.full_since = now if want.full_since is None else want.full_since
        # As long again as it has been full: what frees demand is a batch, and batches take as long as they take.
        waited = max(now - want.full_since for want in live if want.full_since is not None)
        return min(max(waited, 1.0), MAX_RETRY_AFTER)

    def _stand(self, want: Want, now: float) -> Standing:
        demand, capacity = want.demand, want.capacity
        here = self._by_place[want.place].values()
        self._groups.sweep(want.place, now, max(other.demand.max_age for other in here))
        open_ = self._groups.count(want.place, demand.recipe) + len(want.settling)
        live = now < want.expires
        wanted = None if capacity is None or not live else max(0, capacity - demand.ready - demand.cut - open_)
        return Standing(want, live, open_, wanted)

    def _forget(self, want: Want) -> None:
        del self._wants[want.demand.recipe]
        here = self._by_place[want.place]
        del here[want.demand.recipe]
        if not here:
            del self._by_place[want.place]
