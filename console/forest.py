"""Steps of one trajectory or of a group become a forest of token runs: what several share is there once.

Pure. A run is tokens that the same steps have, all given or all sampled. Its place: from which token of the context on, and
over which leaves it stands. A step whose parent is not among the steps is left out, and counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np

from claw_r1.prefix_tree import Segment, grow, locate, new_tree
from console.contexts import MINE

Row = Mapping[str, Any]

MOST: Final = 1500
"""Runs of a picture."""

_TOKENS: Final = (
    "SELECT s.trajectory_uid AS trajectory_uid, s.step_id AS step_id, s.parent_step_id AS parent_step_id, "
    "s.prefix_len AS prefix_len, s.prompt_len AS prompt_len, t.new_prompt_ids AS new_prompt_ids, "
    "t.response_ids AS response_ids FROM "
    "(SELECT * FROM ${database}.steps FINAL WHERE {where}) AS s INNER JOIN "
    "(SELECT * FROM ${database}.step_tokens FINAL WHERE {where}) AS t "
    "ON s.run_id = t.run_id AND s.prompt_uid = t.prompt_uid AND s.trajectory_uid = t.trajectory_uid AND s.step_id = t.step_id "
    "WHERE s.status != 'failed' ORDER BY s.trajectory_uid, s.partition, s.offset LIMIT 20000"
)
OF_TRAJECTORY: Final = _TOKENS.replace("{where}", MINE)
"""The parameters are `uid` and `places`."""
OF_GROUP: Final = _TOKENS.replace(
    "{where}",
    "run_id = {run:String} AND prompt_uid IN {prompts:Array(String)} AND trajectory_uid IN "
    "(SELECT trajectory_uid FROM ${database}.trajectories FINAL WHERE run_id = {run:String} "
    "AND prompt_uid IN {prompts:Array(String)} AND group_id = {group:String})",
)
"""The parameters are those of `groups.place`."""
_REWARD: Final = (
    "SELECT trajectory_uid, if(empty(rewards), NULL, arraySum(rewards.value)) AS reward "
    "FROM ${database}.trajectories FINAL WHERE {where} LIMIT 10000"
)
REWARD: Final = _REWARD.replace("{where}", MINE)
REWARDS: Final = _REWARD.replace(
    "{where}", "run_id = {run:String} AND prompt_uid IN {prompts:Array(String)} AND group_id = {group:String}"
)
"""The rewards of what is drawn."""


@dataclass(slots=True)
class _Through:
    """What goes through a segment."""

    trajectories: set[str] = field(default_factory=set)
    cuts: set[int] = field(default_factory=set)
    """Positions within it where a prompt or a response ends."""
    sampled: list[tuple[int, int, str, str]] = field(default_factory=list)
    """Tokens [start, end) that a step of a trajectory sampled."""


def draw(steps: Sequence[Row], rewards: Mapping[str, float | None]) -> dict[str, Any]:
    """The runs of a picture, depth first, and what sharing saves. Tokens count once wherever several steps share them.

    `step_tokens`: each step with its whole context; `apart_tokens`: each trajectory's own forest; `tokens`: this forest.
    """
    root, places, lost = _grow(steps)
    through = _walk(places)
    runs, leaves = _runs(root, through, rewards)
    size = {key: segment.end - segment.start for key, (segment, _) in through.items()}
    return {
        "steps": len(places),
        "lost": lost,
        "trajectories": len({uid for uid, *_ in places}),
        "step_tokens": sum(end for *_, end in places),
        "apart_tokens": sum(size[key] * len(one.trajectories) for key, (_, one) in through.items()),
        "tokens": sum(size.values()),
        "longest": max((end for *_, end in places), default=0),
        "leaves": leaves,
        "runs": runs[:MOST],
        "runs_in_all": len(runs),
    }


Place = tuple[str, str, Segment, int, int]
"""Trajectory, step, where its context ends, tokens of its prompt, and of its context."""


def _grow(steps: Sequence[Row]) -> tuple[Segment, list[Place], int]:
    root = new_tree()
    known: dict[tuple[str, str], tuple[Segment, int]] = {}
    places: list[Place] = []
    waiting = list(steps)
    while waiting:
        later = []
        for step in waiting:
            uid, parent = step["trajectory_uid"], step["parent_step_id"]
            before = (root, 0) if parent is None else known.get((uid, parent))
            length = int(step["prefix_len"])
            if before is None or length > before[1]:
                later.append(step)
                continue
            new = np.asarray([*step["new_prompt_ids"], *step["response_ids"]], "<u4").tobytes()
            end = length + len(new) // 4
            place = grow(before[0], length, new)
            known[uid, step["step_id"]] = place, end
            places.append((uid, step["step_id"], place, int(step["prompt_len"]), end))
        if len(later) == len(waiting):
            break
        waiting = later
    return root, places, len(waiting)


def _walk(places: Sequence[Place]) -> dict[int, tuple[Segment, _Through]]:
    """By the id of each segment with tokens: what goes through it."""
    found: dict[int, tuple[Segment, _Through]] = {}
    for uid, step, place, start, end in places:
        at: Segment | None = locate(place, end)
        while at is not None and at.parent is not None:
            one = found.setdefault(id(at), (at, _Through()))[1]
            one.cuts |= {cut for cut in (start, end) if at.start < cut < at.end}
            first, last = max(start, at.start), min(end, at.end)
            if first < last:
                one.sampled.append((first, last, uid, step))
            elif uid in one.trajectories:
                break  # what lies above was told of this trajectory before
            one.trajectories.add(uid)
            at = at.parent
    return found


def _runs(
    root: Segment, through: Mapping[int, tuple[Segment, _Through]], rewards: Mapping[str, float | None]
) -> tuple[list[dict[str, Any]], int]:
    """The runs of all segments, depth first, and how many leaves there are."""
    runs: list[dict[str, Any]] = []
    spans: dict[int, list[dict[str, Any]]] = {}
    leaves = 0
    order: list[tuple[Segment, bool, int | None]] = [(root, False, None)]
    while order:
        segment, done, parent = order.pop()
        mine = spans.get(id(segment), [])
        if done:
            for run in mine:
                run["rows"] = leaves - run["top"]
            continue
        last = parent
        if segment is not root and segment.end > segment.start:
            for run in _cut(segment, through[id(segment)][1], rewards):
                run |= {"id": len(runs), "parent": last, "top": leaves, "rows": 1}
                last = run["id"]
                runs.append(run)
                mine.append(run)
        spans[id(segment)] = mine
        order.append((segment, True, None))
        children = list(segment.children.values())
        if not children and segment is not root:
            leaves += 1
        order += [(child, False, last) for child in reversed(children)]
    return runs, leaves


def _cut(segment: Segment, one: _Through, rewards: Mapping[str, float | None]) -> Iterator[dict[str, Any]]:
    known = [reward for uid in one.trajectories if (reward := rewards.get(uid)) is not None]
    edges = sorted({segment.start, *one.cuts, segment.end})
    for start, end in pairwise(edges):
        said = next((s for s in one.sampled if s[0] <= start and end <= s[1]), None)
        uid, step = (said[2], said[3]) if said else (min(one.trajectories), None)
        yield {
            "start": start,
            "tokens": end - start,
            "sampled": said is not None,
            "trajectories": len(one.trajectories),
            "trajectory": uid,
            "step": step,
            "reward": sum(known) / len(known) if known else None,
        }
