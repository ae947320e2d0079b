"""An event becomes rows of the pool's tables: pure, one row a table for most events.

A row is a tuple in the order of its table's columns; the last four are where the record stood on the log. Whoever changes
what an event becomes raises ROWS_VERSION, so that a range cut again under the new rules is not taken for the old one.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple

import msgspec

from claw_r1 import events
from claw_r1.errors import InvalidRecord
from claw_r1.events import Event
from claw_r1.topics import EVENTS

ROWS_VERSION: Final = 5

Kind = Literal[
    "text", "bytes", "bool", "u32", "u64", "i64", "f64", "micros", "millis", "ids", "floats", "mask", "texts",
    "versions", "blobs", "rewards", "members", "spans", "links", "floats_by_name", "counts_by_name", "u64s", "optional_floats",
    "experts", "arrays_by_name",
]  # fmt: skip
"""What a column holds; the writer knows each kind's Arrow type. `ids`, `floats` and `mask` are packed bytes."""


_INTEGERS: Final[dict[str, tuple[int, int]]] = {
    "u32": (2**32 - 1, 0),
    "u64": (2**64 - 1, 0),
    "i64": (2**63 - 1, -(2**63)),
}
"""Largest and smallest value by kind."""


class Place(NamedTuple):
    """Where a record stood on the log."""

    topic: str
    partition: int
    offset: int
    append_time: int
    """Milliseconds since the epoch, by the broker."""


class Column(NamedTuple):
    """A column and how its value follows from the event (or part of one) that the row is of."""

    name: str
    kind: Kind
    get: Callable[[Any], Any] | str
    """A string names an attribute; `a.b` one of an attribute's."""


class Table:
    """A table that the sink fills, without the columns of the place."""

    def __init__(self, name: str, columns: Iterable[Column]) -> None:
        self.name = name
        # Attributes first: one call of a getter in C reads them all.
        self.columns = tuple(sorted(columns, key=lambda column: callable(column.get)))
        paths = [column.get for column in self.columns if isinstance(column.get, str)]
        assert len(paths) > 1, "a getter of one attribute gives no tuple"
        self._attributes = attrgetter(*paths)
        self._computed = [column.get for column in self.columns if callable(column.get)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns) + Place._fields

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return (*(column.kind for column in self.columns), "text", "u32", "u64", "millis")

    def row(self, source: Any, place: Place) -> tuple[Any, ...]:
        """Raises OverflowError for an integer that its column cannot hold."""
        row: tuple[Any, ...] = (*self._attributes(source), *[get(source) for get in self._computed], *place)
        for index, largest, smallest in self._bounds:
            value = row[index]
            if value is not None and not smallest <= value <= largest:
                raise OverflowError(f"{self.columns[index].name} is {value}")
        return row

    @cached_property
    def _bounds(self) -> list[tuple[int, int, int]]:
        """(index, largest, smallest) of the columns that hold integers."""
        return [(i, *_INTEGERS[c.kind]) for i, c in enumerate(self.columns) if c.kind in _INTEGERS]


class CutGroup(NamedTuple):
    """A group of a cut: a row of `cut_members`."""

    cut: events.BatchCut
    group: events.CutMember | events.CutExclusion
    position: int


def _column(name: str, kind: Kind, get: Callable[[Any], Any] | str | None = None) -> Column:
    return Column(name, kind, get or name)


def _texts(*names: str) -> list[Column]:
    return [_column(name, "text") for name in names]


def _optional(name: str) -> Callable[[Any], Any]:
    """The field, or None on the events of a table that lack it."""
    return lambda event: getattr(event, name, None)


def _json(name: str) -> Callable[[Any], bytes]:
    def get(event: Any) -> bytes:
        value = getattr(event, name, None)
        return b"" if value is None else msgspec.json.encode(value)

    return get


def _bytes(name: str) -> Callable[[Any], bytes]:
    def get(event: Any) -> bytes:
        return getattr(event, name) or b""

    return get


def _micros(name: str) -> Callable[[Any], int | None]:
    """Seconds since the epoch as microseconds; None for what no calendar knows."""
    field = attrgetter(name)

    def get(event: Any) -> int | None:
        seconds = field(event)
        return int(seconds * 1e6) if seconds is not None and math.isfinite(seconds) and 0 <= seconds < 8e9 else None

    return get


