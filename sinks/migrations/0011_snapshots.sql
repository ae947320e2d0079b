-- Named selections of trajectories that never change. `claw snapshots` writes them; no record of the log is behind a row.

CREATE TABLE IF NOT EXISTS ${database}.snapshots
(
    snapshot_id String COMMENT 'Id of the snapshot',
    name String COMMENT 'Name of the snapshot; of two of one name the first counts',
    created DateTime64(6, 'UTC') COMMENT 'When it was made, by the clock of who made it',
    author String COMMENT 'Who made it',
    selection String CODEC(ZSTD(1)) COMMENT 'JSON object: what was asked for',
    as_of DateTime64(3, 'UTC') COMMENT 'Records that were appended later do not count',
    ends String CODEC(ZSTD(1)) COMMENT 'JSON object: by topic, then partition, the next offset; records from there on do not count',
    trajectories UInt64 COMMENT 'Members',
    groups UInt64 COMMENT 'Groups of the members',
    steps UInt64 COMMENT 'Steps of the members',
    content_hash String COMMENT 'SHA-256 of the members'' keys and digests in order, hex'
)
ENGINE = MergeTree
ORDER BY (name, created, snapshot_id)
COMMENT 'Selections of trajectories, as of a time: a row each, written once all members are';

CREATE TABLE IF NOT EXISTS ${database}.snapshot_members
(
    snapshot_id String COMMENT 'Id of the snapshot',
    run_id String COMMENT 'Training experiment',
    prompt_uid String COMMENT 'Sampling round of a task',
    group_id String COMMENT 'Group: the prompt, with #n from its second round on',
    trajectory_uid String COMMENT 'Rollout of the task by an agent',
    steps UInt32 COMMENT 'Steps of the trajectory',
    digest String COMMENT 'SHA-256 of its facts as the form `facts` of an export writes them, hex'
)
ENGINE = ReplacingMergeTree
ORDER BY (snapshot_id, run_id, prompt_uid, group_id, trajectory_uid)
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Trajectories of a snapshot';
