"""What a log of another program says of a model call becomes facts, with ids that follow from what was said.

Pure. A log has texts and no token ids: its steps are kept with the fault `text_only`, and no recipe trains them. The same line
gives the same facts, so that what is imported twice is there once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec

from claw_r1.errors import InvalidRecord, UserError
from claw_r1.events import Capture, GroupFact, Reward, Sampling, Step, Timings, TrajectoryEnd, TrajectoryOpen
from claw_r1.ids import check_id, derived_id

Json = dict[str, Any]
TEXT_ONLY: Final = "text_only"


@dataclass(frozen=True, slots=True)
class Naming:
    """Where a log's lines belong, and which of their fields say it: paths such as `metadata.session`."""

    run_id: str
    channel: str = "train"
    trajectory: str | None = None
    prompt: str | None = None
    task: str | None = None
    reward: str | None = None
    reward_source: str = "reward"


class Place(NamedTuple):
    """The trajectory that a call is of."""

    run_id: str
    prompt_uid: str
    trajectory_uid: str


class Fault(NamedTuple):
    """Something in a line that gives no fact, and why."""

    reason: str
    message: str


@dataclass(slots=True)
class Parsed:
    """What a line gave."""

    facts: list[GroupFact] = field(default_factory=list)
    ends: list[TrajectoryEnd] = field(default_factory=list)
    """Of trajectories that later lines may go on with: to be written behind all of them."""
    faults: list[Fault] = field(default_factory=list)
    skipped: int = 0
    """What is no model call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallText:
    """A model call as a log tells it."""

    messages: Sequence[Json]
    reply: Json
    request: Json = field(default_factory=dict)
    """Without the messages."""
    model: str | None = None
    finish_reason: str | None = None
    usage: Json | None = None
    choice: int = 0
    index: int | None = None
    received: float | None = None
    done: float | None = None
    metadata: Json = field(default_factory=dict)
    name: str | None = None
    """What the log calls it; None: it is named by its content."""


def canonical(value: Any) -> bytes:
    """The same bytes for the same JSON. Raises InvalidRecord("unencodable")."""
    try:
        return msgspec.json.encode(value, order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRecord("unencodable", f"it cannot be recorded: {error}") from error


def look_up(document: Any, path: str | None) -> Any:
    """The value at a dotted path; a key that holds the dots itself goes first. None if there is none."""
    if path is None or not isinstance(document, Mapping):
        return None
    if path in document:
        return document[path]
    head, _, rest = path.partition(".")
    return look_up(document.get(head), rest) if rest else document.get(head)


def named_id(value: Any, *otherwise: object) -> str:
    """An id that a log says, or one derived of it where it has not the form of an id; without one, derived of `otherwise`."""
    if value is None or value == "":
        return derived_id(*otherwise)
    text = str(value)
    try:
        return check_id("id", text)
    except UserError:
        return derived_id("import-name", text)


def opening(place: Place, naming: Naming, *, task_id: Any, metadata: Json, at: float) -> TrajectoryOpen:
    return TrajectoryOpen(
        fact_id=derived_id("import-open", *place),
        **place._asdict(),
        at=at,
        channel=naming.channel,
        task_id=None if task_id is None else str(task_id)[:256],
        metadata=metadata,
    )


def step_of(place: Place, naming: Naming, call: CallText, at: float) -> Step:
    """The call as a step without tokens."""
    messages, reply = canonical(list(call.messages)), canonical(call.reply)
    step_id = derived_id(
        "import-step", *place, *((call.name,) if call.name else (messages, reply, call.choice, call.index))
    )
    return Step(
        fact_id=step_id,
        step_id=step_id,
        **place._asdict(),
        at=at,
        choice=call.choice,
        finish_reason=call.finish_reason,
        model=call.model,
        sampling=_sampling(call.request),
        usage=call.usage,
        timings=Timings(received=call.received, done=call.done),
        new_messages=messages,
        reply=reply,
        request=canonical(call.request),
        channel=naming.channel,
        step_index=call.index,
        capture=Capture(ok=False, reasons=(TEXT_ONLY,)),
        metadata=call.metadata,
    )


def _sampling(request: Json) -> Sampling:
    def number(name: str, kind: type) -> Any:
        value = request.get(name)
        return value if isinstance(value, kind | int) and not isinstance(value, bool) else None

    return Sampling(
        temperature=number("temperature", float),
        top_p=number("top_p", float),
        max_tokens=number("max_completion_tokens", int) or number("max_tokens", int),
        seed=number("seed", int),
        n=number("n", int),
    )


def reward_of(place: Place, value: Any, source: str, at: float, *, step_id: str | None = None) -> Reward:
    """A score that a log tells. Raises InvalidRecord("bad_reward") if it is no number."""
    if isinstance(value, bool):
        value = float(value)
    if not isinstance(value, int | float) or value - value != 0:
        raise InvalidRecord("bad_reward", f"the reward {value!r} is not a number")
    return Reward(
        fact_id=derived_id("import-reward", *place, step_id, source),
        **place._asdict(),
        step_id=step_id,
        at=at,
        source=source,
        value=float(value),
    )


def ending(place: Place, at: float) -> TrajectoryEnd:
    return TrajectoryEnd(fact_id=derived_id("import-end", *place), **place._asdict(), at=at)
