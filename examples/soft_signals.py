"""What people do after an answer says how good it was: a worker that reads the log and posts to /feedback.

    python examples/soft_signals.py GATEWAY_URL KAFKA [--run RUN] [--silence SECONDS] [--key KEY] [--once]

A user's next message is a reaction to the answer before it: thanks (+1), a correction (-1), or a follow-up (a tag, worth
nothing by itself). If no message follows within `--silence` seconds, that is a tag too. What counts is a reward of the source
`soft` of the step that is reacted to. Each reaction has an id of its own, so that a worker that dies and reads again says
nothing twice; the committed offset never passes an answer whose reaction is still open.
"""

import argparse
import asyncio
import json
import re
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from claw_r1 import bus
from claw_r1.codec import decode
from claw_r1.errors import InvalidRecord
from claw_r1.events import Step, TrajectoryEnd
from claw_r1.ids import derived_id
from claw_r1.topics import EVENTS

THANKS = re.compile(r"\b(thanks|thank you|perfect|great|works now|that's it)\b", re.IGNORECASE)
CORRECTION = re.compile(r"\b(no|wrong|incorrect|not what i|that's not|still (broken|fails)|undo)\b", re.IGNORECASE)
GROUP = "soft-signals"
Session = tuple[str, str, str]
"""Run, prompt and trajectory."""


@dataclass(frozen=True)
class Signal:
    """A reaction to a step's answer."""

    session: Session
    step_id: str
    label: str
    text: str | None = None

    def body(self) -> dict[str, Any]:
        """As /feedback takes it; its id makes a repeated one the same."""
        run, prompt, trajectory = self.session
        place = {"run_id": run, "prompt_uid": prompt, "trajectory_uid": trajectory, "step_id": self.step_id}
        said = {"label": self.label, "source": "soft", "author": "soft-signals"}
        text = {"text": self.text[:1000]} if self.text else {}
        return {**place, **said, **text, "feedback_id": derived_id("soft", self.step_id)}


def label_of(text: str) -> str:
    """Only the beginning is looked at: what comes later is the next task."""
    start = text[:200]
    if CORRECTION.search(start):
        return "correction"
    return "thanks" if THANKS.search(start) else "follow-up"


def said_by_user(step: Step) -> str | None:
    """The user's words behind the last answer; None if only tools spoke."""
    messages = json.loads(step.new_messages or b"[]")
    behind = messages[max((n for n, m in enumerate(messages) if m.get("role") == "assistant"), default=-1) + 1 :]
    words = [message.get("content") for message in behind if message.get("role") == "user"]
    if not words:
        return None
    last = words[-1]
    return last if isinstance(last, str) else " ".join(str(part.get("text", "")) for part in last or ())


class Watcher:
    """The answers of one partition whose reaction is open, at most one a conversation."""

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._open: dict[Session, tuple[Step, int, float]] = {}
        self.next: int | None = None
        """The offset behind the last record."""

    @property
    def committable(self) -> int | None:
        return min((offset for _, offset, _ in self._open.values()), default=self.next)

    def __len__(self) -> int:
        return len(self._open)

    def take(self, event: Any, offset: int, at: float) -> list[Signal]:
        """The reaction that an event is; `at` is the broker's time in seconds."""
        self.next = offset + 1
        if isinstance(event, TrajectoryEnd):
            self._open.pop((event.run_id, event.prompt_uid, event.trajectory_uid), None)
        if not isinstance(event, Step) or event.role != "policy" or event.status != "complete":
            return []
        session = (event.run_id, event.prompt_uid, event.trajectory_uid)
        before = self._open.pop(session, None)
        self._open[session] = (event, offset, at)
        text = said_by_user(event)
        if before is None or text is None:
            return []
        return [Signal(session, before[0].step_id, label_of(text), text)]

    def expire(self, now: float) -> list[Signal]:
        """Answers to which nobody said anything for too long."""
        silent = [session for session, (_, _, at) in self._open.items() if now - at >= self._silence]
        return [Signal(session, self._open.pop(session)[0].step_id, "silence") for session in silent]


class Worker:
    """One member of the consumer group."""

    def __init__(self, arguments: argparse.Namespace, consumer: AIOKafkaConsumer, http: aiohttp.ClientSession) -> None:
        self._arguments = arguments
        self._consumer = consumer
        self._http = http
        self._watchers: dict[TopicPartition, Watcher] = {}

    async def run(self) -> None:
        """Until it is stopped; with --once until every answer on the log has its reaction."""
        while True:
            for place, records in (await self._consumer.getmany(timeout_ms=500)).items():
                for record in records:
                    await self._take(place, record)
            for watcher in self._watchers.values():
                for signal in watcher.expire(time.time()):
                    await self._post(signal)
            await self._commit()
            if self._arguments.once and await self._is_done():
                return

    async def _take(self, place: TopicPartition, record: ConsumerRecord) -> None:
        watcher = self._watchers.setdefault(place, Watcher(self._arguments.silence))
        try:
            event = decode(record.headers, record.value)
        except InvalidRecord:
            event = None  # the streams bury it
        if self._arguments.run in (None, getattr(event, "run_id", None)):
            for signal in watcher.take(event, record.offset, record.timestamp / 1000):
                await self._post(signal)
        watcher.next = record.offset + 1

    async def _post(self, signal: Signal) -> None:
        """Raises aiohttp.ClientResponseError: then the worker ends, and its next start says it again."""
        async with self._http.post(self._arguments.gateway.rstrip("/") + "/feedback", json=signal.body()) as answer:
            answer.raise_for_status()
        print(f"{signal.session[2]} {signal.step_id}: {signal.label}", flush=True)

    async def _commit(self) -> None:
        assigned = self._consumer.assignment()
        self._watchers = {place: watcher for place, watcher in self._watchers.items() if place in assigned}
        offsets = {place: w.committable for place, w in self._watchers.items() if w.committable is not None}
        if offsets:
            await self._consumer.commit(offsets)

    async def _is_done(self) -> bool:
        assigned = self._consumer.assignment()
        ends = await bus.end_offsets(self._consumer, assigned)
        read = [await self._consumer.position(place) >= ends[place] for place in assigned]
        return bool(read) and all(read) and not any(len(watcher) for watcher in self._watchers.values())


async def main() -> None:
    parser = argparse.ArgumentParser(description="Turn reactions of people into feedback.")
    parser.add_argument("gateway")
    parser.add_argument("kafka")
    parser.add_argument("--run", help="only this run")
    parser.add_argument("--silence", type=float, default=600.0, help="seconds without a word that count as silence")
    parser.add_argument("--key", help="a key of the scope reward, where the gateway asks for one")
    parser.add_argument("--once", action="store_true", help="end when every answer on the log has its reaction")
    arguments = parser.parse_args()
    headers = {"authorization": f"Bearer {arguments.key}"} if arguments.key else {}
    consumer = await bus.start_consumer(arguments.kafka, EVENTS, client_id="soft-signals", group=GROUP)
    try:
        async with aiohttp.ClientSession(headers=headers) as http:
            await Worker(arguments, consumer, http).run()
    finally:
        await bus.stop_consumer(consumer)


if __name__ == "__main__":
    asyncio.run(main())
