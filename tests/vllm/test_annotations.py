"""A real vLLM says its log-probs of tokens that were captured: those of the engine that sampled them are the captured ones."""

import numpy as np
import pytest

from claw_r1.codec import unpack_floats, unpack_ids
from claw_r1.events import Annotation, Step
from claw_r1.rewards.rollout import StepView
from claw_r1.settings import AnnotationSource
from streams.workers.sources import LogProbSource
from tests.conftest import Stack
from tests.factories import a_finished
from tests.vllm.exchange import REAL_ENGINE, Bench, context, with_bench

pytestmark = REAL_ENGINE

HELLO = [{"role": "user", "content": "Say the marker."}]
# A prompt that is read at once is computed in another order than tokens that are sampled one by one.
TOLERANCE = 1e-3


def view(step: Step, prompt: bytes) -> StepView:
    return StepView(step.step_id, unpack_ids(prompt), unpack_ids(step.response_ids))


async def annotate(bench: Bench, steps: list[StepView]) -> list[Annotation]:
    async def known() -> list[StepView]:
        return steps

    spec = AnnotationSource(name="ref_log_probs", engine=bench.vllm, model="tiny")
    source = LogProbSource(spec, timeout=60.0, attempts=1, calls=2)
    try:
        return list(await source.facts(a_finished(step_ids=tuple(step.step_id for step in steps)), known))
    finally:
        await source.close()


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_reference_of_the_same_weights_says_the_captured_log_probs(
    stack: Stack, vllm: str, temperature: float
) -> None:
    async def body(bench: Bench) -> None:
        asked = {"model": "tiny", "max_tokens": 24, "temperature": temperature, "seed": 7}
        said = (await bench.ask("/v1/chat/completions", asked | {"messages": HELLO}))["choices"][0]["message"]
        talk = [*HELLO, {"role": "assistant", "content": said["content"]}, {"role": "user", "content": "Go on."}]
        await bench.ask("/v1/chat/completions", asked | {"messages": talk})
        first, second = await bench.steps(2)
        prompts = [context(first), context(second, first if second.parent_step_id else None)]
        views = [view(first, prompts[0]), view(second, prompts[1])]
        told = {fact.step_id: fact for fact in await annotate(bench, views)}
        assert told.keys() == {first.step_id, second.step_id}
        for step in (first, second):
            captured, values = (
                unpack_floats(step.rollout_log_probs or b""),
                unpack_floats(told[step.step_id].values or b""),
            )
            assert (told[step.step_id].name, len(values)) == ("ref_log_probs", step.response_len)
            np.testing.assert_allclose(values, captured, atol=TOLERANCE)

    with_bench(stack, vllm, body)
