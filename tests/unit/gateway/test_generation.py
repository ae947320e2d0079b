"""Tokens in become the engine's request, and its answer upstream's words, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.replies import Refusal
from gateway.rollouts.bodies import GenerateBody, SubmittedSpan
from gateway.rollouts.generation import completion_request, read_generated

RECORDING = Path(__file__).parents[2] / "golden/vllm/completion_prompt_ids.json"


def asked(**sampling: Any) -> dict[str, Any]:
    body = GenerateBody.model_validate({"prompt_ids": [1, 2], "sampling_params": sampling})
    found: dict[str, Any] = json.loads(completion_request(body))
    return found


def a_reply(**over: Any) -> bytes:
    choice = {
        "index": 0,
        "text": "x",
        "token_ids": [5, 6],
        "finish_reason": "stop",
        "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-0.5, -0.25]},
    } | over
    return json.dumps({"id": "cmpl-1", "model": "tiny", "choices": [choice]}).encode()


def test_the_request_asks_for_the_sampled_tokens() -> None:
    found = asked(temperature=0.7, top_p=0.9, repetition_penalty=1.0, logprobs=True, max_new_tokens=4, n=1)
    assert found["prompt"] == [1, 2]
    assert (found["return_token_ids"], found["logprobs"], found["max_tokens"]) == (True, 0, 4)
    assert (found["temperature"], found["top_p"], found["skip_special_tokens"]) == (0.7, 0.9, False)
    assert "n" not in found


def test_without_a_limit_the_engines_own_is_taken_and_log_probs_come_only_when_asked() -> None:
    found = asked(logprobs=False)
    assert found["max_tokens"] is None
    assert "logprobs" not in found


@pytest.mark.parametrize("name", ["kv_transfer_params", "prompt_embeds", "n", "stream", "echo", "x" * 500])
def test_what_reaches_engine_internals_is_refused(name: str) -> None:
    with pytest.raises(Refusal) as refused:
        asked(**{name: 2})
    assert refused.value.code == "unsupported"


def test_a_runs_own_sampling_wins() -> None:
    body = GenerateBody.model_validate({"prompt_ids": [1], "sampling_params": {"temperature": 0.0, "seed": 1}})
    found = json.loads(completion_request(body, {"temperature": 1.0, "top_k": 20}))
    assert (found["temperature"], found["top_k"], found["seed"]) == (1.0, 20, 1)


@pytest.mark.parametrize("model", [7, None, ["m"], {"m": 1}])
def test_a_model_is_a_name(model: Any) -> None:
    with pytest.raises(Refusal, match=r"sampling_params\.model"):
        asked(model=model)


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(Refusal, match="sampling_params"):
        asked(stop="\ud800")


def test_the_answer_is_what_was_sampled() -> None:
    spans = [{"start": 0, "end": 1, "version": "7"}, {"start": 1, "end": 2, "version": "abc"}]
    found = read_generated(a_reply(weight_versions=spans), "http://e")
    assert (found.token_ids, found.log_probs, found.stop_reason, found.engine) == (
        [5, 6],
        [-0.5, -0.25],
        "stop",
        "http://e",
    )
    assert found.version_spans == [
        SubmittedSpan(start=0, end=1, version=7),
        SubmittedSpan(start=1, end=2, version=None),
    ]
    assert read_generated(a_reply(logprobs=None), "http://e").log_probs is None


def test_a_recorded_answer_of_vllm() -> None:
    recorded = json.loads(RECORDING.read_text("utf-8"))["response"]["body"]
    found = read_generated(json.dumps(recorded).encode(), "http://e")
    assert found.token_ids == recorded["choices"][0]["token_ids"]
    assert found.log_probs == recorded["choices"][0]["logprobs"]["token_logprobs"]


@pytest.mark.parametrize(
    "reply",
    [
        b"{",
        b"\xff",
        b"[]",
        b'{"choices": []}',
        a_reply(token_ids=None),
        a_reply(logprobs={"token_logprobs": [-0.5]}),
        a_reply(logprobs={"token_logprobs": [-0.5, None]}),
        a_reply(token_ids=["a"]),
    ],
)
def test_an_answer_that_is_not_whole_is_refused(reply: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        read_generated(reply, "http://e")
    assert (refused.value.status, refused.value.code) == (502, "unparsable_reply")
