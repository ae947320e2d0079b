"""Agents are set to work here: groups of games, a bounded number at once, never far ahead of the trainer.

`python -m claw_r1.demo.driver` is the process. It reads its allowance from its standard input, a line each: a number (so
many groups may be begun in all) or `stop` (begin no more, finish those under way, exit). The end of the input without a
`stop` means that whoever started it is gone: it exits at once.
Invariants: every model call stands in the ledger before it is sent; a trajectory that was begun is ended, with its result or
as aborted, unless the gateway stays away.
"""

import argparse
import asyncio
import contextvars
import importlib
import logging
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from claw_r1.demo.agent import Message, OpenAIChat, Task, rollout
from claw_r1.demo.ledger import Ledger
from claw_r1.errors import ClawError

STREAMED: Final = 8  # every so manieth trajectory streams its calls: a stream costs the agent half as much again
REQUEST_TIMEOUT_S: Final = 30.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0

log = logging.getLogger("claw.agents")

# The library's HTTP package, under whichever name this version has it: it does not wrap what breaks within a stream.
_http = importlib.import_module(DefaultAsyncHttpxClient.__mro__[1].__module__)
BROKEN: Final[tuple[type[Exception], ...]] = (openai.APIError, _http.HTTPError, OSError)


class AgentsFailed(ClawError):
    """No trajectory comes to its end any more; the message has the last error."""


@dataclass(slots=True)
class _Attempt:
    step_id: str | None = None


_attempt: contextvars.ContextVar[_Attempt | None] = contextvars.ContextVar("attempt", default=None)


async def _note_step_id(response: Any) -> None:
    if (attempt := _attempt.get()) is not None:
        attempt.step_id = response.headers.get("x-claw-step-id")


def open_client(gateway: str) -> AsyncOpenAI:
    """A client for many trajectories: each gets its own base URL, all share the connections."""
    http = DefaultAsyncHttpxClient(event_hooks={"response": [_note_step_id]})
    return AsyncOpenAI(
        base_url=f"{gateway}/v1", api_key="none", max_retries=0, timeout=REQUEST_TIMEOUT_S, http_client=http
    )


def passes(error: Exception) -> bool:
    """Whether the same call may succeed later; not so where the gateway or the engine refused what was asked."""
    return not isinstance(error, openai.APIStatusError) or error.status_code >= 500 or error.status_code in (408, 429)


@dataclass(slots=True)
class RecordedChat(OpenAIChat):
    """An agent's calls, each in the ledger; one that breaks off is made again for `patience` seconds."""

    ledger: Ledger = field(kw_only=True)
    trajectory_uid: str = field(kw_only=True)
    patience: float = field(kw_only=True)

    async def __call__(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Message:
        end, pause = time.monotonic() + self.patience, FIRST_PAUSE_S
        while True:
            attempt, call = _Attempt(), self.ledger.send(self.trajectory_uid)
            _attempt.set(attempt)
            uid = self.trajectory_uid
            try:
                message = await OpenAIChat.__call__(self, messages, tools)
            except BROKEN as error:
                reason = f"{type(error).__name__}: {error}"
                self.ledger.note("indeterminate", trajectory_uid=uid, call=call, step_id=attempt.step_id, error=reason)
                if not passes(error) or time.monotonic() + pause > end:
                    raise
            else:
                self.ledger.note("acknowledged", trajectory_uid=uid, call=call, step_id=attempt.step_id)
                return message
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)


class Allowance:
    """How many groups may be begun, as told from outside."""

    def __init__(self, groups: int = 0) -> None:
        self._groups = groups
        self._stopped = False
        self._changed = asyncio.Event()

    def allow(self, groups: int) -> None:
        self._groups = max(self._groups, groups)
        self._changed.set()

    def stop(self) -> None:
        self._stopped = True
        self._changed.set()

    async def covers(self, group: int) -> bool:
        """Wait until group number `group` (from 0) may begin; False if none may begin any more."""
        while not self._stopped and group >= self._groups:
            self._changed.clear()
            await self._changed.wait()
        return not self._stopped


