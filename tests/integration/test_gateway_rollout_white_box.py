"""What agents that sample themselves say, upstream's and ours, in JSON and msgpack, with keys and without, becomes facts."""

import asyncio
import base64
import io
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web

from claw_r1.blobs import LocalBlobs
from claw_r1.codec import pack_floats, pack_ids, unpack_floats
from claw_r1.events import Annotation, Decision, GroupCancel, Reward, Step, TrajectoryEnd, VersionSpan
from claw_r1.ids import new_id
from claw_r1.keys import Secrets, mint
from claw_r1.settings import GatewaySettings
from tests.conftest import Stack
from tests.integration.gateway_stand import Engine, Handler, Stand, a_gateway, a_reply, an_engine, replying
from tests.integration.test_gateway_rollout import only, post

pytestmark = pytest.mark.stack

SECRET = "one:0123456789abcdef0123456789abcdef"
SECRETS = Secrets.of(GatewaySettings.model_validate({"secret": SECRET}).secret)
PNG = b"\x89PNG\r\n\x1a\npicture"


def judge(response_ids: list[int], dataset_fields: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"reward_score": 1.0 if len(response_ids) == dataset_fields["wanted"] else 0.0, "tokens": len(response_ids)}


def completing(ids: list[int]) -> Handler:
    """Answers a completion of tokens in vLLM's shape."""
    choice = {
        "index": 0,
        "text": "x",
        "token_ids": ids,
        "logprobs": {"token_logprobs": [-0.5] * len(ids)},
        "finish_reason": "length",
    }
    return replying({"id": "cmpl-1", "object": "text_completion", "model": "tiny", "choices": [choice]})


Body = Callable[[Stand, str, Engine], Awaitable[None]]


def with_gateway(stack: Stack, body: Body, answer: Handler | None = None, **settings: Any) -> None:
    async def run() -> None:
        name = new_id()
        async with (
            an_engine(answer or replying(a_reply([1, 2, 3], [4, 5]))) as engine,
            a_gateway(stack.kafka, engine.url, run=name, **settings) as stand,
        ):
            await body(stand, name, engine)

    asyncio.run(run())


async def send(stand: Stand, path: str, body: Any, *, key: str | None = None, status: int = 200) -> Any:
    """A msgpack body."""
    headers = {"content-type": "application/msgpack"} | ({} if key is None else {"authorization": f"Bearer {key}"})
    async with stand.http.post(stand.url + path, data=msgspec.msgpack.encode(body), headers=headers) as response:
        found = await response.json()
        assert response.status == status, found
        return found


def test_upstreams_white_box_protocol(stack: Stack) -> None:
    """The bodies that upstream's multi-step agent flow sends, field for field."""

    async def body(stand: Stand, run: str, engine: Engine) -> None:
        sampling = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "logprobs": True}
        generated = await post(stand, "/generate", {"prompt_ids": [1, 2, 3], "sampling_params": sampling})
        assert (generated["token_ids"], generated["log_probs"], generated["stop_reason"]) == (
            [7, 8],
            [-0.5] * 2,
            "length",
        )
        assert (engine.paths[-1], engine.asked[-1]["prompt"]) == ("/v1/completions", [1, 2, 3])
        uid, prompt_uid = f"{run}-t", f"{run}-p"
        step = {
            "prompt_ids": [1, 2, 3],
            "response_ids": generated["token_ids"],
            "reward": None,
            "rollout_log_probs": generated["log_probs"],
            "trajectory_uid": uid,
            "prompt_uid": prompt_uid,
            "step_index": 0,
            "policy_version": 0,
            "is_last": False,
            "metadata": {"data_source": "gsm8k", "reward_model": {"ground_truth": "4"}, "index": 3, "raw": None},
        }
        assert (await post(stand, "/submit_steps", {"steps": [step]}))["accepted"] == 1
        question = {
            "prompt_ids": [1, 2, 3, 7, 8, 9],
            "response_ids": [7, 8],
            "num_turns": 4,
            "extra_fields": {},
            "dataset_fields": {"wanted": 2},
        }
        scored = await post(stand, "/compute_reward", question)
        assert scored == {"reward_score": 1.0, "reward_extra_info": {"tokens": 2}}
        last = {"prompt_ids": [1, 2, 3, 7, 8, 9], "reward": scored["reward_score"], "step_index": 1, "is_last": True}
        assert (await post(stand, "/submit_steps?channel=train", {"steps": [step | last]}))["accepted"] == 1
        facts = await stand.facts(run)
        assert [fact.TYPE for fact in facts] == ["step", "step", "reward", "trajectory-end"]
        first, second = (fact for fact in facts if isinstance(fact, Step))
        assert (second.parent_step_id, second.prefix_len, second.policy_version) == (first.step_id, 5, 0)
        assert first.metadata["reward_model"] == {"ground_truth": "4"}
        assert only(facts, Reward).step_id == second.step_id

    with_gateway(stack, body, completing([7, 8]), reward="tests.integration.test_gateway_rollout_white_box:judge")


