"""What is said beside model calls, in upstream's words and in ours, becomes facts before the answer."""

import asyncio
import base64
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector
from openai import AsyncOpenAI

from claw_r1 import health
from claw_r1.bus import read_topic
from claw_r1.codec import decode_body, pack_ids, restore_prompt, unpack_floats
from claw_r1.events import Fact, GroupOpen, Reward, Step, TrajectoryEnd, TrajectoryIndex, TrajectoryOpen
from claw_r1.ids import new_id
from claw_r1.topics import TRAJECTORY_INDEX
from tests.conftest import Stack
from tests.integration.gateway_stand import Stand, a_gateway, a_reply, an_engine, replying

pytestmark = pytest.mark.stack


Asked = Callable[[Callable[[Stand, str], Coroutine[Any, Any, None]]], None]
A_STEP = {"trajectory_uid": "t", "prompt_uid": "p", "prompt_ids": [1], "response_ids": [2]}


def with_gateway(stack: Stack, body: Callable[[Stand, str], Awaitable[None]]) -> None:
    async def run() -> None:
        name = new_id()
        async with (
            an_engine(replying(a_reply([1, 2, 3], [4, 5]))) as engine,
            a_gateway(stack.kafka, engine.url, run=name) as stand,
        ):
            await body(stand, name)

    asyncio.run(run())


async def post(stand: Stand, path: str, body: Any = None, status: int = 200) -> Any:
    url = path if path.startswith("http") else stand.url + path
    if isinstance(body, bytes):
        sent: dict[str, Any] = {"data": body, "headers": {"content-type": "application/json"}}
    else:
        sent = {} if body is None else {"json": body}
    async with stand.http.post(url, **sent) as response:
        found = await response.json()
        assert response.status == status, found
        return found


def only(facts: list[Fact], kind: type[Any]) -> Any:
    (fact,) = [fact for fact in facts if isinstance(fact, kind)]
    return fact


def test_upstreams_black_box_protocol(stack: Stack) -> None:
    async def body(stand: Stand, run: str) -> None:
        begun = await post(stand, "/init_trajectory")
        assert begun["base_url"] == f"{stand.url}/{begun['trajectory_uid']}/{begun['prompt_uid']}/v1"
        assert await stand.facts(run) == [], "the prompt may be replaced: nothing is said of it yet"
        base = begun["base_url"].rsplit("/", 2)[0] + f"/{run}-prompt/v1"
        assert await post(
            stand, f"{base}/register_trajectory", {"channel": "val", "metadata": {"policy_version": 3}}
        ) == {"status": "ok"}
        async with AsyncOpenAI(base_url=base, api_key="none") as client:
            await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}])
            assert [model.id async for model in client.models.list()] == ["tiny"]
        assert await post(stand, f"{base}/complete_trajectory", {"reward": 0.5, "channel": "val"}) == {"status": "ok"}
        facts = await stand.facts(run)
        assert [fact.TYPE for fact in facts] == ["trajectory-open", "step-started", "step", "reward", "trajectory-end"]
        assert {fact.prompt_uid for fact in facts if isinstance(fact, Reward | Step)} == {f"{run}-prompt"}
        assert only(facts, TrajectoryOpen).metadata == {"policy_version": 3}
        assert only(facts, Step).channel == "val"
        assert (only(facts, Reward).value, only(facts, Reward).source) == (0.5, "reward")

    with_gateway(stack, body)


def test_index_is_written_before_the_first_step_and_erased_after_the_end(stack: Stack) -> None:
    async def body(stand: Stand, run: str) -> None:
        uid = f"{run}-t"
        messages = {"model": "tiny", "messages": []}
        await post(stand, f"/{uid}/p/v1/chat/completions", messages)
        await post(stand, f"/{uid}/p/v1/complete_trajectory")
        records = await read_topic(stand.kafka, TRAJECTORY_INDEX, client_id="test")
        mine = [record.value for record in records if record.key == uid.encode()]
        assert mine[-1] is None
        assert decode_body(TrajectoryIndex, mine[0]).run_id == run
        (step,) = await stand.steps(run)
        end = only(await stand.facts(run), TrajectoryEnd)
        assert (end.status, step.channel) == ("completed", None)

    with_gateway(stack, body)