def _dump(name: str) -> Callable[[Any], list[dict[str, Any]]]:
    """A tuple of models as a list of maps, for a column of named tuples."""

    def get(event: Any) -> list[dict[str, Any]]:
        parts = [part.model_dump() for part in getattr(event, name)]
        for part in parts:
            _check_integers(name, part.values())
        return parts

    return get


def _counts(name: str) -> Callable[[Any], dict[str, int]]:
    def get(event: Any) -> dict[str, int]:
        counts: dict[str, int] = getattr(event, name)
        _check_integers(name, counts.values())
        return counts

    return get


def _counts_of_members(name: str) -> Callable[[events.GroupReady], dict[str, int]]:
    def get(ready: events.GroupReady) -> dict[str, int]:
        counts = sum((Counter(getattr(member, name)) for member in ready.members), Counter[str]())
        _check_integers(name, counts.values())
        return dict(sorted(counts.items()))

    return get


def _sum_of_members(name: str) -> Callable[[events.GroupReady], int | None]:
    """None where no member knows."""

    def get(ready: events.GroupReady) -> int | None:
        known = [value for member in ready.members if (value := getattr(member, name)) is not None]
        return sum(known) if known else None

    return get


def _span_links(sample: events.Sample) -> list[dict[str, Any]]:
    links = [{"kind": s.link or "", "step_id": s.link_to, "differs_at": s.differs_at} for s in sample.spans]
    for link in links:
        _check_integers("span_links", link.values())
    return links


def _experts(sample: events.Sample) -> list[dict[str, Any]]:
    spans = [
        {"step_id": s.step_id, "start": s.start, "end": s.end} | s.blob.model_dump() for s in sample.routed_experts
    ]
    for span in spans:
        _check_integers("routed_experts", span.values())
    return spans


def _curation(ready: events.GroupReady) -> bytes:
    """As Python writes JSON: with words for numbers that are not finite, which a decision may hold."""
    return json.dumps([decision.model_dump() for decision in ready.curation]).encode()


def _each(name: str, field: str) -> Callable[[Any], list[Any]]:
    return lambda event: [getattr(part, field) for part in getattr(event, name)]


def _sizes(field: str) -> Callable[[events.BatchCut], int | None]:
    return lambda cut: None if cut.sizes is None else getattr(cut.sizes, field)