def test_msgpack_says_the_same_as_json(stack: Stack) -> None:
    async def body(stand: Stand, run: str, engine: Engine) -> None:
        place = {"trajectory_uid": f"{run}-t", "prompt_uid": "p"}
        packed = place | {
            "prompt_ids": pack_ids([1, 2]),
            "response_ids": pack_ids([3]),
            "rollout_log_probs": pack_floats([-1.5]),
            "version_spans": [{"start": 0, "end": 1, "version": 9}],
        }
        listed = json.loads(
            json.dumps(place | {"prompt_ids": [1, 2], "response_ids": [3], "rollout_log_probs": [-1.5]})
        )
        first = await send(stand, "/submit_steps", {"steps": [packed]})
        second = await post(stand, "/submit_steps", {"steps": [listed]})
        assert first == second
        assert first["accepted"] == 1
        step = (await stand.steps(run))[0]
        assert (step.version_spans, step.policy_version) == ((VersionSpan(version=9, start=0, end=1),), 9)
        assert await send(stand, "/rewards", [place | {"value": 1.0}] * 2) == {"accepted": 2}
        assert await send(stand, "/rewards", []) == {"accepted": 0}
        refused = await send(stand, "/rewards", [{"value": 1.0}], status=400)
        assert refused["error"]["param"] == "trajectory_uid"
        invalid = await send(stand, "/rewards", [{"prompt_uid": "p", "value": "x"}], status=400)
        assert (invalid["error"]["code"], invalid["error"]["param"]) == ("invalid_field", "0.value")
        async with stand.http.post(
            f"{stand.url}/rewards", data=b"\xc1", headers={"content-type": "application/msgpack"}
        ) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_msgpack")
        async with stand.http.post(
            f"{stand.url}/init_trajectory", headers={"content-type": "application/msgpack"}
        ) as response:
            assert response.status == 200, "no body is none, whatever it is called"

    with_gateway(stack, body)


def test_a_request_with_one_wrong_step_writes_nothing_and_many_steps_are_one_batch(stack: Stack) -> None:
    async def body(stand: Stand, run: str, engine: Engine) -> None:
        def a_step(number: int, **over: Any) -> dict[str, Any]:
            prompt = list(range(2 * number + 1))
            place = {"trajectory_uid": f"{run}-{number % 3}", "prompt_uid": "p", "step_index": number}
            return place | {"prompt_ids": prompt, "response_ids": [900], "rollout_log_probs": [-0.1]} | over

        steps = [a_step(number) for number in range(40)]
        wrong = await send(stand, "/submit_steps", {"steps": [*steps, a_step(41, rollout_log_probs=[])]}, status=400)
        assert wrong["error"]["param"] == "steps.40.rollout_log_probs"
        assert await stand.facts(run) == []
        found = await send(stand, "/submit_steps", {"steps": steps})
        recorded = await stand.steps(run)
        assert [step.step_id for step in recorded] == found["step_ids"]
        assert [step.step_index for step in recorded] == list(range(40))
        assert await send(stand, "/submit_steps", {"steps": []}) == {"accepted": 0, "step_ids": []}

    with_gateway(stack, body)


def test_pictures_and_experts_are_blobs(stack: Stack, tmp_path: Path) -> None:
    async def body(stand: Stand, run: str, engine: Engine) -> None:
        file = io.BytesIO()
        np.save(file, np.arange(8, dtype="u1").reshape(2, 2, 2))
        step = {
            "trajectory_uid": f"{run}-t",
            "prompt_uid": "p",
            "prompt_ids": [1, 2],
            "response_ids": [3],
            "multi_modal_data": {"images": [f"data:image/png;base64,{base64.b64encode(PNG).decode()}"], "fps": 2},
            "routed_experts": base64.b64encode(file.getvalue()).decode(),
        }
        await post(stand, "/submit_steps", {"steps": [step]})
        raw = {"multi_modal_data": {"images": [PNG]}, "routed_experts": file.getvalue(), "step_index": 1}
        await send(stand, "/submit_steps", {"steps": [step | raw]})
        first, second = await stand.steps(run)
        blobs = LocalBlobs(tmp_path)
        assert [ref.kind for ref in first.multi_modal_data] == ["image/png", "application/json"]
        assert first.multi_modal_data[0] == second.multi_modal_data[0]
        assert blobs.get(first.multi_modal_data[0].sha256) == PNG
        assert first.routed_experts == second.routed_experts
        assert first.routed_experts is not None
        assert blobs.get(first.routed_experts.sha256) == file.getvalue()

    with_gateway(stack, body, blobs=str(tmp_path))