def test_another_replica_knows_the_run_at_once(stack: Stack) -> None:
    async def body(stand: Stand, run: str) -> None:
        async with (
            an_engine(replying(a_reply([1], [2]))) as engine,
            a_gateway(stack.kafka, engine.url, run="other-default") as other,
        ):
            for number in range(5):
                ids = {"trajectory_uid": f"{run}-{number}", "prompt_uid": "p", "run_id": f"{run}-x", "channel": "val"}
                begun = await post(stand, "/init_trajectory", ids)
                path = begun["base_url"].removeprefix(stand.url)
                await post(other, f"{path}/chat/completions", {"messages": []})
            steps = await stand.steps(f"{run}-x")
            assert [step.channel for step in steps] == ["val"] * 5

    with_gateway(stack, body)


def test_ends_rewards_and_groups_in_every_form(stack: Stack) -> None:
    async def body(stand: Stand, run: str) -> None:
        group = await post(stand, "/groups", {"size": 4, "task_id": "sum/1", "channel": "train"})
        prompt = group["prompt_uid"]
        for number in range(3):
            ids = {"trajectory_uid": f"{run}-{number}", "prompt_uid": prompt}
            await post(stand, "/v1/register_trajectory", ids | {"task_id": "sum/1"})
        rewards = [
            {"trajectory_uid": f"{run}-0", "value": 1, "components": {"format": 0.5}},
            {"trajectory_uid": f"{run}-1", "value": None, "source": "judge", "revision": 2},
            {"trajectory_uid": f"{run}-1", "step_id": "s1", "value": 0.25},
            {"prompt_uid": prompt, "value": 2.0, "source": "group"},
        ]
        assert await post(stand, "/rewards", rewards) == {"accepted": 4}
        assert await post(stand, "/rewards", rewards[0]) == {"accepted": 1}
        assert await post(stand, "/v1/complete_trajectory", {"trajectory_uid": f"{run}-0", "status": "truncated"})
        assert await post(stand, f"/complete_trajectory/{run}-1", {"status": "aborted", "reason": "time"})
        assert await post(stand, f"/{run}-2/{prompt}/v1/complete_trajectory", {"status": "failed"})
        facts = await stand.facts(run)
        assert only(facts, GroupOpen).size == 4
        found = [fact for fact in facts if isinstance(fact, Reward)]
        assert [(r.value, r.source, r.revision, r.step_id) for r in found[:4]] == [
            (1.0, "reward", 0, None),
            (None, "judge", 2, None),
            (0.25, "reward", 0, "s1"),
            (2.0, "group", 0, None),
        ]
        assert found[4].fact_id == found[0].fact_id, "sent again, it is the same fact"
        ends = [fact.status for fact in facts if isinstance(fact, TrajectoryEnd)]
        assert ends == ["truncated", "aborted", "failed"]

    with_gateway(stack, body)


def test_submitted_steps_are_deltas_and_repeat_as_the_same_facts(stack: Stack) -> None:
    async def body(stand: Stand, run: str) -> None:
        place = {"trajectory_uid": f"{run}-w", "prompt_uid": "p"}
        packed = base64.b64encode(pack_ids([1, 2, 3, 4, 5, 6])).decode()
        steps = [
            place
            | {
                "prompt_ids": [1, 2],
                "response_ids": [3],
                "rollout_log_probs": [-0.5],
                "step_index": 0,
                "policy_version": 4,
            },
            place
            | {
                "prompt_ids": packed,
                "response_ids": [7],
                "rollout_log_probs": [-1.5],
                "step_index": 1,
                "policy_version": 4,
            }
            | {
                "reward": 1.0,
                "is_last": True,
                "metadata": {"uid": "x"},
                "multi_modal_data": {},
                "routed_experts": None,
            },
        ]
        for _ in range(2):
            assert (await post(stand, "/submit_steps?channel=val", {"steps": steps}))["accepted"] == 2
        facts = await stand.facts(run)
        found = [fact for fact in facts if isinstance(fact, Step)]
        first, second = found[:2]
        assert [step.step_id for step in found[2:]] == [first.step_id, second.step_id]
        assert (second.parent_step_id, second.prefix_len, second.step_index) == (first.step_id, 3, 1)
        assert restore_prompt(second, first.new_prompt_ids + first.response_ids) == pack_ids([1, 2, 3, 4, 5, 6])
        assert (second.dialect, second.channel, second.policy_version, second.metadata) == (
            "submitted",
            "val",
            4,
            {"uid": "x"},
        )
        assert second.rollout_log_probs is not None
        assert list(unpack_floats(second.rollout_log_probs)) == [-1.5]
        reward = next(fact for fact in facts if isinstance(fact, Reward))
        assert (reward.step_id, reward.value) == (second.step_id, 1.0)
        assert len({fact.fact_id for fact in facts if isinstance(fact, TrajectoryEnd)}) == 1

    with_gateway(stack, body)


