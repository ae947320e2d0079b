"""Agents that call a cluster's gateways whatever strikes, what they wrote down, and what is read of log and pool afterwards."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from claw_r1 import bus, topics
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import decode, header, pack_ids
from claw_r1.topics import Topic
from tests.chaos.evidence import look_at_contexts, read_steps
from tests.chaos.ledger import Entry, Evidence, Kind, Logged, What, digest_of, end_id, mark, reward_id
from tests.integration.gateway_stand import wait_for
from tests.pool import Pool

AGENTS = 4
CALLS = 2
"""Of a trajectory."""
GROUP = 2
"""Trajectories of a prompt."""
PAUSE = 0.1
"""Seconds between an agent's calls, and between tries of one."""
TOPIC = Topic("probe", 3, "none", "the time of its writing")
"""One partition for each broker to lead."""


class Agents:
    """They play prompt after prompt, each call until it is answered; one that a gateway does not take goes to the next."""

    def __init__(self, urls: list[str], run: str) -> None:
        self.urls = urls
        """May change while they play."""
        self.run = run
        self.entries: list[Entry] = []
        self.answered: list[float] = []
        """When a call was acknowledged, on the clock of the loop."""
        self.stopped = False

    async def play(self, http: ClientSession, number: int) -> None:
        for place in itertools.count():
            if self.stopped:
                return
            prompt = f"p{number}-{place}"
            for uid in (f"{prompt}-t{one}" for one in range(GROUP)):
                await self._roll_out(http, number, prompt, uid)

    async def _roll_out(self, http: ClientSession, number: int, prompt: str, uid: str) -> None:
        messages: list[dict[str, str]] = []
        for call in range(CALLS):
            messages.append({"role": "user", "content": f"go on {mark(f'{uid}.{call}')}"})
            reply = await self._call(http, number, prompt, uid, call, messages)
            messages.append({"role": "assistant", "content": reply["choices"][0]["message"]["content"] or ""})
            await asyncio.sleep(PAUSE)
        await self._end(http, number, prompt, uid)

    async def _call(
        self, http: ClientSession, number: int, prompt: str, uid: str, call: int, messages: Sequence[dict[str, str]]
    ) -> dict[str, Any]:
        body = {"model": "claw-demo", "messages": messages, "max_tokens": 8}
        for attempt in itertools.count(1):
            say = self._saying("call", f"{uid}.{call}", attempt, prompt, uid)
            say("sent")
            url = f"{self._gateway(number, attempt)}/{uid}/{prompt}/v1/chat/completions"
            headers = {"x-stainless-retry-count": str(attempt - 1)}
            step_id, reply = await _post(http, url, body, headers)
            if reply is not None:
                ids = (pack_ids(reply["prompt_token_ids"]), pack_ids(reply["choices"][0]["token_ids"]))
                say("acknowledged", step_id=step_id, digest=digest_of(*ids))
                self.answered.append(asyncio.get_running_loop().time())
                return reply
            say("indeterminate")
            await asyncio.sleep(PAUSE)
        raise AssertionError("unreachable")

    async def _end(self, http: ClientSession, number: int, prompt: str, uid: str) -> None:
        names: dict[Kind, str] = {
            "reward": reward_id(self.run, prompt, uid, "reward", 0),
            "end": end_id(self.run, prompt, uid),
        }
        for attempt in itertools.count(1):
            sayings = [self._saying(kind, name, attempt, prompt, uid) for kind, name in names.items()]
            for say in sayings:
                say("sent")
            url = f"{self._gateway(number, attempt)}/{uid}/{prompt}/v1/complete_trajectory"
            _, reply = await _post(http, url, {"reward": 1.0}, {})
            for say in sayings:
                say("acknowledged" if reply is not None else "indeterminate")
            if reply is not None:
                return
            await asyncio.sleep(PAUSE)

    def _gateway(self, number: int, attempt: int) -> str:
        return self.urls[(number + attempt) % len(self.urls)]

    def _saying(self, kind: Kind, name: str, attempt: int, prompt: str, uid: str) -> Callable[..., None]:
        def say(what: What, **more: Any) -> None:
            about: dict[str, Any] = {"attempt": attempt, "prompt_uid": prompt, "trajectory_uid": uid}
            self.entries.append(Entry(time.time(), kind, what, name, **about, **more))

        return say

    async def go_on(self, calls: int, what: str) -> None:
        wanted = len(self.answered) + calls
        await wait_for(lambda: len(self.answered) >= wanted, what, deadline=180)


