"""What a function gave for a rollout becomes a score, or the reason why there is none.

A plug-in imports all that it needs from here. Invariants: a missing reward is never 0; a score is finite; the names of
sources are ids.
"""

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec

from claw_r1.curation import MAX_NUMBER, is_usable
from claw_r1.errors import WrongUse
from claw_r1.event_base import Json
from claw_r1.ids import check_id
from claw_r1.rewards.rollout import Missing as Missing
from claw_r1.rewards.rollout import Rollout as Rollout
from claw_r1.rewards.rollout import StepView as StepView

Call = Callable[[Rollout], Any]
Place = Literal["thread", "loop", "process"]


@dataclass(frozen=True)
class Score:
    """How good a trajectory was; `value` None with `steps`: only these are scored."""

    value: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    """Parts of the value by name."""
    steps: Mapping[str, float] = field(default_factory=dict)
    """Scores of steps by step id: a process reward."""
    metadata: Json = field(default_factory=dict)
    """What else is worth keeping, such as a judge's words."""


@dataclass(frozen=True)
class RewardFunction:
    """A function with what `reward` said of it. Calling it calls the function."""

    name: str
    call: Call
    place: Place
    reference: str
    """module:name by which another process finds it."""
    steps: bool = False
    weights: Mapping[str, float] = field(default_factory=dict)
    revision: int = 0
    timeout: float | None = None
    calls: int | None = None
    close: Callable[[], Awaitable[None]] | None = None

    def __call__(self, rollout: Rollout) -> Any:
        return self.call(rollout)

    def score(self, found: Any) -> Score:
        """What the function gave, as a score. Raises Missing."""
        return score_of(found, self.weights)

    def named(self, name: str) -> "RewardFunction":
        """The same function as another source."""
        return replace(self, name=check_id("reward", name))


def reward(
    name: str,
    *,
    process: bool = False,
    steps: bool = False,
    weights: Mapping[str, float] | None = None,
    revision: int = 0,
    timeout: float | None = None,
    calls: int | None = None,
) -> Callable[[Call], RewardFunction]:
    """Make a function of a Rollout the reward source `name`.

    It gives a number, None (no reward), a dict of components (their sum by `weights`, 1 where none is given, is the value), or
    a Score. A coroutine function runs in the event loop, another one in a thread, or with `process` in a process of its own,
    which a CPU-heavy one needs and which is ended when it is late. `steps`: it needs the steps, which are read from the pool.
    `revision` is raised to score again what was scored before. `timeout` in seconds and `calls` at once beat the settings.

    Raises UserError for a name that is no id, WrongUse for a coroutine function with `process`.
    """
    check_id("reward", name)

    def make(call: Call) -> RewardFunction:
        awaits = inspect.iscoroutinefunction(call)
        if awaits and process:
            raise WrongUse(f"the reward function {name} is a coroutine function: it cannot run in a process of its own")
        place: Place = "loop" if awaits else "process" if process else "thread"
        reference = f"{call.__module__}:{getattr(call, '__qualname__', name)}"
        return RewardFunction(name, call, place, reference, steps, dict(weights or {}), revision, timeout, calls)

    return make


def score_of(found: Any, weights: Mapping[str, float]) -> Score:
    """Raises Missing: none_given, bad_value, not_finite."""
    if found is None:
        raise Missing("none_given", "the function gave no reward")
    if isinstance(found, Mapping):
        components = _numbers(found)
        total = math.fsum(weights.get(name, 1.0) * value for name, value in components.items())
        found = Score(total if components else None, components)
    elif not isinstance(found, Score):
        found = Score(_number("the reward", found))
    assert isinstance(found, Score)
    value = None if found.value is None else _number("the reward", found.value)
    score = replace(found, value=value, components=_numbers(found.components), steps=_numbers(found.steps))
    if value is None and not score.steps:
        raise Missing("none_given", "the function gave a score without a value")
    _check_recordable(score.metadata)
    return score


def _check_recordable(metadata: Json) -> None:
    """Records are msgpack and the pool's columns JSON."""
    try:
        msgspec.json.encode(metadata)
        msgspec.msgpack.encode(metadata)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Missing("bad_value", f"the score's metadata cannot be recorded: {error}") from error


def _numbers(found: Mapping[Any, Any]) -> dict[str, float]:
    return {str(name): _number(f"the component {str(name)[:80]}", value) for name, value in found.items()}


def _number(what: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise Missing("bad_value", f"{what} is a {type(value).__name__} instead of a number") from error
    if not is_usable(number):
        raise Missing("not_finite", f"{what} is {number}, which is no number of at most {MAX_NUMBER:g}")
    return number
