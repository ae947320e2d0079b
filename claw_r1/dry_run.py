"""A recipe is asked of the pool: what would become of the trajectories that have ended, and of their groups, by reason.

Pure: it makes the question; the answer has one row for each (about, outcome, reason) with their number. Rewards, ends,
annotations, people's decisions, filters, sizes, reviews and picks are judged as the streams judge them, as if nothing more
came and every deadline had passed. Not told: trajectories that never ended; and what only tokens tell, that is whether all
of them are masked or a sample is too large. A lost context is told as `incomplete`.
"""

import math
from collections.abc import Iterable
from typing import Final

from claw_r1.recipes import Recipe
from claw_r1.rules import Condition, Level, compile_sql, find_field, sql_literal


def list_untold(recipe: Recipe) -> list[str]:
    """Fields of filters that the pool does not know, so that a dry run cannot judge them."""
    named = [(c.field, find_field(c.field)) for c in recipe.filters]
    return [name for name, field in named if field is not None and not field.in_pool]


def dry_run_sql(recipe: Recipe) -> str:
    """The question, in ClickHouse's SQL, of the pool's tables: columns `about` (group, trajectory), `outcome` (emitted,
    discarded, held), `reason`, `number` and, of trajectories, `tokens` and `sampled`: those of the longest complete step
    of each with its prompt, and those sampled in all of them. Samples have as many, unless contexts were rewritten."""
    return (_KNOWN + _GROUPED + _JUDGED + _COUNTED).format_map(_parts(recipe))


def dry_run_members_sql(recipe: Recipe, about: str, outcome: str, reason: str, limit: int) -> str:
    """Who stands behind one number of that answer: prompt_uid, group_id and, of trajectories, trajectory_uid, in order."""
    named = {
        "about": sql_literal(about),
        "outcome": sql_literal(outcome),
        "reason": sql_literal(reason),
        "limit": limit,
    }
    return (_KNOWN + _GROUPED + _JUDGED + _LISTED).format_map(_parts(recipe) | named)


def matching_sql(recipe: Recipe) -> str:
    """The ended trajectories of the recipe's run and channel for which its filters on trajectories hold: prompt_uid and
    trajectory_uid, in order."""
    holds = " AND ".join(compile_sql(c) for c in recipe.filters if c.level == "trajectory") or "1"
    known = _KNOWN.rstrip().removesuffix(",").format_map(_parts(recipe))
    return f"{known}\nSELECT prompt_uid, trajectory_uid FROM weighed WHERE {holds} ORDER BY prompt_uid, trajectory_uid"


def picking_sql(recipe: Recipe, as_of: float | None = None) -> str:
    """The ended trajectories for which all filters of the recipe hold, those on their groups too, by what was in the pool at
    a time (seconds since the epoch), else by all of it: prompt_uid and trajectory_uid."""
    holds = {
        level: " AND ".join(compile_sql(c) for c in recipe.filters if c.level == level) or "1"
        for level in ("trajectory", "group")
    }
    seen = "" if as_of is None else f" AND {until(as_of)}"
    known = (_KNOWN + _GROUPED).rstrip().removesuffix(",").format_map(_parts(recipe, seen))
    return (
        f"{known}\nSELECT w.prompt_uid AS prompt_uid, w.trajectory_uid AS trajectory_uid\n"
        f"FROM (SELECT prompt_uid, group_id, trajectory_uid FROM weighed WHERE {holds['trajectory']}) AS w\n"
        f"INNER JOIN (SELECT prompt_uid, group_id FROM grouped WHERE {holds['group']}) AS g\n"
        "ON w.prompt_uid = g.prompt_uid AND w.group_id = g.group_id"
    )


def open_sql(recipe: Recipe, now: float) -> str:
    """The groups that the recipe will judge and has not: one row with `groups`; `unfinished`, those with fewer ended
    trajectories than `group.size`, or with one that has steps and has not ended; `short_of`, by required source and `annotation
    NAME` the groups with an ended trajectory that lacks it; `held`; `began`, seconds since the epoch, of the oldest.

    Asked is as far back as a group of the recipe can be open at `now`, seconds since the epoch.
    """
    return _open(recipe, now, _OPEN_COUNTED)


