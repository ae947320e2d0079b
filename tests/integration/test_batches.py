"""Cuts, lineage and rebuilt batches, on the real broker, sink and engine."""

import asyncio
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from typer.testing import CliRunner

from claw_r1 import topics
from claw_r1.cli.entry import app
from claw_r1.codec import pack_floats
from claw_r1.errors import DependencyUnreachable, UserError
from claw_r1.events import (
    BatchCut,
    BlobRef,
    Decision,
    ExpertsSpan,
    GroupReady,
    RecipeSet,
    Sample,
    Step,
    StepSpan,
    VersionSpan,
)
from claw_r1.ids import new_id
from claw_r1.local.ports import find_port
from sinks import migrations
from tests.conftest import Stack, wait_until
from tests.factories import a_finished, a_reward, a_step
from tests.integration.adapter_stand import AdapterStand, an_adapter_stand
from tests.integration.test_sink import a_pool, a_sink
from tests.pool import Located, Pool, write
from tests.workers import workers
from trainer_adapter import AsyncBatchStream, TrainingBatch, build_batch, rebuild_batch
from trainer_adapter.files import read_batch

pytestmark = pytest.mark.stack

RULE: dict[str, Any] = {
    "group": {"size": 2, "min_size": 1},
    "batch": {"groups": 2},
    "rewards": {"weights": {"penalty": -1.0}},
}


@dataclass
class Told:
    """A recipe with two batches, of which the first is trained, and a group that waits; and what came too late for all."""

    kafka: str
    pool: Pool
    recipe: str
    run: str
    batches: list[TrainingBatch]
    cuts: list[BatchCut]
    steps: dict[str, str]
    """Trajectory → its step."""
    decided: dict[str, Decision]


