"""One step is followed from the agent's call to the acknowledged batch, and shown at every stop as it is there.

The stack is the real one and so are the pure functions: what a stop made is made again here from what came in, and stands
beside what is on the log, in the pool and in the batch. The truth is what the engine wrote down when it sampled.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from aiokafka import ConsumerRecord, TopicPartition

from claw_r1 import bus, topics
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import decode, encode, unpack_floats, unpack_ids
from claw_r1.demo.agent import Task, rollout
from claw_r1.demo.driver import RecordedChat, open_client
from claw_r1.demo.ledger import Ledger, read_ledger
from claw_r1.demo.run import Options, demo_stack, ensure_recipe
from claw_r1.errors import UserError
from claw_r1.events import (
    BatchTrained,
    Event,
    GroupFact,
    GroupReady,
    RecipeActive,
    Reward,
    Sample,
    Step,
    TrajectoryFact,
)
from claw_r1.ids import new_id
from claw_r1.local.stack import RunningStack
from claw_r1.recipes import BatchRule, GroupRule, Recipe
from claw_r1.settings import Settings
from gateway.calls.capture import Call, make_steps
from gateway.calls.chains import Chains
from gateway.dialects import chat
from gateway.routes import match
from sinks.rows import TABLES, Place, list_rows
from streams.join import TrajectoryState, order_steps
from streams.merge import rows_of
from streams.state import PartitionState
from trainer_adapter import AsyncBatch, AsyncBatchStream

RUN: Final = "explain"
RECIPE: Final = Recipe(name="explain", run_id=RUN, group=GroupRule(size=2), batch=BatchRule(groups=1))
WAIT_S: Final = 60.0
SHOWN: Final = 12  # items of a list that are printed


@dataclass(frozen=True)
class Stop:
    """The datum at one stop. `prompt_ids`, `response_ids`, `log_probs`: the step's own, as this stop holds them; None where
    it holds none."""

    file: str
    holds: str
    datum: dict[str, Any]
    prompt_ids: list[int] | None = None
    response_ids: list[int] | None = None
    log_probs: list[float] | None = None


@dataclass(frozen=True)
class Sampled:
    """One call as the engine wrote it down."""

    identifier: str
    request: bytes
    reply: bytes
    prompt_ids: list[int]
    response_ids: list[int]
    log_probs: list[float]


@dataclass(frozen=True)
class Played:
    """A trajectory: its calls, in order, as the engine wrote them down, and the ids of their steps."""

    trajectory_uid: str
    prompt_uid: str
    calls: list[Sampled]
    step_ids: list[str]


@dataclass(frozen=True)
class Followed:
    """What is known of the step when the way is described: the records are those of its group."""

    played: Played
    number: int
    """Of the call within the trajectory, from 0."""
    events: list[tuple[ConsumerRecord, Event]]
    emitted: list[tuple[ConsumerRecord, Event]]
    recipes: list[RecipeActive] = field(default_factory=list)

    @property
    def call(self) -> Sampled:
        return self.played.calls[self.number]

    @property
    def step_id(self) -> str:
        return self.played.step_ids[self.number]

    @property
    def steps(self) -> list[Step]:
        uid = self.played.trajectory_uid
        return [event for _, event in self.events if isinstance(event, Step) and event.trajectory_uid == uid]

    def find_step(self) -> tuple[ConsumerRecord, Step]:
        return next((r, e) for r, e in self.events if isinstance(e, Step) and e.step_id == self.step_id)


# ------------------------------------------------------------------------------------------------------------ the calls


def read_record(path: Path) -> dict[str, Sampled]:
    """The engine's own record, by response id."""
    found = {}
    for line in path.read_bytes().splitlines():
        entry = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        reply = msgspec.json.decode(entry["reply"])
        choice = reply["choices"][0]
        found[reply["id"]] = Sampled(
            reply["id"],
            bytes(entry["request"]),
            bytes(entry["reply"]),
            reply["prompt_token_ids"],
            choice["token_ids"],
            [token["logprob"] for token in choice["logprobs"]["content"]],
        )
    return found