def open_members_sql(recipe: Recipe, now: float, limit: int) -> str:
    """These groups, the oldest first: `group_id`, `unfinished`, `held` and `lacks`, the names that one of it is short of."""
    return _open(recipe, now, _OPEN_LISTED, limit=limit)


def _open(recipe: Recipe, now: float, asked: str, **over: object) -> str:
    longest = 2 * recipe.group.max_age + recipe.rewards.timeout + recipe.annotations.timeout
    if recipe.review == "required":
        longest += recipe.review_deadline
    since = f" AND append_time > fromUnixTimestamp64Milli({math.floor((now - longest) * 1000)})"
    known = _KNOWN.rstrip().removesuffix(",").format_map(_parts(recipe, since))
    arrays = f"annotation {', '.join(recipe.annotations.required)}"
    return known + (_OPEN + asked).format_map(
        _parts(recipe, since)
        | {"recipe": sql_literal(recipe.name), "size": recipe.group.size, "arrays_name": sql_literal(arrays)}
        | over
    )


def until(time: float) -> str:
    """The condition that a row's record was appended by that time, seconds since the epoch."""
    return f"append_time <= fromUnixTimestamp64Milli({math.floor(time * 1000)})"


def _parts(recipe: Recipe, seen: str = "") -> dict[str, object]:
    return {
        "seen": seen,
        "run": sql_literal(recipe.run_id),
        "channel": sql_literal(recipe.channel),
        "weight": _weights(recipe),
        "required": _texts(recipe.rewards.required),
        "arrays": _texts(recipe.annotations.required),
        "discarded_ends": _texts(end for end, fate in recipe.group.on_end.items() if fate == "discard"),
        "zero": int(recipe.rewards.on_missing == "zero"),
        "mask": int(recipe.rewards.on_missing == "mask"),
        "mask_arrays": int(recipe.annotations.on_missing == "mask"),
        "trajectory_filter": _first_failing(recipe.filters, "trajectory"),
        "group_filter": _first_failing(recipe.filters, "group"),
        "least": recipe.group.least,
        "unpicked": _unpicked(recipe),
        "picked": _picked(recipe),
        "review": int(recipe.review == "required"),
    }


def _weights(recipe: Recipe) -> str:
    pairs = "".join(f"s = {sql_literal(s)}, {sql_literal(w)}, " for s, w in recipe.rewards.weights.items())
    return f"multiIf({pairs}1.0)" if pairs else "1.0"


def _texts(texts: Iterable[str]) -> str:
    return f"CAST([{', '.join(sql_literal(text) for text in texts)}], 'Array(String)')"


def _first_failing(filters: Iterable[Condition], level: Level) -> str:
    """The reason of the first condition that does not hold, else an empty text."""
    cases = "".join(f"NOT {compile_sql(c)}, {sql_literal(c.reason)}, " for c in filters if c.level == level)
    return f"multiIf({cases}'')" if cases else "''"


def _unpicked(recipe: Recipe) -> str:
    """Why nothing of a group is picked, else an empty text; over the rewards of its trainable trajectories."""
    rule = recipe.pick
    if rule.how == "pair":
        gap = f"arrayMax(rewards_kept) - arrayMin(rewards_kept) > {sql_literal(rule.min_gap)}"
        return f"if(length(rewards_kept) < 2 OR NOT ({gap}), 'no_pair', '')"
    if rule.how == "label" or rule.min_reward is None:
        return "''"
    return f"if(arrayExists(r -> r >= {sql_literal(rule.min_reward)}, rewards_kept), '', 'nothing_picked')"


