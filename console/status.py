"""Rows of the pool and answers of the processes become one document: what the screen Flow shows and `/flow.json` says.

Pure. Unknown is None, never 0: a pool that is away has no numbers, an unasked process no state.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from claw_r1.probe_answers import Gauge, Process
from console.queries import BUCKET_SECONDS, BUCKETS, STAGES

Row = Mapping[str, Any]
RATE_BUCKETS: Final = 2
"""A rate is that of the newest two buckets: ten seconds."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Stage(_Part):
    """A stop of the flow: how many there are, how many a second, and the last two minutes, oldest first."""

    name: str
    count: int
    per_second: float
    recent: tuple[int, ...]


class Reason(_Part):
    """How many trajectories, groups or facts came to an end that trains nothing, and why."""

    about: Literal["group", "trajectory", "fact"]
    outcome: str
    reason: str
    count: int


class BatchPoint(_Part):
    """A batch that was cut. `reward` is the mean over its groups' means, None if unknown; `at` in seconds since the epoch."""

    sequence: int
    groups: int
    excluded: int
    reward: float | None
    reward_std: float | None
    """Mean over its groups of their deviation."""
    drift: float | None = None
    """Share of its steps whose prompt was meant to go on from another and differs; docs/samples.md."""
    length: float | None
    """Mean tokens of a sample."""
    trained_tokens: int | None
    stalest: int | None
    """Versions that the oldest trained token was behind at the cut."""
    policy_version: int | None
    """The weights that its optimiser step made; None: not yet acknowledged."""
    at: float


class RecipeLine(_Part):
    """A recipe in force, or one that has batches, with what waits for it."""

    name: str
    version: int | None
    in_force: bool
    run_id: str | None
    channel: str | None
    algorithm: str | None
    group_size: int | None
    batch_groups: int | None
    """None: not known, or the batch is by tokens."""
    batch_tokens: int | None
    ready: int
    """Ready groups that no batch has yet."""
    oldest_ready: float | None
    """Since when the oldest of them waits, in seconds since the epoch."""
    batches: tuple[BatchPoint, ...]
    """The newest ones, oldest first."""


class PolicyLine(_Part):
    """The newest weights of a run: of its trainer (no engine), or as an engine serves them."""

    run_id: str
    engine: str | None
    version: int
    at: float


class Numbers(_Part):
    """What the pool says; `at` in seconds since the epoch."""

    at: float
    stages: tuple[Stage, ...]
    totals: dict[str, int]
    sampled_tokens: int
    faulty_steps: int
    """Steps whose ids, log-probs and usage do not agree."""
    broken_steps: int
    """Steps whose caller left or whose engine broke off."""
    lost_calls: int
    """Calls that were sent to an engine over a minute ago and have no step."""
    fates: dict[str, dict[str, int]]
    """about → outcome → count."""
    left_out: tuple[Reason, ...]
    recipes: tuple[RecipeLine, ...]
    policies: tuple[PolicyLine, ...]

    @property
    def empty(self) -> bool:
        return not any(self.totals.get(table) for table in ("calls", "steps", "trajectories", "groups", "cuts"))


class PartlyAsked(_Part):
    """A stage with more processes than are asked: what is said of it is said of those that were."""

    stage: str
    asked: int
    known: int


class Engine(_Part):
    """An engine as the gateway sees it; None: it does not say."""

    name: str
    up: bool | None
    in_flight: int | None
    versions: tuple[int, ...] = ()
    """Newest weights that it serves, of each run that said so."""


class Lag(_Part):
    """What a process has not taken in yet; None: it does not say."""

    name: str
    records: int | None


class Pool(_Part):
    """Whether the pool answers: `away` does not, `unmade` has no tables yet, `refused` answers with an error."""

    state: Literal["ok", "away", "unmade", "refused"]
    detail: str = ""


class Status(_Part):
    """The whole page. `numbers` are the last that the pool gave, None if it gave none yet."""

    at: float
    pool: Pool
    numbers: Numbers | None
    processes: tuple[Process, ...]
    partly_asked: tuple[PartlyAsked, ...]
    """Stages of which some processes were not asked: their lags and calls are sums of the others."""
    engines: tuple[Engine, ...]
    lags: tuple[Lag, ...]
    dead_letters: int | None
    """Records that could not be read or stored, and did not go back; `claw dlq` shows them."""
    open_groups: int | None
    calls_in_flight: int | None
    urls: dict[str, str]
    database: str


def fold_numbers(at: float, found: Mapping[str, Sequence[Row]]) -> Numbers:
    """The answers of the statements, by their lower-case name, become numbers."""
    totals = {row["what"]: int(row["n"]) for row in found["totals"]}
    tokens = found["tokens"][0]
    fates: dict[str, dict[str, int]] = {}
    for row in found["fates"]:
        by_outcome = fates.setdefault(row["about"], {})
        by_outcome[row["outcome"]] = by_outcome.get(row["outcome"], 0) + int(row["n"])
    return Numbers(
        at=at,
        stages=tuple(_stage(table, totals.get(table, 0), found["recent"]) for table in STAGES),
        totals=totals,
        sampled_tokens=int(tokens["sampled"]),
        faulty_steps=int(tokens["faulty"]),
        broken_steps=int(tokens["broken"]),
        lost_calls=int(found["lost"][0]["n"]),
        fates=fates,
        left_out=tuple(
            Reason(about=row["about"], outcome=row["outcome"], reason=row["reason"], count=int(row["n"]))
            for row in found["fates"]
            if row["outcome"] != "emitted"
        ),
        recipes=_recipes(found["recipes"], found["ready"], found["oldest"], found["curve"]),
        policies=tuple(
            PolicyLine(run_id=row["run_id"], engine=row["engine"] or None, version=int(row["version"]), at=row["at"])
            for row in found["policies"]
        ),
    )


