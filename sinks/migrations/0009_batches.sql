-- What a batch needs to be made again from the pool, and how the batches of a step are found.

ALTER TABLE ${database}.samples
    ADD COLUMN IF NOT EXISTS span_source_rewards Array(Nullable(Float64)) COMMENT 'Of each span: the step''s reward by its sources, where a decision says another' AFTER span_links,
    ADD COLUMN IF NOT EXISTS annotation_values Map(String, Array(Float32)) CODEC(ZSTD(1)) COMMENT 'The arrays by name, one value per token' AFTER annotations,
    ADD COLUMN IF NOT EXISTS routed_experts Array(Tuple(step_id String, sha256 String, bytes UInt64, kind String, start UInt32, `end` UInt32)) COMMENT 'Rows [start, end) of the step''s routed experts are of these tokens' AFTER annotations_missing,
    ADD COLUMN IF NOT EXISTS multi_modal_data Array(Tuple(sha256 String, bytes UInt64, kind String)) COMMENT 'References into the blob store, in the order of their places' AFTER routed_experts,
    ADD COLUMN IF NOT EXISTS is_whole Bool DEFAULT false COMMENT 'Whether the row says all of the sample; false: stored before the columns that it needs' AFTER metadata;

ALTER TABLE ${database}.groups
    ADD COLUMN IF NOT EXISTS member_source_rewards Array(Nullable(Float64)) COMMENT 'Of each member: its reward by its sources, where a decision says another' AFTER members,
    ADD COLUMN IF NOT EXISTS curation String CODEC(ZSTD(1)) COMMENT 'JSON array: the decisions that were there, also void ones; empty: stored before this column' AFTER decisions;

ALTER TABLE ${database}.cuts
    ADD COLUMN IF NOT EXISTS samples Nullable(UInt64) COMMENT 'Samples in the batch; NULL, as the four below: cut before this column' AFTER excluded,
    ADD COLUMN IF NOT EXISTS tokens Nullable(UInt64) COMMENT 'Tokens of the batch' AFTER samples,
    ADD COLUMN IF NOT EXISTS trained_tokens Nullable(UInt64) COMMENT 'Tokens whose mask is 1' AFTER tokens,
    ADD COLUMN IF NOT EXISTS oldest_version Nullable(Int64) COMMENT 'Oldest known policy version of a trained token' AFTER trained_tokens,
    ADD COLUMN IF NOT EXISTS newest_version Nullable(Int64) COMMENT 'Newest known policy version of a trained token' AFTER oldest_version,
    ADD COLUMN IF NOT EXISTS checksums Map(String, UInt64) COMMENT 'CRC-32 of what the digest is of, by name' AFTER digest;

ALTER TABLE ${database}.cut_members
    ADD COLUMN IF NOT EXISTS decision_offsets Array(UInt64) COMMENT 'Where the decisions stand on the recipe''s topic' AFTER decisions;

ALTER TABLE ${database}.cut_members ADD INDEX IF NOT EXISTS group_id group_id TYPE bloom_filter GRANULARITY 1;

ALTER TABLE ${database}.cut_members MATERIALIZE INDEX group_id;

ALTER TABLE ${database}.steps ADD INDEX IF NOT EXISTS step_id step_id TYPE bloom_filter GRANULARITY 1;

ALTER TABLE ${database}.steps MATERIALIZE INDEX step_id;
