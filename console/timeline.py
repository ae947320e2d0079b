"""A trajectory's calls on an axis of time: when each was received, began to answer and was done, and what lay between them.

Pure. Calls at the same time stand on rows of their own. Time in which no call ran is the agent's or its tools'; clocks are
the gateway's, and a step without times has no place.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

TOOLS: Final = frozenset({"tool_calls", "tool_use", "function_call"})
"""Finish reasons after which an agent runs tools."""


def draw(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`bars` with their rows, `gaps` between calls, and the seconds of each, all in seconds since the first call.

    Steps are those of `trajectory.shape`: `received`, `first_byte`, `done`, `finish_reason`, `policy_version`.
    """
    timed = sorted((s for s in steps if _known(s)), key=lambda s: (s["received"], s["index"]))
    if not timed:
        return {"began": None, "seconds": None, "rows": 0, "bars": [], "gaps": [], "untimed": len(steps)} | _sums(
            [], []
        )
    began = timed[0]["received"]
    rows: list[tuple[int, float]] = []
    bars: list[dict[str, Any]] = []
    version = None
    for step in timed:
        row = _row(rows, step)
        known = step["policy_version"]
        changed = known is not None and version is not None and known != version
        version = known if known is not None else version
        first = step["first_byte"]
        bars.append(
            {
                "step": step["id"],
                "index": step["index"],
                "row": row,
                "received": step["received"] - began,
                "first_byte": None if first is None else min(max(first, step["received"]), step["done"]) - began,
                "done": step["done"] - began,
                "policy_version": known,
                "new_version": changed,
            }
        )
    gaps = _gaps(timed, began)
    ends = max(bar["done"] for bar in bars)
    return {
        "began": began,
        "seconds": ends,
        "rows": len(rows),
        "bars": bars,
        "gaps": gaps,
        "untimed": len(steps) - len(timed),
    } | _sums(bars, gaps)


def _known(step: Mapping[str, Any]) -> bool:
    return step["received"] is not None and step["done"] is not None and step["done"] >= step["received"]


def _row(rows: list[tuple[int, float]], step: Mapping[str, Any]) -> int:
    """The row of its own conversation if that is free, else the first free one; `rows` has of each (conversation, end)."""
    free = [i for i, (_, end) in enumerate(rows) if end <= step["received"]]
    place = next((i for i in free if rows[i][0] == step["lane"]), free[0] if free else len(rows))
    held = step["lane"], step["done"]
    if place == len(rows):
        rows.append(held)
    else:
        rows[place] = held
    return place


def _gaps(timed: Sequence[Mapping[str, Any]], began: float) -> list[dict[str, Any]]:
    """Times in which no call ran, by what the call before them ended with."""
    gaps = []
    last = timed[0]
    for step in timed[1:]:
        if step["received"] > last["done"]:
            kind = "tools" if last["finish_reason"] in TOOLS else "agent"
            gaps.append(
                {"kind": kind, "from": last["done"] - began, "to": step["received"] - began, "after": last["id"]}
            )
        if step["done"] >= last["done"]:
            last = step
    return gaps


def _sums(bars: Sequence[Mapping[str, Any]], gaps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds: of the model (calls at the same time count once), waiting for first bytes (all calls), tools, agent."""
    whole = max((bar["done"] for bar in bars), default=0.0)
    of = {kind: sum(gap["to"] - gap["from"] for gap in gaps if gap["kind"] == kind) for kind in ("tools", "agent")}
    waited = [bar["first_byte"] - bar["received"] for bar in bars if bar["first_byte"] is not None]
    return {
        "model_seconds": whole - sum(of.values()),
        "first_byte_seconds": sum(waited) if waited else None,
        "tools_seconds": of["tools"],
        "agent_seconds": of["agent"],
    }