async def play_group(gateway: str, model: str, folder: Path, record: Path, *, seed: int) -> list[Played]:
    """Two games on one hidden number, the second with streamed calls."""
    session = new_id()[:16]
    prompt_uid, path = f"{session}-explained", folder / "explained.jsonl"
    answers: dict[str, list[str]] = {}
    with Ledger(path, session) as ledger:
        async with open_client(gateway) as client:
            for number in range(RECIPE.group.size):
                uid = f"{prompt_uid}-{number}"
                chat = RecordedChat(
                    client.with_options(base_url=f"{gateway}/{uid}/{prompt_uid}/v1"),
                    model,
                    stream=number > 0,
                    ledger=ledger,
                    trajectory_uid=uid,
                    patience=WAIT_S,
                )
                await rollout(chat, Task(seed, "solo"))
                answers[uid] = chat.acknowledged
    sampled, entries = read_record(record), read_ledger(path, session)
    return [
        Played(
            uid,
            prompt_uid,
            [sampled[identifier] for identifier in identifiers],
            [e.step_id or "" for e in entries if e.event == "acknowledged" and e.trajectory_uid == uid],
        )
        for uid, identifiers in answers.items()
    ]


# ------------------------------------------------------------------------------------------------------------ the stops


def at_gateway(followed: Followed) -> Iterator[Stop]:
    """routes, proxy, capture: the path, the request as the engine got it, and the Step that its reply becomes."""
    played, call = followed.played, followed.call
    path = f"/{played.trajectory_uid}/{played.prompt_uid}/v1/chat/completions"
    route = match("POST", path)
    yield Stop(
        "gateway/routes",
        "the path names the trajectory and its group",
        {"path": path, "route": asdict(route) if route else None},
    )
    asked, reply = msgspec.json.decode(call.request), msgspec.json.decode(call.reply)
    datum = {
        "request": {key: value for key, value in asked.items() if key != "messages"},
        "messages": len(asked["messages"]),
        "reply": reply["choices"][0]["message"],
        "versions": reply["choices"][0]["weight_versions"],
    }
    holds = "the engine is asked for ids, log-probs and versions, and answers with what it sampled"
    yield Stop("gateway/proxy", holds, datum, call.prompt_ids, call.response_ids, call.log_probs)
    step = capture_again(followed)
    datum = {
        "step_id": step.step_id,
        "parent_step_id": step.parent_step_id,
        "prefix_len": step.prefix_len,
        "prefix_hash": (step.prefix_hash or b"").hex(),
        "new_prompt_ids": unpack_ids(step.new_prompt_ids).tolist(),
        "policy_version": step.policy_version,
        "capture": step.capture.model_dump(),
    }
    holds = "the reply, checked, is a Step: a difference to the step before"
    yield Stop("gateway/capture", holds, datum, None, unpack_ids(step.response_ids).tolist(), _floats(step))


def capture_again(followed: Followed) -> Step:
    """What the gateway's pure functions make of the engine's replies of this trajectory; the followed call's Step."""
    chains, made = Chains(), []
    for call, step_id in zip(followed.played.calls, followed.played.step_ids, strict=True):
        asked = chat.asked(call.request)
        captured = asked.api.read(call.reply)
        about = Call(
            step_id=step_id,
            run_id=RUN,
            prompt_uid=followed.played.prompt_uid,
            trajectory_uid=followed.played.trajectory_uid,
            channel=None,
            n=1,
            model=asked.model,
            messages=asked.messages,
            request=asked.request,
            sampling=asked.sampling,
        )
        original = next(step for step in followed.steps if step.step_id == step_id)
        (recorded,) = make_steps(
            about,
            captured,
            chains,
            status="complete",
            timings=original.timings,
            engine=original.engine,
            at=original.at,
        )
        if recorded.context is not None:
            step = recorded.step
            chains.add(step_id, recorded.context, recorded.delta, step.response_ids, step.reply)
        made.append(recorded.step)
    return made[followed.number]


def on_log(followed: Followed) -> Iterator[Stop]:
    """codec and topic: the bytes, and where they stand."""
    record, step = followed.find_step()
    again = encode(step, source=dict(record.headers)["ce_source"].decode())
    headers = {name: value.decode() for name, value in record.headers}
    datum = {"headers": headers, "bytes": len(record.value), "encoded again": again.value == record.value}
    ids = unpack_ids(step.response_ids).tolist()
    yield Stop("claw_r1/codec", "the Step is msgpack with CloudEvents headers", datum, None, ids, _floats(step))
    yield Stop(
        topics.EVENTS,
        "the broker has acknowledged it before the agent saw the end",
        _place(record),
        None,
        ids,
        _floats(step),
    )