@pytest.fixture(scope="module")
def asked(stack: Stack) -> Iterator[Asked]:
    """Asks one gateway one question after the other: none of them may change anything."""
    name = new_id()

    async def begin(ending: AsyncExitStack) -> Stand:
        stand = await ending.enter_async_context(a_gateway(stack.kafka, run=name))
        # Between two questions nobody keeps a connection alive.
        http = await ending.enter_async_context(ClientSession(connector=TCPConnector(force_close=True)))
        return replace(stand, http=http)

    with asyncio.Runner() as runner:
        ending = AsyncExitStack()
        stand = runner.run(begin(ending))
        yield lambda question: runner.run(question(stand, name))
        runner.run(ending.aclose())


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/init_trajectory", {"trajectory_uid": "a/b"}, 400, "trajectory_uid"),
        ("/init_trajectory", {"group_size": 0}, 400, "group_size"),
        ("/init_trajectory", [], 400, "body"),
        ("/rewards", {"value": 1}, 400, "target"),
        ("/rewards", {"trajectory_uid": "nobody-knows-it", "value": 1}, 404, "prompt_uid"),
        ("/rewards", {"trajectory_uid": "t", "prompt_uid": "p"}, 400, "value"),
        ("/rewards", {"prompt_uid": "p", "step_id": "s", "value": 1}, 400, "trajectory_uid"),
        ("/complete_trajectory/nobody-knows-it", None, 404, "prompt_uid"),
        ("/complete_trajectory/-x", None, 400, "trajectory_uid"),
        ("/t/p/v1/complete_trajectory", {"status": "done"}, 400, "status"),
        ("/submit_steps", {"steps": [{"trajectory_uid": "t", "prompt_uid": "p"}]}, 400, "prompt_ids"),
        ("/submit_steps", {"steps": 1}, 400, "steps"),
        (
            "/rewards",
            {"trajectory_uid": "t", "prompt_uid": "p", "value": 1, "revision": 2**70},
            400,
            "'param': 'revision'",
        ),
        ("/rewards", [{"prompt_uid": "p", "value": "x"}], 400, "'param': '0.value'"),
        ("/rewards", {"prompt_uid": "p", "value": 1, "metadata": {"a": "\ud800"}}, 400, "surrogates"),
        ("/rewards", {"prompt_uid": "p", "value": 1, "metadata": {"a": 10**30}}, 400, "64"),
        ("/t/p/v1/register_trajectory", {"metadata": {"a": "\ud800"}}, 400, "surrogates"),
        ("/submit_steps", {"steps": [A_STEP | {"policy_version": 2**70}]}, 400, "steps.0.policy_version"),
        ("/submit_steps", {"steps": [A_STEP | {"prompt_ids": [-1]}]}, 400, "'param': 'steps.0.prompt_ids.0'"),
        ("/submit_steps", {"steps": [A_STEP | {"rollout_log_probs": [1e300]}]}, 400, "steps.0.rollout_log_probs.0"),
        ("/submit_steps", {"steps": [A_STEP | {"rollout_log_probs": "AADAfw=="}]}, 400, "finite"),
        ("/rewards", b"{", 400, "invalid_json"),
        ("/rewards", b"[" * 100_000, 400, "invalid_json"),
        ("/compute_reward", {"prompt_ids": [1], "response_ids": [2]}, 501, "claw_r1.rewards"),
        ("/generate", {"prompt_ids": []}, 400, "prompt_ids"),
        ("/generate", {"prompt_ids": [1], "image_data": ["x"]}, 400, "image_data"),
        ("/generate", {"prompt_ids": [1], "sampling_params": {"kv_transfer_params": {}}}, 400, "kv_transfer_params"),
        ("/annotations", {"trajectory_uid": "t", "prompt_uid": "p", "name": "values", "values": [1]}, 400, "step_id"),
        ("/decisions", {"prompt_uid": "p", "action": "tag", "author": "ann"}, 400, "tag needs a text"),
        ("/decisions", {"prompt_uid": "p", "action": "veto"}, 400, "author"),
        ("/decisions", {"prompt_uid": "p", "action": "undo", "author": "ann"}, 400, "undoes"),
        ("/decisions", {"prompt_uid": "p", "step_id": "s", "action": "veto", "author": "ann"}, 400, "trajectory_uid"),
        ("/decisions", {"prompt_uid": "p", "action": "quality", "value": "x", "author": "ann"}, 400, "not a number"),
        ("/feedback", {"response_id": "chatcmpl-9", "label": "up"}, 404, "trajectory_uid and step_id"),
        ("/feedback", {"trajectory_uid": "t", "prompt_uid": "p"}, 400, "a value, a label or a text"),
        ("/feedback", {"label": "up"}, 400, "trajectory_uid"),
        ("/groups/-x/cancel", None, 400, "prompt_uid"),
        (
            "/submit_steps",
            {"steps": [A_STEP | {"version_spans": [{"start": 0, "end": 2, "version": 1}]}]},
            400,
            "spans.0",
        ),
        ("/submit_steps", {"steps": [A_STEP | {"routed_experts": [[1, 2]]}]}, 400, "steps.0.routed_experts"),
        ("/submit_steps", {"steps": [A_STEP | {"multi_modal_data": {"images": ["http://x/y.png"]}}]}, 400, "data: URL"),
        ("/nowhere", {}, 404, "POST /init_trajectory"),
        ("/v1/chat/completions", {"messages": []}, 401, "/init_trajectory"),
        ("/t/p/v1/embeddings", {}, 404, "chat/completions"),
        ("/healthz", {}, 200, "alive"),
    ],
)
def test_bad_input_is_answered_with_the_field_and_the_rule(
    asked: Asked, path: str, body: Any, status: int, word: str
) -> None:
    async def check(stand: Stand, run: str) -> None:
        found = await post(stand, path, body, status)
        assert word in str(found)
        if status >= 400:
            assert set(found["error"]) == {"message", "type", "param", "code"}
        assert await stand.facts(run) == []

    asked(check)