def test_annotations_groups_and_feedback(stack: Stack) -> None:
    async def body(stand: Stand, run: str, engine: Engine) -> None:
        uid, prompt = f"{run}-t", f"{run}-p"
        async with stand.http.post(
            f"{stand.url}/{uid}/{prompt}/v1/chat/completions", json={"messages": []}
        ) as response:
            reply, step_id = await response.json(), response.headers["x-claw-step-id"]
        values = {"step_id": step_id, "name": "values", "values": [0.5, 0.25]}
        assert await post(stand, "/annotations", {"trajectory_uid": uid} | values) == {"accepted": 1}
        teacher = {"trajectory_uid": uid, "name": "teacher_log_probs", "source": "teacher", "revision": 2}
        packed = base64.b64encode(pack_floats([-1.0, -2.0])).decode()
        await post(stand, "/annotations", [values | teacher | {"values": packed}])
        said = {"response_id": reply["id"], "label": "up", "author": "ann", "text": "well done"}
        assert await post(stand, "/feedback", said) == {"accepted": 1}
        await post(stand, "/feedback", {"trajectory_uid": uid, "step_id": step_id, "text": "odd", "feedback_id": "f"})
        await post(stand, "/feedback", {"trajectory_uid": uid, "step_id": step_id, "text": "odd", "feedback_id": "f"})
        veto = {"prompt_uid": prompt, "trajectory_uid": uid, "action": "veto", "author": "ann", "decision_id": "d"}
        decided = await post(stand, "/decisions", veto)
        undo = {"prompt_uid": prompt, "action": "undo", "undoes": decided["decision_ids"][0], "author": "bob"}
        both = await post(stand, "/decisions", [veto, undo])
        assert both["decision_ids"][0] == decided["decision_ids"][0], "sent again, it is the same decision"
        assert await post(stand, f"/groups/{prompt}/cancel", {"reason": "no more"}) == {"status": "ok"}
        facts = await stand.facts(run)
        arrays = [fact for fact in facts if isinstance(fact, Annotation)]
        assert [(a.name, a.source, a.revision, list(unpack_floats(a.values))) for a in arrays] == [
            ("values", "annotation", 0, [0.5, 0.25]),
            ("teacher_log_probs", "teacher", 2, [-1.0, -2.0]),
        ]
        reward = only(facts, Reward)
        assert (reward.source, reward.value, reward.step_id, reward.trajectory_uid) == ("feedback", 1.0, step_id, uid)
        assert (reward.metadata["author"], reward.prompt_uid, reward.self_reported) == ("ann", prompt, False)
        notes = [fact for fact in facts if isinstance(fact, Decision) and fact.action == "note"]
        curated = {fact.fact_id: fact for fact in facts if isinstance(fact, Decision) and fact.action != "note"}
        assert [(d.action, d.author) for d in curated.values()] == [("veto", "ann"), ("undo", "bob")]
        assert (curated[both["decision_ids"][1]].undoes, curated[both["decision_ids"][0]].trajectory_uid) == (
            decided["decision_ids"][0],
            uid,
        )
        assert [(note.action, note.value) for note in notes] == [("note", "odd")] * 2
        assert notes[0].fact_id == notes[1].fact_id, "sent again, it is the same fact"
        assert only(facts, GroupCancel).reason == "no more"

    with_gateway(stack, body)