@pytest.fixture(scope="module")
def told(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    pool = a_pool(stack, "batches")
    with workers(a_sink(stack, tmp_path_factory.mktemp("batches"), pool.database)):
        yield asyncio.run(_tell(stack, pool))


async def _tell(stack: Stack, pool: Pool) -> Told:
    async with an_adapter_stand(stack.kafka, **RULE) as stand:
        run, name = stand.recipe.run_id, stand.recipe.name
        await asyncio.to_thread(write, stand.kafka, _facts(stand))
        await stand.publish(*(a_rich_group(stand, number) for number in range(1, 7)))
        async with AsyncBatchStream(name, kafka=stand.kafka) as stream:
            decided = {
                "override": await decide(stand, "override_reward", "g2", "g2-t1", value=3.5),
                "veto": await decide(stand, "veto", "g1", "g1-t0", step_id=step_of(stand, "g1-t0")),
                "tag": await decide(stand, "tag", "g2", "g2-t0", value="good"),
                "out": await decide(stand, "veto", "g3"),
            }
            first = await stream.next(60)
            log_probs = [np.array([np.nan, np.nan, 0.0, -0.5, np.nan]) for _ in range(len(first))]
            clipped = first.loss_mask == 1
            with pytest.raises(UserError, match=r"\['log_probs'\] has the shape \(3,\) and not \(20,\)"):
                await first.commit(policy_version=2, token_stats={"log_probs": np.zeros(3)})
            await first.commit(policy_version=2, token_stats={"log_probs": log_probs, "clipped": clipped})
            second = await stream.next(60)
            decided["late"] = await decide(stand, "veto", "g1", "g1-t1", at=2.0)
            decided["undone"] = await decide(stand, "undo", "g2", undoes=decided["override"].fact_id, at=3.0)
            late = [
                a_reward(-9.0, run_id=run, prompt_uid=f"g{n}", trajectory_uid=f"g{n}-t0", revision=1) for n in (1, 2)
            ]
            for reward in late:
                await stand.send(topics.EVENTS, reward, f"{run}/{reward.prompt_uid}")
            waiting = asyncio.create_task(stream.next(120))  # it says of the decisions that they came too late
            await asyncio.to_thread(wait_until, lambda: _is_stored(pool, run), what="the pool has it all")
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        cuts = [event for event in await stand.history() if isinstance(event, BatchCut)]
        steps = {f"g{n}-t{m}": step_of(stand, f"g{n}-t{m}") for n in range(1, 7) for m in (0, 1)}
        return Told(stack.kafka, pool, name, run, [first, second], cuts, steps, decided)


def _facts(stand: AdapterStand) -> Iterator[Located]:
    """The recipe, and of every trajectory its step, its reward and its end."""
    run, name = stand.recipe.run_id, stand.recipe.name
    recipe = RecipeSet(fact_id=f"set-{name}", run_id=run, at=1.0, name=name, version=1, recipe=stand.recipe)
    yield topics.EVENTS, recipe
    for number, m in itertools.product(range(1, 7), (0, 1)):
        step = the_step(stand, number, f"g{number}-t{m}")
        place = {"run_id": run, "prompt_uid": step.prompt_uid, "trajectory_uid": step.trajectory_uid}
        about: dict[str, Any] = place | {"task_id": f"task-{number}", "metadata": {"half": m}}
        yield topics.EVENTS, step
        yield topics.EVENTS, a_reward(1.0 - m, **place)
        yield topics.TRAJECTORIES, a_finished(**about)


def _is_stored(pool: Pool, run: str) -> bool:
    wanted = {
        "decisions": 6,
        "rewards": 14,
        "trajectories": 12,
        "token_stats": 8,
        "cuts": 2,
        "cut_members": 5,
        "trained": 1,
        "recipes": 1,
        "groups": 6,
        "samples": 12,
        "steps": 12,
        "step_tokens": 12,
        "outcomes": 2,
    }
    counts = (f"SELECT count() FROM {table} FINAL WHERE run_id = '{run}'" for table in wanted)
    return [pool.scalar(count) for count in counts] == list(wanted.values())


def step_of(stand: AdapterStand, uid: str) -> str:
    return f"{stand.recipe.name}-{uid}-s0"


def the_step(stand: AdapterStand, number: int, uid: str) -> Step:
    """The step that the trajectory's sample is made of."""
    step_id = step_of(stand, uid)
    place = {"run_id": stand.recipe.run_id, "prompt_uid": f"g{number}", "trajectory_uid": uid}
    return a_step(
        (1, 2),
        (2**31 - 1, 4),
        step_id=step_id,
        fact_id=step_id,
        rollout_log_probs=pack_floats([-0.5, -0.25]),
        engine="engine-1",
        policy_version=number,
        **place,
    )


def a_rich_group(stand: AdapterStand, number: int) -> tuple[list[Sample], GroupReady]:
    """A group whose samples have all that a batch may be made of."""
    blob = BlobRef(sha256="ab", bytes=7, kind="routed_experts")
    samples, marker = stand.group(
        number,
        (-0.0, 1.0 / 3.0),
        ids=(1, 2, 2**31 - 1, 4, 5 + number),
        mask=(0, 0, 1, 0, 1),  # the step's second token is masked
        annotations={"values": pack_floats([0, 0, 0.1, 1e-30, -0.0])},
        annotations_missing={"ref_log_probs": 2},
        metadata={"number": number, "nested": {"a": [1, 2.5, None, "ü'\\"]}},
        reward_components={"reward": 1.0 / 3.0, "penalty": 0.1},
        version_spans=({"version": number, "start": 2, "end": 4}, {"version": None, "start": 4, "end": 5}),
        routed_experts=(ExpertsSpan(step_id="s", blob=blob, start=0, end=4),),
        multi_modal_data=(BlobRef(sha256="cd", bytes=3, kind="image"),),
        tags=("new",),
        quality=0.25,
    )
    spans = [
        StepSpan(
            step_id=step_of(stand, sample.trajectory_uid),
            step_index=0,
            start=2,
            end=4,
            reward=0.5,
            source_reward=0.25,
            link="root",
        )
        for sample in samples
    ]
    samples = [
        s.model_copy(
            update={"spans": (span,), "recipe": stand.recipe.name, "sample_id": f"{stand.recipe.name}-{s.sample_id}"}
        )
        for s, span in zip(samples, spans, strict=True)
    ]
    members = tuple(
        member.model_copy(update={"samples": (sample.sample_id,), "source_reward": 0.125})
        for member, sample in zip(marker.members, samples, strict=True)
    )
    update = {"members": members, "sample_ids": tuple(s.sample_id for s in samples), "recipe": stand.recipe.name}
    before = Decision(
        fact_id=f"before-{number}",
        run_id=stand.recipe.run_id,
        prompt_uid=marker.prompt_uid,
        trajectory_uid=f"g{number}-t1",
        action="override_reward",
        value=1.0 / 3.0,
        author="ada",
        at=0.5,
    )
    curated = {"curation": (before,), "decisions": (before.fact_id,), "min_version": number, "max_version": number}
    return samples, marker.model_copy(update=update | curated)


async def decide(stand: AdapterStand, action: str, prompt: str, uid: str | None = None, **over: Any) -> Decision:
    """A decision on the log, and behind its group as a stream worker forwards it."""
    fields = {"fact_id": new_id(), "run_id": stand.recipe.run_id, "at": 1.0, "author": "ada"} | over
    decision = Decision.model_validate(fields | {"action": action, "prompt_uid": prompt, "trajectory_uid": uid})
    key = f"{decision.run_id}/{prompt}"
    await stand.send(topics.EVENTS, decision, key)
    forwarded = decision.model_copy(update={"group_id": prompt})
    await stand.send(stand.topic, forwarded, key)
    return decision


def columns(batch: TrainingBatch) -> dict[str, bytes]:
    """Every array of a batch, as its bytes."""
    named = {name: value for name, value in vars(batch).items() if isinstance(value, np.ndarray)}
    return {name: value.tobytes() for name, value in (named | batch.annotations).items()}


def test_a_batch_is_made_again_byte_for_byte_whatever_was_said_since(told: Told) -> None:
    assert [[d.fact_id for d in m.decisions] for m in told.cuts[0].members] == [
        [told.decided["veto"].fact_id],
        [told.decided["override"].fact_id, told.decided["tag"].fact_id],
    ]
    for sequence, batch in enumerate(told.batches, 1):
        again = rebuild_batch(f"{told.recipe}/{sequence}", clickhouse=told.pool.url, database=told.pool.database)
        assert again.digest == batch.digest == told.cuts[sequence - 1].digest
        assert columns(again) == columns(batch)
        assert columns(again).keys() >= {"offsets", "token_ids", "trajectory_advantages", "values"}
        for name in ("metadata", "spans", "tags", "quality", "routed_experts", "multi_modal_data", "version_spans"):
            assert getattr(again, name) == getattr(batch, name), name
        assert again.groups == batch.groups
        assert (
            rebuild_batch(batch.batch_id, clickhouse=told.pool.url, database=told.pool.database).digest == batch.digest
        )


def test_old_tokens_are_masked_at_the_cut_and_when_the_batch_is_made_again(stack: Stack, tmp_path: Path) -> None:
    pool = a_pool(stack, "stale")
    staleness = {"max_versions": 1, "mode": "mask_tokens"}

    async def body() -> tuple[list[TrainingBatch], str]:
        async with an_adapter_stand(stack.kafka, batch={"groups": 1}, staleness=staleness) as stand:
            recipe = RecipeSet(
                fact_id="set",
                run_id=stand.recipe.run_id,
                at=1.0,
                name=stand.recipe.name,
                version=1,
                recipe=stand.recipe,
            )
            await asyncio.to_thread(write, stand.kafka, [(topics.EVENTS, recipe)])
            half_old = (VersionSpan(version=2, start=0, end=3), VersionSpan(version=3, start=3, end=4))
            samples, marker = stand.group(2, version_spans=half_old, recipe=stand.recipe.name)
            old = samples[1].model_copy(update={"version_spans": (VersionSpan(version=1, start=0, end=4),)})
            marker = marker.model_copy(update={"recipe": stand.recipe.name})
            await stand.publish(stand.group(1), ([samples[0], old], marker))
            async with AsyncBatchStream(stand.recipe.name, kafka=stand.kafka) as stream:
                await (await stream.next(60)).commit(policy_version=4)
                cut = await stream.next(60)
            async with AsyncBatchStream(stand.recipe.name, kafka=stand.kafka) as stream:
                again = await stream.next(60)
            stored = {"cuts": 2, "groups": 2, "samples": 4, "recipes": 1}
            counts = [f"SELECT count() FROM {table} FINAL WHERE run_id = '{cut.run_id}'" for table in stored]
            await asyncio.to_thread(
                wait_until, lambda: [pool.scalar(c) for c in counts] == [*stored.values()], what="the pool has it all"
            )
            return [cut, again], stand.recipe.name

    with workers(a_sink(stack, tmp_path, pool.database)):
        (cut, again), name = asyncio.run(body())
    rebuilt = rebuild_batch(f"{name}/2", clickhouse=pool.url, database=pool.database)
    for batch in (cut, again, rebuilt):
        assert (batch.trajectory_uids, batch.loss_mask.tolist()) == (("g2-t0",), [0, 0, 0, 1])
        assert batch.advantage.tolist() == pytest.approx([0.7071058])  # the masked trajectory is in the baseline
        assert columns(batch) == columns(cut)


def claw(*arguments: str) -> str:
    """What `claw batches` prints."""
    done = CliRunner().invoke(app, ["batches", *arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def where(told: Told) -> tuple[str, ...]:
    return ("--clickhouse", told.pool.url, "--database", told.pool.database)


def test_batches_are_listed_with_sizes_staleness_and_state(told: Told) -> None:
    second, first = json.loads(claw("list", "--recipe", told.recipe, "--json", *where(told)))
    assert (first["sequence"], first["state"], first["trained_policy_version"]) == (1, "trained", 2)
    assert (first["groups"], first["excluded"], first["samples"], first["tokens"]) == (2, 0, 4, 20)
    assert first["trained_tokens"] == 2 * 4 - 1  # without the vetoed step
    assert (first["oldest_version"], first["newest_version"], first["policy_version"]) == (1, 2, None)
    assert (second["sequence"], second["state"], second["groups"], second["excluded"]) == (2, "cut", 2, 1)
    assert (second["policy_version"], second["oldest_version"], second["staleness"]) == (2, 4, -2)
    assert (first["digest"], second["digest"]) == tuple(batch.digest for batch in told.batches)
    line = claw("list", "--recipe", told.recipe, *where(told)).splitlines()[1]
    assert f"{told.recipe}/1  trained to version 2  2 groups  4 samples  7 of 20 tokens  versions 1..2" in line
    assert len(json.loads(claw("list", "--run", told.run, "--limit", "1", "--json", *where(told)))) == 1


def test_a_step_leads_to_its_batch_and_a_batch_to_its_steps(told: Told) -> None:
    for asked in (("--trajectory", "g2-t1", "--run", told.run), ("--step", told.steps["g2-t1"])):
        (found,) = json.loads(claw("list", *asked, "--json", *where(told)))
        assert (found["recipe"], found["sequence"], found["trained_policy_version"]) == (told.recipe, 1, 2)
        assert (found["step_id"], found["start"], found["end"], found["trained_tokens"]) == (
            told.steps["g2-t1"],
            2,
            4,
            1,
        )
    assert "1 of 2 tokens trained" in claw("list", "--step", told.steps["g4-t0"], *where(told))
    assert json.loads(claw("list", "--step", told.steps["g6-t0"], "--json", *where(told))) == []
    down = told.pool.rows(f"SELECT group_id, step_id FROM batch_steps(batch_id = '{told.batches[0].batch_id}')")
    assert {row["step_id"] for row in down} == {told.steps[f"g{n}-t{m}"] for n in (1, 2) for m in (0, 1)}
    with pytest.raises(UserError, match="has no step nowhere"):
        claw("list", "--step", "nowhere", *where(told))


def test_a_batch_is_told_with_what_was_decided(told: Told) -> None:
    story = json.loads(claw("show", f"{told.recipe}/1", "--steps", "--json", *where(told)))
    assert [(m["group_id"], m["taken"], len(m["sample_ids"])) for m in story["members"]] == [
        ("g1", True, 2),
        ("g2", True, 2),
    ]
    assert [m["reward"] for m in story["members"][0]["members"]] == [0.0, 1 / 3]
    bore = {d["fact_id"]: d["bore"] for d in story["decisions"]}
    assert {name: bore.get(one.fact_id) for name, one in told.decided.items()} == {
        "override": "cut",
        "veto": "cut",
        "tag": "cut",
        "late": "late",
        "undone": "late",
        "out": None,
    }
    assert len(story["steps"]) == 4
    assert "\ncommitted 2" in claw("show", f"{told.recipe}/1", *where(told))
    second = claw("show", told.batches[1].batch_id, *where(told))
    assert f"{told.recipe}/2 ({told.batches[1].batch_id}): cut" in second
    assert "group g3: left out (vetoed)" in second
    assert "veto on group of g3 by ada, applied by the cut" in second
    with pytest.raises(UserError, match="has no batch nobody/1"):
        claw("show", "nobody/1", *where(told))
    with pytest.raises(UserError, match="write RECIPE/SEQUENCE"):
        claw("show", "nobody/one", *where(told))


def test_two_batches_are_told_apart(told: Told) -> None:
    both = (f"{told.recipe}/1", f"{told.recipe}/2")
    document = json.loads(claw("diff", *both, "--json", *where(told)))
    assert [row["trajectory_uid"] for row in document["only_a"]] == ["g1-t0", "g1-t1", "g2-t0", "g2-t1"]
    assert [row["trajectory_uid"] for row in document["only_b"]] == ["g4-t0", "g4-t1", "g5-t0", "g5-t1"]
    assert (document["differ"], document["same"]) == ([], 0)
    assert json.loads(claw("diff", both[0], both[0], "--json", *where(told)))["same"] == 4
    assert f"- g1  g1-t0  only in {both[0]}" in claw("diff", *both, *where(told))


def test_a_rebuilt_batch_is_a_file(told: Told, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.npz", "b.npz")]
    for file in files:
        said = json.loads(claw("rebuild", f"{told.recipe}/1", "--out", str(file), "--json", *where(told)))
        assert (said["digest"], said["samples"], said["out"]) == (told.batches[0].digest, 4, str(file))
    assert files[0].read_bytes() == files[1].read_bytes()
    batch = read_batch(files[0])
    assert (batch.digest, columns(batch)) == (told.batches[0].digest, columns(told.batches[0]))
    assert "is the same: 4 samples, 20 tokens" in claw("rebuild", f"{told.recipe}/1", *where(told))


def test_what_the_pool_lacks_or_has_otherwise_is_named(told: Told) -> None:
    pool = a_copy(told, "batches_spoiled")
    sample = told.cuts[0].members[0].sample_ids[1]
    pool.rows(f"ALTER TABLE samples DELETE WHERE sample_id = '{sample}' SETTINGS mutations_sync = 1")
    pool.rows("ALTER TABLE samples UPDATE reward = 7 WHERE group_id = 'g4' SETTINGS mutations_sync = 1")
    with pytest.raises(UserError, match=f"the pool lacks samples {sample} of group g1"):
        rebuild_batch(f"{told.recipe}/1", clickhouse=pool.url, database=pool.database)
    with pytest.raises(UserError, match=r"reward differ \(digest"):
        rebuild_batch(f"{told.recipe}/2", clickhouse=pool.url, database=pool.database)
    before = "annotation_values = map(), is_whole = false"
    pool.rows(f"ALTER TABLE samples UPDATE reward = 0, {before} WHERE group_id = 'g4' SETTINGS mutations_sync = 1")
    old = told.cuts[1].members[0].sample_ids[0]
    with pytest.raises(
        UserError, match=f"values differ .* stored these before it kept all that they were: .*sample {old}"
    ):
        rebuild_batch(f"{told.recipe}/2", clickhouse=pool.url, database=pool.database)
    pool.rows("ALTER TABLE cut_members DELETE WHERE group_id = 'g5' SETTINGS mutations_sync = 1")
    with pytest.raises(UserError, match="has 1 of the 2 groups of batch"):
        rebuild_batch(f"{told.recipe}/2", clickhouse=pool.url, database=pool.database)
    pool.rows(f"INSERT INTO cut_members SELECT * FROM {told.pool.database}.cut_members WHERE group_id = 'g5'")
    pool.rows("TRUNCATE TABLE recipes")
    with pytest.raises(UserError, match=f"the pool lacks version 1 of recipe {told.recipe}"):
        rebuild_batch(f"{told.recipe}/2", clickhouse=pool.url, database=pool.database)
    with pytest.raises(UserError, match="claw migrate"):
        rebuild_batch(f"{told.recipe}/2", clickhouse=pool.url, database="nowhere")
    with pytest.raises(DependencyUnreachable, match="no ClickHouse answers"):
        rebuild_batch(f"{told.recipe}/2", clickhouse=f"http://127.0.0.1:{find_port()}")


def a_copy(told: Told, database: str) -> Pool:
    """A pool with the same rows."""
    asyncio.run(migrations.apply(told.pool.url, database))
    copy = Pool(told.pool.url, database)
    for table in ("cuts", "cut_members", "groups", "samples", "decisions", "recipes", "trained"):
        copy.rows(f"INSERT INTO {table} SELECT * FROM {told.pool.database}.{table}")
    return copy


async def trim(kafka: str, topic: str, before: int) -> None:
    """Delete the records of a one-partition topic that lie before an offset."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=before)})
    finally:
        await admin.close()


def test_a_trainer_takes_what_was_trimmed_from_the_pool(stack: Stack, told: Told) -> None:
    async def body() -> None:
        await trim(stack.kafka, topics.batch_topic(told.recipe), told.cuts[1].cursor)
        async with AsyncBatchStream(told.recipe, kafka=stack.kafka) as stream:
            with pytest.raises(UserError, match="say where the pool is with pool=URL"):
                await stream.next(30)
        pool = told.pool
        async with AsyncBatchStream(told.recipe, kafka=stack.kafka, pool=pool.url, database=pool.database) as stream:
            assert columns(await stream.next(30)) == columns(told.batches[1])
            stream.seek(0)
            again = [await stream.next(30) for _ in told.batches]
            assert [columns(batch) for batch in again] == [columns(batch) for batch in told.batches]

    asyncio.run(body())


def built(told: Told, *conditions: Any, **over: Any) -> TrainingBatch:
    return build_batch(told.recipe, conditions, clickhouse=told.pool.url, database=told.pool.database, **over)


def test_a_batch_is_built_of_the_groups_that_fit_a_time(told: Told) -> None:
    """At the first cut's time it is what the cut made; later the decisions that were late for it are in it."""
    at = told.pool.scalar(
        f"SELECT toUnixTimestamp64Milli(append_time) FROM cuts FINAL WHERE digest = '{told.cuts[0].digest}'"
    )
    then = built(told, as_of=at / 1000)
    assert [group.group_id for group in then.groups] == ["g1", "g2", "g4", "g5", "g6"]
    first = told.batches[0]
    assert then.rollout_log_probs[: first.tokens].tobytes() == first.rollout_log_probs.tobytes()
    assert then.trajectory_advantages is not None
    assert first.trajectory_advantages is not None
    assert then.trajectory_advantages[: len(first)].tobytes() == first.trajectory_advantages.tobytes()
    assert (then.sequence, then.trained_version, then.recipe_version) == (None, None, 1)

    now = built(told)
    assert now.trajectory_uids[:3] == ("g1-t0", "g2-t0", "g2-t1")  # g1-t1 was vetoed
    assert now.groups[0].rewards == first.groups[0].rewards
    assert now.groups[1].rewards["g2-t1"] == 1 / 3  # the override was undone, that of before is in force
    assert now.trained_version == 2
    assert (built(told).digest, built(told).batch_id) == (now.digest, now.batch_id)
    assert built(told, groups=2).prompt_uids == ("g5", "g5", "g6", "g6")


def test_a_built_batch_has_only_what_conditions_pick(told: Told) -> None:
    picked = built(told, {"field": "task_id", "op": "in", "value": ["task-5", "task-1"]})
    assert picked.trajectory_uids == ("g1-t0", "g5-t0", "g5-t1")
    half = built(
        told, {"field": "metadata.half", "op": "eq", "value": 1}, {"field": "task_id", "op": "ne", "value": "task-5"}
    )
    assert set(half.trajectory_uids) == {"g2-t1", "g4-t1", "g6-t1"}
    assert all(len(group.rewards) == 2 for group in half.groups)
    assert half.trajectory_advantages is not None
    assert half.trajectory_advantages[1] > 0, "who was not picked counts in the baseline"
    rewarded = built(told, {"field": "reward", "op": "lt", "value": 0})  # the late rewards of g1-t0 and g2-t0
    assert rewarded.trajectory_uids == ("g1-t0", "g2-t0")
    assert built(told, {"field": "reward_min", "op": "lt", "value": 0}).prompt_uids == ("g1", "g2", "g2")


def test_what_cannot_be_built_is_said(told: Told) -> None:
    with pytest.raises(UserError, match=r"no ready group of recipe .* fits"):
        built(told, {"field": "task_id", "op": "eq", "value": "nothing"})
    with pytest.raises(UserError, match="a condition of `where` is none: field"):
        built(told, {"field": "colour", "op": "eq", "value": 1})
    with pytest.raises(UserError, match="the pool does not tell chains"):
        built(told, {"field": "chains", "op": "eq", "value": 1})
    with pytest.raises(UserError, match=r"no recipe .* that was applied by then"):
        built(told, as_of=0.0)
    with pytest.raises(UserError, match="has no time zone"):
        built(told, as_of=datetime(2026, 1, 1))
    with pytest.raises(UserError, match="more than 20 tokens"):
        built(told, max_tokens=20)


def test_views_tell_staleness_consumption_pass_rates_and_mismatch(told: Told) -> None:
    mine = f"run_id = '{told.run}'"
    stale = told.pool.rows(f"SELECT * FROM batch_staleness WHERE {mine} ORDER BY sequence")
    assert [(row["policy_version"], row["oldest_version"], row["lag_max"], row["lag_mean"]) for row in stale] == [
        (None, 1, None, None),
        (2, 4, -2, -2.5),
    ]
    assert [row["tokens_by_version"] for row in stale] == [{1: 2, 2: 2}, {4: 2, 5: 2}]
    assert [(row["trained_tokens"], row["known_tokens"]) for row in stale] == [(8, 4), (8, 4)]

    for settings in ("", " SETTINGS join_use_nulls = 1"):
        groups = told.pool.rows(
            f"SELECT group_id, state, reason, sequence FROM consumption WHERE {mine} ORDER BY group_id{settings}"
        )
        assert [tuple(row.values()) for row in groups] == [
            ("g1", "trained", None, 1),
            ("g2", "trained", None, 1),
            ("g3", "left_out", "vetoed", 2),
            ("g4", "cut", None, 2),
            ("g5", "cut", None, 2),
            ("g6", "waiting", None, None),
        ]

    rates = told.pool.rows(f"SELECT * FROM pass_rate(threshold = 1) WHERE {mine} ORDER BY task_id")
    assert [(r["task_id"], r["policy_version"], r["trajectories"], r["passed"], r["rate"]) for r in rates] == [
        (f"task-{n}", n, 2, int(n > 2), 0.5 * (n > 2)) for n in range(1, 7)
    ]
    assert [row["reward_mean"] for row in rates] == [-4.5, -4.5, 0.5, 0.5, 0.5, 0.5]


def test_the_trainers_log_probs_stand_beside_the_engines(told: Told) -> None:
    mine = f"run_id = '{told.run}'"
    found = told.pool.rows(f"SELECT * FROM log_prob_mismatch WHERE {mine}")
    assert [
        (row["engine"], row["model"], row["policy_version"], row["token_class"], row["tokens"]) for row in found
    ] == [("engine-1", "policy", version, kind, 2) for version in (1, 2) for kind in ("masked", "trained")]
    for row, difference in zip(found, (-0.25, 0.5) * 2, strict=True):  # -0.5 against -0.25; 0 against -0.5
        assert (row["mean"], row["kl_k1"]) == (difference, -difference)
        assert (row["mean_abs"], row["p99_abs"], row["max_abs"]) == (abs(difference),) * 3
        assert row["kl_k3"] == pytest.approx(math.exp(difference) - 1 - difference)
    clipped = told.pool.rows(
        f"SELECT values FROM token_stats FINAL WHERE {mine} AND name = 'clipped' AND group_id = 'g2'"
    )
    assert [list(row["values"]) for row in clipped] == [[0, 0, 1, 0, 1]] * 2