async def _post(
    http: ClientSession, url: str, body: object, headers: dict[str, str]
) -> tuple[str | None, dict[str, Any] | None]:
    """Step id and reply; None: it is not known what became of the call, or it was refused, which the ledger counts as
    indeterminate."""
    try:
        async with http.post(url, json=body, headers=headers) as response:
            data, status = await response.read(), response.status
    except (ClientError, TimeoutError):
        return None, None
    return (response.headers.get("x-claw-step-id"), msgspec.json.decode(data)) if status == 200 else (None, None)


@asynccontextmanager
async def playing(urls: list[str], run: str) -> AsyncIterator[Agents]:
    agents = Agents(urls, run)
    async with ClientSession(timeout=ClientTimeout(total=60)) as http, asyncio.TaskGroup() as tasks:
        for number in range(AGENTS):
            tasks.create_task(agents.play(http, number))
        yield agents
        agents.stopped = True


class Probe:
    """Writes to a partition of each broker, with acks=all, and remembers when it was acknowledged."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer
        self.acknowledged: dict[int, list[float]] = {number: [] for number in range(TOPIC.partitions)}

    async def write(self, partition: int) -> None:
        while True:
            try:
                await self._producer.send_and_wait(TOPIC.name, b"%f" % time.time(), partition=partition)
            except KafkaError:  # it waited for too long: another try
                continue
            self.acknowledged[partition].append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.05)


@asynccontextmanager
async def probing(kafka: str) -> AsyncIterator[Probe]:
    await bus.ensure_topic(kafka, TOPIC)
    producer = await bus.start_producer(kafka, client_id="probe")
    probe = Probe(producer)
    tasks = [asyncio.create_task(probe.write(number)) for number in range(TOPIC.partitions)]
    try:
        yield probe
    finally:
        for task in tasks:
            task.cancel()
        await bus.stop_producer(producer)


class Clock:
    """The longest times without an acknowledgement while each fault lasted."""

    def __init__(self, agents: Agents, probe: Probe) -> None:
        self._agents = agents
        self._probe = probe
        self.lines: list[str] = []

    async def measure(self, fault: str, strike: Callable[[], Awaitable[object]]) -> None:
        """From the strike until it is over and all is served again."""
        begun = asyncio.get_running_loop().time()
        await strike()
        await self._agents.go_on(3 * AGENTS, f"calls are served after: {fault}")
        calls = longest_gap(self._agents.answered, begun)
        writes = max(longest_gap(times, begun) for times in self._probe.acknowledged.values())
        lasted = asyncio.get_running_loop().time() - begun
        self.lines.append(f"{fault:44} {lasted:6.1f} s  calls {calls:5.2f} s  log {writes:5.2f} s")


def longest_gap(times: Sequence[float], begun: float) -> float:
    """Between two acknowledgements, the last one before `begun` and all after it, until the last."""
    first = max((at for at in times if at <= begun), default=begun)
    inside = [first, *(at for at in times if at > begun)]
    return max((after - before for before, after in itertools.pairwise(inside)), default=0.0)


# ----------------------------------------------------------------------------------------------------- what is read of it


async def read_log(kafka: str, recipe: str) -> list[Logged]:
    """What is committed of facts, outcomes, ready groups and cuts."""
    found = []
    for topic in (topics.EVENTS, topics.OUTCOMES, topics.batch_topic(recipe), topics.CUTS):
        for record in await bus.read_topic(kafka, topic, client_id="check"):
            event = decode(record.headers, record.value)
            carried = header(record.headers, "claw-carried") is not None
            found.append(
                Logged(topic, record.partition, record.offset, record.timestamp / 1000, event, carried=carried)
            )
    return found


async def evidence_of(kafka: str, pool: Pool, agents: Agents, recipe: str) -> Evidence:
    """The pool's steps with their restored contexts: of all from the stored differences, of some by the pool's view too."""
    records = await read_log(kafka, recipe)
    async with await ClickHouse.connect(pool.url, pool.database) as clickhouse:
        stored = await read_steps(clickhouse, agents.run)
        totals = await look_at_contexts(clickhouse, stored)
    return Evidence(
        run_id=agents.run, recipe=recipe, entries=agents.entries, records=records, stored=stored, totals=totals
    )
