"""Measured windows become costs: what a step, a trajectory and a token take of each process, fitted by least squares.

Invariants: pure; no cost is below zero, so more work never costs less; windows that are held out take no part in the fit, and
the fit is judged by them alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Quantity = str
BEHIND: Final = ("seconds", "steps", "trajectories", "new_tokens", "sampled_tokens")
CPU_BY: Final[Mapping[str, tuple[Quantity, ...]]] = {
    "gateway": ("seconds", "steps", "trajectories", "sampled_tokens", "prompt_tokens"),
    "streams": BEHIND,
    "sinks": BEHIND,
    "kafka": BEHIND,
    "clickhouse": BEHIND,
    "trainer": BEHIND,
}
"""What each process's time may depend on. Only the gateway sees a call's whole prompt; behind it is each token once."""
ON_LOG: Final = BEHIND[1:]
BYTES_BY: Final[Mapping[str, tuple[Quantity, ...]]] = {
    "requests": ("steps", "trajectories", "prompt_tokens"),
    "answers": ("steps", "trajectories", "sampled_tokens", "prompt_tokens"),
    "events": ON_LOG,
    "trajectories": ON_LOG,
    "batches": ON_LOG,
    "outcomes": ON_LOG,
    "inserted": ON_LOG,
}
"""The same for bytes: what agents sent and got, what stands on the topics afterwards, what went into the pool."""
LEAST_SHAPES: Final = 4
GOAL: Final = 0.2
"""Of the error of a prediction."""


@dataclass(frozen=True)
class Work:
    """What was done, or what is to be done in each second (then `seconds` is 1)."""

    seconds: float = 0.0
    steps: float = 0.0
    trajectories: float = 0.0
    new_tokens: float = 0.0
    """Each token once: prompts without what stood before, and responses."""
    sampled_tokens: float = 0.0
    """Of these, the responses, which have log-probs."""
    prompt_tokens: float = 0.0
    """Whole prompts of all calls."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}")

    def of(self, quantities: Sequence[Quantity]) -> list[float]:
        return [float(getattr(self, name)) for name in quantities]


@dataclass(frozen=True)
class Window:
    """A measurement: from the first call until everything of it was trained and in the pool."""

    shape: str
    work: Work
    cpu: Mapping[str, float]
    """Process → seconds of processor time."""
    bytes: Mapping[str, float]
    """Flow → bytes."""
    offered_steps_per_s: float | None = None
    """None: as many as went through."""
    held_out: bool = False
    others: float | None = None
    """Share of the cores that went to nobody of the benchmark; unknown is None."""

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "Window":
        """A window as JSON has it. Raises ValueError for one that is none."""
        known = {one.name for one in fields(cls)}
        if unknown := values.keys() - known:
            raise ValueError(f"a window has no {', '.join(sorted(unknown))}")
        try:
            window = cls(**{**values, "work": Work(**values["work"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"this is no window: {error}") from error
        if not (window.work.seconds > 0 and window.work.steps > 0):
            raise ValueError(f"a window of {window.work.seconds} s with {window.work.steps} steps says nothing")
        for name, value in {**window.cpu, **window.bytes}.items():
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name} took {value} in a window of {window.work.steps} steps")
        return window

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Cost:
    """What one of each quantity costs, of one process or flow: seconds, or bytes."""

    seconds: float = 0.0
    steps: float = 0.0
    trajectories: float = 0.0
    new_tokens: float = 0.0
    sampled_tokens: float = 0.0
    """More than a token that was not sampled."""
    prompt_tokens: float = 0.0

    def __call__(self, work: Work) -> float:
        return float(sum(getattr(self, one.name) * getattr(work, one.name) for one in fields(self)))

    @property
    def standing(self) -> float:
        """Of a second, whatever is done in it."""
        return self.seconds

    def moving(self, work: Work) -> float:
        """Without what a second costs by itself."""
        return self(work) - self.seconds * work.seconds


@dataclass(frozen=True)
class Costs:
    """The fitted model."""

    cpu: Mapping[str, Cost] = field(default_factory=dict)
    """Process → seconds of processor time."""
    bytes: Mapping[str, Cost] = field(default_factory=dict)
    """Flow → bytes."""


@dataclass(frozen=True)
class Check:
    """A prediction of a window that took no part in the fit, beside what was measured."""

    shape: str
    what: str
    offered_steps_per_s: float | None
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Above zero: the model asks for more than was needed."""
        return (self.predicted - self.measured) / self.measured


def solve(rows: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """x >= 0 [columns] that makes the relative error of rows @ x against values [rows, > 0] least, in squares.

    Of all sets of columns the best whose plain least squares has nothing below zero: where the constraint binds, that is where
    the least lies. Columns are few.
    """
    weighted = rows / values[:, None]
    size = np.abs(weighted).max(axis=0)
    best, least = np.zeros(rows.shape[1]), float(len(values))
    for number in range(1, rows.shape[1] + 1):
        for chosen in combinations(np.flatnonzero(size > 0), number):
            some = list(chosen)
            found = np.linalg.lstsq(weighted[:, some] / size[some], np.ones(len(values)), rcond=None)[0]
            if (found < 0).any():
                continue
            left = float(((weighted[:, some] / size[some] @ found - 1.0) ** 2).sum())
            if left < least - 1e-12:
                best, least = np.zeros(rows.shape[1]), left
                best[some] = found / size[some]
    return best


def fit_one(windows: Sequence[Window], values: Sequence[float], quantities: Sequence[Quantity]) -> Cost:
    """The cost by these quantities that fits the windows' values best."""
    rows = np.array([window.work.of(quantities) for window in windows], dtype=np.float64)
    found = solve(rows, np.array(values, dtype=np.float64))
    return Cost(**dict(zip(quantities, map(float, found), strict=True)))


def fit(windows: Iterable[Window]) -> Costs:
    """Costs of all processes and flows, from the windows that are not held out. Raises ValueError if they are too few."""
    fitted = [window for window in windows if not window.held_out]
    shapes = {window.shape for window in fitted}
    if len(shapes) < LEAST_SHAPES:
        raise ValueError(f"{len(shapes)} shapes of conversations were measured, and a fit needs {LEAST_SHAPES}")
    return Costs(
        {name: fit_one(fitted, [w.cpu[name] for w in fitted], by) for name, by in CPU_BY.items()},
        {name: fit_one(fitted, [w.bytes[name] for w in fitted], by) for name, by in BYTES_BY.items()},
    )


def check(costs: Costs, windows: Iterable[Window]) -> list[Check]:
    """Every process's time in every window that was held out, and that of all together."""
    found: list[Check] = []
    for window in windows:
        if window.held_out:
            pairs = {name: (window.cpu[name], cost(window.work)) for name, cost in costs.cpu.items()}
            pairs["all"] = (sum(m for m, _ in pairs.values()), sum(p for _, p in pairs.values()))
            found += [Check(window.shape, name, window.offered_steps_per_s, *pair) for name, pair in pairs.items()]
    return found


def check_bytes(costs: Costs, windows: Iterable[Window]) -> list[Check]:
    """Every flow's bytes in every window that was held out."""
    return [
        Check(window.shape, name, window.offered_steps_per_s, window.bytes[name], cost(window.work))
        for window in windows
        if window.held_out
        for name, cost in costs.bytes.items()
    ]
