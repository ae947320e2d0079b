"""The model reads what the tokens say, samples what it computes, and its gradient is the gradient."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claw_r1.demo import agent, grpo, policy, tokens
from tests.unit.demo.playing import Columns, an_engine, batch_of, play_group


def _read(*messages: tuple[str, str]) -> policy.Reader:
    reader = policy.Reader()
    reader.feed(tokens.render([{"role": role, "content": content} for role, content in messages]))
    return reader


def test_the_reader_knows_the_interval_that_is_left() -> None:
    call = {"function": {"name": "guess", "arguments": '{"number": 8}'}}
    ids = tokens.render(
        [
            {"role": "user", "content": "guess the number between 1 and 15 within 3 turns. Your helper proposes 8."},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "The target number is higher."},
        ]
    )
    reader = policy.Reader()
    reader.feed([*ids, tokens.CALL, tokens.id_of(" guess")])
    assert reader.place == policy.NUMBER
    assert reader.due() == policy.Due(1, 15, 9, 15, frozenset({8}), 8)


def test_the_reader_knows_what_is_asked() -> None:
    assert _read(("user", "First write a short plan.")).place == policy.PLAN
    assert _read(("user", "Play now.")).place == policy.PLAY
    assert _read(("system", "You advise a player."), ("user", "Propose a number.")).place == policy.ADVISE
    assert _read(("user", "Game over. You lost.")).place == policy.OVER


@given(st.lists(st.integers(0, tokens.SIZE - 1), max_size=60))
def test_any_context_has_a_distribution(ids: list[int]) -> None:
    reader = policy.Reader()
    reader.feed(ids)
    log_probs = policy.next_log_probs(policy.initial_weights(), reader)
    assert np.isfinite(log_probs).all()
    assert np.exp(log_probs.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)


def _played() -> Columns:
    engine = an_engine(3)
    tasks = [agent.Task(1, "solo"), agent.Task(2, "advised")]
    return batch_of([play_group(engine, task) for task in tasks])


def test_training_recomputes_the_log_probs_that_were_sampled() -> None:
    columns = _played()
    recomputed = grpo.token_log_probs(policy.initial_weights(), columns)
    assert recomputed == pytest.approx(columns.rollout_log_probs[columns.loss_mask == 1], abs=1e-5)


def test_the_gradient_is_that_of_the_log_probs() -> None:
    columns, weights = _played(), policy.initial_weights()
    scale = np.random.default_rng(0).normal(size=int(columns.loss_mask.sum())).astype(np.float32)
    table, taste = grpo.log_prob_gradient(weights, columns, scale)

    def value(moved: policy.Weights) -> float:
        return float(grpo.token_log_probs(moved, columns).astype(np.float64) @ scale)

    step = 1e-2
    for index in range(len(policy.FEATURES)):
        up, down = weights.taste.copy(), weights.taste.copy()
        up[index] += step
        down[index] -= step
        slope = value(policy.Weights(0, weights.table, up)) - value(policy.Weights(0, weights.table, down))
        assert taste[index] == pytest.approx(slope / (2 * step), abs=0.02)
    for place, token in (
        (policy.PLAY, tokens.CALL),
        (policy.NUMBER, tokens.FIRST_NUMBER + 8),
        (policy.TEXT_1, tokens.END),
    ):
        up, down = weights.table.copy(), weights.table.copy()
        up[place, token] += step
        down[place, token] -= step
        slope = value(policy.Weights(0, up, weights.taste)) - value(policy.Weights(0, down, weights.taste))
        assert table[place, token] == pytest.approx(slope / (2 * step), abs=0.02)


def test_samples_follow_the_distribution() -> None:
    reader = _read(("user", "between 1 and 15 Play now."))
    reader.feed([tokens.CALL, tokens.id_of(" guess")])
    expected = np.exp(policy.next_log_probs(policy.initial_weights(), reader))
    rng, counts = np.random.default_rng(0), np.zeros(tokens.SIZE)
    for _ in range(4000):
        counts[policy.sample(policy.initial_weights(), copy.copy(reader), rng, 1.0).token] += 1
    assert counts / 4000 == pytest.approx(expected, abs=0.02)


def test_temperature_zero_takes_the_likeliest() -> None:
    reader = _read(("user", "Play now."))
    drawn = policy.sample(policy.initial_weights(), reader, np.random.default_rng(0), 0.0)
    assert drawn.token == tokens.CALL
    assert drawn.log_prob == pytest.approx(float(drawn.log_probs[tokens.CALL]))


def test_weights_survive_bytes() -> None:
    weights = policy.initial_weights()
    again = policy.weights_from_bytes(policy.weights_to_bytes(weights))
    np.testing.assert_array_equal(again.table, weights.table)
    np.testing.assert_array_equal(again.taste, weights.taste)
    assert again.version == 0


@pytest.mark.parametrize("data", [b"", b"nonsense", policy.weights_to_bytes(policy.initial_weights())[:200]])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no weights"):
        policy.weights_from_bytes(data)
