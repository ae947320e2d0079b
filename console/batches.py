"""Batches become a list, one with its members and how stale its tokens are, and what tells two apart. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from claw_r1.batch_questions import bear
from claw_r1.errors import UserError
from claw_r1.ids import split_batch_name
from console.trajectory import finite

Row = Mapping[str, Any]
LISTED: Final = 200
MEMBERS: Final = 2000

STALENESS: Final = """
WITH members AS (
    SELECT group_run_id, group_id, splitByRegexp('[#+]', group_id)[1] AS prompt_uid, arrayJoin(sample_ids) AS sample_id
    FROM cut_members FINAL
    WHERE recipe = {recipe:String} AND run_id = {run:String} AND sequence = {sequence:UInt64} AND batch_id = {batch:String}
        AND taken
)
SELECT v.version AS version, sum(arraySum(arraySlice(s.loss_mask, v.start + 1, v.`end` - v.start))) AS tokens
FROM (
    SELECT loss_mask, arrayJoin(version_spans) AS v FROM samples FINAL
    WHERE (run_id, prompt_uid, group_id) IN (SELECT group_run_id, prompt_uid, group_id FROM members)
        AND recipe = {recipe:String} AND sample_id IN (SELECT sample_id FROM members)
) AS s
GROUP BY version HAVING tokens > 0 ORDER BY version LIMIT 1000
"""
"""Trained tokens of a batch by the version that sampled them, as they were emitted."""


def name_of(recipe: str, sequence: str) -> str:
    """`RECIPE/SEQUENCE`. Raises UserError if it names no batch."""
    name = f"{recipe}/{sequence}"
    if split_batch_name(name) is None:
        raise UserError(f"{name[:120]} names no batch: write RECIPE/NUMBER")
    return name


def plain(row: Row) -> dict[str, Any]:
    """A row as JSON says it: times in seconds since the epoch, no NaN."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def tell(
    head: Row, groups: Sequence[dict[str, Any]], decisions: Sequence[dict[str, Any]], stale: Iterable[Row]
) -> dict[str, Any]:
    """One batch: what it got, what it left out by reason, tokens by how many versions they were behind at the cut."""
    at_cut = head["policy_version"]
    behind: Counter[int | None] = Counter()
    for row in stale:
        known = row["version"] is not None and at_cut is not None
        behind[int(at_cut) - int(row["version"]) if known else None] += int(row["tokens"])
    left_out = Counter(group["reason"] or "unknown" for group in groups if not group["taken"])
    return {
        **plain(head),
        "members": [_member(group) for group in groups[:MEMBERS]],
        "members_total": len(groups),
        "left_out": [{"reason": reason, "count": n} for reason, n in left_out.most_common()],
        "staleness": [
            {"behind": lag, "tokens": tokens}
            for lag, tokens in sorted(behind.items(), key=lambda item: (item[0] is None, item[0] or 0))
        ],
        "decisions": [plain(decision) for decision in bear(groups, decisions)],
    }


def _member(group: dict[str, Any]) -> dict[str, Any]:
    found = plain({name: value for name, value in group.items() if name not in ("decisions_before", "members")})
    found["trajectories"] = [
        {
            "id": member["trajectory_uid"],
            "reward": finite(member.get("reward")),
            "outcome": member.get("outcome"),
            "reason": member.get("reason"),
        }
        for member in group["members"] or ()
    ]
    return found
