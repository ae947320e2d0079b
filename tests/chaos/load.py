"""Agents play through the gateway by plain HTTP while it, and all behind it, is ill-treated: each word stands in a book first.

An agent calls whole and streamed, with tools, tries again what broke off, hangs up in the middle of streams, and says rewards
early, late and in the wrong order. What nobody answered for long is given up: its trajectory is aborted.
"""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout

from claw_r1.codec import pack_ids
from tests.chaos.book import Book
from tests.chaos.engine import MODEL
from tests.chaos.ledger import Kind, decision_id, digest_of, end_id, mark, reward_id

SIZE: Final = 3
"""Trajectories of a group."""
PATIENCE_S: Final = 60.0
"""Seconds for which a call or a word is tried again."""
TIMEOUT: Final = ClientTimeout(total=30.0)
PAUSE_S: Final = (0.05, 0.4)
TOOLS: Final = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
BROKEN: Final = (ClientError, TimeoutError, ConnectionError, json.JSONDecodeError)


class GaveUp(Exception):
    """Nobody answered for `PATIENCE_S`."""


class Misused(AssertionError):
    """The gateway says that a request is wrong: the load is, or the gateway is."""


class BrokenOff(ClientError):
    """An answer without its end, or with an error in it."""


@dataclass(frozen=True)
class Answer:
    """What a call came to."""

    step_id: str | None
    message: dict[str, Any]
    digest: str


@dataclass
class Load:
    """The agents of one run. `skewed` and `burst` are turned on and off by faults."""

    url: str
    run: str
    book: Book
    seed: int
    at_once: int = 4
    """Groups that are played side by side."""
    skewed: bool = False
    burst: bool = False
    stopped: bool = False
    happened: Counter[str] = field(default_factory=Counter)
    """For people: how often what happened to the agents."""

    async def play(self) -> None:
        """Play until `stopped`, and finish what was begun."""
        async with ClientSession(timeout=TIMEOUT) as http, asyncio.TaskGroup() as tasks:
            slots = asyncio.Semaphore(self.at_once)
            number = 0
            while not self.stopped:
                await slots.acquire()
                task = tasks.create_task(Group(self, http, number).play())
                task.add_done_callback(lambda _task: slots.release())
                number += 1
                await asyncio.sleep(0)


