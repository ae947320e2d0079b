"""Batches become what people ask of them: the questions of `claw batches` and of the console, and what a decision bore on.

Pure. Statements name the tables alone, so the connection says the database; NEWEST takes `recipe`, `run` (empty: any) and
`limit`; the others, but for BY_SEQUENCE and BY_ID, take what `key_of` makes of a summary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

Row = dict[str, Any]

_SUMMARY: Final = """
SELECT c.recipe AS recipe, c.recipe_version AS recipe_version, c.run_id AS run_id, c.sequence AS sequence,
    c.batch_id AS batch_id, if(t.policy_version IS NULL, 'cut', 'trained') AS state, c.groups AS groups,
    c.excluded AS excluded, c.samples AS samples, c.tokens AS tokens, c.trained_tokens AS trained_tokens,
    c.policy_version AS policy_version, c.oldest_version AS oldest_version, c.newest_version AS newest_version,
    c.policy_version - c.oldest_version AS staleness, t.policy_version AS trained_policy_version,
    t.trainer_step AS trainer_step, t.weights_digest AS weights_digest, c.digest AS digest, c.holder AS holder,
    c.append_time AS cut_time, t.append_time AS trained_time
FROM newest AS c
LEFT JOIN (
    SELECT * FROM trained FINAL WHERE (recipe, run_id, sequence) IN (SELECT recipe, run_id, sequence FROM newest)
) AS t ON c.batch_id = t.batch_id
ORDER BY cut_time DESC, sequence DESC
"""
NEWEST: Final = f"""
WITH newest AS (
    SELECT * FROM cuts FINAL WHERE (recipe, run_id, sequence) IN (
        SELECT recipe, run_id, sequence FROM cuts FINAL
        WHERE ({{recipe:String}} = '' OR recipe = {{recipe:String}}) AND ({{run:String}} = '' OR run_id = {{run:String}})
        ORDER BY append_time DESC, sequence DESC LIMIT {{limit:UInt32}}
    )
)
{_SUMMARY}
"""
_NAMED: Final = f"""
WITH newest AS (
    SELECT * FROM cuts FINAL WHERE {{where}} ORDER BY offset LIMIT 1
)
{_SUMMARY}
"""
BY_SEQUENCE: Final = _NAMED.format(where="recipe = {recipe:String} AND sequence = {sequence:UInt64}")
BY_ID: Final = _NAMED.format(where="batch_id = {batch:String}")
GROUPS: Final = """
WITH members AS (
    SELECT *, splitByRegexp('[#+]', group_id)[1] AS prompt_uid FROM cut_members FINAL
    WHERE recipe = {recipe:String} AND run_id = {run:String} AND sequence = {sequence:UInt64} AND batch_id = {batch:String}
)
SELECT m.position AS position, m.taken AS taken, m.reason AS reason, m.group_run_id AS group_run_id, m.prompt_uid AS prompt_uid,
    m.group_id AS group_id, g.task_id AS task_id, g.recipe_version AS recipe_version, m.sample_ids AS sample_ids,
    m.left_out AS left_out, g.tokens AS emitted_tokens, g.trained_tokens AS emitted_trained_tokens,
    g.min_version AS oldest_version, g.max_version AS newest_version, g.reward_mean AS reward_mean,
    g.reward_std AS reward_std, g.members AS members, g.decisions AS decisions_before, m.decisions AS decisions
FROM members AS m
LEFT JOIN (
    SELECT * FROM groups FINAL
    WHERE (run_id, prompt_uid, group_id) IN (SELECT group_run_id, prompt_uid, group_id FROM members)
        AND recipe = {recipe:String}
) AS g ON m.group_run_id = g.run_id AND m.group_id = g.group_id AND m.ready_offset = g.offset
ORDER BY taken DESC, position
"""
DECISIONS: Final = """
WITH prompts AS (
    SELECT group_run_id, splitByRegexp('[#+]', group_id)[1] AS prompt_uid FROM cut_members FINAL
    WHERE recipe = {recipe:String} AND run_id = {run:String} AND sequence = {sequence:UInt64} AND batch_id = {batch:String}
)
SELECT d.fact_id AS fact_id, d.prompt_uid AS prompt_uid, d.trajectory_uid AS trajectory_uid, d.step_id AS step_id,
    d.action AS action, d.value AS value, d.undoes AS undoes, d.author AS author, d.reason AS reason,
    d.append_time AS append_time, o.late_reason AS late_reason
