-- What people decided, and how recipes label and group.

ALTER TABLE ${database}.samples
    ADD COLUMN IF NOT EXISTS label LowCardinality(Nullable(String)) COMMENT 'chosen, rejected, desirable, undesirable, or what a decision said' AFTER reward_components,
    ADD COLUMN IF NOT EXISTS tags Array(String) COMMENT 'Tags of decisions' AFTER label,
    ADD COLUMN IF NOT EXISTS quality Nullable(Float64) COMMENT 'Quality of a decision' AFTER tags;

ALTER TABLE ${database}.groups
    ADD COLUMN IF NOT EXISTS decisions Array(String) COMMENT 'fact_ids of the decisions that were in force' AFTER max_version;

ALTER TABLE ${database}.outcomes
    ADD COLUMN IF NOT EXISTS part UInt32 DEFAULT 1 COMMENT '2: of a further group of late trajectories' AFTER round;

ALTER TABLE ${database}.decisions
    ADD COLUMN IF NOT EXISTS group_id Nullable(String) COMMENT 'The round that is meant, if the prompt had several' AFTER undoes;
