"""The pool's numbers come from here: the statements of the status page, one set for all viewers.

Invariants: every statement reads, has a bounded result, and takes names only from the settings (a checked identifier).
"""

from typing import Final

BUCKET_SECONDS: Final = 5
BUCKETS: Final = 24
CURVE_BATCHES: Final = 200
REASONS: Final = 200

STAGES: Final = ("calls", "steps", "trajectories", "groups", "trained")
"""Tables whose rows are counted over time, in the order of the flow."""

TOTALS: Final = " UNION ALL ".join(
    f"SELECT '{table}' AS what, count() AS n FROM ${{database}}.{table} FINAL"
    for table in (*STAGES, "cuts", "rewards", "samples", "trajectory_lookup")
)

RECENT: Final = " UNION ALL ".join(
    f"SELECT '{table}' AS what, toUInt32(dateDiff('millisecond', append_time, now64(3)) / {1000 * BUCKET_SECONDS}) AS bucket, "
    f"count() AS n FROM ${{database}}.{table} "
    f"WHERE append_time > now64(3) - INTERVAL {BUCKET_SECONDS * BUCKETS} SECOND AND append_time <= now64(3) GROUP BY bucket"
    for table in STAGES
)
"""Rows of the last two minutes by age, in buckets of five seconds; bucket 0 is the newest."""

TOKENS: Final = """
SELECT sum(response_len) AS sampled, countIf(NOT capture_ok) AS faulty, countIf(status != 'complete') AS broken
FROM ${database}.steps FINAL
"""

LOST: Final = "SELECT count() AS n FROM ${database}.lost_calls WHERE append_time < now64(3) - INTERVAL 60 SECOND"

FATES: Final = f"""
SELECT about, outcome, reason, sum(outcomes) AS n FROM ${{database}}.outcome_funnel
WHERE outcome != 'closed' GROUP BY about, outcome, reason ORDER BY n DESC LIMIT {REASONS}
"""

RECIPES: Final = """
SELECT name, max(recipe_version) AS version, argMax(recipe, recipe_version) AS recipe FROM ${database}.recipes
GROUP BY name ORDER BY name LIMIT 100
"""

READY: Final = """
SELECT recipe, sum(ready) AS ready, sum(cut) AS cut FROM (
    SELECT recipe, count() AS ready, 0 AS cut FROM ${database}.groups FINAL GROUP BY recipe
    UNION ALL
    SELECT recipe, 0 AS ready, count() AS cut FROM ${database}.cut_members FINAL GROUP BY recipe
) GROUP BY recipe LIMIT 1000
"""

CURVE: Final = f"""
WITH newest AS (
    SELECT batch_id, recipe, run_id, sequence, groups, excluded, samples, tokens, trained_tokens, oldest_version,
        policy_version, append_time
    FROM ${{database}}.cuts FINAL
    ORDER BY sequence DESC LIMIT {CURVE_BATCHES} BY recipe
), members AS (
    SELECT batch_id, recipe, group_run_id, group_id FROM ${{database}}.cut_members FINAL
    WHERE taken AND batch_id IN (SELECT batch_id FROM newest)
)
SELECT n.recipe AS recipe, n.run_id AS run_id, n.sequence AS sequence, n.groups AS groups, n.excluded AS excluded,
    toUnixTimestamp64Milli(n.append_time) / 1000 AS at, r.reward AS reward, r.reward_std AS reward_std, r.drifted AS drifted,
    n.tokens / nullIf(n.samples, 0) AS length, n.trained_tokens AS trained_tokens,
    n.policy_version - n.oldest_version AS stalest, t.policy_version AS policy_version
FROM newest AS n
LEFT JOIN (
    SELECT m.batch_id AS batch_id, avg(g.reward_mean) AS reward, avg(g.reward_std) AS reward_std,
        sum(g.links['boundary'] + g.links['drift']) / nullIf(sum(arraySum(mapValues(g.links))), 0) AS drifted
    FROM members AS m
    INNER JOIN (
        SELECT run_id, group_id, recipe, reward_mean, reward_std, links FROM ${{database}}.groups FINAL
        WHERE (run_id, group_id) IN (SELECT group_run_id, group_id FROM members)
    ) AS g ON m.group_run_id = g.run_id AND m.group_id = g.group_id AND m.recipe = g.recipe
    GROUP BY batch_id
) AS r ON n.batch_id = r.batch_id
LEFT JOIN (SELECT batch_id, policy_version FROM ${{database}}.trained FINAL) AS t ON n.batch_id = t.batch_id
ORDER BY recipe, sequence
"""

POLICIES: Final = """
SELECT run_id, ifNull(engine, '') AS engine, max(policy_version) AS version,
    toUnixTimestamp64Milli(argMax(append_time, policy_version)) / 1000 AS at
FROM ${database}.policies GROUP BY run_id, engine ORDER BY at DESC LIMIT 100
"""

OLDEST: Final = """
SELECT recipe, toUnixTimestamp64Milli(min(append_time)) / 1000 AS since FROM ${database}.groups FINAL
WHERE (recipe, run_id, group_id) NOT IN (SELECT recipe, group_run_id, group_id FROM ${database}.cut_members)
GROUP BY recipe LIMIT 1000
"""
"""Since when the oldest ready group of a recipe waits for a batch."""

TOKEN_CURVES: Final = """
WITH stats AS (
    SELECT run_id, prompt_uid, group_id, recipe, trajectory_uid, sample_id, sequence, name, `values` AS said
    FROM ${database}.token_stats FINAL
    WHERE recipe = {recipe:String} AND name IN ('log_probs', 'entropy', 'entropies') AND batch_id IN (
        SELECT batch_id FROM ${database}.cuts FINAL WHERE recipe = {recipe:String} ORDER BY sequence DESC LIMIT 100
    )
)
SELECT sequence, if(name = 'log_probs', 'mismatch', 'entropy') AS what, sum(length(kept)) AS tokens,
    sum(arraySum(kept)) / nullIf(tokens, 0) AS mean, sum(arraySum(arrayMap(x -> abs(x), kept))) / nullIf(tokens, 0) AS mean_abs
FROM (
    SELECT t.sequence AS sequence, t.name AS name, arrayFilter(
        x -> isFinite(x),
        arrayMap(
            (v, m, r) -> if(m = 1, toFloat64(v) - if(name = 'log_probs', toFloat64(r), 0), nan),
            t.said, s.loss_mask, s.rollout_log_probs
        )
    ) AS kept
    FROM stats AS t
    INNER JOIN (
        SELECT run_id, prompt_uid, group_id, recipe, trajectory_uid, sample_id, loss_mask, rollout_log_probs
        FROM ${database}.samples FINAL WHERE (run_id, prompt_uid) IN (SELECT run_id, prompt_uid FROM stats)
    ) AS s ON t.run_id = s.run_id AND t.prompt_uid = s.prompt_uid AND t.group_id = s.group_id AND t.recipe = s.recipe
        AND t.trajectory_uid = s.trajectory_uid AND t.sample_id = s.sample_id
    WHERE length(t.said) = length(s.loss_mask)
)
GROUP BY sequence, what ORDER BY sequence
"""
"""Trained tokens of the newest hundred batches: entropy, and the trainer's log-prob less the engine's, nats; the parameter
is `recipe`."""
