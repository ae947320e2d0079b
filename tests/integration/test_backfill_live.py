"""`claw recipes backfill` beside live stream workers and a sink, on the real broker and engine."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiokafka import TopicPartition

from claw_r1 import bus, registry, topics
from claw_r1.codec import decode, pack_floats
from claw_r1.events import Event, GroupCancel, GroupFact, GroupReady, Outcome, RecipeSet, RunPurged, Sample, Step
from claw_r1.ids import derived_id
from claw_r1.local.stack import BACKENDS, running_stack
from claw_r1.recipes import Recipe
from sinks import migrations
from streams.state import PartitionState
from streams.verdicts import ActiveRecipe
from tests import warm
from tests.conftest import wait_until
from tests.factories import a_group, a_recipe, a_reward, a_trajectory, an_annotation
from tests.log import Emitted, read, read_emitted, send
from tests.pool import Pool
from tests.unit.streams.partition_log import a_decision, effects
from tests.warm import ROOT
from tests.workers import Worker, workers

pytestmark = pytest.mark.stack

DATABASE = "backfill"
TALK = frozenset({"pos", "decided_at"})
"""What a deadline's position and a worker's clock say; no id follows from them."""


BROKEN = b"\xc1 not msgpack"


@dataclass(frozen=True)
class Live:
    """A stack whose facts are judged and stored."""

    kafka: str
    clickhouse: str

    def options(self, *arguments: str) -> list[str]:
        return [*arguments, "--kafka", self.kafka, "--clickhouse", self.clickhouse, "--database", DATABASE]

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("CLAW_")} | variables
        return warm.claw(*self.options("recipes", "backfill", *arguments), timeout=150, env=environment)

    def backfill(self, *arguments: str) -> dict[str, Any]:
        done = self.run(*arguments, "--json", "--wait", "90")
        assert done.returncode == 0, done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def struck(self, name: str, strike: str, at: int) -> "subprocess.Popen[str]":
        options = self.options("recipes", "backfill", name, "--wait", "90")
        command = [sys.executable, "-P", "-m", "tests.integration.stopped_backfill", *options]
        environment = os.environ | {"STRIKE": strike, "STRIKE_AT": str(at), "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    def emitted(self, recipe: str) -> Emitted:
        return asyncio.run(read_emitted(self.kafka, recipe))

    def apply(self, recipe: Recipe) -> None:
        asyncio.run(registry.apply_recipe(self.kafka, recipe, deadline=60))

    def send(self, facts: list[GroupFact]) -> None:
        asyncio.run(send(self.kafka, facts))

    def await_closed(self, run: str, prompts: set[str]) -> None:
        def closed() -> bool:
            outcomes = [e for e in asyncio.run(read(self.kafka, topics.OUTCOMES)) if isinstance(e, Outcome)]
            return prompts <= {o.prompt_uid for o in outcomes if o.run_id == run and o.outcome == "closed"}

        wait_until(closed, what=f"the groups of {run} have closed", timeout=120)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("backfill")
    with running_stack(folder / "stack", processes=BACKENDS) as stack:
        asyncio.run(bus.apply_topics(stack.kafka, topics.all_topics()))
        asyncio.run(migrations.apply(stack.clickhouse, DATABASE))
        sink = {"clickhouse": stack.clickhouse, "database": DATABASE, "sinks_port": 0}
        with workers(
            Worker("streams", folder / "w0.log", kafka=stack.kafka, streams_port=0, streams_worker="w0"),
            Worker("sinks", folder / "sink.log", kafka=stack.kafka, **sink),
        ):
            yield Live(stack.kafka, stack.clickhouse)


def rules(name: str, run: str, **over: Any) -> Recipe:
    """Of groups of two; those that lack something close soon, though not before a slow machine has written them."""
    group = {"size": 2, "idle": "8s", "max_age": "5m", "end_grace": "500ms"}
    return a_recipe(name=name, run_id=run, **{"group": group, "rewards": {"timeout": "1s"}} | over)


def many_groups(run: str) -> dict[str, list[GroupFact]]:
    """Groups that come to many ends, by prompt."""
    over: dict[str, Any] = {"run_id": run}
    names = [*(f"whole{n}" for n in range(6)), "partial", "unrewarded", "vetoed", "annotated", "unreadable"]
    groups: dict[str, list[GroupFact]] = {name: a_group((1.0, 0.5), prompt_uid=name, **over) for name in names}
    groups["lonely"] = a_trajectory("lonely-t0", prompt_uid="lonely", **over)
    groups["partial"] = [f for f in groups["partial"] if not (isinstance(f, Step) and f.depth == 1)]
    groups["unrewarded"] = a_group((1.0, None), prompt_uid="unrewarded", **over)
    groups["cancelled"] = [
        *a_trajectory("cancelled-t0", prompt_uid="cancelled", **over),
        GroupCancel(fact_id=derived_id("cancel", run), at=1.0, prompt_uid="cancelled", **over),
    ]
    groups["vetoed"].insert(2, a_decision("vetoed", "vetoed-t1", "veto", **over))
    groups["annotated"] = [
        one for fact in groups["annotated"] for one in ([fact, _values_of(fact)] if isinstance(fact, Step) else [fact])
    ]
    return groups


def _values_of(step: Step) -> GroupFact:
    return an_annotation(step, "values", pack_floats(0.25 for _ in range(step.response_len)))


async def _send_broken(kafka: str, key: bytes) -> None:
    producer = await bus.start_producer(kafka, client_id="test")
    await producer.send_and_wait(topics.EVENTS, BROKEN, key=key, headers=[("ce_type", b"claw.step.v1")])
    await producer.stop()


async def would_have_said(kafka: str, recipe: Recipe) -> list[Event]:
    """The run's facts folded with the recipe, and no other, in force from the first."""
    said: list[Event] = []
    consumer = await bus.start_consumer(kafka, client_id="test")
    try:
        for number in sorted(await bus.partitions_of(consumer, topics.EVENTS)):
            place = TopicPartition(topics.EVENTS, number)
            consumer.assign([place])
            end = (await bus.end_offsets(consumer, [place]))[place]
            state = PartitionState(number)
            state.recipes = [ActiveRecipe(-1, recipe.name, 1, recipe)]
            outputs = []
            async for records in bus.read_range(consumer, place, 0, end):
                for record in records:
                    if record.value == BROKEN:
                        key = (recipe.run_id, record.key.decode().removeprefix(f"{recipe.run_id}/"))
                        outputs += state.spoil(key, record.offset, record.timestamp / 1000, "undecodable")
                    elif not isinstance(fact := decode(record.headers, record.value), RecipeSet):
                        outputs += state.apply(fact, record.offset, record.timestamp / 1000)
            outputs += state.tick(time.time())
            said += [output.event for output in outputs]
    finally:
        await bus.stop_consumer(consumer)
    return [e for e in said if isinstance(e, Sample | GroupReady | Outcome) and e.recipe == recipe.name]