def _picked(recipe: Recipe) -> str:
    """Whether a trainable member `m` is picked; `place` counts from 1 by falling reward, then by id."""
    rule = recipe.pick
    if rule.how == "pair":
        return "(place = 1 OR place = n_trainable)"
    good = "1" if rule.how == "label" or rule.min_reward is None else f"m.2 >= {sql_literal(rule.min_reward)}"
    return f"({good} AND place <= {rule.count})" if rule.how == "best" else good


_KNOWN: Final = """
WITH
    ended AS (
        SELECT prompt_uid, group_id, trajectory_uid, task_id, status, complete, metadata
        FROM trajectories FINAL
        WHERE run_id = {run}{seen} AND ifNull(channel, 'train') = {channel}
    ),
    arrays AS (
        SELECT prompt_uid, trajectory_uid, step_id, groupUniqArray(name) AS names
        FROM (
            SELECT prompt_uid, trajectory_uid, step_id, name,
                argMin(notEmpty(`values`), (-toInt128(revision), fact_id)) AS is_there
            FROM annotations FINAL WHERE run_id = {run}{seen}
            GROUP BY prompt_uid, trajectory_uid, step_id, name
        )
        WHERE is_there
        GROUP BY prompt_uid, trajectory_uid, step_id
    ),
    worked AS (
        SELECT s.prompt_uid AS prompt_uid, s.trajectory_uid AS trajectory_uid,
            countIf(status = 'complete') AS turns,
            maxIf(prompt_len + response_len, status = 'complete') AS tokens,
            sumIf(response_len, status = 'complete') AS response_tokens,
            min(capture_ok) AS capture,
            arrayFilter(
                v -> isNotNull(v),
                groupArrayArrayIf(
                    arrayConcat([policy_version], version_spans.version), status = 'complete' AND role = 'policy'
                )
            ) AS versions,
            countIf(
                status = 'complete' AND role = 'policy' AND capture_ok AND has_log_probs AND response_len > 0
                AND NOT hasAll(a.names, {arrays})
            ) AS lacking
        FROM (SELECT * FROM steps FINAL WHERE run_id = {run}{seen}) AS s
        LEFT JOIN arrays AS a
            ON s.prompt_uid = a.prompt_uid AND s.trajectory_uid = a.trajectory_uid AND s.step_id = a.step_id
        GROUP BY prompt_uid, trajectory_uid
    ),
    latest AS (
        SELECT prompt_uid, trajectory_uid, step_id, source,
            argMin((value, self_reported), (-toInt128(revision), fact_id)) AS said
        FROM rewards FINAL WHERE run_id = {run}{seen}
        GROUP BY prompt_uid, trajectory_uid, step_id, source
    ),
    levels AS (
        SELECT prompt_uid, assumeNotNull(trajectory_uid) AS trajectory_uid, source, 2 AS level, said.1 AS value,
            said.2 AS self_reported
        FROM latest WHERE trajectory_uid IS NOT NULL AND step_id IS NULL
        UNION ALL
        SELECT prompt_uid, assumeNotNull(trajectory_uid), source, 1, sum(said.1), max(said.2)
        FROM latest WHERE trajectory_uid IS NOT NULL AND step_id IS NOT NULL AND said.1 IS NOT NULL
        GROUP BY prompt_uid, trajectory_uid, source
        UNION ALL
        SELECT g.prompt_uid, e.trajectory_uid, g.source, 0, g.said.1, g.said.2
        FROM latest AS g INNER JOIN ended AS e ON g.prompt_uid = e.prompt_uid
        WHERE g.trajectory_uid IS NULL
    ),
    rewarded AS (
        SELECT prompt_uid, trajectory_uid,
            mapFromArrays(groupArray(source), groupArray(assumeNotNull(finest.1))) AS rewards, max(finest.2) AS self_reported
        FROM (
            SELECT prompt_uid, trajectory_uid, source, argMax((value, self_reported), level) AS finest
            FROM levels GROUP BY prompt_uid, trajectory_uid, source
        )
        WHERE ifNull(abs(finest.1) <= 1e38, 0)
        GROUP BY prompt_uid, trajectory_uid
    ),
    undone AS (
        SELECT prompt_uid,
            arrayFold(
                (void, undo) -> if(has(void, undo.2), void, arrayPushBack(void, undo.3)),
                arrayReverseSort(groupArray((ifNull(toFloat64(at), 0), fact_id, assumeNotNull(undoes)))),
                CAST([], 'Array(String)')
            ) AS void
        FROM decisions FINAL WHERE run_id = {run}{seen} AND action = 'undo' AND undoes IS NOT NULL
        GROUP BY prompt_uid
    ),
    in_force AS (
        SELECT d.prompt_uid AS prompt_uid, ifNull(d.trajectory_uid, '') AS trajectory_uid, d.step_id AS step_id,
            d.action AS action, d.value AS value, (ifNull(toFloat64(d.at), 0), d.fact_id) AS said_at,
            toFloat64OrNull(d.value) AS number
        FROM (SELECT * FROM decisions FINAL WHERE run_id = {run}{seen}) AS d
        LEFT JOIN undone AS u ON d.prompt_uid = u.prompt_uid
        WHERE NOT has(u.void, d.fact_id) AND d.action NOT IN ('undo', 'note')
    ),
    curated AS (
        SELECT prompt_uid, trajectory_uid,
            argMaxIf(action, said_at, step_id IS NULL AND action IN ('veto', 'keep')) AS verdict,
            argMaxIf(number, said_at, step_id IS NULL AND action = 'quality' AND abs(number) <= 1e38) AS quality,
            countIf(step_id IS NULL AND action = 'override_reward' AND (value IS NULL OR abs(number) <= 1e38)) AS overridden,
            argMaxIf(
                tuple(number), said_at,
                step_id IS NULL AND action = 'override_reward' AND (value IS NULL OR abs(number) <= 1e38)
            ).1 AS override,
            groupUniqArrayIf(assumeNotNull(value), action = 'tag' AND ifNull(value, '') != '') AS tags
        FROM in_force GROUP BY prompt_uid, trajectory_uid
    ),
    known AS (
        SELECT e.prompt_uid AS prompt_uid, e.group_id AS group_id, e.trajectory_uid AS trajectory_uid,
            e.task_id AS task_id, toNullable(toString(e.status)) AS status, e.complete AS complete,
            e.metadata AS metadata, toNullable(toFloat64(w.turns)) AS turns, toNullable(toFloat64(w.tokens)) AS tokens,
            toNullable(toFloat64(w.response_tokens)) AS response_tokens,
            toNullable(w.trajectory_uid = '' OR w.capture) AS capture,
            arrayMin(w.versions) AS oldest, arrayMax(w.versions) AS newest, notEmpty(w.versions) AS has_versions,
            w.lacking AS lacking, r.rewards AS rewards, toNullable(r.self_reported) AS self_reported,
            own.verdict AS verdict, whole.verdict AS group_verdict,
            own.verdict = 'keep' OR (own.verdict = '' AND whole.verdict = 'keep') AS is_kept,
            if(own.quality IS NOT NULL, own.quality, whole.quality) AS quality,
            arrayDistinct(arrayConcat(own.tags, whole.tags)) AS tags,
            own.overridden > 0 OR whole.overridden > 0 AS is_overridden,
            if(own.overridden > 0, own.override, whole.override) AS override
        FROM ended AS e
        LEFT JOIN worked AS w ON e.prompt_uid = w.prompt_uid AND e.trajectory_uid = w.trajectory_uid
        LEFT JOIN rewarded AS r ON e.prompt_uid = r.prompt_uid AND e.trajectory_uid = r.trajectory_uid
        LEFT JOIN curated AS own ON e.prompt_uid = own.prompt_uid AND e.trajectory_uid = own.trajectory_uid
        LEFT JOIN (SELECT * FROM curated WHERE trajectory_uid = '') AS whole ON e.prompt_uid = whole.prompt_uid
    ),
    weighed AS (
        SELECT *,
            arraySum(arrayMap((s, v) -> v * {weight}, mapKeys(rewards), mapValues(rewards))) AS weighted,
            if(
                is_overridden,
                override IS NULL,
                NOT hasAll(mapKeys(rewards), {required}) OR (empty(mapKeys(rewards)) AND NOT {zero})
            ) AS is_missing,
            multiIf(is_overridden, override, is_missing AND NOT {zero}, NULL, toNullable(weighted)) AS said,
            if(abs(said) <= 1e38, said, NULL) AS reward,
            if(has_versions, toFloat64(oldest), NULL) AS policy_version,
            if(has_versions, toFloat64(newest - oldest), NULL) AS policy_lag
        FROM known
    ),
"""
"""What is known of each ended trajectory; `weighed` has a column for every field of a trajectory that the pool tells."""

