"""A captured reply becomes steps: faults are named, versions are what the engine said, every announced id is answered."""

import json
from typing import Any

import pytest

from claw_r1.codec import pack_floats, pack_ids
from claw_r1.events import Sampling, Step, Timings, VersionSpan
from gateway.calls.capture import MENDS, Call, Recorded, Status, make_steps, step_ids
from gateway.calls.chains import Chains
from gateway.dialects.captured import Captured, Choice
from tests.unit.gateway.recordings import Recording, completed
from tests.unit.gateway.test_chat import capture

WITHOUT_IDS = {"chat_plain": "no_token_ids", "chat_ids_no_logprobs": "no_log_probs"}


def a_call(**over: Any) -> Call:
    fields: dict[str, Any] = {
        "step_id": "call",
        "run_id": "run",
        "prompt_uid": "p",
        "trajectory_uid": "t",
        "channel": None,
        "n": 1,
        "model": "tiny",
        "messages": (b'{"role":"user","content":"hi"}',),
        "request": b"{}",
        "sampling": Sampling(),
    }
    return Call(**(fields | over))


def a_choice(index: int = 0, **over: Any) -> Choice:
    fields = {"response_ids": pack_ids([4, 5]), "log_probs": pack_floats([-1, -2]), "finish_reason": "stop"}
    return Choice(index, **(fields | over))


def a_captured(*choices: Choice, **over: Any) -> Captured:
    choices = choices or (a_choice(),)
    usage = {"prompt_tokens": 3, "completion_tokens": 2 * len(choices)}
    fields: dict[str, Any] = {"prompt_json": b"[1,2,3]", "choices": list(choices), "usage": usage}
    return Captured(**(fields | over))


def make(captured: Captured, status: Status = "complete", **over: Any) -> list[Recorded]:
    return make_steps(
        a_call(**over), captured, Chains(), status=status, timings=Timings(), engine="e", at=1.0, reasons=()
    )


def only(captured: Captured, **over: Any) -> Step:
    (recorded,) = make(captured, **over)
    return recorded.step


@pytest.mark.parametrize("recording", completed(), ids=lambda recording: recording.name)
def test_recorded_exchanges_pass_the_checks(recording: Recording) -> None:
    asked = json.loads(recording.request)
    recorded = make(capture(recording), n=asked.get("n") or 1)
    assert len(recorded) == (asked.get("n") or 1)
    complete = (
        bool(asked.get("logprobs"))
        and bool(asked.get("return_token_ids"))
        and asked.get("include_reasoning") is not False
    )
    usage = not recording.streamed or bool((asked.get("stream_options") or {}).get("include_usage"))
    for step in (r.step for r in recorded):
        reasons = set(step.capture.reasons) - (set() if usage else {"no_usage"})
        if recording.name.startswith("abort_stream"):
            assert not step.capture.ok
        elif complete:
            assert reasons == set(), "a whole capture has no faults"
        else:
            assert reasons, "what is missing is named"


@pytest.mark.parametrize(
    ("captured", "reason"),
    [
        (a_captured(prompt_json=None), "no_prompt_ids"),
        (a_captured(a_choice(response_ids=None)), "no_token_ids"),
        (a_captured(a_choice(log_probs=None)), "no_log_probs"),
        (a_captured(a_choice(log_probs=pack_floats([-1]))), "ids_log_probs_differ"),
        (a_captured(a_choice(faults=("log_prob_missing",))), "log_prob_missing"),
        (a_captured(usage=None), "no_usage"),
        (a_captured(usage={"prompt_tokens": 4, "completion_tokens": 2}), "prompt_tokens_differ"),
        (a_captured(usage={"prompt_tokens": 3, "completion_tokens": 9}), "completion_tokens_differ"),
        (a_captured(prompt_json=b'["x"]'), "bad_token_ids"),
        (a_captured(prompt_json=b"[-1,2,3]"), "bad_token_ids"),
    ],
)
def test_faults_are_named_and_the_step_is_recorded(captured: Captured, reason: str) -> None:
    step = only(captured)
    assert not step.capture.ok
    assert reason in step.capture.reasons
    assert reason in MENDS
    assert step.status == "complete"


def test_every_announced_step_is_answered() -> None:
    call = a_call(n=3)
    for captured in (Captured(), a_captured(a_choice(1)), a_captured(a_choice(0), a_choice(1), a_choice(2))):
        steps = [r.step for r in make(captured, n=3)]
        assert [step.step_id for step in steps] == step_ids(call) == ["call", "call.1", "call.2"]
        came = {choice.index for choice in captured.choices}
        assert [step.status for step in steps] == ["complete" if k in came else "failed" for k in range(3)]


def test_only_whole_steps_may_become_parents() -> None:
    assert make(a_captured())[0].context is not None
    assert make(a_captured(), status="partial")[0].context is None
    assert make(a_captured(a_choice(response_ids=None)))[0].context is None
    assert make(a_captured(prompt_json=None))[0].context is None


def test_an_aborted_choice_is_partial() -> None:
    step = only(a_captured(a_choice(finish_reason="abort")))
    assert (step.status, step.capture.ok) == ("partial", False)


@pytest.mark.parametrize(
    ("spans", "version", "kept"),
    [
        ([], None, 0),
        ([(7, 0, 2)], 7, 0),
        ([(7, 0, 1), (7, 1, 2)], 7, 0),
        ([(7, 0, 1), (8, 1, 2)], None, 2),
        ([(None, 0, 2)], None, 0),
        ([(7, 0, 1)], None, 1),
        ([(7, 0, 9)], 7, 0),
        ([(7, 0, 2), (8, 2, 5)], 7, 0),
        ([(7, 0, 1), (8, 1, 5)], None, 2),
    ],
)
def test_versions_are_what_the_engine_said(spans: list[Any], version: int | None, kept: int) -> None:
    versions = tuple(VersionSpan(version=v, start=s, end=e) for v, s, e in spans)
    step = only(a_captured(a_choice(versions=versions)))
    assert (step.policy_version, len(step.version_spans)) == (version, kept)
    assert all(span.end <= 2 for span in step.version_spans)


def test_weight_labels_that_are_no_numbers_are_unknown() -> None:
    recording = next(r for r in completed() if r.name == "dev_chat_weight_versions")
    assert only(capture(recording)).policy_version is None


def test_no_choice_of_a_call_that_was_given_up_is_trained() -> None:
    captured = a_captured(a_choice(), a_choice(1, finish_reason="abort"))
    made = make(captured, n=2)
    assert [(r.step.status, r.step.capture.ok, r.context) for r in made] == [("partial", False, None)] * 2