def everything(emitted: Emitted, recipe: str) -> list[Event]:
    return [*emitted.samples, *emitted.ready, *(o for o in emitted.outcomes if o.recipe == recipe)]


def as_said_by(events: list[Event], recipe: str) -> list[Event]:
    """What another recipe's outputs are but for its name, and for the ids that follow from that."""
    renamed = {e.sample_id: _sample_id(e, recipe) for e in events if isinstance(e, Sample)}
    found: list[Event] = []
    for event in events:
        update: dict[str, Any] = {"recipe": recipe}
        match event:
            case Sample():
                update["sample_id"] = renamed[event.sample_id]
            case GroupReady():
                members = [
                    m.model_copy(update={"samples": tuple(renamed[s] for s in m.samples)}) for m in event.members
                ]
                update |= {"members": tuple(members), "sample_ids": tuple(renamed[s] for s in event.sample_ids)}
            case Outcome():
                place = (event.run_id, event.prompt_uid, event.round, event.trajectory_uid, None)
                update["outcome_id"] = derived_id("fate", recipe, *place)
        found.append(event.model_copy(update=update))
    return found


def _sample_id(sample: Sample, recipe: str) -> str:
    where = (sample.run_id, sample.group_id, sample.trajectory_uid, sample.sample_index)
    return derived_id("sample", recipe, sample.recipe_version, *where)


def counted(emitted: Emitted, recipe: str) -> Counter[tuple[str, str, str]]:
    return Counter(
        ("group" if o.trajectory_uid is None else "trajectory", o.outcome, o.reason)
        for o in emitted.outcomes
        if o.recipe == recipe
    )


