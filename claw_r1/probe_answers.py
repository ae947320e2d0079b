"""What a process answers to its probes becomes a line: ready or why not, its version, and what it has not taken in yet.

Pure. Unknown is None, never 0: a process that is down has no version, one that shows no metrics no lag.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

_WORDS: Final = 200
"""Characters of a reason."""
BEHIND: Final = {
    "gateway": "claw_gateway_spool_records",
    "streams": "claw_streams_lag_records",
    "sinks": "claw_sinks_lag_records",
    "workers": "claw_workers_backlog_records",
}
"""Stage → the gauge of what it has not handed on or taken in yet, records."""


class Gauge(NamedTuple):
    """A number that a process exports."""

    name: str
    labels: Mapping[str, str]
    value: float


class Process(BaseModel):
    """A process as it answers now."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: Literal["ready", "waiting", "down"]
    detail: str
    """Why it is not ready."""
    url: str
    version: str | None = None
    """Of claw-r1."""
    behind: int | None = None
    """Records that it has not handed on or taken in yet."""


def stage_of(name: str) -> str:
    """The stage of a process: `streams` of `streams-2`."""
    return name.partition("-")[0]


def fold_answer(name: str, url: str, *, ready: bool, body: str, gauges: Sequence[Gauge]) -> Process:
    """A process that answered `/readyz` with this body, and `/metrics` with these gauges."""
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    said = found if isinstance(found, dict) else {"reason": body}
    version = said.get("version")
    return Process(
        name=name,
        state="ready" if ready else "waiting",
        detail="" if ready else str(said.get("reason", ""))[:_WORDS],
        url=url,
        version=None if version is None else str(version)[:_WORDS],
        behind=sum_gauge(gauges, BEHIND.get(stage_of(name), "")),
    )


def fold_silence(name: str, url: str, why: str) -> Process:
    """A process that did not answer."""
    return Process(name=name, state="down", detail=why[:_WORDS], url=url)


def sum_gauge(samples: Iterable[Gauge], name: str) -> int | None:
    """A gauge summed over its labels; None if the process does not export it."""
    values = [sample.value for sample in samples if sample.name == name]
    return round(sum(values)) if values else None