def test_a_session_key_stands_for_its_trajectory_and_for_no_other(stack: Stack) -> None:
    async def body(stand: Stand, run: str, engine: Engine) -> None:
        driver = mint(SECRETS, scope="rollout", now=time.time(), lifetime=600, run_id=run)
        named = {"prompt_uid": f"{run}-p", "channel": "val"}
        begun = await send(stand, "/init_trajectory", named, key=driver)
        key, uid = begun["session_key"], begun["trajectory_uid"]
        assert begun["expires_at"] > time.time()
        assert begun["base_url"].startswith(stand.url)
        async with stand.http.post(
            f"{stand.url}/v1/chat/completions", json={"messages": []}, headers={"authorization": f"Bearer {key}"}
        ) as response:
            assert response.status == 200, await response.text()
        step = {"prompt_ids": [1], "response_ids": [2], "rollout_log_probs": [-1.0], "reward": 0.5}
        await send(stand, "/submit_steps", {"steps": [step]}, key=key)
        await send(stand, "/rewards", {"value": 1.0}, key=key)
        other = {"trajectory_uid": f"{run}-other", "prompt_uid": f"{run}-p", "value": 1.0}
        assert (await send(stand, "/rewards", other, key=key, status=403))["error"]["code"] == "other_trajectory"
        foreign = {"steps": [step | {"trajectory_uid": uid, "prompt_uid": "q"}]}
        assert (await send(stand, "/submit_steps", foreign, key=key, status=403))["error"]["code"] == "other_prompt"
        elsewhere = {"value": 1.0, "run_id": "elsewhere"}
        assert (await send(stand, "/rewards", elsewhere, key=key, status=403))["error"]["code"] == "other_run"
        judge_key = mint(SECRETS, scope="reward", now=time.time(), lifetime=600, run_id=run)
        await send(stand, "/rewards", {"trajectory_uid": uid, "value": 0.0, "source": "judge"}, key=judge_key)
        await send(stand, "/v1/complete_trajectory", {"reward": 0.25}, key=key)
        facts = await stand.facts(run)
        rewards = [fact for fact in facts if isinstance(fact, Reward)]
        assert [(r.source, r.value, r.self_reported, r.step_id is None) for r in rewards] == [
            ("reward", 0.5, True, False),
            ("reward", 1.0, True, True),
            ("judge", 0.0, False, True),
            ("reward", 0.25, True, True),
        ]
        steps = [fact for fact in facts if isinstance(fact, Step)]
        assert [(step.trajectory_uid, step.channel) for step in steps] == [(uid, "val")] * 2
        assert only(facts, TrajectoryEnd).trajectory_uid == uid

    with_gateway(stack, body, secret=SECRET)


def test_the_host_header_is_not_reflected(stack: Stack) -> None:
    async def body(stand: Stand, run: str, engine: Engine) -> None:
        async with stand.http.post(f"{stand.url}/init_trajectory", headers={"host": "evil.example"}) as response:
            assert "evil" not in await response.text()

    with_gateway(stack, body)


def test_an_engines_error_keeps_its_status(stack: Stack) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "too long"}}, status=400)

    async def body(stand: Stand, run: str, engine: Engine) -> None:
        refused = await post(stand, "/generate", {"prompt_ids": [1]}, 400)
        assert refused["error"]["code"] == "engine_refused"
        assert "too long" in refused["error"]["message"]
        assert await stand.facts(run) == []

    with_gateway(stack, body, answer)


def test_generation_goes_to_the_runs_policy_within_the_keys_bounds(stack: Stack) -> None:
    async def body(stand: Stand, run: str, engine: Engine) -> None:
        async with an_engine(completing([1])) as judge:
            engines = {"policy": {"engines": [engine.url]}, "judge": {"engines": [judge.url], "role": "frozen"}}
            admin = mint(SECRETS, scope="admin", now=time.time(), lifetime=600)
            await send(stand, "/engines", {"url": judge.url}, key=admin)
            await send(stand, f"/runs/{run}", {"models": engines, "sampling": {"temperature": 0.5}}, key=admin)
            key = mint(SECRETS, scope="rollout", now=time.time(), lifetime=600, run_id=run)
            for _ in range(4):
                asked = {"prompt_ids": pack_ids([1, 2]), "sampling_params": {"model": "policy", "max_tokens": 8}}
                assert (await send(stand, "/generate", asked, key=key))["token_ids"] == [7, 8]
            assert judge.paths.count("/v1/completions") == 0
            assert engine.asked[-1]["temperature"] == 0.5
            unknown = asked | {"sampling_params": {"model": "nobody"}}
            assert (await send(stand, "/generate", unknown, key=key, status=404))["error"]["code"] == "model_not_found"
            greedy = asked | {"sampling_params": {"model": "policy", "max_tokens": 9}}
            assert (await send(stand, "/generate", greedy, key=key, status=400))["error"]["code"] == "key_max_tokens"

    with_gateway(stack, body, completing([7, 8]), secret=SECRET, key_max_tokens=8)


def test_whoever_leaves_stops_the_engine(stack: Stack) -> None:
    asked, never = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.set()
        await never.wait()
        return web.Response()

    async def body(stand: Stand, run: str, engine: Engine) -> None:
        leaving = asyncio.create_task(post(stand, "/generate", {"prompt_ids": [1]}))
        await asked.wait()
        leaving.cancel()
        async with asyncio.timeout(30):
            assert await engine.gone.wait(), "the engine sees its caller go"

    with_gateway(stack, body, answer)
