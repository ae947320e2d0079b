"""Groups begin as far as a real trainer wants them, at every gateway alike, and what has begun is never refused."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from openai import AsyncOpenAI, RateLimitError
from pydantic import SecretStr

from claw_r1.bus import diff_topics
from claw_r1.events import Outcome
from claw_r1.keys import Secrets, mint
from claw_r1.topics import OUTCOMES, all_topics
from tests.conftest import Stack
from tests.integration.adapter_stand import AdapterStand, an_adapter_stand
from tests.integration.gateway_stand import Stand, a_gateway, a_reply, an_engine, replying
from trainer_adapter import AsyncBatchStream

pytestmark = pytest.mark.stack

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
SOON = 60.0

KILLED = """
import sys, time
from trainer_adapter import BatchStream, demand
demand.TTL_S, demand.HEARTBEAT_S = 4.0, 0.25
with BatchStream(sys.argv[1], kafka=sys.argv[2]):
    time.sleep(600)
"""


class House:
    """A gateway whose default run is that of a recipe, and the means to start more."""

    def __init__(self, adapter: AdapterStand, engine: str) -> None:
        self.adapter = adapter
        self.engine = engine
        self.recipe = adapter.recipe.name
        self.run = adapter.recipe.run_id

    def gateway(self, **settings: Any) -> contextlib.AbstractAsyncContextManager[Stand]:
        return a_gateway(self.adapter.kafka, self.engine, run=self.run, **settings)

    def trainer(self, **options: Any) -> AsyncBatchStream:
        return AsyncBatchStream(self.recipe, kafka=self.adapter.kafka, **options)

    async def demand(self, stand: Stand) -> dict[str, Any]:
        status, found, _ = await get(stand, f"/demand?recipe={self.recipe}")
        assert status == 200
        return dict(found)

    async def until(self, stand: Stand, **wanted: Any) -> dict[str, Any]:
        """Wait until the gateway's answer has these values."""
        end = time.monotonic() + SOON
        while True:
            found = await self.demand(stand)
            if wanted.items() <= found.items():
                return found
            assert time.monotonic() < end, (wanted, found)
            await asyncio.sleep(0.02)

    async def fate(self, prompt_uid: str, outcome: str = "emitted") -> None:
        """As the stream worker tells it."""
        fate = Outcome.model_validate(
            {
                "outcome_id": f"{self.run}-{prompt_uid}",
                "recipe": self.recipe,
                "run_id": self.run,
                "prompt_uid": prompt_uid,
                "group_id": prompt_uid,
                "outcome": outcome,
                "reason": "size",
                "partition": 0,
                "pos": 0,
                "at": 0.0,
            }
        )
        await self.adapter.send(OUTCOMES, fate, f"{self.run}/{prompt_uid}")


@contextlib.asynccontextmanager
async def a_house(stack: Stack, **recipe: Any) -> AsyncIterator[House]:
    wanted = {"batch": {"groups": 2}, "staleness": {"max_versions": 0}} | recipe
    async with (
        an_engine(replying(a_reply([1, 2, 3], [4, 5]))) as engine,
        an_adapter_stand(stack.kafka, **wanted) as adapter,
    ):
        yield House(adapter, engine.url)


def in_house(stack: Stack, body: Callable[[House], Awaitable[None]], **recipe: Any) -> None:
    async def run() -> None:
        async with a_house(stack, **recipe) as house:
            await body(house)

    asyncio.run(run())


