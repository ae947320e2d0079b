"""Rows of a pool from recipe to training: of trajectories t0, t1, …, four a group p0, p1, …, that are there already."""

RECIPE = '{"name": "grpo", "run_id": "r", "algorithm": "grpo", "channel": "train", "review": "none", "filters": [], '
RECIPE += '"group": {"size": 4}, "batch": {"groups": 2}}'


def training_rows(first: int, *, discarded: bool = True) -> tuple[str, ...]:
    """The group p<first> is trained, the next handed out, the next ready, the next discarded (if wanted), of the next
    the first is vetoed; p<first + 9> was left out of the second batch. `{db}` is the database."""
    trained, cut, ready, gone, waits, out = (f"p{first + n}" for n in (0, 1, 2, 3, 4, 9))
    judged = f"'{trained}', '{cut}', '{ready}'" + (f", '{gone}'" if discarded else "")
    samples = [", ".join(f"'s-t{4 * (first + n) + k}'" for k in range(4)) for n in (0, 1)]
    return (
        "INSERT INTO {db}.recipes (name, run_id, recipe_version, recipe, partition, offset, append_time) VALUES "
        f"('grpo', 'r', 1, '{RECIPE}', 0, 1, now64(3)), ('old', 'r', 2, '', 0, 2, now64(3))",
        "INSERT INTO {db}.outcomes (outcome_id, run_id, prompt_uid, group_id, trajectory_uid, recipe, outcome, reason, offset, "
        "append_time) SELECT concat('o', trajectory_uid), run_id, prompt_uid, group_id, trajectory_uid, 'grpo', "
        f"if(prompt_uid = '{gone}', 'discarded', 'emitted'), if(prompt_uid = '{gone}', 'too_small', 'complete'), offset, "
        f"now64(3) FROM {{db}}.trajectories WHERE prompt_uid IN ({judged})",
        "INSERT INTO {db}.groups (run_id, prompt_uid, group_id, recipe, recipe_version, reward_mean, topic, partition, offset, "
        f"append_time) VALUES ('r', '{trained}', '{trained}', 'grpo', 1, 0.5, 't', 0, 1, now64(3)), "
        f"('r', '{cut}', '{cut}', 'grpo', 1, 0.25, 't', 0, 2, now64(3)), "
        f"('r', '{ready}', '{ready}', 'grpo', 1, 0.25, 't', 0, 3, now64(3)), "
        f"('r', '{out}', '{out}', 'grpo', 1, 0.25, 't', 0, 9, now64(3))",
        "INSERT INTO {db}.samples (run_id, prompt_uid, group_id, trajectory_uid, recipe, recipe_version, sample_id, token_ids, "
        "loss_mask, version_spans, tokens, trained_tokens, links, topic, partition, offset, append_time) "
        "SELECT 'r', prompt_uid, group_id, trajectory_uid, 'grpo', 1, concat('s-', trajectory_uid), [1, 2, 3], [0, 1, 1], "
        f"[(7, 0, 2), (8, 2, 3)], 3, 2, map('drift', toUInt64(trajectory_uid = 't{4 * first + 1}')), 't', 0, offset, now64(3) "
        f"FROM {{db}}.trajectories WHERE prompt_uid IN ('{trained}', '{cut}', '{ready}')",
        "INSERT INTO {db}.cuts (batch_id, recipe, recipe_version, run_id, sequence, groups, excluded, samples, tokens, "
        "trained_tokens, policy_version, offset, append_time) VALUES "
        "('b1', 'grpo', 1, 'r', 1, 1, 0, 4, 12, 8, 9, 1, now64(3)), ('b2', 'grpo', 1, 'r', 2, 1, 1, 4, 12, 8, 9, 2, now64(3))",
        "INSERT INTO {db}.cut_members (batch_id, recipe, run_id, sequence, position, taken, reason, group_run_id, group_id, "
        "ready_offset, sample_ids, offset, append_time) VALUES "
        f"('b1', 'grpo', 'r', 1, 0, true, NULL, 'r', '{trained}', 1, [{samples[0]}], 1, now64(3)), "
        f"('b2', 'grpo', 'r', 2, 0, true, NULL, 'r', '{cut}', 2, [{samples[1]}], 2, now64(3)), "
        f"('b2', 'grpo', 'r', 2, 0, false, 'vetoed', 'r', '{out}', 9, [], 2, now64(3))",
        "INSERT INTO {db}.trained (batch_id, recipe, run_id, sequence, policy_version, offset, append_time) VALUES "
        "('b1', 'grpo', 'r', 1, 10, 2, now64(3))",
        "INSERT INTO {db}.decisions (fact_id, run_id, prompt_uid, trajectory_uid, action, value, author, at, topic, partition, "
        f"offset, append_time) VALUES ('d1', 'r', '{waits}', 't{4 * (first + 4)}', 'veto', NULL, 'ada', now64(6), 't', 0, 1, "
        "now64(3))",
    )
