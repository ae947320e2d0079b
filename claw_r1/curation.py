"""People's decisions on a group become what they say of its trajectories and steps now.

Pure, and independent of the order in which decisions arrive. An undo makes the decision that it names void, also another
undo. Of decisions that contradict each other the latest by `at` counts, then the one with the larger id; what is said of a
trajectory goes before what is said of its group. A value that the action cannot take says nothing.
"""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeGuard, get_args

from claw_r1.events import Decision


@dataclass(frozen=True, slots=True)
class Override:
    """A person's reward in the place of the others; None: there is none."""

    value: float | None


@dataclass(frozen=True, slots=True)
class Curation:
    """What the decisions in force say of one trajectory, or of the group as a whole."""

    vetoed: bool = False
    kept: bool = False
    """Filters do not apply to it; a group that is held for review goes on."""
    label: str | None = None
    reward: Override | None = None
    tags: tuple[str, ...] = ()
    quality: float | None = None
    vetoed_steps: frozenset[str] = frozenset()
    step_rewards: dict[str, Override] = field(default_factory=dict)


NOTHING: Final = Curation()
ACTIONS: Final[tuple[str, ...]] = get_args(Decision.model_fields["action"].annotation)
WORDED: Final = ("relabel", "tag", "note")
"""Actions whose value is a text."""
NUMBERED: Final = ("override_reward", "quality")
"""Actions whose value is meant to be a number."""
MAX_NUMBER: Final = 1e38
"""Largest reward, or quality, by its absolute value: differences of two must fit into a trainer's 32 bits, squares into 64."""


def is_usable(value: float) -> bool:
    """Whether a trainer can compute with it: neither infinite, nor NaN, nor beyond MAX_NUMBER."""
    return abs(value) <= MAX_NUMBER


def why_unfit(action: str, value: str | float | None) -> str | None:
    """Why an action cannot take a value; None if it can."""
    if action in WORDED:
        return None if isinstance(value, str) and value else f"{action} needs a text"
    if action == "quality" and value is None:
        return "quality needs a number"
    if action in NUMBERED and value is not None:
        is_number = not isinstance(value, bool) and _is_number(value)
        return None if is_number else f"{value!r} is not a number of at most {MAX_NUMBER:g}"
    return None if value is None else f"{action} takes no value"


def read_value(action: str, text: str | None, is_number: bool | None) -> str | float | None:
    """A decision's value of the text that the pool keeps; None for `is_number`: the row is older than that column."""
    if text is not None and (action in NUMBERED if is_number is None else is_number):
        with contextlib.suppress(ValueError):
            return float(text)
    return text


def list_in_force(decisions: Iterable[Decision]) -> list[Decision]:
    """The decisions that nothing made void, oldest first; undos and notes, which say nothing of the data, are left out."""
    ordered = sorted(decisions, key=_order)
    void: set[str] = set()
    for decision in reversed(ordered):
        if decision.action == "undo" and decision.undoes is not None and decision.fact_id not in void:
            void.add(decision.undoes)
    return [d for d in ordered if d.fact_id not in void and d.action not in ("undo", "note")]


def _order(decision: Decision) -> tuple[float, str]:
    return decision.at if math.isfinite(decision.at) else 0.0, decision.fact_id


def curate(in_force: Iterable[Decision], trajectory_uid: str | None) -> Curation:
    """What `list_in_force` says of a trajectory; None: of the group as a whole."""
    of_group: list[Decision] = []
    own: list[Decision] = []
    steps: list[Decision] = []
    for decision in in_force:
        if decision.trajectory_uid is None and decision.step_id is None:
            of_group.append(decision)
        elif trajectory_uid is not None and decision.trajectory_uid == trajectory_uid:
            (own if decision.step_id is None else steps).append(decision)
    if not (of_group or own or steps):
        return NOTHING
    verdict = _latest_verdict(own if trajectory_uid is not None else of_group)
    kept = verdict or (_latest_verdict(of_group) if trajectory_uid is not None else None)
    said = [*of_group, *own]
    return Curation(
        vetoed=verdict == "veto",
        kept=kept == "keep",
        label=next((str(d.value) for d in reversed(said) if d.action == "relabel" and _is_text(d.value)), None),
        reward=_override(said),
        tags=tuple(sorted({str(d.value) for d in [*said, *steps] if d.action == "tag" and _is_text(d.value)})),
        quality=next((float(d.value) for d in reversed(said) if d.action == "quality" and _is_number(d.value)), None),
        vetoed_steps=frozenset(s for s in _steps(steps) if _latest_verdict(_about(steps, s)) == "veto"),
        step_rewards={s: found for s in _steps(steps) if (found := _override(_about(steps, s))) is not None},
    )


def _latest_verdict(decisions: Iterable[Decision]) -> str | None:
    found = [d.action for d in decisions if d.action in ("veto", "keep")]
    return found[-1] if found else None


def _override(decisions: Iterable[Decision]) -> Override | None:
    found: Override | None = None
    for decision in decisions:
        if decision.action != "override_reward":
            continue
        if decision.value is None:
            found = Override(None)
        elif _is_number(decision.value):
            found = Override(float(decision.value))
    return found


def _steps(decisions: Iterable[Decision]) -> list[str]:
    return sorted({d.step_id for d in decisions if d.step_id is not None})


def _about(decisions: Iterable[Decision], step_id: str) -> list[Decision]:
    return [d for d in decisions if d.step_id == step_id]


def _is_text(value: str | float | None) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and is_usable(value)