def in_streams(followed: Followed) -> Iterator[Stop]:
    """join, merge, readiness, and the recipe's topic."""
    uid, step_id = followed.played.trajectory_uid, followed.step_id
    state = TrajectoryState(uid)
    for record, event in followed.events:
        if isinstance(event, TrajectoryFact | Reward) and event.trajectory_uid == uid:
            state.add(event, record.timestamp / 1000)
    order = [step.step_id for step in order_steps(state.steps.values())]
    datum = {
        "steps": len(order),
        "step_index": order.index(step_id),
        "rewards": [reward.value for reward in state.rewards.values()],
        "end": state.end.status if state.end else None,
        "missing": sorted(state.missing_steps),
    }
    yield Stop("streams/join", "the trajectory's facts, in whatever order, are one state", datum)
    rows = rows_of(state.steps.values(), frozenset({"unknown_version"})) or ()
    row, node = next((r, n) for r in rows for n in r.nodes if n.step.step_id == step_id)
    context = unpack_ids(node.context).tolist()
    datum = {
        "tokens of the row": len(row.loss_mask),
        "steps of the row": len(row.nodes),
        "span": [node.start, node.end],
        "mask": list(row.loss_mask[node.start : node.end]),
    }
    log_probs = unpack_floats(bytes(row.log_probs))[node.start : node.end].tolist()
    holds = "steps that extend each other exactly are one row; the step's response is a span of it"
    yield Stop("streams/merge", holds, datum, context[: node.start], context[node.start :], log_probs)
    yield _readiness(followed)
    record, sample = next(
        (r, e) for r, e in followed.emitted if isinstance(e, Sample) and any(s.step_id == step_id for s in e.spans)
    )
    prompt, response, log_probs = cut_sample(sample, step_id)
    marker = next(r for r, e in followed.emitted if isinstance(e, GroupReady))
    datum = {
        "sample": _place(record),
        "group-ready": _place(marker),
        "sample_id": sample.sample_id,
        "reward": sample.reward,
    }
    holds = "samples, then the group's marker, in one transaction"
    yield Stop(topics.batch_topic(RECIPE.name), holds, datum, prompt, response, log_probs)


def _readiness(followed: Followed) -> Stop:
    """Fold the group's facts through the worker's own state, as if they came just now."""
    record, _ = followed.events[0]
    state = PartitionState(record.partition)
    state.load_recipes(followed.recipes, record.offset)
    outputs = [o.event for r, e in followed.events for o in state.apply(e, r.offset, r.timestamp / 1000)]
    again = next(event for event in outputs if isinstance(event, GroupReady))
    ready = next(event for _, event in followed.emitted if isinstance(event, GroupReady))
    datum = {
        "reason": ready.reason,
        "members": [[m.trajectory_uid, m.outcome, m.reason, m.reward] for m in ready.members],
        "sample_ids": list(ready.sample_ids),
        "decided the same again": (again.sample_ids, again.members) == (ready.sample_ids, ready.members),
    }
    return Stop("streams/readiness", "the group is whole: every trajectory has a fate", datum)


def cut_sample(sample: Sample, step_id: str) -> tuple[list[int], list[int], list[float]]:
    """The step's prompt, response and log-probs, as its sample holds them."""
    span = next(span for span in sample.spans if span.step_id == step_id)
    ids, log_probs = unpack_ids(sample.token_ids).tolist(), unpack_floats(sample.rollout_log_probs).tolist()
    return ids[: span.start], ids[span.start : span.end], log_probs[span.start : span.end]


