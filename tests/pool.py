"""What a test of the pool stands on: one event of every type, a way to write it to its topic, and questions in SQL."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from claw_r1 import bus, topics
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import Record, encode, pack_floats
from claw_r1.errors import RetryableError
from claw_r1.events import (
    Annotation,
    BatchCut,
    BatchTrained,
    BlobRef,
    CutDecision,
    CutExclusion,
    CutMember,
    CutSizes,
    Decision,
    EffectiveReward,
    EnginePause,
    EngineSet,
    Event,
    GroupAdmitted,
    GroupCancel,
    GroupCarried,
    GroupReady,
    Outcome,
    Policy,
    RecipeActive,
    RecipeSet,
    RunConfig,
    RunPurged,
    StepSpan,
    TokenStats,
    Trajectory,
    TrajectoryIndex,
    VersionSpan,
)
from sinks.rows import TABLES
from tests.conftest import wait_until
from tests.factories import (
    a_child,
    a_demand,
    a_group_open,
    a_ready_group,
    a_recipe,
    a_reward,
    a_sample,
    a_started,
    a_step,
    an_end,
    an_open,
)
from tests.forms import todays

Located = tuple[str, Event]
"""A topic and an event on it."""


def a_cut(group: GroupReady, **over: Any) -> BatchCut:
    """A cut with one member and one excluded group."""
    fields: dict[str, Any] = {
        "batch_id": f"{group.recipe}-batch-1",
        "recipe": group.recipe,
        "recipe_version": 1,
        "run_id": group.run_id,
        "sequence": 1,
        "members": (
            CutMember(
                group_id=group.group_id,
                run_id=group.run_id,
                offset=2,
                sample_ids=group.sample_ids,
                left_out=("left",),
                decisions=(CutDecision(fact_id="decision", offset=3),),
            ),
        ),
        "excluded": (CutExclusion(group_id="old", run_id=group.run_id, offset=1, reason="stale"),),
        "start": 0,
        "cursor": 3,
        "needs": 0,
        "policy_version": 1,
        "digest": "d" * 64,
        "checksums": {"offsets": 2**32 - 1},
        "sizes": CutSizes(samples=2, tokens=9, trained_tokens=4, oldest_version=1, newest_version=1),
        "holder": "trainer-0",
        "at": 1.0,
    }
    return BatchCut.model_validate(fields | over)


def every_event(run: str, recipe: str = "test") -> list[Located]:
    """At least one event of every type, each with its topic: all of one run and group, but the purge of RUN-purged."""
    base: dict[str, Any] = {"run_id": run, "prompt_uid": "p1", "at": 1.5}
    about = base | {"trajectory_uid": "p1-t0"}
    mine = {"run_id": run, "prompt_uid": "p1", "trajectory_uid": "p1-t0"}
    step = a_step(
        (1, 2, 3),
        (4, 5),
        **mine,
        version_spans=(VersionSpan(version=None, start=0, end=1), VersionSpan(version=7, start=1, end=2)),
        multi_modal_data=(BlobRef(sha256="ab", bytes=3, kind="image"),),
        routed_experts=BlobRef(sha256="cd", bytes=768, kind="routed_experts"),
        usage={"completion_tokens": 2},
        stop_reason=7,
        metadata={"env": "game"},
    )
    child = a_child(step, (1, 2, 3), (6,), (7, 8), **mine)
    samples, ready = a_ready_group("p1", recipe=recipe, run_id=run)
    merged = {"links": {"exact": 1, "root": 1}, "step_tokens": 15, "mask_reasons": {"guided": 2}}
    members = [member.model_copy(update=merged | {"holes": n or None}) for n, member in enumerate(ready.members)]
    update = {"recipe": recipe, "reward_mean": 0.5, "reward_std": 0.5, "members": tuple(members)}
    ready = ready.model_copy(update=update)
    spans = (StepSpan(step_id=step.step_id, step_index=0, start=3, end=5, reward=None, link="drift", differs_at=2),)
    samples[0] = a_sample(
        (1, 2, 3, 4, 5),
        (0, 0, 0, 1, 1),
        **mine,
        recipe=recipe,
        spans=spans,
        sample_id=samples[0].sample_id,
        mask_reasons={"guided": 2},
        links={"drift": 1},
        holes=1,
        annotations={"values": pack_floats([0, 0, 0, 0.5, 0.25])},
        annotations_missing={"ref_log_probs": 2},
        reward_components={"reward": 1.0},
    )
    cut = a_cut(ready)
    decided: dict[str, Any] = {"partition": 0, "pos": 9, "at": 2.0}
    facts: list[Event] = [
        a_group_open(run_id=run, prompt_uid="p1", size=2, channel="train", task_id="task-1", metadata={"a": 1}),
        GroupCancel(fact_id="cancel", reason="no longer wanted", **base),
        an_open(**mine, channel="train", metadata={"seed": 3}),
        a_started(step),
        step,
        a_started(child),
        child,
        a_reward(1.0, **mine, components={"answer": 1.0}),
        a_reward(0.25, **mine, step_id=step.step_id, source="format"),
        a_reward(None, run_id=run, prompt_uid="p1", trajectory_uid=None, source="group"),
        Annotation(
            fact_id="ann",
            step_id=step.step_id,
            name="values",
            source="critic",
            values=pack_floats([0.5, 0.25]),
            **about,
        ),
        an_end(**mine),
        Decision(fact_id="decision", action="quality", value=0.5, author="ada", trajectory_uid="p1-t0", **base),
        RecipeSet(
            fact_id="recipe", run_id=run, at=1.0, name=recipe, version=1, recipe=a_recipe(name=recipe, run_id=run)
        ),
        RunPurged(fact_id="purge", run_id=f"{run}-purged", at=1.0, reason="test"),
    ]
    outcome = {"run_id": run, "prompt_uid": "p1", "group_id": "p1", "recipe": recipe, "recipe_version": 1, **decided}
    return [
        *((topics.EVENTS, fact) for fact in facts),
        (
            topics.TRAJECTORIES,
            Trajectory(
                group_id="p1",
                channel="train",
                status="completed",
                complete=True,
                step_ids=(step.step_id, child.step_id),
                rewards=(EffectiveReward(source="reward", value=1.0, components={"answer": 1.0}),),
                messages=b"[]",
                **mine,
                **decided,
            ),
        ),
        *((topics.batch_topic(recipe), event) for event in (*samples, ready)),
        *(
            (topics.OUTCOMES, Outcome(outcome_id=name, trajectory_uid=uid, outcome="emitted", reason="size", **outcome))
            for name, uid in (("o0", "p1-t0"), ("o1", "p1-t1"), ("o2", None))
        ),
        (
            topics.OUTCOMES,
            GroupCarried(
                group_id="p1",
                round=1,
                times=1,
                first=20,
                last=29,
                facts=9,
                opened_at=1.0,
                last_at=2.0,
                recipes=(),
                run_id=run,
                prompt_uid="p1",
                **decided,
            ),
        ),
        (
            topics.RECIPES,
            RecipeActive(name=recipe, version=1, recipe=a_recipe(name=recipe), run_id=run, partition=0, begins=0),
        ),
        (topics.POLICY, Policy(run_id=run, version=2, at=1.0)),
        (topics.POLICY, Policy(run_id=run, engine="http://engine", version=2, at=1.0)),
        (topics.ENGINES, EngineSet(fleet=run, engine_id="engine-8000", url="http://engine:8000", at=1.0)),
        (topics.ENGINES, EnginePause(fleet=run, engine_id="engine-8000", at=1.0)),
        (topics.RUNS, RunConfig(run_id=run, at=1.0)),
        (topics.TRAJECTORY_INDEX, TrajectoryIndex(channel="train", **mine)),
        (topics.DEMAND, a_demand(run_id=run, recipe=recipe)),
        (topics.DEMAND, GroupAdmitted(run_id=run, prompt_uid="p", channel="train", at=1.0)),
        (topics.CUTS, cut),
        (
            topics.CUTS,
            Outcome(
                outcome_id="late",
                run_id=run,
                prompt_uid="p1",
                group_id="p1",
                recipe=recipe,
                fact_id="decision",
                batch=1,
                outcome="late",
                reason="in_batch",
                at=3.0,
            ),
        ),
        (
            topics.CUTS,
            BatchTrained(
                batch_id=cut.batch_id,
                recipe=recipe,
                run_id=run,
                sequence=1,
                cursor=3,
                policy_version=2,
                holder="trainer-0",
                at=1.0,
            ),
        ),
        (
            topics.TOKEN_STATS,
            TokenStats(
                batch_id=cut.batch_id,
                recipe=recipe,
                sequence=1,
                policy_version=2,
                group_id="p1",
                sample_id=samples[0].sample_id,
                name="log_probs",
                values=pack_floats([0, 0, 0, -0.25, -0.75]),
                holder="trainer-0",
                at=1.0,
                **mine,
            ),
        ),
    ]


def of_run(table: str, run: str) -> str:
    """The condition for the rows of a table that `every_event` of the run becomes."""
    column = "group_run_id" if table == "cut_members" else "run_id"
    return f"{column} = '{run}-purged'" if table == "purges" else f"{column} = '{run}'"


async def _write(
    kafka: str, events: Iterable[Located], transaction: str | None, form: Callable[[Record], Record]
) -> None:
    producer = await bus.start_producer(kafka, client_id="test", transactional_id=transaction)
    try:
        if transaction:
            await producer.begin_transaction()
        events = list(events)
        await bus.track_topics(producer, *{topic for topic, _event in events})
        futures = []
        for topic, event in events:
            record = form(encode(event, source="test", key=getattr(event, "prompt_uid", "key").encode()))
            futures.append(await producer.send(topic, record.value, key=record.key, headers=record.headers))
        await asyncio.wait_for(asyncio.gather(*futures), 60)
        if transaction:
            await producer.commit_transaction()
    finally:
        await producer.stop()


def write(
    kafka: str,
    events: Iterable[Located],
    *,
    transaction: str | None = None,
    form: Callable[[Record], Record] = todays,
) -> None:
    """Publish in order, in one transaction if named; done when all are acknowledged."""
    asyncio.run(_write(kafka, events, transaction, form))


class Pool:
    """Questions to one database."""

    def __init__(self, url: str, database: str) -> None:
        self.url, self.database = url, database

    def rows(self, sql: str) -> list[dict[str, Any]]:
        async def ask() -> list[dict[str, Any]]:
            async with await ClickHouse.connect(self.url, self.database) as clickhouse:
                return (await clickhouse.query(sql)).dicts()

        return asyncio.run(ask())

    def scalar(self, sql: str) -> Any:
        rows = self.rows(sql)
        return next(iter(rows[0].values())) if rows else None

    def wait_for(self, sql: str, value: Any, *, timeout: float = 60.0) -> None:
        """Wait until the first value of the answer is `value`; a server that is away answers nothing."""
        last: Any = None

        def reached() -> bool:
            nonlocal last
            try:
                last = self.scalar(sql)
            except RetryableError as error:
                last = error
            return bool(last == value)

        wait_until(reached, what=f"{sql} = {value}", timeout=timeout)

    def check_once(self, tables: Sequence[str] = tuple(TABLES)) -> None:
        """No record is in a table twice, and FINAL leaves one row for each key."""
        for table in tables:
            place = (
                "(topic, partition, offset, position, taken)"
                if table == "cut_members"
                else "(topic, partition, offset)"
            )
            raw, places = self._pair(f"SELECT count(), uniqExact({place}) FROM {table}")
            assert raw == places, f"{table}: {raw} rows of {places} records"
            key = self.scalar(
                f"SELECT sorting_key FROM system.tables WHERE database = '{self.database}' AND name = '{table}'"
            )
            final, keys = self._pair(f"SELECT count(), uniqExact(({key})) FROM {table} FINAL")
            assert final == keys, f"{table}: {final} rows under FINAL for {keys} keys"

    def _pair(self, sql: str) -> tuple[int, int]:
        first, second = self.rows(sql)[0].values()
        return first, second