def told(document: dict[str, Any]) -> Counter[tuple[str, str, str]]:
    return Counter({(c["about"], c["outcome"], c["reason"]): c["number"] for c in document["counts"]})


def test_a_later_recipe_says_what_it_would_have_said_live(live: Live) -> None:
    groups = many_groups("one")
    live.apply(rules("one-a", "one"))
    live.send([fact for group in groups.values() for fact in group[:-1]])
    asyncio.run(_send_broken(live.kafka, b"one/unreadable"))
    live.send([group[-1] for group in groups.values()])
    live.await_closed("one", set(groups))
    later = rules("one-b", "one")
    live.apply(later)
    live.send(a_group((1.0, 0.0), prompt_uid="after", run_id="one"))
    live.await_closed("one", {"after"})
    before = live.emitted("one-b")
    assert {ready.group_id for ready in before.ready} == {"after"}

    tried = live.backfill("one-b", "--dry-run")
    assert live.emitted("one-b") == before
    document = live.backfill("one-b")
    emitted = live.emitted("one-b")
    emitted.check_once()
    assert {k: v for k, v in document.items() if k != "dry_run"} == {k: v for k, v in tried.items() if k != "dry_run"}
    assert (document["groups"], document["left_out"]) == (len(groups), [])
    assert {reason for _, _, reason in told(document)} >= {
        *("size", "complete", "incomplete", "reward_missing", "cancelled", "vetoed", "undecodable", "too_small_at_idle")
    }
    assert told(document) == counted(emitted, "one-b") - counted(before, "one-b")
    assert document["samples"] == len(emitted.samples) - len(before.samples) > 0

    first, second = everything(live.emitted("one-a"), "one-a"), everything(emitted, "one-b")
    clocks = TALK | {"at"}  # of a live deadline: the worker's clock, not the log's
    assert effects(second, ignore=clocks) == effects(as_said_by(first, "one-b"), ignore=clocks)
    assert effects(second, ignore=clocks) == effects(asyncio.run(would_have_said(live.kafka, later)), ignore=clocks)

    again = live.backfill("one-b")
    assert (again["counts"], again["left_out"]) == ([], [{"reason": "decided", "number": len(groups)}])
    assert live.emitted("one-b") == emitted


@pytest.mark.slow
def test_groups_that_are_open_or_wait_are_taken_later(live: Live) -> None:
    """A recipe that needs a reward which is late for all others waits for it as it would have."""
    live.apply(rules("two-a", "two", group={"size": 2, "idle": "1h", "max_age": "2h"}))
    opened = a_group((1.0, 0.0), prompt_uid="opened", run_id="two")
    live.send([*a_group((1.0, 0.0), prompt_uid="whole", run_id="two"), *opened[:-1]])
    live.await_closed("two", {"whole"})
    needs = {"required": ["reward", "style"], "timeout": "1h"}
    live.apply(rules("two-b", "two", group={"size": 2, "idle": "1h", "max_age": "2h"}, rewards=needs))
    document = live.backfill("two-b")
    assert document["counts"] == []
    assert {row["reason"]: row["number"] for row in document["left_out"]} == {"open": 1, "waiting": 1}

    about = {"run_id": "two", "source": "style"}
    live.send(
        [
            *(a_reward(2.0, prompt_uid="whole", trajectory_uid=f"whole-t{n}", **about) for n in (0, 1)),
            *(a_reward(3.0, prompt_uid="opened", trajectory_uid=f"opened-t{n}", **about) for n in (0, 1)),
            opened[-1],
        ]
    )
    live.await_closed("two", {"opened"})
    document = live.backfill("two-b")
    assert document["left_out"] == []
    emitted = live.emitted("two-b")
    emitted.check_once()
    assert {r.group_id: [m.reward for m in r.members] for r in emitted.ready} == {
        "whole": [3.0, 2.0],
        "opened": [4.0, 3.0],
    }


def eight_groups(live: Live, run: str) -> set[str]:
    """Groups that closed before the recipe RUN-b, which is in force; their prompts."""
    prompts = {f"p{n}" for n in range(8)}
    live.apply(rules(f"{run}-a", run))
    live.send([fact for prompt in sorted(prompts) for fact in a_group(prompt_uid=prompt, run_id=run)])
    live.await_closed(run, prompts)
    live.apply(rules(f"{run}-b", run))
    return prompts