_GROUPED: Final = """
    settled AS (
        SELECT *,
            multiIf(
                verdict = 'veto', 'vetoed',
                has({discarded_ends}, assumeNotNull(status)), assumeNotNull(status),
                NOT complete, 'incomplete',
                is_missing AND {mask}, 'reward_masked',
                reward IS NULL, if(is_missing, 'reward_missing', 'reward_not_finite'),
                lacking > 0, if({mask_arrays}, 'annotation_masked', 'annotation_missing'),
                is_kept, 'complete',
                {trajectory_filter} != '', {trajectory_filter},
                'complete'
            ) AS own_reason,
            own_reason = 'complete' AS is_trainable,
            own_reason IN ('complete', 'reward_masked', 'annotation_masked') AS counts
        FROM weighed
    ),
    grouped AS (
        SELECT prompt_uid, group_id, any(group_verdict) AS verdict, sum(counts) AS n_counting,
            toNullable(toFloat64(count())) AS n_trajectories, toNullable(toFloat64(count(reward))) AS n_rewarded,
            avg(reward) AS reward_mean, min(reward) AS reward_min, max(reward) AS reward_max,
            if(reward_min = reward_max, 0, stddevPopStable(reward)) AS reward_std,
            toNullable(toFloat64(sum(response_tokens))) AS group_tokens,
            if(max(has_versions), toFloat64(maxIf(newest, has_versions) - minIf(oldest, has_versions)), NULL)
                AS group_policy_lag,
            groupArrayIf(assumeNotNull(reward), is_trainable) AS rewards_kept,
            arraySort(
                m -> (NOT m.1, -m.2, m.3),
                groupArray((
                    is_trainable, ifNull(reward, 0), trajectory_uid, counts, own_reason, ifNull(tokens, 0),
                    ifNull(response_tokens, 0)
                ))
            ) AS members
        FROM settled GROUP BY prompt_uid, group_id
    ),
"""
"""What each of them, and each group, counts for under the recipe; `grouped` has a column for every field of a group."""

