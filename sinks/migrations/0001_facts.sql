-- The facts of the log, one table a kind.
-- Of rows with one key the lowest offset counts, as everywhere; FINAL gives exactly those.

CREATE TABLE IF NOT EXISTS ${database}.calls
(
    fact_id String COMMENT 'Id of the fact',
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    trajectory_uid String COMMENT 'Rollout of the task by an agent',
    step_id String COMMENT 'The step that the call becomes',
    model LowCardinality(Nullable(String)) COMMENT 'Model that the agent asked for',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Sender''s clock; decides nothing',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, trajectory_uid, step_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Model calls that were sent to an engine (StepStarted): without a step of the same id the call was lost';

CREATE TABLE IF NOT EXISTS ${database}.steps
(
    fact_id String COMMENT 'Id of the fact',
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    trajectory_uid String COMMENT 'Rollout of the task by an agent',
    step_id String COMMENT 'Id of the step',
    status LowCardinality(String) COMMENT 'complete; partial: the caller left or the engine broke off; failed: no reply',
    parent_step_id Nullable(String) COMMENT 'Step whose prompt and response this prompt begins with',
    prefix_len UInt32 COMMENT 'Prompt tokens taken from the parent',
    depth UInt32 COMMENT 'Links to the nearest full context',
    prompt_len UInt32 COMMENT 'Tokens of the whole prompt',
    response_len UInt32 COMMENT 'Tokens of the response',
    has_log_probs Bool COMMENT 'Whether the response has log-probs',
    choice UInt32 COMMENT 'Which of the call''s n choices, from 0',
    finish_reason LowCardinality(Nullable(String)) COMMENT 'Why the engine stopped',
    stop_reason Nullable(String) COMMENT 'Stop string or token id that ended the response',
    policy_version Nullable(Int64) COMMENT 'The one version that sampled every token; NULL if unknown or several',
    version_spans Array(Tuple(version Nullable(Int64), start UInt32, `end` UInt32)) COMMENT 'Policy version of tokens [start, end); NULL is unknown',
    role LowCardinality(String) COMMENT 'policy, or frozen: never trained',
    engine LowCardinality(Nullable(String)) COMMENT 'Engine that answered',
    model LowCardinality(Nullable(String)) COMMENT 'Model that answered',
    dialect LowCardinality(String) COMMENT 'API that the agent spoke',
    temperature Nullable(Float64) COMMENT 'Sampling in effect',
    top_p Nullable(Float64) COMMENT 'Sampling in effect',
    top_k Nullable(Int64) COMMENT 'Sampling in effect',
    max_tokens Nullable(Int64) COMMENT 'Sampling in effect',
    seed Nullable(Int64) COMMENT 'Sampling in effect',
    n Nullable(Int64) COMMENT 'Choices that the call asked for',
    log_probs_mode LowCardinality(Nullable(String)) COMMENT 'raw or processed',
    guided Bool COMMENT 'Whether a grammar forced tokens',
    usage String CODEC(ZSTD(1)) COMMENT 'JSON: the engine''s usage; empty if it gave none',
    received Nullable(DateTime64(6, 'UTC')) COMMENT 'First byte of the request at the gateway',
    first_byte Nullable(DateTime64(6, 'UTC')) COMMENT 'First byte of the engine''s reply',
    done Nullable(DateTime64(6, 'UTC')) COMMENT 'Last byte of the engine''s reply',
    messages_kept UInt32 COMMENT 'Messages taken from the parent''s messages and reply',
    channel LowCardinality(Nullable(String)) COMMENT 'Split inside the run: train, val, or any name',
    step_index Nullable(UInt32) COMMENT 'As a white-box sender counted',
    multi_modal_data Array(Tuple(sha256 String, bytes UInt64, kind String)) COMMENT 'References into the blob store',
    routed_experts Nullable(String) COMMENT 'SHA-256 in the blob store',
    retry_of Nullable(String) COMMENT 'Step that this one repeats',
    capture_ok Bool COMMENT 'Whether ids, log-probs and usage agree',
    capture_reasons Array(LowCardinality(String)) COMMENT 'What does not agree',
    metadata String CODEC(ZSTD(1)) COMMENT 'JSON object as the sender gave it',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Sender''s clock; decides nothing',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, trajectory_uid, step_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Steps without their tokens and messages: one row a model call';

CREATE TABLE IF NOT EXISTS ${database}.step_tokens
(
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    trajectory_uid String COMMENT 'Rollout of the task by an agent',
    step_id String COMMENT 'Id of the step',
    new_prompt_ids Array(UInt32) CODEC(ZSTD(1)) COMMENT 'Prompt token ids after the prefix',
    response_ids Array(UInt32) CODEC(ZSTD(1)) COMMENT 'Sampled token ids',
    rollout_log_probs Array(Float32) CODEC(ZSTD(1)) COMMENT 'One per response token; empty if unknown (steps.has_log_probs)',
    prefix_hash String COMMENT 'BLAKE2b-128 of the prefix, hex; empty without a parent',
    new_messages String CODEC(ZSTD(1)) COMMENT 'JSON array: request messages after those kept; empty if unknown',
    reply String CODEC(ZSTD(1)) COMMENT 'JSON object: the assistant message; empty if unknown',
    request String CODEC(ZSTD(1)) COMMENT 'JSON object: the request without messages; empty: as the parent''s',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, trajectory_uid, step_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Tokens and messages of steps, as differences to the parent; contexts() restores them';

CREATE TABLE IF NOT EXISTS ${database}.rewards
(
    fact_id String COMMENT 'Id of the fact',
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    trajectory_uid Nullable(String) COMMENT 'NULL: a reward of the group',
    step_id Nullable(String) COMMENT 'NULL: a reward of the trajectory or group',
    source LowCardinality(String) COMMENT 'Who scored',
    revision Int64 COMMENT 'The highest revision of a source wins',
    value Nullable(Float64) COMMENT 'NULL withdraws the source''s earlier reward',
    components Map(String, Float64) COMMENT 'Parts of the value by name',
    self_reported Bool COMMENT 'Sent with a rollout key',
    metadata String CODEC(ZSTD(1)) COMMENT 'JSON object as the sender gave it',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Sender''s clock; decides nothing',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, ifNull(trajectory_uid, ''), ifNull(step_id, ''), source, revision)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Rewards as they were sent; effective_rewards has the ones in force';

CREATE TABLE IF NOT EXISTS ${database}.annotations
(
    fact_id String COMMENT 'Id of the fact',
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    trajectory_uid String COMMENT 'Rollout of the task by an agent',
    step_id String COMMENT 'Id of the step',
    name LowCardinality(String) COMMENT 'ref_log_probs, teacher_log_probs, values, advantages, or any name',
    source LowCardinality(String) COMMENT 'Who made it',
    revision Int64 COMMENT 'The highest revision of a source wins',
    values Array(Float32) CODEC(ZSTD(1)) COMMENT 'One per response token',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Sender''s clock; decides nothing',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, trajectory_uid, step_id, name, source, revision)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Named arrays on a step''s response tokens';

CREATE TABLE IF NOT EXISTS ${database}.decisions
(
    fact_id String COMMENT 'Id of the fact',
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    trajectory_uid Nullable(String) COMMENT 'NULL: a decision on the group',
    step_id Nullable(String) COMMENT 'NULL: a decision on the trajectory or group',
    action LowCardinality(String) COMMENT 'veto, keep, relabel, override_reward, tag, quality, note, undo',
    value Nullable(String) COMMENT 'Text, or a number as text',
    undoes Nullable(String) COMMENT 'fact_id of the decision that this one undoes',
    author String COMMENT 'Person or rule',
    reason Nullable(String) COMMENT 'Why',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Sender''s clock; decides nothing',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, fact_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Curation of steps, trajectories and groups; undo is a new decision';

CREATE TABLE IF NOT EXISTS ${database}.trajectory_events
(
    fact_id String COMMENT 'Id of the fact',
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    trajectory_uid String COMMENT 'Rollout of the task by an agent',
    kind LowCardinality(String) COMMENT 'open or end',
    channel LowCardinality(Nullable(String)) COMMENT 'Split inside the run: train, val, or any name',
    task_id Nullable(String) COMMENT 'Item of the dataset',
    status LowCardinality(Nullable(String)) COMMENT 'Of an end: completed, failed, aborted, truncated',
    reason Nullable(String) COMMENT 'Of an end',
    metadata String CODEC(ZSTD(1)) COMMENT 'JSON object as the sender gave it',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Sender''s clock; decides nothing',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, trajectory_uid, fact_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Trajectories opened and ended, as their senders said (TrajectoryOpen, TrajectoryEnd)';

CREATE TABLE IF NOT EXISTS ${database}.group_events
(
    fact_id String COMMENT 'Id of the fact',
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    kind LowCardinality(String) COMMENT 'open or cancel',
    size Nullable(UInt32) COMMENT 'Trajectories to come',
    channel LowCardinality(Nullable(String)) COMMENT 'Split inside the run: train, val, or any name',
    task_id Nullable(String) COMMENT 'Item of the dataset',
    reason Nullable(String) COMMENT 'Of a cancel',
    metadata String CODEC(ZSTD(1)) COMMENT 'JSON object as the sender gave it',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Sender''s clock; decides nothing',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, fact_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Groups announced and cancelled (GroupOpen, GroupCancel)';

CREATE TABLE IF NOT EXISTS ${database}.recipes
(
    fact_id String COMMENT 'Id of the fact',
    run_id String COMMENT 'Training experiment',
    name LowCardinality(String) COMMENT 'Name of the recipe',
    recipe_version UInt32 COMMENT 'Version of the recipe',
    recipe String CODEC(ZSTD(1)) COMMENT 'JSON object; empty: the recipe ends',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Sender''s clock; decides nothing',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, name, recipe_version, partition, fact_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Versions of recipes, one row for each partition of the events';

CREATE TABLE IF NOT EXISTS ${database}.purges
(
    fact_id String COMMENT 'Id of the fact',
    run_id String COMMENT 'Training experiment',
    reason Nullable(String) COMMENT 'Why',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Sender''s clock; decides nothing',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, fact_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Runs that are to be forgotten';

CREATE TABLE IF NOT EXISTS ${database}.trajectory_lookup
(
    trajectory_uid String COMMENT 'Rollout of the task by an agent',
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (trajectory_uid, run_id, prompt_uid)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Where a trajectory belongs, so that it is found without its run and prompt';