@dataclass(slots=True)
class Driver:
    """Plays groups of `size` trajectories. `session` begins every id, so that no two starts share one."""

    client: AsyncOpenAI
    gateway: str
    model: str
    session: str
    seed: int
    ledger: Ledger
    size: int = 8
    concurrency: int = 24
    patience: float = 60.0
    failures: int = 0
    """Trajectories in a row that were given up."""
    last_error: str = ""

    def prompt_uid(self, group: int) -> str:
        return f"{self.session}-{group:06d}"

    def task(self, group: int) -> Task:
        """Half of the groups ask a sub-agent for an opening move."""
        numbers = random.Random(f"{self.seed}/{group}")
        return Task(numbers.randrange(2**31), "advised" if group % 2 else "solo")

    async def play(self, allowance: Allowance) -> None:
        """Begin groups as far as allowed, and finish all that were begun. Raises AgentsFailed."""
        slots = asyncio.Semaphore(self.concurrency)
        group = 0
        async with asyncio.TaskGroup() as tasks:
            while await allowance.covers(group):
                self.ledger.note("group", prompt_uid=self.prompt_uid(group), kind=self.task(group).kind)
                for number in range(self.size):
                    await slots.acquire()
                    tasks.create_task(self._occupy(slots, group, number))
                group += 1

    async def _occupy(self, slots: asyncio.Semaphore, group: int, number: int) -> None:
        try:
            await self.play_trajectory(group, number)
        finally:
            slots.release()
        if self.failures >= 2 * self.size:
            raise AgentsFailed(
                f"{self.failures} trajectories in a row were given up, the last one for: {self.last_error}"
            )

    async def play_trajectory(self, group: int, number: int) -> None:
        prompt_uid, task = self.prompt_uid(group), self.task(group)
        uid = f"{prompt_uid}-{number}"
        chat = RecordedChat(
            self.client.with_options(base_url=f"{self.gateway}/{uid}/{prompt_uid}/v1"),
            self.model,
            stream=number % STREAMED == 0,
            ledger=self.ledger,
            trajectory_uid=uid,
            patience=self.patience,
        )
        self.ledger.note("begun", prompt_uid=prompt_uid, trajectory_uid=uid, kind=task.kind)
        try:
            result = await rollout(chat, task)
        except BROKEN as error:
            self.failures += 1
            self.last_error = f"{type(error).__name__}: {error}"
            await self._give_up(chat, uid, self.last_error)
        else:
            self.failures = 0
            self.ledger.note("ended", trajectory_uid=uid, status="completed", success=result.success)

    async def _give_up(self, chat: RecordedChat, uid: str, reason: str) -> None:
        log.warning("a trajectory is given up", extra={"trajectory_uid": uid, "error": reason})
        body = {"status": "aborted", "reason": reason[:1000]}
        try:
            await chat.client.with_options(max_retries=5).post("/complete_trajectory", cast_to=object, body=body)
        except BROKEN:
            self.ledger.note("ended", trajectory_uid=uid, status="lost", error=reason)
        else:
            self.ledger.note("ended", trajectory_uid=uid, status="aborted", error=reason)


async def _obey(allowance: Allowance) -> None:
    """Follow the standard input; returns at its end if it said `stop`, else raises EOFError."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    stopped = False
    async for line in reader:
        if line.strip() == b"stop":
            stopped = True
            allowance.stop()
        else:
            allowance.allow(int(line))
    if not stopped:
        raise EOFError


async def drive(given: argparse.Namespace) -> None:
    allowance = Allowance()
    with Ledger(given.ledger, given.session) as ledger:
        async with open_client(given.gateway) as client:
            driver = Driver(client, given.gateway, given.model, given.session, given.seed, ledger, size=given.size)
            obeying = asyncio.create_task(_obey(allowance))
            playing = asyncio.create_task(driver.play(allowance))
            done, _ = await asyncio.wait({obeying, playing}, return_when=asyncio.FIRST_COMPLETED)
            if obeying in done and obeying.exception() is None:
                await playing
            for task in (obeying, playing):
                task.cancel()
            await asyncio.wait({obeying, playing})
            for task in done:
                task.result()


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m claw_r1.demo.driver", description=__doc__)
    parser.add_argument("--gateway", required=True, help="the gateway's URL, without /v1")
    parser.add_argument("--model", required=True)
    parser.add_argument("--session", required=True, help="begins every prompt's and trajectory's id")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks")
    parser.add_argument("--size", type=int, default=8, help="trajectories of a group")
    parser.add_argument("--ledger", type=Path, required=True)
    return parser.parse_args(arguments)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        asyncio.run(drive(parse_arguments()))
    except EOFError:
        sys.exit("the demo is gone: the agents stop")
    except ExceptionGroup as group:
        failed = group.subgroup(AgentsFailed)
        if failed is None:
            raise
        sys.exit(f"error: {failed.exceptions[0]}")


if __name__ == "__main__":
    main()
