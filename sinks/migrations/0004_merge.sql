-- How steps became samples: drift, holes, masks, annotations, and what merging saved.

ALTER TABLE ${database}.samples
    ADD COLUMN IF NOT EXISTS links Map(String, UInt64) COMMENT 'Steps by how their prompt goes on: exact, boundary, drift, root' AFTER mask_reasons,
    ADD COLUMN IF NOT EXISTS span_links Array(Tuple(kind String, step_id Nullable(String), differs_at Nullable(UInt32))) COMMENT 'Of each span: its link, the step that it was meant to go on from, the first token that differs' AFTER links,
    ADD COLUMN IF NOT EXISTS holes Nullable(UInt32) COMMENT 'Replies in the conversation that no step recorded; NULL is unknown' AFTER span_links,
    ADD COLUMN IF NOT EXISTS annotations Array(String) COMMENT 'Names of the arrays that the sample has' AFTER holes,
    ADD COLUMN IF NOT EXISTS annotations_missing Map(String, UInt64) COMMENT 'Trained tokens without a value, by name of an array that the sample lacks' AFTER annotations;

ALTER TABLE ${database}.groups
    ADD COLUMN IF NOT EXISTS links Map(String, UInt64) COMMENT 'Steps of the emitted trajectories by how their prompt goes on' AFTER trained_tokens,
    ADD COLUMN IF NOT EXISTS holes Nullable(UInt32) COMMENT 'Replies in the emitted trajectories that no step recorded; NULL is unknown' AFTER links,
    ADD COLUMN IF NOT EXISTS step_tokens Nullable(UInt64) COMMENT 'Tokens of the emitted trajectories'' steps, each with its whole prompt; NULL is unknown' AFTER holes,
    ADD COLUMN IF NOT EXISTS mask_reasons Map(String, UInt64) COMMENT 'Masked response tokens of the members by reason' AFTER step_tokens,
    ADD COLUMN IF NOT EXISTS annotations_unused Map(String, UInt64) COMMENT 'Annotations that were not used, by reason' AFTER mask_reasons;

CREATE OR REPLACE VIEW ${database}.merging AS
SELECT run_id, recipe, count() AS groups, sumMap(links) AS links, sum(holes) AS holes, sumMap(mask_reasons) AS mask_reasons,
    sum(step_tokens) AS step_tokens, sum(tokens) AS sample_tokens, sum(trained_tokens) AS trained_tokens,
    step_tokens / sample_tokens AS compression
FROM ${database}.groups FINAL
GROUP BY run_id, recipe
COMMENT 'By recipe: drift, holes, masks, and tokens as steps over tokens as samples';