async def in_pool(followed: Followed, clickhouse: ClickHouse) -> list[Stop]:
    """sinks/rows and ClickHouse: the rows as made again, and as found."""
    record, step = followed.find_step()
    place = Place(record.topic, record.partition, record.offset, record.timestamp)
    rows = {table: dict(zip(TABLES[table].names, row, strict=True)) for table, row in list_rows(step, place)}
    tokens = rows["step_tokens"]
    datum = {table: {k: v for k, v in row.items() if not isinstance(v, bytes) and v} for table, row in rows.items()}
    ids = unpack_ids(tokens["response_ids"]).tolist()
    made = Stop("sinks/rows", "the Step is a slim row and a row of tokens", datum, None, ids, _floats(step))
    sql = "SELECT * FROM contexts(trajectory_uid = {uid:String}) WHERE step_id = {step:String}"
    parameters = {"uid": followed.played.trajectory_uid, "step": followed.step_id}
    row = await _await_row(clickhouse, sql, parameters)
    shown: dict[str, Any] = {
        "sql": sql,
        "reply": row["reply"],
        "messages": len(row["messages"]),
        "log_offset": row["log_offset"],
    }
    holds = "SQL restores the whole prompt from the differences"
    stored = Stop(
        "ClickHouse", holds, shown, list(row["prompt_ids"]), list(row["response_ids"]), list(row["rollout_log_probs"])
    )
    return [made, stored]


