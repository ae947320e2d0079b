-- What trainers computed for the tokens of their batches.

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