class Group:
    """One group of trajectories, all drawn from the load's seed and the group's number."""

    def __init__(self, load: Load, http: ClientSession, number: int) -> None:
        self._load, self._http, self._book = load, http, load.book
        self._rng = random.Random(f"{load.seed}/{number}")
        self.prompt = f"g{number}"
        self._later: list[asyncio.Task[None]] = []

    async def play(self) -> None:
        if self._rng.random() < 0.3:
            with contextlib.suppress(*BROKEN):  # an announcement is a hint
                await self._post("/groups", {"prompt_uid": self.prompt, "run_id": self._load.run, "size": SIZE})
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(SIZE):
                    tasks.create_task(self._trajectory(f"{self.prompt}-t{number}", random.Random(self._rng.random())))
        finally:
            await asyncio.gather(*self._later)

    # ------------------------------------------------------------------------------------------------------- a rollout

    async def _trajectory(self, uid: str, rng: random.Random) -> None:
        words: list[tuple[str, int, float]] = [("reward", 0, float(rng.randint(0, 4)) / 4)]
        if rng.random() < 0.25:
            words.append(("reward", 1, float(rng.randint(0, 4)) / 4))
        early = not self._load.skewed and rng.random() < 0.5
        try:
            await self._talk(uid, rng)
            status = "completed"
        except GaveUp:
            self._load.happened["trajectories given up"] += 1
            status = "aborted"
        if early:
            await self._reward(uid, words)
        await self._end(uid, status)
        if not early:
            await asyncio.sleep(rng.uniform(0.0, 1.5))
            await self._reward(uid, words[::-1] if self._load.skewed else words)
        if rng.random() < 0.15:
            await self._decide(uid, rng)
        if rng.random() < 0.08:
            self._later.append(asyncio.create_task(self._come_late(uid, rng)))

    async def _talk(self, uid: str, rng: random.Random) -> None:
        messages: list[dict[str, Any]] = [{"role": "system", "content": "look for it"}]
        tools = rng.random() < 0.5
        number, turns = 0, rng.randint(2, 4)
        ask: dict[str, Any] = {"role": "user", "content": "where is it"}
        while turns > 0:
            name = f"{uid}.{number}"
            number += 1
            said = ask | {"content": f"{ask['content']} {mark(name)}"}
            answer = await self._call(uid, name, [*messages, said], tools, rng)
            if answer is None:
                continue  # hung up, and asks anew
            turns -= 1
            messages += [said, answer.message]
            calls = answer.message.get("tool_calls") or ()
            ask = {"role": "user", "content": "and then"}
            if calls:
                ask = {"role": "tool", "tool_call_id": calls[0]["id"], "content": "nothing here"}
            if not self._load.burst:
                await asyncio.sleep(rng.uniform(*PAUSE_S))

    # ---------------------------------------------------------------------------------------------------------- a call

    async def _call(
        self, uid: str, name: str, messages: list[dict[str, Any]], tools: bool, rng: random.Random
    ) -> Answer | None:
        """None: it was hung up, and what became of it is nobody's concern."""
        body: dict[str, Any] = {"model": MODEL, "messages": messages, "temperature": 1.0}
        body |= {"tools": TOOLS} if tools else {}
        body |= {"stream": True} if rng.random() < 0.5 else {}
        hang_up = rng.randint(1, 6) if "stream" in body and rng.random() < 0.12 else None
        keyed = {"idempotency-key": name} if rng.random() < 0.2 else {}
        about = {"prompt_uid": self.prompt, "trajectory_uid": uid}
        path = f"{self._load.url}/{uid}/{self.prompt}/v1/chat/completions"
        end, attempt = time.monotonic() + PATIENCE_S, 0
        while True:
            attempt += 1
            headers = keyed | ({"x-stainless-retry-count": str(attempt - 1)} if attempt > 1 else {})
            self._book.note("call", "sent", name, attempt=attempt, **about)
            heard: dict[str, str] = {}
            try:
                answer = await self._ask(path, body, headers, hang_up, heard)
            except BROKEN as error:
                said = f"{type(error).__name__}: {error}"[:300]
                step_id = heard.get("step_id")
                self._book.note("call", "indeterminate", name, attempt=attempt, step_id=step_id, said=said, **about)
                self._load.happened["calls broken off"] += 1
                if time.monotonic() > end:
                    raise GaveUp from error
            else:
                if answer is None:
                    step_id = heard.get("step_id")
                    self._book.note(
                        "call", "indeterminate", name, attempt=attempt, step_id=step_id, said="hung up", **about
                    )
                    self._load.happened["calls hung up"] += 1
                    hang_up = None
                    if rng.random() < 0.5:
                        return None
                    continue  # at once: it joins the call that it repeats
                found = {"step_id": answer.step_id, "digest": answer.digest}
                self._book.note("call", "acknowledged", name, attempt=attempt, **found, **about)
                return answer
            await asyncio.sleep(rng.uniform(*PAUSE_S))

    async def _ask(
        self, path: str, body: dict[str, Any], headers: dict[str, str], hang_up: int | None, heard: dict[str, str]
    ) -> Answer | None:
        async with self._http.post(path, json=body, headers=headers) as response:
            if (step_id := response.headers.get("x-claw-step-id")) is not None:
                heard["step_id"] = step_id
            await self._check(response)
            if not body.get("stream"):
                reply = await response.json()
                choice = reply["choices"][0]
                return Answer(step_id, choice["message"], _digest(reply["prompt_token_ids"], choice["token_ids"]))
            gathered = Streamed()
            async for event in _events(response):
                gathered.take(event)
                if hang_up is not None and gathered.events >= hang_up:
                    response.close()
                    return None
            return gathered.answer(step_id)

    async def _check(self, response: ClientResponse) -> None:
        if response.status == 200:
            return
        text = (await response.text())[:300]
        code = next(
            (word for word in ("spool_full", "broker_unavailable", "not_recorded") if word in text),
            str(response.status),
        )
        self._load.happened[f"answered {code}"] += 1
        if response.status < 500 and response.status not in (408, 409, 429):
            raise Misused(f"{response.status} {response.url.path}: {text}")
        raise BrokenOff(f"{response.status} {text}")

    # ---------------------------------------------------------------------------------------------- what is said beside

    async def _reward(self, uid: str, words: list[tuple[str, int, float]]) -> None:
        for source, revision, value in words:
            body: dict[str, Any] = {"trajectory_uid": uid, "prompt_uid": self.prompt, "run_id": self._load.run}
            body |= {"source": source, "revision": revision, "value": value}
            name = reward_id(self._load.run, self.prompt, uid, source, revision)
            await self._say("reward", name, uid, "/rewards", body, f"{source}#{revision}={value}")

    async def _end(self, uid: str, status: str) -> None:
        path = f"/{uid}/{self.prompt}/v1/complete_trajectory"
        await self._say("end", end_id(self._load.run, self.prompt, uid), uid, path, {"status": status}, status)

    async def _decide(self, uid: str, rng: random.Random) -> None:
        action, value = rng.choice(
            [
                ("veto", None),
                ("keep", None),
                ("tag", "odd"),
                ("note", "looked at"),
                ("quality", 0.5),
                ("override_reward", 0.125),
            ]
        )
        name = f"{uid}-{action}"
        fact = decision_id(name, self._load.run, self.prompt, uid)
        body: dict[str, Any] = {
            "prompt_uid": self.prompt,
            "trajectory_uid": uid,
            "run_id": self._load.run,
            "decision_id": name,
        }
        body |= {"action": action, "author": "ada"} | ({} if value is None else {"value": value})
        await self._say("decision", fact, uid, "/decisions", body, action)

    async def _come_late(self, uid: str, rng: random.Random) -> None:
        """Behind the group's end, in most cases."""
        await asyncio.sleep(rng.uniform(3.0, 12.0))
        await self._reward(uid, [("reward", 2, 0.0625)])
        await self._decide(uid, rng)

    async def _say(self, kind: Kind, name: str, uid: str, path: str, body: dict[str, Any], said: str) -> None:
        about = {"prompt_uid": self.prompt, "trajectory_uid": uid}
        end, attempt = time.monotonic() + PATIENCE_S, 0
        while time.monotonic() < end:
            attempt += 1
            self._book.note(kind, "sent", name, attempt=attempt, said=said, **about)
            try:
                await self._post(path, body)
            except BROKEN as error:
                self._book.note(kind, "indeterminate", name, attempt=attempt, said=f"{error}"[:300], **about)
                await asyncio.sleep(self._rng.uniform(*PAUSE_S))
            else:
                self._book.note(kind, "acknowledged", name, attempt=attempt, said=said, **about)
                return
        self._load.happened["words given up"] += 1

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        async with self._http.post(self._load.url + path, json=body) as response:
            await self._check(response)
            await response.read()


