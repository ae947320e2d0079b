"""Legacy completions through the gateway to a real vLLM."""

from typing import Any

import pytest

from tests.conftest import Stack
from tests.vllm.exchange import REAL_ENGINE, Bench, Choice, with_bench

pytestmark = REAL_ENGINE

COMPLETIONS = "/v1/completions"
ASKED: dict[str, Any] = {"model": "tiny", "prompt": "the agent will", "max_tokens": 12, "seed": 5}


async def direct_choices(bench: Bench, body: dict[str, Any]) -> list[Choice]:
    reply = await bench.direct(COMPLETIONS, body | {"return_token_ids": True, "logprobs": 0})
    return [
        Choice(c["prompt_token_ids"], c["token_ids"], c["logprobs"]["token_logprobs"], c["finish_reason"])
        for c in reply["choices"]
    ]


@pytest.mark.parametrize(
    "over", [{}, {"temperature": 0.0}, {"prompt": [10, 11, 12, 13]}, {"n": 2}], ids=["text", "greedy", "ids", "two"]
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_completion(stack: Stack, vllm: str, over: dict[str, Any], stream: bool) -> None:
    async def body(bench: Bench) -> None:
        choices = await direct_choices(bench, ASKED | over)
        plain = await bench.direct(COMPLETIONS, ASKED | over)
        if stream:
            pieces = [c for event in await bench.events(COMPLETIONS, ASKED | over) for c in event["choices"]]
            texts = ["".join(p["text"] for p in pieces if p["index"] == index) for index in range(len(choices))]
        else:
            texts = [choice["text"] for choice in (await bench.ask(COMPLETIONS, ASKED | over))["choices"]]
        assert texts == [choice["text"] for choice in plain["choices"]]
        steps = sorted(await bench.steps(len(choices)), key=lambda step: step.choice)
        for choice, step in zip(choices, steps, strict=True):
            choice.check(step)
            assert step.dialect == "completions"

    with_bench(stack, vllm, body)