async def get(stand: Stand, path: str, key: str | None = None) -> tuple[int, Any, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with stand.http.get(stand.url + path, headers=headers) as response:
        return response.status, await response.json(), response.headers


async def post(stand: Stand, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with stand.http.post(stand.url + path, json=body or {}, headers=headers) as response:
        return response.status, await response.json(), response.headers


def is_refused(answer: tuple[int, Any, Any]) -> bool:
    status, body, headers = answer
    if status == 200:
        return False
    assert (status, body["error"]["code"], body["error"]["type"]) == (429, "no_demand", "rate_limit_error")
    assert 1 <= int(headers["retry-after"]) <= 30
    return True


def test_every_gateway_admits_what_the_trainer_wants_and_what_has_begun(stack: Stack) -> None:
    async def body(house: House) -> None:
        async with house.gateway() as one, house.gateway() as two, house.trainer(holder="me") as trainer:
            for stand in (one, two):
                found = await house.until(stand, live=True)
                assert (found["wanted"], found["capacity"], found["open"], found["holder"]) == (2, 2, 0, "me")
                assert (found["run_id"], found["channel"], found["batch_groups"]) == (house.run, "train", 2)
            assert not is_refused(await post(one, "/groups", {"prompt_uid": "g1", "size": 2}))
            assert not is_refused(await post(one, "/init_trajectory", {"prompt_uid": "g2"}))
            await house.until(two, wanted=0, open=2)
            for stand in (one, two):
                assert is_refused(await post(stand, "/groups", {"prompt_uid": "g3"}))
                assert is_refused(await post(stand, "/init_trajectory", {"prompt_uid": "g3"}))
                assert is_refused(await post(stand, "/init_trajectory", {"channel": "train"}))
                assert is_refused(await post(stand, "/g3-0/g3/v1/register_trajectory"))
                assert is_refused(await post(stand, "/g3-0/g3/v1/chat/completions", CHAT))
                assert not is_refused(await post(stand, "/init_trajectory", {"channel": "val"})), "of another channel"
                for group in ("g1", "g2"):
                    uid = f"{house.run}-{group}-{stand.url[-5:]}"
                    assert not is_refused(await post(stand, f"/{uid}/{group}/v1/chat/completions", CHAT))
                    assert not is_refused(await post(stand, f"/{uid}/{group}/v1/complete_trajectory", {"reward": 1}))
            assert {fact.prompt_uid for fact in await one.steps(house.run)} == {"g1", "g2"}

            await house.adapter.publish(house.adapter.group(1), house.adapter.group(2))
            for group in ("g1", "g2"):
                await house.fate(group)
            await house.until(two, wanted=0, open=0, ready=2)
            batch = await trainer.next(30)
            await house.until(two, wanted=0, ready=0, cut=2)
            assert is_refused(await post(two, "/groups", {"prompt_uid": "g3"}))
            assert is_refused(await post(two, "/init_trajectory")), "no group is left that it could be of"
            await batch.commit(policy_version=1)
            await house.until(two, wanted=2, cut=0)
            assert not is_refused(await post(two, "/groups", {"prompt_uid": "g3"}))

    in_house(stack, body)


def test_a_refusal_speaks_each_dialect_and_clients_try_again(stack: Stack) -> None:
    async def body(house: House) -> None:
        async with house.gateway() as stand, house.trainer():
            await house.until(stand, live=True)
            assert not is_refused(await post(stand, "/groups", {"prompt_uid": "g1"}))
            assert not is_refused(await post(stand, "/groups", {"prompt_uid": "g2"}))
            status, said, headers = await post(stand, "/t/new/v1/messages", {**CHAT, "max_tokens": 5})
            assert (status, said["type"], said["error"]["type"]) == (429, "error", "rate_limit_error")
            assert "retry-after" in headers
            base = f"{stand.url}/{house.run}-t/g3/v1"
            async with AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
                with pytest.raises(RateLimitError) as caught:
                    await client.chat.completions.create(**CHAT)
                assert caught.value.code == "no_demand"
                waiting = asyncio.create_task(client.with_options(max_retries=20).chat.completions.create(**CHAT))
                await house.fate("g1", "discarded")
                assert (await waiting).choices[0].message.content == "hello"

    in_house(stack, body)


def test_demand_ends_when_a_trainer_ends_and_soon_after_it_was_killed(stack: Stack) -> None:
    async def body(house: House) -> None:
        async with house.gateway() as stand:
            assert (await house.demand(stand))["live"] is False
            async with house.trainer():
                await house.until(stand, live=True)
                await post(stand, "/groups", {"prompt_uid": "g1"})
                await post(stand, "/groups", {"prompt_uid": "g2"})
                assert is_refused(await post(stand, "/groups"))
            await house.until(stand, live=False, wanted=None)
            assert not is_refused(await post(stand, "/groups", {"prompt_uid": "g3"}))
            trainer = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, house.recipe, stand.kafka)
            try:
                await house.until(stand, live=True, wanted=0, open=3)
                assert is_refused(await post(stand, "/groups"))
            finally:
                trainer.kill()
                await trainer.wait()
            found = await house.until(stand, live=False, wanted=None)
            assert found["holder"], "what was said last is still told"
            assert not is_refused(await post(stand, "/groups"))

    in_house(stack, body)


def test_a_gateway_that_begins_anew_knows_what_is_open(stack: Stack) -> None:
    async def body(house: House) -> None:
        async with house.trainer():
            async with house.gateway() as stand:
                await house.until(stand, live=True, wanted=3)
                await post(stand, "/groups", {"prompt_uid": "opened"})
                await post(stand, "/init_trajectory", {"prompt_uid": "begun"})
                await post(stand, "/init_trajectory", {"prompt_uid": "over"})
                await house.until(stand, open=3)
            await house.fate("over", "discarded")
            async with house.gateway() as stand:
                await house.until(stand, live=True, open=2, wanted=1)
                assert not is_refused(await post(stand, "/groups", {"prompt_uid": "last"}))
                assert is_refused(await post(stand, "/groups", {"prompt_uid": "over"})), "a new round of it"
                for group in ("opened", "begun"):
                    assert not is_refused(await post(stand, "/init_trajectory", {"prompt_uid": group}))

    in_house(stack, body, batch={"groups": 3})


def test_a_trainer_that_lost_the_recipe_says_nothing_more(stack: Stack) -> None:
    async def body(house: House) -> None:
        async with house.gateway() as stand:
            first = house.trainer(holder="first")
            await first.open()
            await house.until(stand, holder="first")
            async with house.trainer(holder="second", take_over=True):
                await house.until(stand, holder="second")
                await first.close()
                assert not is_refused(await post(stand, "/groups", {"prompt_uid": "g1"}))
                found = await house.until(stand, open=1)
                assert (found["holder"], found["live"]) == ("second", True)

    in_house(stack, body)


def test_what_was_admitted_says_so_itself(stack: Stack) -> None:
    async def body(house: House) -> None:
        async with house.gateway() as stand, house.trainer():
            await house.until(stand, live=True, wanted=1)
            assert not is_refused(await post(stand, "/groups", {"prompt_uid": "g"}))
            secrets = Secrets.of(SecretStr(""))
            fields: dict[str, Any] = {"scope": "rollout", "now": time.time(), "lifetime": 60.0, "run_id": house.run}
            assert is_refused(await post(stand, "/t1/kept/v1/chat/completions", CHAT, mint(secrets, **fields)))
            key = mint(secrets, prompt_uid="kept", admitted=True, **fields)
            assert not is_refused(await post(stand, "/t1/kept/v1/chat/completions", CHAT, key))
            assert not is_refused(await post(stand, "/t2/kept/v1/chat/completions", CHAT))

    in_house(stack, body, batch={"groups": 1})


def test_a_prompt_that_was_made_for_a_caller_begins_a_group_when_it_is_used(stack: Stack) -> None:
    """Upstream's clients ask for a trajectory without a prompt, and put their own prompt into the URL."""

    async def body(house: House) -> None:
        async with house.gateway() as one, house.gateway() as two, house.trainer():
            for stand in (one, two):
                await house.until(stand, live=True, wanted=1)
            begun = [(await post(one, "/init_trajectory"))[1] for _ in range(4)]
            replaced, made, *_ = begun
            uids = [trajectory["trajectory_uid"] for trajectory in begun]
            await house.until(two, wanted=1, open=0)
            assert not is_refused(await post(two, f"/{uids[0]}/own/v1/chat/completions", CHAT))
            await house.until(one, wanted=0, open=1)
            assert not is_refused(await post(one, "/init_trajectory")), "it may be of the group that has begun"
            assert is_refused(await post(two, f"/{uids[1]}/{made['prompt_uid']}/v1/chat/completions", CHAT))
            assert is_refused(await post(one, "/v1/chat/completions", CHAT, made["session_key"]))
            assert not is_refused(await post(one, f"/{uids[1]}/own/v1/chat/completions", CHAT))
            assert is_refused(await post(one, f"/{uids[2]}/other/v1/chat/completions", CHAT))
            await house.fate("own", "discarded")
            await house.until(one, wanted=1)
            assert not is_refused(await post(one, f"/{uids[3]}/{begun[3]['prompt_uid']}/v1/chat/completions", CHAT))
            await house.until(two, wanted=0, open=1)
            assert {replaced["prompt_uid"], made["prompt_uid"]} & {
                s.prompt_uid for s in await one.steps(house.run)
            } == set()

    in_house(stack, body, batch={"groups": 1})


def test_admission_can_be_off_and_is_off_where_any_age_is_trained(stack: Stack) -> None:
    async def body(house: House) -> None:
        async with house.gateway(admission="off") as stand, house.trainer():
            await house.until(stand, live=True, wanted=2)
            for number in range(3):
                assert not is_refused(await post(stand, "/groups", {"prompt_uid": f"g{number}"}))
            await house.until(stand, wanted=0, open=3)
            await house.adapter.set_recipe(staleness={"max_versions": None})
            found = await house.until(stand, wanted=None)
            assert (found["live"], found["capacity"], found["max_versions"]) == (True, None, None)

    in_house(stack, body)


def test_a_key_sees_the_demand_of_its_run(stack: Stack) -> None:
    secret = f"a:{'s' * 32}"

    def a_key(run: str | None, scope: Any) -> str:
        secrets = Secrets.of(SecretStr(secret))
        return mint(secrets, scope=scope, now=time.time(), lifetime=60.0, run_id=run)

    async def body(house: House) -> None:
        async with house.gateway(secret=secret) as stand, house.trainer():
            path = f"/demand?recipe={house.recipe}"
            mine, other, anyone = a_key(house.run, "rollout"), a_key("other", "rollout"), a_key(None, "admin")
            end = time.monotonic() + SOON
            while not (await get(stand, path, mine))[1]["live"]:
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            assert (await get(stand, path, anyone))[1]["wanted"] == 2
            _, hidden, _ = await get(stand, path, other)
            assert (hidden["live"], hidden["ready"]) == (False, None)
            assert (await get(stand, "/demand", other))[1] == {"recipes": []}
            assert [found["recipe"] for found in (await get(stand, "/demand", mine))[1]["recipes"]] == [house.recipe]
            assert house.recipe in {found["recipe"] for found in (await get(stand, "/demand", anyone))[1]["recipes"]}
            assert (await get(stand, f"{path}&run_id={house.run}", other))[0] == 403
            assert (await get(stand, path, a_key(house.run, "reward")))[0] == 403
            assert (await get(stand, "/demand?recipe=..", mine))[0] == 400

    in_house(stack, body)


def test_the_topic_is_as_it_was_made(stack: Stack) -> None:
    async def body(house: House) -> None:
        assert await diff_topics(stack.kafka, all_topics()) == []

    in_house(stack, body)