_JUDGED: Final = """
    decided AS (
        SELECT g.prompt_uid AS prompt_uid, g.group_id AS group_id, members, length(rewards_kept) AS n_trainable,
            multiIf(
                c.prompt_uid != '', ('discarded', 'cancelled'),
                verdict = 'veto', ('discarded', 'vetoed'),
                n_counting < {least}, ('discarded', 'too_small'),
                verdict != 'keep' AND {group_filter} != '', ('discarded', {group_filter}),
                empty(rewards_kept), ('discarded', 'nothing_to_train'),
                {unpicked} != '', ('discarded', {unpicked}),
                {review} AND verdict != 'keep', ('held', 'review'),
                ('emitted', 'complete')
            ) AS fate
        FROM grouped AS g
        LEFT JOIN (
            SELECT DISTINCT prompt_uid FROM group_events FINAL WHERE run_id = {run} AND kind = 'cancel'
        ) AS c ON g.prompt_uid = c.prompt_uid
    ),
    each AS (
        SELECT prompt_uid, group_id, one.1 AS about, one.2.1 AS outcome, one.2.2 AS reason, one.3 AS trajectory_uid,
            one.4 AS n_tokens, one.5 AS n_sampled
        FROM (
            SELECT prompt_uid, group_id, arrayJoin(
                arrayConcat(
                    [('group', fate, '', toFloat64(0), toFloat64(0))],
                    arrayMap(
                        (m, place) -> (
                            'trajectory',
                            multiIf(
                                fate IN (('discarded', 'cancelled'), ('discarded', 'vetoed')), fate,
                                NOT m.4, ('discarded', m.5),
                                fate.1 = 'discarded', fate,
                                m.1 AND NOT {picked}, ('discarded', 'not_picked'),
                                (fate.1, m.5)
                            ),
                            m.3, m.6, m.7
                        ),
                        members, arrayEnumerate(members)
                    )
                )
            ) AS one
            FROM decided
        )
    )
"""
"""The fate of each group and of each trajectory; `trajectory_uid` is empty of groups."""

