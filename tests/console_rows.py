"""Rows of groups whose rollouts share a prefix, branch, drift and run beside each other; `{db}` is the database.

g1: emitted, in batch 1; its rollout g1-a has a drifted step and a sub-agent. g2: flat, discarded. g3: held, without rewards.
"""

import json
from typing import Any, Final

HOSTILE_PIECE: Final = "<img src=x onerror=\"window.ran='token'\">"
TOKENIZER: Final[dict[str, Any]] = {
    "model": {"vocab": {f"Ġw{i}": i for i in range(60) if i not in (5, 6, 7)} | {"âĤ": 6, "¬": 7, "Ċ": 99}},
    "decoder": {"type": "ByteLevel"},
    "added_tokens": [{"id": 5, "content": HOSTILE_PIECE}],
}
"""Texts of the model m: token 5 is hostile, 6 and 7 are parts of a character, 99 is a line feed."""


def _text(value: Any) -> str:
    return "'" + json.dumps(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _talk(*said: str) -> str:
    roles = ("user", "assistant")
    return _text([{"role": roles[i % 2], "content": text} for i, text in enumerate(said)])


def _trajectory(uid: str, reward: float | None, at: int, talk: str, *steps: str) -> str:
    rewards = "[]" if reward is None else f"[('judge', {reward}, 0, false)]"
    group = uid.partition("-")[0]
    return (
        f"('r', '{group}', '{group}', '{uid}', 'completed', true, {list(steps)}, {rewards}, {talk}, "
        f"'{{\"env\": \"swe\"}}', 'guess', 't', 1, {at}, toDateTime64('2025-12-01 00:00:00', 3) + toIntervalSecond({at}))"
    )


def _step(uid: str, step: str, parent: str | None, kept: int, prompt: int, said: int, version: int, at: float) -> str:
    def clock(later: float) -> str:
        return f"toDateTime64('2025-12-01 00:00:00', 6) + toIntervalMillisecond({round(1000 * (at + later))})"

    above = "NULL" if parent is None else f"'{parent}'"
    return (
        f"('r', '{uid.partition('-')[0]}', '{uid}', '{step}', {above}, 'complete', {kept}, {prompt}, {said}, false, {version}, "
        f"'policy', 'm', 'tool_calls', true, 't', 1, {round(100 * at)}, "
        f"toDateTime64('2025-12-01 00:00:00', 3), {clock(0)}, {clock(0.25)}, {clock(1)})"
    )


def _tokens(uid: str, step: str, new: list[int], said: list[int], at: float) -> str:
    return (
        f"('r', '{uid.partition('-')[0]}', '{uid}', '{step}', {new}, {said}, [], '', '', 't', 1, {round(100 * at)}, "
        "toDateTime64('2025-12-01 00:00:00', 3))"
    )


STEPS: Final = (
    ("g1-a", "d1", None, 0, [1, 2, 3], [4, 5, 6, 7, 8, 9], 7, 1.0),
    ("g1-a", "d2", "d1", 4, [99, 6, 7, 8, 9, 10], [11], 7, 3.0),
    ("g1-a", "sub", None, 0, [40, 41], [42], 7, 3.5),
    ("g1-a", "d3", "d2", 11, [12], [13], 8, 6.0),
    ("g1-b", "e1", None, 0, [1, 2, 3], [4, 20], 7, 1.0),
    ("g2-a", "f1", None, 0, [1, 2], [50], 7, 1.0),
    ("g2-b", "f1", None, 0, [1, 2], [51], 7, 1.0),
)
"""Trajectory, step, parent, tokens taken from it, new ones of the prompt, response, policy version, seconds."""

ROWS: Final = (
    "INSERT INTO {db}.trajectories (run_id, prompt_uid, group_id, trajectory_uid, status, complete, step_ids, rewards, "
    "messages, metadata, task_id, topic, partition, offset, append_time) VALUES "
    + ", ".join(
        (
            _trajectory("g1-a", 1.0, 1, _talk("guess", "I say 4", "higher", "I say 7"), "d1", "d2", "sub", "d3"),
            _trajectory("g1-b", 0.0, 2, _talk("guess", "I say 9"), "e1"),
            _trajectory("g1-c", None, 3, "''"),
            _trajectory("g2-a", 0.5, 4, _talk("guess", "I say 5"), "f1"),
            _trajectory("g2-b", 0.5, 5, _talk("guess", "I say 6"), "f1"),
            _trajectory("g3-a", None, 6, _talk("guess", "I say 5")),
        )
    ),
    "INSERT INTO {db}.trajectory_lookup (trajectory_uid, run_id, prompt_uid, append_time) "
    "SELECT trajectory_uid, run_id, prompt_uid, append_time FROM {db}.trajectories WHERE prompt_uid LIKE 'g%'",
    "INSERT INTO {db}.steps (run_id, prompt_uid, trajectory_uid, step_id, parent_step_id, status, prefix_len, prompt_len, "
    "response_len, has_log_probs, policy_version, role, model, finish_reason, capture_ok, topic, partition, offset, "
    "append_time, received, first_byte, done) VALUES "
    + ", ".join(_step(u, s, p, k, k + len(new), len(said), v, at) for u, s, p, k, new, said, v, at in STEPS),
    "INSERT INTO {db}.step_tokens (run_id, prompt_uid, trajectory_uid, step_id, new_prompt_ids, response_ids, "
    "rollout_log_probs, new_messages, reply, topic, partition, offset, append_time) VALUES "
    + ", ".join(_tokens(u, s, new, said, at) for u, s, _, _, new, said, _, at in STEPS),
    "INSERT INTO {db}.outcomes (outcome_id, run_id, prompt_uid, group_id, trajectory_uid, recipe, recipe_version, outcome, "
    "reason, offset, append_time) VALUES "
    + ", ".join(
        f"('{group}', 'r', '{group}', '{group}', NULL, 'demo', 1, '{outcome}', '{reason}', {i}, "
        f"toDateTime64('2025-12-01 00:01:00', 3) + toIntervalSecond({i}))"
        for i, (group, outcome, reason) in enumerate(
            (("g1", "emitted", "size"), ("g2", "discarded", "zero_deviation"), ("g3", "held", "review"))
        )
    ),
    "INSERT INTO {db}.groups (run_id, prompt_uid, group_id, recipe, recipe_version, trained_tokens, links, topic, partition, "
    "offset, append_time) VALUES ('r', 'g1', 'g1', 'demo', 1, 9, map('drift', 1, 'exact', 1, 'root', 2), 't', 1, 1, now64(3))",
    "INSERT INTO {db}.cuts (batch_id, recipe, run_id, sequence, groups, samples, tokens, offset, append_time) VALUES "
    "('gb', 'demo', 'r', 1, 1, 1, 10, 1, now64(3))",
    "INSERT INTO {db}.cut_members (batch_id, recipe, run_id, sequence, position, taken, group_run_id, group_id, offset, "
    "append_time) VALUES ('gb', 'demo', 'r', 1, 0, true, 'r', 'g1', 1, now64(3))",
    "INSERT INTO {db}.samples (run_id, prompt_uid, group_id, trajectory_uid, recipe, recipe_version, sample_id, spans, "
    "span_links, token_ids, loss_mask, rollout_log_probs, tokens, topic, partition, offset, append_time) VALUES "
    "('r', 'g1', 'g1', 'g1-a', 'demo', 1, 'ga', [('d3', 3, 12, 13, NULL)], [('exact', 'd2', NULL)], [1, 2, 3, 4], "
    "[0, 0, 1, 1], [0, 0, -0.5, -1], 4, 't', 1, 1, now64(3))",
    "INSERT INTO {db}.token_stats (batch_id, recipe, sequence, policy_version, run_id, prompt_uid, group_id, trajectory_uid, "
    "sample_id, name, values, offset, append_time) VALUES "
    "('gb', 'demo', 1, 9, 'r', 'g1', 'g1', 'g1-a', 'ga', 'log_probs', [nan, nan, -1, -0.75], 1, now64(3))",
)