FROM (SELECT * FROM decisions FINAL WHERE (run_id, prompt_uid) IN prompts) AS d
LEFT JOIN (
    SELECT run_id, prompt_uid, fact_id, any(reason) AS late_reason FROM outcomes FINAL
    WHERE (run_id, prompt_uid) IN prompts AND outcome = 'late' AND recipe = {recipe:String}
        AND batch = {sequence:UInt64} AND fact_id IS NOT NULL
    GROUP BY run_id, prompt_uid, fact_id
) AS o ON d.run_id = o.run_id AND d.prompt_uid = o.prompt_uid AND d.fact_id = o.fact_id
ORDER BY append_time, fact_id
"""
TRAJECTORIES: Final = """
WITH members AS (
    SELECT position, group_run_id, group_id, splitByRegexp('[#+]', group_id)[1] AS prompt_uid, sample_ids, decisions
    FROM cut_members FINAL
    WHERE recipe = {recipe:String} AND run_id = {run:String} AND sequence = {sequence:UInt64} AND batch_id = {batch:String}
        AND taken
)
SELECT m.group_run_id AS group_run_id, m.group_id AS group_id, s.trajectory_uid AS trajectory_uid, count() AS samples,
    sum(s.tokens) AS tokens, sum(s.trained_tokens) AS trained_tokens,
    hex(sipHash64(arraySort(groupArray((s.sample_index, s.ids))))) AS ids,
    hex(sipHash64(arraySort(groupArray((s.sample_index, s.mask))))) AS mask, any(s.reward) AS reward,
    arraySort(arrayDistinct(arrayFlatten(groupArray(s.versions)))) AS versions, any(m.decisions) AS decisions
FROM (SELECT *, arrayJoin(sample_ids) AS sample_id FROM members) AS m
INNER JOIN (
    SELECT run_id, group_id, sample_id, trajectory_uid, sample_index, tokens, trained_tokens, reward,
        sipHash64(token_ids) AS ids, sipHash64(loss_mask) AS mask,
        arrayFilter(v -> isNotNull(v), version_spans.version) AS versions
    FROM samples FINAL
    WHERE (run_id, prompt_uid, group_id) IN (SELECT group_run_id, prompt_uid, group_id FROM members)
        AND recipe = {recipe:String}
) AS s ON m.group_run_id = s.run_id AND m.group_id = s.group_id AND m.sample_id = s.sample_id
GROUP BY group_run_id, group_id, trajectory_uid
ORDER BY min(m.position), trajectory_uid
"""


def key_of(summary: Mapping[str, Any]) -> Row:
    """The parameters by which GROUPS, DECISIONS and TRAJECTORIES find a batch."""
    return {
        "recipe": summary["recipe"],
        "run": summary["run_id"],
        "sequence": summary["sequence"],
        "batch": summary["batch_id"],
    }


def bear(groups: Sequence[Row], decisions: Sequence[Row]) -> list[Row]:
    """The decisions with what each bore on (`bore`): the `emission` of a group, the `cut`, nothing any more (`late`), or, None,
    nothing yet."""
    applied = {fact_id for group in groups for fact_id in group["decisions"]}
    before = {fact_id for group in groups for fact_id in group["decisions_before"] or ()}
    told = []
    for decision in decisions:
        bore = "cut" if decision["fact_id"] in applied else None
        if decision["fact_id"] in before:
            bore = "emission"
        elif decision["late_reason"] is not None:
            bore = "late"
        told.append({**decision, "bore": bore})
    return told
