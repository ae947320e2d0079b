-- What a step's reference to its routed experts says.

ALTER TABLE ${database}.steps
    ADD COLUMN IF NOT EXISTS routed_experts_bytes Nullable(UInt64) COMMENT 'Size of the blob; NULL: stored before this column' AFTER routed_experts,
    ADD COLUMN IF NOT EXISTS routed_experts_kind LowCardinality(Nullable(String)) COMMENT 'Form of the blob' AFTER routed_experts_bytes;