async def _await_row(clickhouse: ClickHouse, sql: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The first row, as soon as the sink has stored it."""
    end = time.monotonic() + WAIT_S
    while True:
        if rows := (await clickhouse.query(sql, parameters)).dicts():
            return rows[0]
        if time.monotonic() > end:
            raise UserError(
                f"after {WAIT_S:.0f} s the pool has no row of the step: `claw status` shows whether sinks runs"
            )
        await asyncio.sleep(0.1)


async def take_batch(stream: AsyncBatchStream, prompt_uid: str) -> AsyncBatch:
    """The batch that has the group; batches before it, of an earlier time, are acknowledged."""
    while True:
        batch = await stream.next(WAIT_S)
        if any(group.prompt_uid == prompt_uid for group in batch.groups):
            return batch
        await batch.commit(policy_version=(stream.policy_version or 0) + 1)


async def in_trainer(followed: Followed, stream: AsyncBatchStream, kafka: str) -> list[Stop]:
    """trainer_adapter/batch and BatchTrained."""
    batch = await take_batch(stream, followed.played.prompt_uid)
    row, span = next(
        (row, span) for row, spans in enumerate(batch.spans) for span in spans if span.step_id == followed.step_id
    )
    ids, log_probs, mask = (
        batch.rows(column)[row].tolist() for column in (batch.token_ids, batch.rollout_log_probs, batch.loss_mask)
    )
    datum = {
        "batch_id": batch.batch_id,
        "sequence": batch.sequence,
        "samples": len(batch),
        "tokens": batch.tokens,
        "row": row,
        "reward": float(batch.reward[row]),
        "advantage": float(batch.advantage[row]),
        "mask": mask[span.start : span.end],
    }
    holds = "the group is part of a batch of ragged columns; its cut is durable"
    taken = Stop(
        "trainer_adapter/batch",
        holds,
        datum,
        ids[: span.start],
        ids[span.start : span.end],
        log_probs[span.start : span.end],
    )
    await batch.commit(policy_version=(stream.policy_version or 0) + 1)
    records = await bus.read_topic(kafka, topics.CUTS, client_id="claw-explain")
    said = [(record, decode(record.headers, record.value)) for record in records]
    record, trained = next((r, e) for r, e in said if isinstance(e, BatchTrained) and e.batch_id == batch.batch_id)
    datum = {**_place(record), "sequence": trained.sequence, "cursor": trained.cursor, "policy": trained.policy_version}
    return [taken, Stop("BatchTrained", "the optimiser step is done: the one acknowledgement", datum)]


def _place(record: ConsumerRecord) -> dict[str, Any]:
    key = None if record.key is None else record.key.decode()
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset, "key": key}


def _floats(step: Step) -> list[float] | None:
    return None if step.rollout_log_probs is None else unpack_floats(step.rollout_log_probs).tolist()


# -------------------------------------------------------------------------------------------------------------- the way


class Log:
    """What comes onto a topic after this object was opened."""

    def __init__(self, kafka: str, topic: str) -> None:
        self._kafka = kafka
        self._topic = topic
        self._starts: dict[TopicPartition, int] = {}

    async def open(self) -> "Log":
        consumer = await bus.start_consumer(self._kafka, self._topic, client_id="claw-explain")
        try:
            partitions = [TopicPartition(self._topic, n) for n in consumer.partitions_for_topic(self._topic) or ()]
            self._starts = await bus.end_offsets(consumer, partitions)
        finally:
            await bus.stop_consumer(consumer)
        return self

    async def read(self, prompt_uid: str) -> list[tuple[ConsumerRecord, Event]]:
        """The records about one group, in the order of its partition."""
        found = []
        consumer = await bus.start_reader(self._kafka, client_id="claw-explain")
        try:
            consumer.assign(list(self._starts))
            ends = await bus.end_offsets(consumer, self._starts)
            for partition, start in self._starts.items():
                async for records in bus.read_range(consumer, partition, start, ends[partition]):
                    found += [(record, decode(record.headers, record.value)) for record in records]
        finally:
            await bus.stop_consumer(consumer)
        return [
            (record, event)
            for record, event in found
            if isinstance(event, GroupFact | Sample | GroupReady) and event.prompt_uid == prompt_uid
        ]


async def explain(stack: RunningStack, folder: Path, record: Path, *, model: str, seed: int = 0) -> list[Stop]:
    """Play one group on a running stack whose engine writes to `record`, and follow its first step that has a parent.

    `stack`: its gateway's default run is `RUN`, and nobody else trains the recipe `RECIPE`.
    """
    await ensure_recipe(stack.kafka, RECIPE)
    events = await Log(stack.kafka, topics.EVENTS).open()
    emitted = await Log(stack.kafka, topics.batch_topic(RECIPE.name)).open()
    played = (await play_group(stack.urls["gateway"], model, folder, record, seed=seed))[0]
    async with AsyncBatchStream(RECIPE.name, kafka=stack.kafka) as stream:
        group: list[tuple[ConsumerRecord, Event]] = []
        async with asyncio.timeout(WAIT_S):
            while not any(isinstance(event, GroupReady) for _, event in group):
                group = await emitted.read(played.prompt_uid)
        known = await bus.read_topic(stack.kafka, topics.RECIPES, client_id="claw-explain")
        recipes = [event for r in known if isinstance(event := decode(r.headers, r.value), RecipeActive)]
        followed = Followed(played, 1, await events.read(played.prompt_uid), group, recipes)
        stops = [*at_gateway(followed), *on_log(followed), *in_streams(followed)]
        async with await ClickHouse.connect(stack.clickhouse, Settings.read().database) as clickhouse:
            stops += await in_pool(followed, clickhouse)
        return stops + await in_trainer(followed, stream, stack.kafka)


def explain_demo(options: Options, *, as_json: bool) -> None:
    """Start a stack, follow one step, print the stops, stop the stack."""
    if options.upstream is not None:
        raise UserError("--explain compares with what the demo's own engine wrote down: leave --upstream out")
    record = options.folder / "sampled.jsonl"
    options.folder.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    print(f"starting the stack on {options.data} …", file=sys.stderr)
    with demo_stack(options, new_id()[:16], run=RUN, record=record) as stack:
        stops = asyncio.run(explain(stack, options.folder, record, model=options.model, seed=options.seed))
    if as_json:
        print(json.dumps([asdict(stop) for stop in stops], default=str))
    else:
        print("\n".join(describe(stops)))


def describe(stops: Sequence[Stop]) -> Iterator[str]:
    """The stops as text."""
    for number, stop in enumerate(stops, start=1):
        yield f"{number:2}  {stop.file}: {stop.holds}"
        for name, value in stop.datum.items():
            yield f"      {name}: {json.dumps(_short(value), default=str, ensure_ascii=False)}"
        for name in ("prompt_ids", "response_ids", "log_probs"):
            values = getattr(stop, name)
            if values is not None:
                rounded = [round(value, 4) if isinstance(value, float) else value for value in values]
                yield f"      {name} ({len(values)}): {json.dumps(_short(rounded), ensure_ascii=False)}"


def _short(value: Any) -> Any:
    if isinstance(value, list) and len(value) > SHOWN:
        return [*value[: SHOWN // 2], "…", *value[-SHOWN // 2 :]]
    if isinstance(value, dict):
        return {name: _short(part) for name, part in value.items()}
    return value