def _check_integers(name: str, values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise OverflowError(f"{name} holds {value}")


def _text_of(name: str) -> Callable[[Any], str | None]:
    """A value that may be text or a number, as text."""
    return lambda event: None if (value := getattr(event, name)) is None else str(value)


_AT = _column("at", "micros", _micros("at"))
_METADATA = _column("metadata", "bytes", _json("metadata"))
_FACT = _texts("fact_id", "run_id")
_GROUP_FACT = [*_FACT, *_texts("prompt_uid")]
_TRAJECTORY_FACT = [*_GROUP_FACT, *_texts("trajectory_uid")]
_GROUP = _texts("run_id", "prompt_uid", "group_id")
_RECIPE = [_column("recipe", "text"), _column("recipe_version", "u32")]
_PLACE_IN = [_column("channel", "text", _optional("channel")), _column("task_id", "text", _optional("task_id"))]
_DECIDED = [_column("input_partition", "u32", "partition"), _column("pos", "u64"), _AT]
_VERSIONS = _column("version_spans", "versions", _dump("version_spans"))

CALLS = Table("calls", (*_TRAJECTORY_FACT, *_texts("step_id", "model"), _AT))
STEPS = Table(
    "steps",
    (
        *_TRAJECTORY_FACT,
        *_texts("step_id", "status", "parent_step_id"),
        *[_column(name, "u32") for name in ("prefix_len", "depth", "prompt_len", "response_len")],
        _column("has_log_probs", "bool", lambda step: step.rollout_log_probs is not None),
        _column("choice", "u32"),
        _column("finish_reason", "text"),
        _column("stop_reason", "text", _text_of("stop_reason")),
        _column("policy_version", "i64"),
        _VERSIONS,
        *_texts("role", "engine", "model", "dialect"),
        *[_column(name, "f64", f"sampling.{name}") for name in ("temperature", "top_p")],
        *[_column(name, "i64", f"sampling.{name}") for name in ("top_k", "max_tokens", "seed", "n")],
        _column("log_probs_mode", "text", "sampling.log_probs_mode"),
        _column("guided", "bool", "sampling.guided"),
        _column("usage", "bytes", _json("usage")),
        *[_column(name, "micros", _micros(f"timings.{name}")) for name in ("received", "first_byte", "done")],
        _column("messages_kept", "u32"),
        _column("channel", "text"),
        _column("step_index", "u32"),
        _column("multi_modal_data", "blobs", _dump("multi_modal_data")),
        _column("routed_experts", "text", lambda step: step.routed_experts and step.routed_experts.sha256),
        _column("routed_experts_bytes", "u64", lambda step: step.routed_experts and step.routed_experts.bytes),
        _column("routed_experts_kind", "text", lambda step: step.routed_experts and step.routed_experts.kind),
        _column("retry_of", "text"),
        _column("repeats", "bool"),
        _column("capture_ok", "bool", "capture.ok"),
        _column("capture_reasons", "texts", "capture.reasons"),
        _METADATA,
        _AT,
    ),
)
STEP_TOKENS = Table(
    "step_tokens",
    (
        *_texts("run_id", "prompt_uid", "trajectory_uid", "step_id"),
        _column("new_prompt_ids", "ids"),
        _column("response_ids", "ids"),
        _column("rollout_log_probs", "floats", _bytes("rollout_log_probs")),
        _column("prefix_hash", "text", lambda step: (step.prefix_hash or b"").hex()),
        *[_column(name, "bytes", _bytes(name)) for name in ("new_messages", "reply", "request")],
    ),
)
REWARDS = Table(
    "rewards",
    (
        *_TRAJECTORY_FACT,
        *_texts("step_id", "source"),
        _column("revision", "i64"),
        _column("value", "f64"),
        _column("components", "floats_by_name"),
        _column("self_reported", "bool"),
        _METADATA,
        _AT,
    ),
)
ANNOTATIONS = Table(
    "annotations",
    (
        *_TRAJECTORY_FACT,
        *_texts("step_id", "name", "source"),
        _column("revision", "i64"),
        _column("values", "floats"),
        _AT,
    ),
)
DECISIONS = Table(
    "decisions",
    (
        *_TRAJECTORY_FACT,
        *_texts("step_id", "action"),
        _column("value", "text", _text_of("value")),
        _column("value_is_number", "bool", lambda decision: isinstance(decision.value, int | float)),
        *_texts("undoes", "group_id", "author", "reason"),
        _AT,
    ),
)
TRAJECTORY_EVENTS = Table(
    "trajectory_events",
    (
        *_TRAJECTORY_FACT,
        _column("kind", "text", lambda event: "end" if isinstance(event, events.TrajectoryEnd) else "open"),
        *_PLACE_IN,
        _column("status", "text", _optional("status")),
        _column("reason", "text", _optional("reason")),
        _METADATA,
        _AT,
    ),
)
GROUP_EVENTS = Table(
    "group_events",
    (
        *_GROUP_FACT,
        _column("kind", "text", lambda event: "cancel" if isinstance(event, events.GroupCancel) else "open"),
        _column("size", "u32", _optional("size")),
        *_PLACE_IN,
        _column("reason", "text", _optional("reason")),
        _METADATA,
        _AT,
    ),
)
RECIPES = Table(
    "recipes",
    (
        *_FACT,
        _column("name", "text"),
        _column("recipe_version", "u32", "version"),
        _column(
            "recipe", "bytes", lambda event: b"" if event.recipe is None else event.recipe.model_dump_json().encode()
        ),
        _AT,
    ),
)
PURGES = Table("purges", (*_FACT, *_texts("reason"), _AT))
TRAJECTORY_LOOKUP = Table("trajectory_lookup", tuple(_texts("trajectory_uid", "run_id", "prompt_uid")))
TRAJECTORIES = Table(
    "trajectories",
    (
        *_GROUP,
        *_texts("trajectory_uid", "channel", "task_id", "status"),
        _column("complete", "bool"),
        _column("step_ids", "texts"),
        _column("rewards", "rewards", _dump("rewards")),
        _column("messages", "bytes", _bytes("messages")),
        _METADATA,
        *_DECIDED,
    ),
)
GROUPS = Table(
    "groups",
    (
        *_GROUP,
        *_RECIPE,
        *_texts("channel", "task_id", "reason"),
        _column("members", "members", _dump("members")),
        _column("member_source_rewards", "optional_floats", _each("members", "source_reward")),
        _column("sample_ids", "texts"),
        _column("tokens", "u64"),
        _column("trained_tokens", "u64"),
        _column("links", "counts_by_name", _counts_of_members("links")),
        _column("holes", "u32", _sum_of_members("holes")),
        _column("step_tokens", "u64", _sum_of_members("step_tokens")),
        _column("mask_reasons", "counts_by_name", _counts_of_members("mask_reasons")),
        _column("annotations_unused", "counts_by_name", _counts_of_members("unused")),
        _column("reward_mean", "f64"),
        _column("reward_std", "f64"),
        _column("min_version", "i64"),
        _column("max_version", "i64"),
        _column("decisions", "texts"),
        _column("curation", "bytes", _curation),
        *_DECIDED,
        _column("decided_at", "micros", _micros("decided_at")),
    ),
)
SAMPLES = Table(
    "samples",
    (
        *_texts("sample_id"),
        *_GROUP,
        *_texts("trajectory_uid"),
        *_RECIPE,
        *_texts("channel", "task_id"),
        _column("sample_index", "u32"),
        _column("n_samples", "u32"),
        _column("spans", "spans", _dump("spans")),
        _column("token_ids", "ids"),
        _column("loss_mask", "mask"),
        _column("rollout_log_probs", "floats"),
        _VERSIONS,
        _column("mask_reasons", "counts_by_name", _counts("mask_reasons")),
        _column("links", "counts_by_name", _counts("links")),
        _column("span_links", "links", _span_links),
        _column("span_source_rewards", "optional_floats", _each("spans", "source_reward")),
        _column("holes", "u32"),
        _column("annotations", "texts", lambda sample: sorted(sample.annotations)),
        _column("annotation_values", "arrays_by_name", attrgetter("annotations")),
        _column("annotations_missing", "counts_by_name", _counts("annotations_missing")),
        _column("routed_experts", "experts", _experts),
        _column("multi_modal_data", "blobs", _dump("multi_modal_data")),
        _column("tokens", "u32", lambda sample: len(sample.loss_mask)),
        _column("trained_tokens", "u32", lambda sample: sample.loss_mask.count(1)),
        _column("reward", "f64"),
        _column("reward_components", "floats_by_name"),
        _column("label", "text"),
        _column("tags", "texts"),
        _column("quality", "f64"),
        _METADATA,
        _column("is_whole", "bool", lambda sample: True),
    ),
)
OUTCOMES = Table(
    "outcomes",
    (
        *_texts("outcome_id"),
        *_GROUP,
        _column("round", "u32"),
        _column("part", "u32"),
        *_RECIPE,
        *_texts("trajectory_uid", "fact_id"),
        _column("batch", "u64"),
        *_texts("outcome", "reason"),
        *_DECIDED,
    ),
)
CUTS = Table(
    "cuts",
    (
        *_texts("batch_id"),
        *_RECIPE,
        *_texts("run_id"),
        _column("sequence", "u64"),
        _column("groups", "u32", lambda cut: len(cut.members)),
        _column("excluded", "u32", lambda cut: len(cut.excluded)),
        *[_column(name, "u64", _sizes(name)) for name in ("samples", "tokens", "trained_tokens")],
        *[_column(name, "i64", _sizes(name)) for name in ("oldest_version", "newest_version")],
        *[_column(name, "u64") for name in ("start", "cursor", "needs", "resume")],
        _column("policy_version", "i64"),
        *_texts("digest"),
        _column("checksums", "counts_by_name", _counts("checksums")),
        *_texts("holder"),
        _AT,
    ),
)
CUT_MEMBERS = Table(
    "cut_members",
    (
        *[_column(name, "text", f"cut.{name}") for name in ("batch_id", "recipe", "run_id")],
        _column("sequence", "u64", "cut.sequence"),
        _column("position", "u32"),
        _column("taken", "bool", lambda member: isinstance(member.group, events.CutMember)),
        _column("reason", "text", lambda member: getattr(member.group, "reason", None)),
        _column("group_run_id", "text", "group.run_id"),
        _column("group_id", "text", "group.group_id"),
        _column("ready_offset", "u64", "group.offset"),
        _column("sample_ids", "texts", lambda member: getattr(member.group, "sample_ids", ())),
        _column("left_out", "texts", lambda member: getattr(member.group, "left_out", ())),
        _column("decisions", "texts", lambda member: [decision.fact_id for decision in member.group.decisions]),
        _column("decision_offsets", "u64s", lambda member: [decision.offset for decision in member.group.decisions]),
    ),
)
TRAINED = Table(
    "trained",
    (
        *_texts("batch_id", "recipe", "run_id"),
        _column("sequence", "u64"),
        _column("cursor", "u64"),
        _column("policy_version", "i64"),
        _column("trainer_step", "i64"),
        *_texts("weights_digest", "holder"),
        _AT,
    ),
)
TOKEN_STATS = Table(
    "token_stats",
    (
        *_texts("batch_id", "recipe"),
        _column("sequence", "u64"),
        _column("policy_version", "i64"),
        *_GROUP,
        *_texts("trajectory_uid", "sample_id", "name"),
        _column("values", "floats"),
        *_texts("holder"),
        _AT,
    ),
)
POLICIES = Table(
    "policies",
    (
        *_texts("run_id", "engine"),
        _column("policy_version", "i64", "version"),
        _column("trainer_step", "i64"),
        *_texts("weights_digest"),
        _AT,
    ),
)

STORED: Final[dict[type[Event], tuple[Table, ...]]] = {
    events.GroupOpen: (GROUP_EVENTS,),
    events.GroupCancel: (GROUP_EVENTS,),
    events.TrajectoryOpen: (TRAJECTORY_EVENTS, TRAJECTORY_LOOKUP),
    events.StepStarted: (CALLS,),
    events.Step: (STEPS, STEP_TOKENS),
    events.Reward: (REWARDS,),
    events.Annotation: (ANNOTATIONS,),
    events.TrajectoryEnd: (TRAJECTORY_EVENTS,),
    events.Decision: (DECISIONS,),
    events.RecipeSet: (RECIPES,),
    events.RunPurged: (PURGES,),
    events.Trajectory: (TRAJECTORIES,),
    events.Sample: (SAMPLES,),
    events.GroupReady: (GROUPS,),
    events.Outcome: (OUTCOMES,),
    events.Policy: (POLICIES,),
    events.TrajectoryIndex: (TRAJECTORY_LOOKUP,),
    events.BatchCut: (CUTS,),
    events.BatchTrained: (TRAINED,),
    events.TokenStats: (TOKEN_STATS,),
}
"""The tables in which every event of a type has exactly one row."""

NOT_STORED: Final[dict[type[Event], str]] = {
    events.RecipeActive: "says again what the RecipeSet at the same place of the events says, and that is in recipes",
    events.GroupCarried: "where a stream worker begins anew; the facts that it names are rows already",
    events.EngineSet: "how gateways reach an engine, keys included: GET /engines shows it, and each step names its engine",
    events.Demand: "a state of the moment, shown by GET /demand; cuts and outcomes tell what became of groups",
    events.GroupAdmitted: "what the group's facts say too, told to every gateway before there are any",
    events.EnginePause: "a state of the moment, shown by GET /engines",
    events.RunConfig: "how gateways treat a run, shown by GET /runs/{run_id}; each step has the role and sampling in effect",
}
"""Events that become no row, each with the reason."""

COPIED: Final = (events.Decision, events.RunPurged)
"""Facts that streams tell a recipe's trainer again, on its topic: the row is that of the fact among the events."""

TABLES: Final[dict[str, Table]] = {
    table.name: table for table in (*(table for tables in STORED.values() for table in tables), CUT_MEMBERS)
}


def list_rows(event: Event, place: Place) -> list[tuple[str, tuple[Any, ...]]]:
    """(table, row) of every row that the event becomes; none for an event in NOT_STORED, or a copy.

    Raises InvalidRecord("unstorable") if a value has no form in its column.
    """
    if isinstance(event, COPIED) and place.topic != EVENTS:
        return []
    try:
        return [(table.name, table.row(source, place)) for table, source in _sources(event)]
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRecord("unstorable", f"a {event.TYPE} that does not fit its table: {error}") from error


def _sources(event: Event) -> Iterator[tuple[Table, Any]]:
    for table in STORED.get(type(event), ()):
        yield table, event
    if isinstance(event, events.Step) and event.parent_step_id is None:
        yield TRAJECTORY_LOOKUP, event
    if isinstance(event, events.BatchCut):
        for position, member in enumerate(event.members):
            yield CUT_MEMBERS, CutGroup(event, member, position)
        for position, excluded in enumerate(event.excluded):
            yield CUT_MEMBERS, CutGroup(event, excluded, position)
