-- What a fact needs to be made again from its row.

ALTER TABLE ${database}.steps
    ADD COLUMN IF NOT EXISTS routed_experts_bytes Nullable(UInt64) COMMENT 'Size of the blob; NULL: stored before this column' AFTER routed_experts,
    ADD COLUMN IF NOT EXISTS routed_experts_kind LowCardinality(Nullable(String)) COMMENT 'Form of the blob' AFTER routed_experts_bytes;

ALTER TABLE ${database}.decisions
    ADD COLUMN IF NOT EXISTS value_is_number Nullable(Bool) COMMENT 'Whether the value is a number; NULL: stored before this column' AFTER value;
