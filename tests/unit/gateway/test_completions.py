"""Legacy completions: what is injected into a request, and what a reply gives up, on every recorded exchange."""

import json
from typing import Any

import pytest

from claw_r1.codec import pack_floats, pack_ids
from claw_r1.events import Step, Timings
from gateway.calls.capture import Call, make_steps
from gateway.calls.chains import Chains
from gateway.dialects import completions
from gateway.dialects.base import Asked
from gateway.dialects.captured import Captured
from gateway.replies import Refusal
from gateway.sse import EventSplitter, event_data
from tests.unit.gateway.recordings import Recording, completed

RECORDED = completed("/v1/completions")


def capture(asked: Asked, recording: Recording) -> Captured:
    if not recording.streamed:
        return asked.api.read(recording.reply)
    fold = asked.api.fold(asked.n)
    splitter = EventSplitter()
    for event in [*splitter.feed(recording.reply), splitter.rest()]:
        if (data := event_data(event)) is not None:
            fold.take(data)
    assert fold.finished
    return fold.captured()


def steps(asked: Asked, captured: Captured) -> list[Step]:
    call = Call("c", "r", "p", "t", None, asked.n, asked.model, asked.messages, asked.request, asked.sampling)
    made = make_steps(call, captured, Chains(), status="complete", timings=Timings(), engine="e", at=0.0)
    return [recorded.step for recorded in made]


def plain(recording: Recording) -> dict[int, dict[str, Any]]:
    """Index → prompt, ids, log-probs and text, read the plain way."""
    found: dict[int, dict[str, Any]] = {}
    for reply in recording.chunks() if recording.streamed else [recording.whole()]:
        for choice in reply["choices"]:
            one = found.setdefault(choice["index"], {"prompt": None, "ids": [], "lps": [], "text": ""})
            one["prompt"] = one["prompt"] or choice.get("prompt_token_ids")
            one["ids"] += choice["token_ids"]
            one["lps"] += choice["logprobs"]["token_logprobs"] if choice.get("logprobs") else []
            one["text"] += choice["text"]
    return found


@pytest.mark.parametrize("recording", RECORDED, ids=lambda recording: recording.name)
def test_a_recorded_reply_gives_a_step_for_each_choice(recording: Recording) -> None:
    asked = completions.asked(recording.request)
    wanted = plain(recording)
    made = steps(asked, capture(asked, recording))
    assert [step.choice for step in made] == sorted(wanted) == list(range(asked.n))
    for step in made:
        want = wanted[step.choice]
        assert step.new_prompt_ids == pack_ids(want["prompt"])
        assert step.response_ids == pack_ids(want["ids"])
        own = want["lps"][-len(want["ids"]) :]
        assert step.rollout_log_probs == (pack_floats(own) if own else None)
        assert step.capture.reasons == (() if own else ("no_log_probs",))
        assert json.loads(step.reply or b"") == {"role": "assistant", "content": want["text"]}


@pytest.mark.parametrize(
    ("prompt", "n", "choices"),
    [
        ("a", None, 1),
        ("a", 3, 3),
        (["a", "b"], 2, 4),
        ([1, 2, 3], 1, 1),
        ([[1], [2, 3]], 2, 4),
        ([], 1, 1),
        (None, 1, 1),
    ],
)
def test_prompts_times_n_are_the_choices(prompt: Any, n: int | None, choices: int) -> None:
    asked = completions.asked(json.dumps({"model": "m", "prompt": prompt, "n": n, "best_of": 2}).encode())
    assert asked.n == choices
    sent = json.loads(asked.upstream_body)
    assert sent == {
        "model": "m",
        "prompt": prompt,
        "n": n,
        "best_of": 2,
        "return_token_ids": True,
        "return_weight_versions": True,
        "logprobs": 0,
    }


def test_more_choices_than_a_call_may_have_are_refused() -> None:
    with pytest.raises(Refusal, match="at most 128") as refused:
        completions.asked(json.dumps({"prompt": ["a"] * 65, "n": 2}).encode())
    assert (refused.value.status, refused.value.param) == (400, "prompt")


def test_what_the_agent_asked_of_log_probs_stays() -> None:
    asked = completions.asked(b'{"prompt":"a","logprobs":3,"stream":true,"stream_options":{"include_usage":true}}')
    sent = json.loads(asked.upstream_body)
    assert (sent["logprobs"], sent["stream_options"], asked.stream) == (3, {"include_usage": True}, True)


def test_a_chunk_that_is_no_json_is_a_fault() -> None:
    fold = completions.API.fold(1)
    assert fold.take(b"{") == "other"
    assert fold.take(b'{"error":{"message":"x"}}') == "error"
    assert fold.captured().faults == ("unparsable_chunk",)
    assert completions.API.read(b"<html>").faults == ("unparsable_reply",)