# ------------------------------------------------------------------------------------------------------------- streams


class Streamed:
    """A streamed answer, put together."""

    def __init__(self) -> None:
        self.events = 0
        self._prompt: list[int] = []
        self._tokens: list[int] = []
        self._text = ""
        self._calls: list[dict[str, Any]] = []
        self._finished = self._done = False

    def take(self, data: bytes) -> None:
        self.events += 1
        if data == b"[DONE]":
            self._done = True
            return
        event = json.loads(data)
        if "error" in event:
            raise BrokenOff(str(event["error"])[:300])
        self._prompt = event.get("prompt_token_ids") or self._prompt
        for choice in event["choices"]:
            self._tokens += choice.get("token_ids") or ()
            self._text += choice["delta"].get("content") or ""
            self._calls += choice["delta"].get("tool_calls") or ()
            self._finished = self._finished or choice["finish_reason"] is not None

    def answer(self, step_id: str | None) -> Answer:
        """Raises BrokenOff for one without its end: that is what a client goes by."""
        if not (self._finished and self._done):
            raise BrokenOff("the stream ended before the answer did")
        calls = [{name: value for name, value in call.items() if name != "index"} for call in self._calls]
        message: dict[str, Any] = {"role": "assistant", "content": None if calls else self._text}
        message |= {"tool_calls": calls} if calls else {}
        return Answer(step_id, message, _digest(self._prompt, self._tokens))


async def _events(response: ClientResponse) -> AsyncIterator[bytes]:
    async for line in response.content:
        if line.startswith(b"data: "):
            yield line[6:].strip()


def _digest(prompt: list[int], tokens: list[int]) -> str:
    return digest_of(pack_ids(prompt), pack_ids(tokens))