_COUNTED: Final = """
SELECT about, outcome, reason, count() AS number, toUInt64(sum(n_tokens)) AS tokens, toUInt64(sum(n_sampled)) AS sampled
FROM each GROUP BY about, outcome, reason
ORDER BY about, number DESC, outcome, reason
"""

_LISTED: Final = """
SELECT prompt_uid, group_id, trajectory_uid FROM each WHERE about = {about} AND outcome = {outcome} AND reason = {reason}
ORDER BY prompt_uid, group_id, trajectory_uid LIMIT {limit}
"""

_OPEN: Final = """,
    fated AS (
        SELECT group_id, countIf(outcome IN ('emitted', 'discarded')) AS fates, countIf(outcome = 'held') AS holds
        FROM outcomes FINAL
        WHERE run_id = {run} AND recipe = {recipe} AND trajectory_uid IS NULL AND fact_id IS NULL{seen}
        GROUP BY group_id
    ),
    begun AS (
        SELECT prompt_uid, min(append_time) AS began, groupUniqArrayIf(trajectory_uid, trajectory_uid != '') AS worked
        FROM (
            SELECT prompt_uid, append_time, trajectory_uid FROM steps
            WHERE run_id = {run}{seen} AND ifNull(channel, 'train') = {channel}
            UNION ALL
            SELECT prompt_uid, append_time, '' FROM group_events
            WHERE run_id = {run}{seen} AND kind = 'open' AND ifNull(channel, 'train') = {channel}
        )
        GROUP BY prompt_uid
        HAVING began >= (SELECT minOrNull(append_time) FROM recipes FINAL WHERE name = {recipe})
    ),
    over AS (
        SELECT prompt_uid, group_id, groupUniqArray(trajectory_uid) AS uids,
            arrayDistinct(groupArrayArray(arrayConcat(
                arrayFilter(s -> NOT has(mapKeys(rewards), s), {required}), if(lacking > 0, [{arrays_name}], [])
            ))) AS lacks
        FROM known GROUP BY prompt_uid, group_id
    ),
    standing AS (
        SELECT if(o.group_id = '', b.prompt_uid, o.group_id) AS group_id, b.began AS began, o.lacks AS lacks,
            length(o.uids) < {size} OR NOT hasAll(o.uids, b.worked) AS is_unfinished
        FROM begun AS b LEFT JOIN over AS o ON b.prompt_uid = o.prompt_uid
    )
"""
"""The groups that a recipe will judge, and what is known of each."""

_OPEN_COUNTED: Final = """
SELECT count() AS groups, countIf(is_unfinished) AS unfinished, countIf(f.holds > 0) AS held,
    if(groups = 0, NULL, toFloat64(min(began))) AS began,
    sumMap(lacks, arrayMap(name -> 1, lacks)) AS short
FROM standing AS s LEFT JOIN fated AS f ON s.group_id = f.group_id
WHERE f.fates = 0
"""

_OPEN_LISTED: Final = """
SELECT s.group_id AS group_id, is_unfinished AS unfinished, f.holds > 0 AS held, lacks
FROM standing AS s LEFT JOIN fated AS f ON s.group_id = f.group_id
WHERE f.fates = 0 ORDER BY s.began, s.group_id LIMIT {limit}
"""
