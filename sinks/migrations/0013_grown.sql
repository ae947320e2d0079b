-- A trajectory that was open while the events grew has steps in two partitions: those of the second come behind the others.

CREATE OR REPLACE VIEW ${database}.contexts AS
WITH RECURSIVE
    places AS (
        SELECT run_id, prompt_uid FROM ${database}.trajectory_lookup WHERE trajectory_uid = {trajectory_uid:String}
    ),
    mine AS (
        SELECT s.run_id AS run_id, s.prompt_uid AS prompt_uid, s.trajectory_uid AS trajectory_uid, s.step_id AS step_id,
            s.parent_step_id AS parent_step_id, s.prefix_len AS prefix_len, s.messages_kept AS messages_kept,
            s.partition AS log_partition, s.offset AS log_offset, t.new_prompt_ids AS new_prompt_ids, t.response_ids AS response_ids,
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
        SELECT run_id, prompt_uid, trajectory_uid, step_id, parent_step_id, log_partition, log_offset,
            new_prompt_ids AS prompt_ids, response_ids, rollout_log_probs, new_messages AS messages, reply, request
        FROM mine
        WHERE parent_step_id IS NULL
        UNION ALL
        SELECT m.run_id, m.prompt_uid, m.trajectory_uid, m.step_id, m.parent_step_id, m.log_partition, m.log_offset,
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
SELECT * FROM chain ORDER BY run_id, prompt_uid, log_partition, log_offset
COMMENT 'The steps of one trajectory with whole prompts and messages; a step whose parent is missing is left out; parameter: trajectory_uid';
