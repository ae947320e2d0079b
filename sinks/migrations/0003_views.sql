-- What people ask for. A view with a parameter is called like a function: SELECT * FROM contexts(trajectory_uid = '…').
-- FINAL stands on key prefixes that trajectory_lookup gives, so that one trajectory costs a few granules.

CREATE OR REPLACE VIEW ${database}.trajectory_steps AS
SELECT
    row_number() OVER (PARTITION BY run_id, prompt_uid ORDER BY partition, offset) - 1 AS log_index,
    *
FROM ${database}.steps FINAL
WHERE (run_id, prompt_uid) IN (
    SELECT run_id, prompt_uid FROM ${database}.trajectory_lookup WHERE trajectory_uid = {trajectory_uid:String}
) AND trajectory_uid = {trajectory_uid:String}
ORDER BY run_id, prompt_uid, log_index
COMMENT 'The steps of one trajectory in the order of the log; parameter: trajectory_uid';

CREATE OR REPLACE VIEW ${database}.contexts AS
WITH RECURSIVE
    places AS (
        SELECT run_id, prompt_uid FROM ${database}.trajectory_lookup WHERE trajectory_uid = {trajectory_uid:String}
    ),
    mine AS (
        SELECT s.run_id AS run_id, s.prompt_uid AS prompt_uid, s.trajectory_uid AS trajectory_uid, s.step_id AS step_id,
            s.parent_step_id AS parent_step_id, s.prefix_len AS prefix_len, s.messages_kept AS messages_kept,
            s.offset AS log_offset, t.new_prompt_ids AS new_prompt_ids, t.response_ids AS response_ids,
            t.rollout_log_probs AS rollout_log_probs, JSONExtractArrayRaw(t.new_messages) AS new_messages,
            t.reply AS reply, t.request AS request
        FROM (
            SELECT * FROM ${database}.steps FINAL
            WHERE (run_id, prompt_uid) IN places AND trajectory_uid = {trajectory_uid:String}
        ) AS s
        INNER JOIN (
            SELECT * FROM ${database}.step_tokens FINAL
            WHERE (run_id, prompt_uid) IN places AND trajectory_uid = {trajectory_uid:String}
        ) AS t ON s.run_id = t.run_id AND s.prompt_uid = t.prompt_uid AND s.step_id = t.step_id
    ),
    chain AS (
        SELECT run_id, prompt_uid, trajectory_uid, step_id, parent_step_id, log_offset,
            new_prompt_ids AS prompt_ids, response_ids, rollout_log_probs, new_messages AS messages, reply, request
        FROM mine
        WHERE parent_step_id IS NULL
        UNION ALL
        SELECT m.run_id, m.prompt_uid, m.trajectory_uid, m.step_id, m.parent_step_id, m.log_offset,
            arrayConcat(arraySlice(arrayConcat(c.prompt_ids, c.response_ids), 1, m.prefix_len), m.new_prompt_ids),
            m.response_ids, m.rollout_log_probs,
            arrayConcat(
                arraySlice(if(c.reply = '', c.messages, arrayPushBack(c.messages, c.reply)), 1, m.messages_kept),
                m.new_messages
            ),
            m.reply, if(m.request = '', c.request, m.request)
        FROM mine AS m
        INNER JOIN chain AS c
            ON m.run_id = c.run_id AND m.prompt_uid = c.prompt_uid AND assumeNotNull(m.parent_step_id) = c.step_id
        WHERE m.parent_step_id IS NOT NULL
    )
SELECT * FROM chain ORDER BY run_id, prompt_uid, log_offset
COMMENT 'The steps of one trajectory with whole prompts and messages; a step whose parent is missing is left out; parameter: trajectory_uid';

CREATE OR REPLACE VIEW ${database}.effective_rewards AS
SELECT run_id, prompt_uid, trajectory_uid, step_id, source, revision, latest.1 AS value, latest.2 AS components,
    latest.3 AS self_reported
FROM (
    SELECT run_id, prompt_uid, trajectory_uid, step_id, source, max(revision) AS revision,
        argMax((value, components, self_reported), (rewards.revision, version)) AS latest
    FROM ${database}.rewards
    GROUP BY run_id, prompt_uid, trajectory_uid, step_id, source
)
WHERE latest.1 IS NOT NULL
COMMENT 'The reward in force of every source, step, trajectory and group; withdrawn ones are left out';

CREATE OR REPLACE VIEW ${database}.outcome_funnel AS
SELECT run_id, recipe, recipe_version,
    multiIf(fact_id IS NOT NULL, 'fact', trajectory_uid IS NOT NULL, 'trajectory', 'group') AS about,
    outcome, reason, count() AS outcomes
FROM ${database}.outcomes FINAL
GROUP BY run_id, recipe, recipe_version, about, outcome, reason
ORDER BY run_id, recipe, recipe_version, about, outcomes DESC
COMMENT 'How many trajectories, groups and late facts came to which end, and why';

CREATE OR REPLACE VIEW ${database}.lineage AS
SELECT m.recipe AS recipe, m.run_id AS run_id, m.sequence AS sequence, m.batch_id AS batch_id,
    t.policy_version AS trained_policy_version, m.group_id AS group_id, s.trajectory_uid AS trajectory_uid,
    s.sample_id AS sample_id, s.span.step_id AS step_id, s.span.step_index AS step_index, s.span.start AS start,
    s.span.`end` AS `end`
FROM (
    SELECT recipe, run_id, sequence, batch_id, group_run_id, group_id, arrayJoin(sample_ids) AS sample_id
    FROM ${database}.cut_members FINAL
    WHERE taken
) AS m
INNER JOIN (
    SELECT run_id, group_id, sample_id, trajectory_uid, arrayJoin(spans) AS span FROM ${database}.samples FINAL
) AS s ON m.group_run_id = s.run_id AND m.group_id = s.group_id AND m.sample_id = s.sample_id
LEFT JOIN (
    SELECT batch_id, toNullable(policy_version) AS policy_version FROM ${database}.trained FINAL
) AS t ON m.batch_id = t.batch_id
COMMENT 'Which steps a batch trained: batch, group, sample, step and its tokens [start, end) in the sample';

CREATE OR REPLACE VIEW ${database}.lost_calls AS
SELECT c.run_id AS run_id, c.prompt_uid AS prompt_uid, c.trajectory_uid AS trajectory_uid, c.step_id AS step_id,
    c.model AS model, c.append_time AS append_time
FROM (SELECT * FROM ${database}.calls FINAL) AS c
LEFT ANTI JOIN ${database}.steps AS s
    ON c.run_id = s.run_id AND c.prompt_uid = s.prompt_uid AND c.step_id = s.step_id
COMMENT 'Calls that were sent and have no step: running, or lost with their gateway';
