-- What cuts made of decisions that came after their group was emitted.

ALTER TABLE ${database}.cut_members
    ADD COLUMN IF NOT EXISTS left_out Array(String) COMMENT 'Samples of the group that decisions took out' AFTER sample_ids,
    ADD COLUMN IF NOT EXISTS decisions Array(String) COMMENT 'fact_ids of the decisions that the cut applied' AFTER left_out;

ALTER TABLE ${database}.outcomes
    ADD COLUMN IF NOT EXISTS batch Nullable(UInt64) COMMENT 'Of a decision that came too late: the batch of its group' AFTER fact_id,
    MODIFY COLUMN input_partition Nullable(UInt32) COMMENT 'Partition of the events; NULL: said by a trainer',
    MODIFY COLUMN pos Nullable(UInt64) COMMENT 'Next offset of the events at the decision; NULL: said by a trainer';
