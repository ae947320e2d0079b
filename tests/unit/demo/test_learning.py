"""The policy learns the game from captured ids, masks and log-probs, and only if these belong together."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from claw_r1.demo import agent, tokens
from tests.unit.demo.playing import Columns, an_engine, chains, learn, play_group, shifted

REACHABLE = 1.0  # the success rate of the best play; see test_binary_search_wins_every_game


class BinarySearch:
    """The best play: the middle of what is left."""

    async def __call__(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
        low, high, guess = agent.FIRST, agent.LAST, 0
        for message in messages:
            for call in message.get("tool_calls", ()):
                guess = int(call["function"]["arguments"].split(":")[1].rstrip("}"))
            if message["role"] == "tool" and "higher" in message["content"]:
                low = guess + 1
            elif message["role"] == "tool" and "lower" in message["content"]:
                high = guess - 1
        arguments = f'{{"number": {(low + high) // 2}}}'
        function = {"name": "guess", "arguments": arguments}
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        }


def test_binary_search_wins_every_game() -> None:
    async def play_all() -> list[agent.Result]:
        return [await agent.play(BinarySearch(), agent.Task(seed)) for seed in range(100)]

    results = asyncio.run(play_all())
    assert sum(result.success for result in results) / len(results) == REACHABLE
    assert max(result.calls for result in results) == 6


@pytest.mark.parametrize("kind", ["solo", "advised"])
def test_every_trajectory_has_three_calls_and_merges_to_its_conversations(kind: agent.Kind) -> None:
    engine = an_engine(1)
    for seed in range(10):
        for played in play_group(engine, agent.Task(seed, kind), size=4):
            assert played.result.calls == len(played.calls) >= 3
            assert len(chains(played.calls)) == (2 if kind == "advised" else 1)


def test_a_group_shares_its_number() -> None:
    won = [played for played in play_group(an_engine(2), agent.Task(5), size=32) if played.result.success]
    assert len(won) > 1
    last_numbers = {
        [token for token in chain.ids if tokens.FIRST_NUMBER <= token < tokens.HEAD][-1]
        for played in won
        for chain in chains(played.calls)
    }
    assert len(last_numbers) == 1


@pytest.mark.parametrize("seed", range(2))
def test_success_rises(seed: int) -> None:
    curve = learn(seed, batches=12)
    assert np.mean(curve[-3:]) >= np.mean(curve[:3]) + 0.3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_eighteen_batches_come_near_the_best_play(seed: int) -> None:
    curve = learn(seed, batches=18)
    assert np.mean(curve[-3:]) >= max(float(np.mean(curve[:3])) + 0.3, 0.8 * REACHABLE)


def _retokenised(columns: Columns) -> Columns:
    """The numbers as other ids of the same text, as an encoder that does not know the sampled ids would give."""
    ids = columns.token_ids.copy()
    for number in range(10, 16):
        ids[ids == tokens.FIRST_NUMBER + number] = tokens.id_of(str(number))
    for number in range(10):
        ids[ids == tokens.FIRST_NUMBER + number] = tokens.encode(f"({number}")[1]
    return replace(columns, token_ids=ids)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_retokenised, id="ids of another tokenisation"),
        pytest.param(lambda columns: shifted(columns, "loss_mask"), id="mask off by one"),
        pytest.param(lambda columns: shifted(columns, "rollout_log_probs"), id="log-probs off by one"),
    ],
)
def test_wrong_data_do_not_teach(spoil: Callable[[Columns], Columns]) -> None:
    curve = learn(0, batches=10, spoil=spoil)
    assert np.mean(curve[-3:]) < np.mean(curve[:3]) + 0.2