def _stage(table: str, count: int, recent: Iterable[Row]) -> Stage:
    buckets = [0] * BUCKETS
    for row in recent:
        if row["what"] == table and row["bucket"] < BUCKETS:
            buckets[row["bucket"]] += int(row["n"])
    rate = sum(buckets[:RATE_BUCKETS]) / (RATE_BUCKETS * BUCKET_SECONDS)
    return Stage(name=table, count=count, per_second=rate, recent=tuple(reversed(buckets)))


def _recipes(
    recipes: Iterable[Row], ready: Iterable[Row], oldest: Iterable[Row], curve: Iterable[Row]
) -> tuple[RecipeLine, ...]:
    since = {row["recipe"]: float(row["since"]) for row in oldest}
    waiting = {row["recipe"]: max(0, int(row["ready"]) - int(row["cut"])) for row in ready}
    points: dict[str, list[BatchPoint]] = {}
    for row in curve:
        points.setdefault(row["recipe"], []).append(
            BatchPoint(
                sequence=int(row["sequence"]),
                groups=int(row["groups"]),
                excluded=int(row["excluded"]),
                reward=_float(row["reward"]),
                reward_std=_float(row["reward_std"]),
                drift=_float(row["drifted"]),
                length=_float(row["length"]),
                trained_tokens=_int(row["trained_tokens"]),
                stalest=_int(row["stalest"]),
                policy_version=_int(row["policy_version"]),
                at=float(row["at"]),
            )
        )
    known = {row["name"]: row for row in recipes}
    lines = [
        _recipe(name, known.get(name), waiting.get(name, 0), since.get(name), points.get(name, []))
        for name in sorted({*known, *waiting, *points})
    ]
    return tuple(sorted(lines, key=lambda line: not line.in_force))


def _float(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _int(value: Any) -> int | None:
    return None if value is None else int(value)


def _recipe(name: str, row: Row | None, ready: int, oldest: float | None, batches: Sequence[BatchPoint]) -> RecipeLine:
    text = row["recipe"] if row is not None else ""
    recipe: dict[str, Any] = json.loads(text) if text else {}
    batch = recipe.get("batch", {})
    return RecipeLine(
        name=name,
        version=int(row["version"]) if row is not None else None,
        in_force=bool(recipe),
        run_id=recipe.get("run_id"),
        channel=recipe.get("channel"),
        algorithm=recipe.get("algorithm"),
        group_size=recipe.get("group", {}).get("size"),
        batch_groups=None if batch.get("tokens") else batch.get("groups"),
        batch_tokens=batch.get("tokens"),
        ready=ready,
        oldest_ready=oldest if ready else None,
        batches=tuple(batches),
    )


def engines_of(samples: Iterable[Gauge], policies: Iterable[PolicyLine]) -> tuple[Engine, ...]:
    """The gateways' engines, by name: calls in flight of all gateways together; up, if any of them is answered."""
    of: dict[str, dict[str, float]] = {}
    for sample in samples:
        if "engine" in sample.labels:
            said = of.setdefault(sample.labels["engine"], {})
            said[sample.name] = said.get(sample.name, 0.0) + sample.value
    kept = list(policies)
    return tuple(
        Engine(
            name=name,
            up=_up(said.get("claw_gateway_engine_up")),
            in_flight=_int(said.get("claw_gateway_engine_in_flight")),
            versions=tuple(sorted({line.version for line in kept if _plain(line.engine) == _plain(name)})),
        )
        for name, said in sorted(of.items())
    )


def _plain(engine: str | None) -> str | None:
    """An engine's name as metrics have it: its URL without the scheme, other signs than letters and digits as one."""
    return None if engine is None else re.sub(r"[^A-Za-z0-9]+", "-", engine.rpartition("://")[2]).strip("-")


def _up(value: float | None) -> bool | None:
    return None if value is None else value >= 1


def shape_curves(rows: Iterable[Row]) -> dict[str, Any]:
    """Curves of trained tokens: a point for each batch that has one, and why a curve is not there."""
    points: dict[int, dict[str, Any]] = {}
    for row in rows:
        point = points.setdefault(int(row["sequence"]), {"entropy": None, "mismatch": None, "mismatch_abs": None})
        point[row["what"]] = _float(row["mean"])
        if row["what"] == "mismatch":
            point["mismatch_abs"] = _float(row["mean_abs"])
    return {
        "points": [{"sequence": sequence, **point} for sequence, point in sorted(points.items())],
        "missing": {
            name: f'no trainer sent it: batch.commit(…, token_stats={{"{sent}": …}}) records it'
            for name, sent in (("entropy", "entropy"), ("mismatch", "log_probs"))
            if not any(point[name] is not None for point in points.values())
        },
    }
