-- Which groups `claw expire` removes.

CREATE TABLE IF NOT EXISTS ${database}.expired
(
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    closed_at DateTime64(3, 'UTC') COMMENT 'When the broker appended the newest record of the group',
    expired_at DateTime64(3, 'UTC') COMMENT 'When the group was chosen'
)
ENGINE = ReplacingMergeTree(expired_at)
ORDER BY (run_id, prompt_uid)
COMMENT 'Groups that the last claw expire removed: they had closed long before';
