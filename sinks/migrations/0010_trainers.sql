-- What trainers said of the tokens of their batches, and what people ask of batches.

CREATE TABLE IF NOT EXISTS ${database}.token_stats
(
    batch_id String COMMENT 'Id of the batch',
    recipe LowCardinality(String) COMMENT 'Name of the recipe',
    sequence UInt64 COMMENT 'Number of the batch',
    policy_version Int64 COMMENT 'Weights that the batch''s step made; not those that computed log_probs',
    run_id String COMMENT 'Run of the group',
    prompt_uid String COMMENT 'Sampling round of a task',
    group_id String COMMENT 'Group: the prompt, with #n from its second round on',
    trajectory_uid String COMMENT 'Rollout of the task by an agent',
    sample_id String COMMENT 'Id of the sample',
    name LowCardinality(String) COMMENT 'log_probs, or any name',
    values Array(Float32) CODEC(ZSTD(1)) COMMENT 'One per token of the sample; NaN where there is none',
    holder String COMMENT 'Adapter that committed',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Sender''s clock; decides nothing',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, group_id, recipe, trajectory_uid, sample_id, name, batch_id, policy_version)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'What trainers computed for the tokens of their batches, committed with the batch';

CREATE OR REPLACE VIEW ${database}.batch_steps AS
WITH
    cut AS (SELECT recipe, run_id, sequence FROM ${database}.cuts FINAL WHERE batch_id = {batch_id:String}),
    members AS (
        SELECT recipe, run_id, sequence, batch_id, position, group_run_id, group_id,
            splitByRegexp('[#+]', group_id)[1] AS prompt_uid, sample_ids, decisions
        FROM ${database}.cut_members FINAL
        WHERE (recipe, run_id, sequence) IN cut AND batch_id = {batch_id:String} AND taken
    )
SELECT m.recipe AS recipe, m.run_id AS run_id, m.sequence AS sequence, m.batch_id AS batch_id, m.position AS position,
    m.group_run_id AS group_run_id, m.prompt_uid AS prompt_uid, m.group_id AS group_id, m.decisions AS decisions,
    s.trajectory_uid AS trajectory_uid, m.sample_id AS sample_id, s.span.step_id AS step_id, s.span.step_index AS step_index,
    s.span.start AS start, s.span.`end` AS `end`, s.trained_tokens AS trained_tokens
FROM (SELECT *, arrayJoin(sample_ids) AS sample_id FROM members) AS m
INNER JOIN (
    SELECT run_id, group_id, recipe, sample_id, trajectory_uid, arrayJoin(spans) AS span,
        arraySum(arraySlice(loss_mask, span.start + 1, span.`end` - span.start)) AS trained_tokens
    FROM ${database}.samples FINAL
    WHERE (run_id, prompt_uid, group_id) IN (SELECT group_run_id, prompt_uid, group_id FROM members)
) AS s ON m.group_run_id = s.run_id AND m.group_id = s.group_id AND m.recipe = s.recipe AND m.sample_id = s.sample_id
ORDER BY position, sample_id, start
COMMENT 'The steps that a batch has, and how many of their tokens are trained unless one of the decisions took them out; parameter: batch_id';

CREATE OR REPLACE VIEW ${database}.trajectory_batches AS
WITH
    places AS (
        SELECT run_id, prompt_uid FROM ${database}.trajectory_lookup WHERE trajectory_uid = {trajectory_uid:String}
    ),
    mine AS (
        SELECT run_id, prompt_uid, group_id, recipe, sample_id, trajectory_uid, arrayJoin(spans) AS span,
            arraySum(arraySlice(loss_mask, span.start + 1, span.`end` - span.start)) AS trained_tokens
        FROM ${database}.samples FINAL
        WHERE (run_id, prompt_uid) IN places AND trajectory_uid = {trajectory_uid:String}
    ),
    members AS (
        SELECT recipe, run_id, sequence, batch_id, group_run_id, group_id, decisions, arrayJoin(sample_ids) AS sample_id
        FROM ${database}.cut_members FINAL
        WHERE taken AND group_id IN (SELECT group_id FROM mine)
    )
SELECT m.recipe AS recipe, m.run_id AS run_id, m.sequence AS sequence, m.batch_id AS batch_id,
    t.policy_version AS trained_policy_version, m.group_run_id AS group_run_id, s.prompt_uid AS prompt_uid,
    m.group_id AS group_id, m.decisions AS decisions, s.trajectory_uid AS trajectory_uid, m.sample_id AS sample_id,
    s.span.step_id AS step_id, s.span.step_index AS step_index, s.span.start AS start, s.span.`end` AS `end`,
    s.trained_tokens AS trained_tokens
FROM members AS m
INNER JOIN mine AS s
    ON m.group_run_id = s.run_id AND m.group_id = s.group_id AND m.recipe = s.recipe AND m.sample_id = s.sample_id
LEFT JOIN (
    SELECT batch_id, toNullable(policy_version) AS policy_version FROM ${database}.trained FINAL
    WHERE batch_id IN (SELECT batch_id FROM members)
) AS t ON m.batch_id = t.batch_id
ORDER BY recipe, sequence, step_index, start
COMMENT 'The batches that have a trajectory, by step; trained_policy_version is NULL while a batch is not trained; parameter: trajectory_uid';

CREATE OR REPLACE VIEW ${database}.batch_staleness AS
SELECT c.recipe AS recipe, c.run_id AS run_id, c.sequence AS sequence, c.batch_id AS batch_id,
    c.policy_version AS policy_version, p.trained_tokens AS trained_tokens, p.known_tokens AS known_tokens,
    p.oldest_version AS oldest_version, p.newest_version AS newest_version,
    c.policy_version - p.oldest_version AS lag_max,
    c.policy_version - p.version_sum / nullIf(p.known_tokens, 0) AS lag_mean, p.tokens_by_version AS tokens_by_version
FROM (SELECT * FROM ${database}.cuts FINAL) AS c
LEFT JOIN (
    SELECT m.batch_id AS batch_id, sum(s.trained_tokens) AS trained_tokens,
        sumMap(mapFromArrays(s.versions, s.counts)) AS tokens_by_version,
        arraySum(mapValues(tokens_by_version)) AS known_tokens,
        arraySum(arrayMap((v, n) -> v * n, mapKeys(tokens_by_version), mapValues(tokens_by_version))) AS version_sum,
        if(known_tokens > 0, toNullable(arrayMin(mapKeys(tokens_by_version))), NULL) AS oldest_version,
        if(known_tokens > 0, toNullable(arrayMax(mapKeys(tokens_by_version))), NULL) AS newest_version
    FROM (
        SELECT batch_id, recipe, group_run_id, group_id, arrayJoin(sample_ids) AS sample_id
        FROM ${database}.cut_members FINAL WHERE taken
    ) AS m
    INNER JOIN (
        SELECT run_id, group_id, recipe, sample_id, trained_tokens,
            arrayFilter(
                v -> v.2 > 0,
                arrayMap(
                    v -> (assumeNotNull(v.version), arraySum(arraySlice(loss_mask, v.start + 1, v.`end` - v.start))),
                    arrayFilter(v -> isNotNull(v.version), version_spans)
                )
            ) AS known,
            arrayMap(v -> v.1, known) AS versions, arrayMap(v -> toUInt64(v.2), known) AS counts
        FROM ${database}.samples FINAL
    ) AS s ON m.group_run_id = s.run_id AND m.group_id = s.group_id AND m.recipe = s.recipe AND m.sample_id = s.sample_id
    GROUP BY batch_id
) AS p ON c.batch_id = p.batch_id
ORDER BY recipe, run_id, sequence
COMMENT 'By batch: which versions sampled its trained tokens, as they were emitted, and how far these are behind the version at the cut';

CREATE OR REPLACE VIEW ${database}.consumption AS
SELECT g.run_id AS run_id, g.prompt_uid AS prompt_uid, g.group_id AS group_id, g.task_id AS task_id, g.recipe AS recipe,
    g.recipe_version AS recipe_version,
    nullIf(m.batch_id, '') AS batch_id, if(batch_id IS NULL, NULL, m.sequence) AS sequence,
    multiIf(batch_id IS NULL, 'waiting', NOT m.taken, 'left_out', t.policy_version IS NULL, 'cut', 'trained') AS state,
    m.reason AS reason,
    t.policy_version AS trained_policy_version, g.append_time AS ready_time
FROM (SELECT * FROM ${database}.groups FINAL) AS g
LEFT JOIN (
    SELECT recipe, group_run_id, group_id, taken, reason, sequence, batch_id FROM ${database}.cut_members FINAL
) AS m ON g.recipe = m.recipe AND g.run_id = m.group_run_id AND g.group_id = m.group_id
LEFT JOIN (
    SELECT batch_id, toNullable(policy_version) AS policy_version FROM ${database}.trained FINAL
) AS t ON m.batch_id = t.batch_id
COMMENT 'What became of each ready group of a recipe: trained, cut (in a batch that is not trained yet), left_out with the reason, waiting';

CREATE OR REPLACE VIEW ${database}.pass_rate AS
SELECT e.run_id AS run_id, e.channel AS channel, e.task_id AS task_id, r.source AS source, w.oldest AS policy_version,
    count() AS trajectories, countIf(r.value >= {threshold:Float64}) AS passed, passed / trajectories AS rate,
    avg(r.value) AS reward_mean
FROM (SELECT run_id, prompt_uid, trajectory_uid, channel, task_id FROM ${database}.trajectories FINAL) AS e
INNER JOIN (
    SELECT run_id, prompt_uid, assumeNotNull(trajectory_uid) AS trajectory_uid, source, assumeNotNull(value) AS value
    FROM ${database}.effective_rewards
    WHERE trajectory_uid IS NOT NULL AND step_id IS NULL AND isFinite(value)
) AS r ON e.run_id = r.run_id AND e.prompt_uid = r.prompt_uid AND e.trajectory_uid = r.trajectory_uid
LEFT JOIN (
    SELECT run_id, prompt_uid, trajectory_uid,
        groupArrayArray(arrayFilter(v -> isNotNull(v), arrayConcat([policy_version], version_spans.version))) AS versions,
        if(empty(versions), NULL, arrayMin(versions)) AS oldest
    FROM ${database}.steps FINAL
    WHERE role = 'policy' AND status = 'complete'
    GROUP BY run_id, prompt_uid, trajectory_uid
) AS w ON e.run_id = w.run_id AND e.prompt_uid = w.prompt_uid AND e.trajectory_uid = w.trajectory_uid
GROUP BY run_id, channel, task_id, source, policy_version
ORDER BY run_id, channel, task_id, source, policy_version
COMMENT 'By task and the oldest policy version that sampled the trajectory: how many have a reward of the source of at least the threshold; parameter: threshold';

CREATE OR REPLACE VIEW ${database}.log_prob_mismatch AS
SELECT run_id, recipe, engine, model, policy_version, token_class, count() AS tokens, avg(difference) AS mean,
    avg(abs(difference)) AS mean_abs, quantile(0.99)(abs(difference)) AS p99_abs, max(abs(difference)) AS max_abs,
    avg(-difference) AS kl_k1, avg(exp(difference) - 1 - difference) AS kl_k3
FROM (
    SELECT p.run_id AS run_id, p.recipe AS recipe, e.engine AS engine, e.model AS model, p.piece.3 AS policy_version,
        arrayJoin(
            arrayZip(
                arraySlice(p.trainer, p.piece.4 + 1, p.piece.5 - p.piece.4),
                arraySlice(r.rollout_log_probs, p.piece.4 - p.piece.2 + 1, p.piece.5 - p.piece.4),
                arraySlice(p.loss_mask, p.piece.4 + 1, p.piece.5 - p.piece.4)
            )
        ) AS token,
        toFloat64(token.1) - token.2 AS difference, if(token.3 = 1, 'trained', 'masked') AS token_class
    FROM (
        SELECT s.run_id AS run_id, s.prompt_uid AS prompt_uid, s.trajectory_uid AS trajectory_uid, s.recipe AS recipe,
            s.loss_mask AS loss_mask, t.`values` AS trainer,
            arrayJoin(
                arrayFilter(
                    piece -> piece.4 < piece.5,
                    arrayFlatten(
                        arrayMap(
                            span -> arrayMap(
                                v -> (span.step_id, span.start, v.version, greatest(span.start, v.start), least(span.`end`, v.`end`)),
                                s.version_spans
                            ),
                            s.spans
                        )
                    )
                )
            ) AS piece
        FROM (SELECT * FROM ${database}.token_stats FINAL WHERE name = 'log_probs') AS t
        INNER JOIN (SELECT * FROM ${database}.samples FINAL) AS s
            ON t.run_id = s.run_id AND t.prompt_uid = s.prompt_uid AND t.group_id = s.group_id AND t.recipe = s.recipe
                AND t.trajectory_uid = s.trajectory_uid AND t.sample_id = s.sample_id
    ) AS p
    INNER JOIN (SELECT * FROM ${database}.steps FINAL WHERE has_log_probs) AS e
        ON p.run_id = e.run_id AND p.prompt_uid = e.prompt_uid AND p.trajectory_uid = e.trajectory_uid AND p.piece.1 = e.step_id
    INNER JOIN (SELECT * FROM ${database}.step_tokens FINAL) AS r
        ON p.run_id = r.run_id AND p.prompt_uid = r.prompt_uid AND p.trajectory_uid = r.trajectory_uid AND p.piece.1 = r.step_id
)
WHERE isFinite(difference)
GROUP BY run_id, recipe, engine, model, policy_version, token_class
ORDER BY run_id, recipe, engine, model, policy_version, token_class
COMMENT 'The trainer''s log-probs of sampled tokens less the engine''s, nats, where a trainer sent log_probs: trained tokens, and masked ones';