def test_arrays_that_disagree_are_refused_whole(stack: Stack) -> None:
    async def body(stand: Stand, run: str) -> None:
        step = {
            "trajectory_uid": "t",
            "prompt_uid": "p",
            "prompt_ids": [1],
            "response_ids": [2, 3],
            "rollout_log_probs": [-1],
        }
        good = step | {"rollout_log_probs": [-1, -2]}
        found = await post(stand, "/submit_steps", {"steps": [good, step]}, 400)
        assert found["error"]["param"] == "steps.1.rollout_log_probs"
        images = {"multi_modal_data": {"images": ["data:image/png;base64,!"]}}
        refused = await post(stand, "/submit_steps", {"steps": [good, good | images]}, 400)
        assert refused["error"]["param"] == "steps.1.multi_modal_data"
        empty = await post(stand, "/submit_steps", {"steps": [good | {"prompt_ids": "AAA="}]}, 400)
        assert "4 bytes" in empty["error"]["message"]
        assert await stand.facts(run) == []

    with_gateway(stack, body)


def test_a_trajectory_stays_in_its_run(stack: Stack) -> None:
    async def body(stand: Stand, run: str) -> None:
        ids = {"trajectory_uid": f"{run}-t", "prompt_uid": "p"}
        await post(stand, "/init_trajectory", ids | {"run_id": f"{run}-a"})
        found = await post(stand, "/init_trajectory", ids | {"run_id": f"{run}-b"}, 409)
        assert f"{run}-a" in found["error"]["message"]

    with_gateway(stack, body)


def test_documents_and_health(stack: Stack) -> None:
    async def body(stand: Stand, run: str) -> None:
        async with stand.http.get(f"{stand.url}/openapi.json") as response:
            paths = (await response.json())["paths"]
        assert {"/init_trajectory", "/rewards", "/submit_steps", "/groups"} <= set(paths)
        async with stand.http.get(f"{stand.url}/readyz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ready", "version": health.version()})
        async with stand.http.get(f"{stand.url}/metrics") as response:
            assert "claw_gateway_steps_total" in await response.text()
        async with stand.http.get(f"{stand.url}/rewards") as response:
            assert response.status == 405
            assert response.headers["allow"] == "POST"
        async with stand.http.get(f"{stand.url}/t/p/v1/chat/completions") as response:
            assert response.status == 405
            assert response.headers["allow"] == "POST"
        async with stand.http.post(f"{stand.url}/rewards", data="value=1") as response:
            assert response.status == 415
        async with stand.http.post(
            f"{stand.url}/rewards", data="{", headers={"content-type": "application/json"}
        ) as response:
            assert response.status == 400

    with_gateway(stack, body)