def test_groups_of_a_run_that_was_purged_stay_forgotten(live: Live) -> None:
    prompts = eight_groups(live, "purged")
    pool = Pool(live.clickhouse, DATABASE)  # a sink drops what comes to it with the purge
    pool.wait_for("SELECT uniqExact(partition) FROM recipes WHERE run_id = 'purged' AND name = 'purged-b'", 4)
    closed = "SELECT uniqExact(prompt_uid) FROM outcomes WHERE run_id = 'purged' AND trajectory_uid IS NULL"
    pool.wait_for(closed, len(prompts))
    for partition in range(4):
        fact = RunPurged(fact_id=f"purge-{partition}", run_id="purged", at=1.0)
        asyncio.run(send(live.kafka, [fact], partition=partition))
    document = live.backfill("purged-b")
    assert (document["counts"], document["left_out"]) == ([], [{"reason": "run_purged", "number": len(prompts)}])
    assert live.emitted("purged-b").ready == []


def test_a_recipe_that_nothing_supplies_is_applied_with_a_warning(live: Live, tmp_path: Path) -> None:
    live.apply(rules("supplied-a", "supplied"))
    live.send(a_group(run_id="supplied"))
    live.await_closed("supplied", {"prompt-1"})
    live.backfill("supplied-a")  # the pool has it all now
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{name: supplied-b, run_id: supplied, rewards: {required: [reward, style]}, annotations: {required: [values]}}"
    )
    fresh = tmp_path / "fresh.yaml"
    fresh.write_text("{name: supplied-c, run_id: supplied-not-yet}")  # its agents have not begun
    done, quiet = (warm.claw(*live.options("recipes", "apply", str(file))) for file in (recipe, fresh))
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert done.returncode == 0
    assert done.stdout == "recipe supplied-b version 1 is in force for run supplied, channel train\n"
    warnings = done.stderr.splitlines()
    assert [line.split(": run")[0] for line in warnings] == [
        "warning: nothing is known to produce the required reward source style",
        "warning: nothing is known to produce the required annotation values",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 4])
def test_a_backfill_that_is_killed_between_samples_and_commit_goes_on(live: Live, at: int) -> None:
    run = f"killed{at}"
    prompts = eight_groups(live, run)
    struck = live.struck(f"{run}-b", "SIGKILL", at)
    struck.communicate(timeout=120)
    assert struck.returncode == -signal.SIGKILL
    document = live.backfill(f"{run}-b")
    emitted = live.emitted(f"{run}-b")
    emitted.check_once()
    assert {ready.group_id for ready in emitted.ready} == prompts
    assert told(document)["group", "emitted", "size"] == len(prompts) - (at - 1)
    assert {row["reason"]: row["number"] for row in document["left_out"]} == ({"decided": at - 1} if at > 1 else {})


@pytest.mark.slow
def test_a_backfill_that_another_overtakes_says_so_and_nothing_twice(live: Live) -> None:
    prompts = eight_groups(live, "overtaken")
    first = live.struck("overtaken-b", "SIGSTOP", 3)
    try:
        sleeper = psutil.Process(first.pid)
        wait_until(lambda: sleeper.status() == psutil.STATUS_STOPPED, what="the first backfill sleeps", timeout=120)
        live.backfill("overtaken-b")
        first.send_signal(signal.SIGCONT)
        _, talk = first.communicate(timeout=120)
    finally:
        first.kill()
        first.wait()
    assert first.returncode == 1
    assert "another backfill of recipe overtaken-b began" in talk
    emitted = live.emitted("overtaken-b")
    emitted.check_once()
    assert {ready.group_id for ready in emitted.ready} == prompts


def test_what_cannot_be_done_is_said_with_the_next_step(live: Live) -> None:
    unknown = live.run("nobody")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "there is no recipe nobody: `claw recipes list`" in unknown.stderr
    live.apply(rules("errors", "errors"))
    behind = live.run("errors", "--wait", "0.5", CLAW_SINKS_GROUP="nobody")
    assert (behind.returncode, behind.stdout) == (1, "")
    assert "the pool is behind the log" in behind.stderr
    assert "Is a sink of the group nobody running?" in behind.stderr
    assert "Traceback" not in unknown.stderr + behind.stderr
