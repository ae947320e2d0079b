"""Rows of the pool become what they were made of: samples, ready groups, decisions and cuts.

Pure; the inverse of what the sink does. Times come back in whole microseconds.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from claw_r1.curation import read_value
from claw_r1.events import BatchCut, Decision, GroupReady, Sample

Row = Mapping[str, Any]


def read_sample(row: Row) -> Sample:
    """Of a row that is whole, and of an older one as far as it goes."""
    links = row["span_links"] or [{}] * len(row["spans"])
    sources = row["span_source_rewards"] or [None] * len(row["spans"])
    spans = [
        span
        | {"source_reward": source, "link": link.get("kind") or None}
        | {"link_to": link.get("step_id"), "differs_at": link.get("differs_at")}
        for span, link, source in zip(row["spans"], links, sources, strict=True)
    ]
    return Sample.model_validate(
        _known(row)
        | {
            "spans": spans,
            "annotations": row["annotation_values"],
            "routed_experts": [span | {"blob": span} for span in row["routed_experts"]],
            "metadata": json.loads(row["metadata"] or "{}"),
        }
    )


def read_marker(row: Row) -> GroupReady:
    sources = row["member_source_rewards"] or [None] * len(row["members"])
    members = [
        member | {"source_reward": source} for member, source in zip(row["members"], sources, strict=True)
    ]  # what else is known of members is added up in the row, and no batch is made of it
    return GroupReady.model_validate(
        _known(row)
        | {"members": members, "partition": row["input_partition"], "curation": json.loads(row["curation"] or "[]")}
    )


def read_decision(row: Row) -> Decision:
    value = read_value(row["action"], row["value"], row["value_is_number"])
    return Decision.model_validate(_known(row) | {"value": value})


def read_cut(row: Row, groups: Iterable[Row]) -> BatchCut:
    """A row of `cuts` with its rows of `cut_members`, those taken and those left out each by position."""
    members: list[dict[str, Any]] = []
    excluded: list[dict[str, Any]] = []
    for group in groups:
        offsets = group["decision_offsets"] or [0] * len(group["decisions"])
        named = [
            {"fact_id": fact_id, "offset": offset} for fact_id, offset in zip(group["decisions"], offsets, strict=True)
        ]
        place = {"run_id": group["group_run_id"], "offset": group["ready_offset"], "decisions": named}
        (members if group["taken"] else excluded).append({**group, **place})
    sizes = None if row["samples"] is None else row
    return BatchCut.model_validate(_known(row) | {"members": members, "excluded": excluded, "sizes": sizes})


def _known(row: Row) -> dict[str, Any]:
    """What has the same name in the pool and in the event. What sent it when is not always known: `at` is 0 then."""
    known = {name: value for name, value in row.items() if value is not None}
    return {"at": 0.0} | known if "at" in row else known
