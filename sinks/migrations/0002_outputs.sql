-- What the folds over the log and the trainers said.

CREATE TABLE IF NOT EXISTS ${database}.trajectories
(
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    group_id String COMMENT 'Group: the prompt, with #n from its second round on',
    trajectory_uid String COMMENT 'Rollout of the task by an agent',
    channel LowCardinality(Nullable(String)) COMMENT 'Split inside the run: train, val, or any name',
    task_id Nullable(String) COMMENT 'Item of the dataset',
    status LowCardinality(String) COMMENT 'completed, failed, aborted, truncated',
    complete Bool COMMENT 'False: a started step never arrived, or a context cannot be restored',
    step_ids Array(String) COMMENT 'Steps in the order of the join',
    rewards Array(Tuple(source String, value Float64, revision Int64, self_reported Bool)) COMMENT 'In force at the end',
    messages String CODEC(ZSTD(1)) COMMENT 'JSON array: the last step''s conversation with its reply; empty if unknown',
    metadata String CODEC(ZSTD(1)) COMMENT 'JSON object as the sender gave it',
    input_partition UInt32 COMMENT 'Partition of the events',
    pos UInt64 COMMENT 'Next offset of the events at the decision',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Stream time of the decision',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, group_id, trajectory_uid)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Trajectories that ended, as the join sees them: one row each';

CREATE TABLE IF NOT EXISTS ${database}.groups
(
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    group_id String COMMENT 'Group: the prompt, with #n from its second round on',
    recipe LowCardinality(String) COMMENT 'Name of the recipe',
    recipe_version UInt32 COMMENT 'Version of the recipe',
    channel LowCardinality(Nullable(String)) COMMENT 'Split inside the run: train, val, or any name',
    task_id Nullable(String) COMMENT 'Item of the dataset',
    reason LowCardinality(String) COMMENT 'What made it ready: size, idle, max_age',
    members Array(Tuple(trajectory_uid String, outcome String, reason String, reward Nullable(Float64), samples Array(String))) COMMENT 'Trajectories and what became of them',
    sample_ids Array(String) COMMENT 'Samples in order',
    tokens UInt64 COMMENT 'Tokens of all samples',
    trained_tokens UInt64 COMMENT 'Tokens whose mask is 1',
    reward_mean Nullable(Float64) COMMENT 'Over rewarded members',
    reward_std Nullable(Float64) COMMENT 'Population standard deviation over rewarded members',
    min_version Nullable(Int64) COMMENT 'Oldest policy version of a trained token',
    max_version Nullable(Int64) COMMENT 'Newest policy version of a trained token',
    input_partition UInt32 COMMENT 'Partition of the events',
    pos UInt64 COMMENT 'Next offset of the events at the decision',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Stream time of the decision',
    decided_at Nullable(DateTime64(6, 'UTC')) COMMENT 'The worker''s clock at the decision',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, group_id, recipe, recipe_version)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Groups that became ready for a recipe';

CREATE TABLE IF NOT EXISTS ${database}.samples
(
    sample_id String COMMENT 'Id of the sample',
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    group_id String COMMENT 'Group: the prompt, with #n from its second round on',
    trajectory_uid String COMMENT 'Rollout of the task by an agent',
    recipe LowCardinality(String) COMMENT 'Name of the recipe',
    recipe_version UInt32 COMMENT 'Version of the recipe',
    channel LowCardinality(Nullable(String)) COMMENT 'Split inside the run: train, val, or any name',
    task_id Nullable(String) COMMENT 'Item of the dataset',
    sample_index UInt32 COMMENT 'Among the trajectory''s samples, from 0',
    n_samples UInt32 COMMENT 'Samples of the trajectory',
    spans Array(Tuple(step_id String, step_index UInt32, start UInt32, `end` UInt32, reward Nullable(Float64))) COMMENT 'Tokens [start, end) are the step''s response',
    token_ids Array(UInt32) CODEC(ZSTD(1)) COMMENT 'Prompt and responses',
    loss_mask Array(UInt8) CODEC(ZSTD(1)) COMMENT '1 where the token is trained',
    rollout_log_probs Array(Float32) CODEC(ZSTD(1)) COMMENT 'One per token; 0 where the mask is 0',
    version_spans Array(Tuple(version Nullable(Int64), start UInt32, `end` UInt32)) COMMENT 'Policy version of tokens [start, end); NULL is unknown',
    mask_reasons Map(String, UInt64) COMMENT 'Masked response tokens by reason',
    tokens UInt32 COMMENT 'Length of the sample',
    trained_tokens UInt32 COMMENT 'Tokens whose mask is 1',
    reward Float64 COMMENT 'Effective reward of the trajectory under the recipe''s weights',
    reward_components Map(String, Float64) COMMENT 'Effective reward by source, unweighted',
    metadata String CODEC(ZSTD(1)) COMMENT 'JSON object as the sender gave it',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, group_id, recipe, recipe_version, trajectory_uid, sample_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Training rows: chains of steps merged on exact prefixes, with a loss mask';

CREATE TABLE IF NOT EXISTS ${database}.outcomes
(
    outcome_id String COMMENT 'Id of the outcome',
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    group_id String COMMENT 'Group: the prompt, with #n from its second round on',
    round UInt32 COMMENT 'Round of the prompt, from 1',
    recipe LowCardinality(Nullable(String)) COMMENT 'NULL: no recipe concerned the group',
    recipe_version Nullable(UInt32) COMMENT 'Version of the recipe',
    trajectory_uid Nullable(String) COMMENT 'NULL: the fate of a group',
    fact_id Nullable(String) COMMENT 'Of a late or invalid fact',
    outcome LowCardinality(String) COMMENT 'emitted, discarded, held, late, closed',
    reason LowCardinality(String) COMMENT 'Why',
    input_partition UInt32 COMMENT 'Partition of the events',
    pos UInt64 COMMENT 'Next offset of the events at the decision',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Stream time of the decision',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, prompt_uid, group_id, outcome_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Fates of trajectories, groups and late facts, for each recipe, with the reason';

CREATE TABLE IF NOT EXISTS ${database}.cuts
(
    batch_id String COMMENT 'Id of the batch',
    recipe LowCardinality(String) COMMENT 'Name of the recipe',
    recipe_version UInt32 COMMENT 'Version of the recipe',
    run_id String COMMENT 'Training experiment',
    sequence UInt64 COMMENT 'Batches of a recipe, from 1',
    groups UInt32 COMMENT 'Groups in the batch',
    excluded UInt32 COMMENT 'Ready groups that were left out',
    start UInt64 COMMENT 'First offset of the recipe''s topic that the cut judged',
    cursor UInt64 COMMENT 'Next offset of the recipe''s topic after the cut',
    needs UInt64 COMMENT 'Lowest offset of the recipe''s topic that a replay reads',
    resume Nullable(UInt64) COMMENT 'Where the next cut begins to read; NULL: at the cursor',
    policy_version Nullable(Int64) COMMENT 'Trained version at which staleness was judged',
    digest String COMMENT 'SHA-256 of the batch''s columns',
    holder String COMMENT 'Adapter that made the cut',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Sender''s clock; decides nothing',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (recipe, run_id, sequence, batch_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'What one optimiser step gets: durable before the batch is handed out';

CREATE TABLE IF NOT EXISTS ${database}.cut_members
(
    batch_id String COMMENT 'Id of the batch',
    recipe LowCardinality(String) COMMENT 'Name of the recipe',
    run_id String COMMENT 'Training experiment',
    sequence UInt64 COMMENT 'Number of the batch',
    position UInt32 COMMENT 'Place in the batch, from 0; left-out groups are counted apart',
    taken Bool COMMENT 'Whether the batch got the group',
    reason LowCardinality(Nullable(String)) COMMENT 'Why the batch did not get it',
    group_run_id String COMMENT 'Run of the group',
    group_id String COMMENT 'Group: the prompt, with #n from its second round on',
    ready_offset UInt64 COMMENT 'Offset of the GroupReady on the recipe''s topic',
    sample_ids Array(String) COMMENT 'Samples in the batch''s order',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (recipe, run_id, sequence, batch_id, taken, position)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Groups of a cut: what the batch got and, with a reason, what it did not';

CREATE TABLE IF NOT EXISTS ${database}.trained
(
    batch_id String COMMENT 'Id of the batch',
    recipe LowCardinality(String) COMMENT 'Name of the recipe',
    run_id String COMMENT 'Training experiment',
    sequence UInt64 COMMENT 'Number of the batch',
    cursor UInt64 COMMENT 'Next offset of the recipe''s topic',
    policy_version Int64 COMMENT 'Version of the weights after the step',
    trainer_step Nullable(Int64) COMMENT 'The trainer''s own count',
    weights_digest Nullable(String) COMMENT 'Of the new weights',
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
ORDER BY (recipe, run_id, sequence, batch_id)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Batches whose optimiser step is done';

CREATE TABLE IF NOT EXISTS ${database}.policies
(
    run_id String COMMENT 'Training experiment',
    engine LowCardinality(Nullable(String)) COMMENT 'Engine that serves them; NULL: said by the trainer',
    policy_version Int64 COMMENT 'Number of the weights',
    trainer_step Nullable(Int64) COMMENT 'The trainer''s own count',
    weights_digest Nullable(String) COMMENT 'Of the weights',
    at Nullable(DateTime64(6, 'UTC')) COMMENT 'Sender''s clock; decides nothing',
    topic LowCardinality(String) COMMENT 'Kafka topic of the record',
    partition UInt32 COMMENT 'Kafka partition of the record',
    offset UInt64 COMMENT 'Kafka offset of the record',
    append_time DateTime64(3, 'UTC') COMMENT 'When the broker appended the record',
    version UInt64 MATERIALIZED bitNot(offset) COMMENT 'Of rows with one key the one with the lowest offset counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMMDD(append_time)
ORDER BY (run_id, ifNull(engine, ''), policy_version)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Newest weights of runs and engines over time';
