"""The sink on the real broker and engine: every fact is in the pool, once, whoever dies."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from claw_r1 import bus, topics
from claw_r1.cli.dictionary import TARGET, write_dictionary
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import Record, encode
from claw_r1.demo import pool as demo_pool
from claw_r1.local.ports import find_port
from sinks import migrations
from sinks.rows import NOT_STORED, STORED, TABLES
from tests.conftest import Stack, wait_until
from tests.factories import a_child, a_step
from tests.forms import as_read, by_turns
from tests.kill.sinks.play import a_burst, check_stored
from tests.pool import Located, Pool, every_event, of_run, write
from tests.workers import Worker, workers

pytestmark = pytest.mark.stack


def a_sink(stack: Stack, tmp_path: Path, database: str, **over: Any) -> Worker:
    settings: dict[str, Any] = {"clickhouse": stack.clickhouse, "kafka": stack.kafka, "database": database}
    settings |= {"sinks_port": find_port(), "sinks_group": database}
    return Worker("sinks", tmp_path / "sink.log", **(settings | over))


def a_pool(stack: Stack, database: str) -> Pool:
    asyncio.run(bus.apply_topics(stack.kafka, topics.all_topics()))
    asyncio.run(migrations.apply(stack.clickhouse, database))
    return Pool(stack.clickhouse, database)


@pytest.fixture(scope="module")
def full(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool into which a sink stored one event of every type of the run `full`, outputs in a transaction."""
    pool = a_pool(stack, "sink_full")
    asyncio.run(bus.ensure_topic(stack.kafka, topics.batch_topic_spec("full")))
    events = every_event("full", "full")
    write(stack.kafka, [event for event in events if event[0] == topics.EVENTS])
    write(stack.kafka, [event for event in events if event[0] != topics.EVENTS], transaction="sink-full")
    with workers(a_sink(stack, tmp_path_factory.mktemp("sink"), pool.database)):
        for table in TABLES:
            pool.wait_for(f"SELECT count() > 0 FROM {table} WHERE {of_run(table, 'full')}", 1)
        pool.wait_for("SELECT uniqExact(topic) FROM outcomes WHERE run_id = 'full'", 2)
        yield pool


def test_every_event_is_stored_as_often_as_it_was_written(full: Pool) -> None:
    written: dict[str, int] = {}
    for _topic, event in every_event("full", "full"):
        for table in STORED.get(type(event), ()):
            written[table.name] = written.get(table.name, 0) + 1
    written["cut_members"] = 2
    written["trajectory_lookup"] = 1  # the open, the root step and the index say the same
    stored = {
        table: full.scalar(f"SELECT count() FROM {table} FINAL WHERE {of_run(table, 'full')}") for table in TABLES
    }
    assert stored == written
    assert len(NOT_STORED) == 7
    full.check_once()


def test_columns_are_those_of_the_tables(full: Pool) -> None:
    found: dict[str, set[str]] = {}
    for row in full.rows(
        f"SELECT table, name, comment FROM system.columns WHERE database = '{full.database}' AND name != 'version' "
        f"AND table IN ({', '.join(repr(name) for name in TABLES)})"
    ):
        assert row["comment"], f"{row['table']}.{row['name']} has no comment"
        found.setdefault(row["table"], set()).add(row["name"])
    assert found == {name: set(table.names) for name, table in TABLES.items()}
    bare = full.rows(f"SELECT name FROM system.tables WHERE database = '{full.database}' AND comment = ''")
    assert bare == []


def test_the_dictionary_says_what_the_pool_has(full: Pool) -> None:
    written = asyncio.run(write_dictionary(full.url, full.database))
    assert "\n## steps\n" in written
    assert written == TARGET.read_text("utf-8"), f"{TARGET} is out of date: run `make reference`"


def test_a_step_comes_back_as_it_was_sent(full: Pool) -> None:
    (step,) = full.rows("SELECT * FROM steps FINAL WHERE run_id = 'full' AND parent_step_id IS NULL")
    assert step["version_spans"] == [
        {"version": None, "start": 0, "end": 1},
        {"version": 7, "start": 1, "end": 2},
    ]
    assert step["multi_modal_data"] == [{"sha256": "ab", "bytes": 3, "kind": "image"}]
    assert (step["prompt_len"], step["response_len"], step["has_log_probs"]) == (3, 2, True)
    assert (step["stop_reason"], step["seed"], step["temperature"]) == ("7", None, 1.0)
    assert json.loads(step["usage"]) == {"completion_tokens": 2}
    assert (step["topic"], step["at"].year) == (topics.EVENTS, 1970)
    (tokens,) = full.rows(f"SELECT * FROM step_tokens FINAL WHERE run_id = 'full' AND step_id = '{step['step_id']}'")
    assert (tokens["new_prompt_ids"], tokens["response_ids"]) == ([1, 2, 3], [4, 5])
    assert tokens["rollout_log_probs"] == [-0.5, -0.5]


def test_a_decision_is_found_in_its_cut_or_as_late(full: Pool) -> None:
    members = full.rows("SELECT decisions, left_out, taken FROM cut_members FINAL WHERE run_id = 'full' ORDER BY taken")
    assert members == [
        {"decisions": [], "left_out": [], "taken": False},
        {"decisions": ["decision"], "left_out": ["left"], "taken": True},
    ]
    late = full.rows(
        "SELECT fact_id, reason, batch, input_partition, pos FROM outcomes FINAL WHERE run_id = 'full' AND batch IS NOT NULL"
    )
    assert late == [{"fact_id": "decision", "reason": "in_batch", "batch": 1, "input_partition": None, "pos": None}]


def test_views_restore_contexts_rewards_funnel_and_lineage(full: Pool) -> None:
    first, second = full.rows("SELECT * FROM contexts(trajectory_uid = 'p1-t0') WHERE run_id = 'full'")
    assert (first["prompt_ids"], first["response_ids"]) == ([1, 2, 3], [4, 5])
    assert (second["prompt_ids"], second["response_ids"]) == ([1, 2, 3, 4, 5, 6], [7, 8])
    assert [json.loads(message)["content"] for message in second["messages"]] == ["hello", "world", "go on"]
    steps = full.rows("SELECT * FROM trajectory_steps(trajectory_uid = 'p1-t0') WHERE run_id = 'full'")
    assert [(row["log_index"], row["step_id"]) for row in steps] == [(0, first["step_id"]), (1, second["step_id"])]
    rewards = full.rows("SELECT source, value FROM effective_rewards WHERE run_id = 'full' ORDER BY source")
    assert rewards == [{"source": "format", "value": 0.25}, {"source": "reward", "value": 1.0}]
    funnel = full.rows("SELECT about, outcomes FROM outcome_funnel WHERE run_id = 'full' ORDER BY about")
    assert funnel == [
        {"about": "fact", "outcomes": 1},
        {"about": "group", "outcomes": 1},
        {"about": "trajectory", "outcomes": 2},
    ]
    (line,) = full.rows("SELECT * FROM lineage WHERE run_id = 'full'")
    assert (line["batch_id"], line["group_id"], line["step_id"]) == ("full-batch-1", "p1", first["step_id"])
    assert (line["start"], line["end"], line["trained_policy_version"]) == (3, 5, 2)
    assert full.rows("SELECT * FROM lost_calls WHERE run_id = 'full'") == []


def test_the_demo_counts_a_group_that_is_not_here_yet(full: Pool) -> None:
    async def ask(recipe: str) -> demo_pool.Counts:
        async with await ClickHouse.connect(full.url, full.database) as clickhouse:
            return await demo_pool.count(clickhouse, run="full", session="p", recipe=recipe)

    here = asyncio.run(ask("full"))
    assert (here.stored, here.ready, here.owed, here.fates, here.fated) == (2, 1, 0, 2, 2)
    columns = "* EXCEPT (recipe, outcome_id), concat(outcome_id, '-x') AS outcome_id, 'lone' AS recipe"
    names = "* EXCEPT (recipe, outcome_id), outcome_id, recipe"
    full.rows(f"INSERT INTO outcomes ({names}) SELECT {columns} FROM outcomes FINAL WHERE run_id = 'full'")
    try:
        lone = asyncio.run(ask("lone"))
    finally:
        full.rows("DELETE FROM outcomes WHERE recipe = 'lone'")
    assert (lone.ready, lone.owed, lone.fated) == (0, 1, 2)


def test_how_steps_became_samples_is_stored(full: Pool) -> None:
    (sample,) = full.rows("SELECT * FROM samples FINAL WHERE run_id = 'full' AND notEmpty(spans)")
    assert sample["span_links"] == [{"kind": "drift", "step_id": None, "differs_at": 2}]
    assert (sample["links"], sample["holes"]) == ({"drift": 1}, 1)
    assert (sample["annotations"], sample["annotations_missing"]) == (["values"], {"ref_log_probs": 2})
    (merging,) = full.rows("SELECT * FROM merging WHERE run_id = 'full'")
    assert (merging["links"], merging["mask_reasons"]) == ({"exact": 2, "root": 2}, {"guided": 4})
    assert (merging["holes"], merging["step_tokens"]) == (1, 30)
    assert merging["compression"] == 30 / merging["sample_tokens"]


def test_what_older_and_newer_versions_wrote_between_is_stored_as_it_is_read(stack: Stack, full: Pool) -> None:
    """Records of three versions by turns become the rows of the same facts as today's version writes them."""
    turns, again = by_turns(), by_turns()
    for run, form in (("mixed", turns), ("plain", lambda record: as_read(again(record)))):
        asyncio.run(bus.ensure_topic(stack.kafka, topics.batch_topic_spec(run)))
        write(stack.kafka, every_event(run, run), form=form)
    wanted = _counts_of(full, "full")
    wait_until(lambda: _counts_of(full, "mixed") == _counts_of(full, "plain") == wanted, what="all is stored")
    for table in TABLES:
        mixed, plain = _what_rows_say(full, table, "mixed", "plain")
        assert mixed == plain, table
    full.check_once()


def _counts_of(pool: Pool, run: str) -> dict[str, int]:
    each = [f"SELECT '{t}' AS name, count() AS many FROM {t} FINAL WHERE {of_run(t, run)}" for t in TABLES]
    return {row["name"]: row["many"] for row in pool.rows(" UNION ALL ".join(each))}


def _what_rows_say(pool: Pool, table: str, *runs: str) -> list[list[str]]:
    """Each run's rows, but for its name and where their records lie."""
    where = " OR ".join(f"({of_run(table, run)})" for run in runs)
    rows = pool.rows(f"SELECT * FROM {table} FINAL WHERE {where}")
    places = {"topic", "partition", "offset", "append_time"}
    texts = [str({name: value for name, value in row.items() if name not in places}) for row in rows]
    return [sorted(text.replace(run, "RUN") for text in texts if run in text) for run in runs]


@pytest.mark.slow
def test_the_schema_grows_while_a_sink_writes(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load every statement runs again, as after a migration that broke off, and then a later version's migrations."""
    pool = a_pool(stack, "sink_grows")
    todays_files = migrations.load_migrations()
    later = [*todays_files, *_a_later_versions(todays_files[-1].id)]
    sink = a_sink(stack, tmp_path, pool.database, sinks_flush_rows=200)
    written = 0
    loaded = threading.Event()

    def load() -> None:
        nonlocal written
        while not loaded.wait(0.2):
            write(stack.kafka, a_burst("grows", written, 5))
            written += 5

    async def run_all_again() -> None:
        async with await ClickHouse.connect(stack.clickhouse) as clickhouse:
            for migration in todays_files:
                for statement in migration.statements(pool.database):
                    await clickhouse.command(statement)

    with workers(sink):
        writer = threading.Thread(target=load)
        writer.start()
        try:
            pool.wait_for("SELECT count() > 0 FROM steps", 1)
            asyncio.run(run_all_again())
            begun = pool.scalar("SELECT count() FROM steps")
            monkeypatch.setattr(migrations, "load_migrations", lambda: later)
            assert len(asyncio.run(migrations.apply(stack.clickhouse, pool.database))) == 2
            assert asyncio.run(migrations.apply(stack.clickhouse, pool.database)) == []
            wait_until(lambda: pool.scalar("SELECT count() FROM steps") > begun, what="the sink stores more")
        finally:
            loaded.set()
            writer.join()
        check_stored(pool, "grows", written)
        assert sink.end() == 0
        sink.start()  # one that starts only now knows nothing of the later version's columns either
        write(stack.kafka, a_burst("grows", written, 5))
        check_stored(pool, "grows", written + 5)
    of_the_run = "SELECT count() FROM steps_of_the_future WHERE weight = 1.5 AND run_id = 'grows'"
    assert pool.scalar(of_the_run) == 24 * (written + 5)
    pool.check_once()


def _a_later_versions(newest: int) -> list[migrations.Migration]:
    """Each kind of statement that a migration of this project has had."""
    grown = """
    ALTER TABLE ${database}.steps ADD COLUMN IF NOT EXISTS weight Float64 DEFAULT 1.5 COMMENT 'Of the future';
    ALTER TABLE ${database}.steps MODIFY COLUMN depth Nullable(UInt32) COMMENT 'Told anew';
    ALTER TABLE ${database}.rewards ADD INDEX IF NOT EXISTS future source TYPE bloom_filter GRANULARITY 1;
    ALTER TABLE ${database}.rewards MATERIALIZE INDEX future;
    """
    made = """
    CREATE TABLE IF NOT EXISTS ${database}.future (id String) ENGINE = ReplacingMergeTree ORDER BY id;
    CREATE OR REPLACE VIEW ${database}.steps_of_the_future AS SELECT run_id, weight FROM ${database}.steps FINAL;
    """
    return [
        migrations.Migration(newest + number, f"{newest + number:04d}_future.sql", text)
        for number, text in ((1, grown), (2, made))
    ]


def test_a_topic_of_a_new_recipe_is_found(stack: Stack, full: Pool) -> None:
    asyncio.run(bus.ensure_topic(stack.kafka, topics.batch_topic_spec("later")))
    events = [event for event in every_event("later", "later") if event[0] == topics.batch_topic("later")]
    write(stack.kafka, events, transaction="sink-later")
    full.wait_for("SELECT count() FROM groups FINAL WHERE run_id = 'later'", 1)
    assert full.scalar("SELECT recipe FROM groups FINAL WHERE run_id = 'later'") == "later"


def test_a_record_that_does_not_decode_becomes_a_dead_letter(stack: Stack, full: Pool) -> None:
    good = a_step(run_id="dead", prompt_uid="dead")
    record = encode(good, source="test")
    bad = Record(record.key, b"\xc1not msgpack", record.headers)
    large = a_step(run_id="dead", prompt_uid="dead", step_id="huge", fact_id="huge", policy_version=2**63)

    async def send() -> int:
        producer = await bus.start_producer(stack.kafka, client_id="test")
        try:
            placed = await bus.publish(producer, topics.EVENTS, bad, deadline=30)
            await bus.publish(producer, topics.EVENTS, encode(large, source="test"), deadline=30)
            await bus.publish(producer, topics.EVENTS, record, deadline=30)
            offset: int = placed.offset
            return offset
        finally:
            await producer.stop()

    offset = asyncio.run(send())
    full.wait_for("SELECT count() FROM steps FINAL WHERE run_id = 'dead'", 1)
    wanted = {(b"undecodable", bad.value), (b"unstorable", encode(large, source="test").value)}

    def letters() -> list[dict[str, bytes]]:
        read = asyncio.run(bus.read_topic(stack.kafka, topics.dlq_topic(topics.EVENTS), client_id="test"))
        found = [dict(letter.headers) | {"value": letter.value} for letter in read if letter.key == record.key]
        return [letter for letter in found if letter["claw-dlq-stage"] == b"sinks"]

    wait_until(lambda: {(m["claw-dlq-reason"], m["value"]) for m in letters()} == wanted, what="both dead letters")
    assert str(offset).encode() in {m["claw-dlq-offset"] for m in letters()}


def test_a_step_of_megabytes_is_stored(stack: Stack, full: Pool) -> None:
    write(stack.kafka, [(topics.EVENTS, a_step(range(1_500_000), (4, 5), run_id="large", prompt_uid="large"))])
    full.wait_for("SELECT sum(length(new_prompt_ids)) FROM step_tokens FINAL WHERE run_id = 'large'", 1_500_000)
    (stored,) = full.rows(
        "SELECT new_prompt_ids[-1] AS last, response_ids FROM step_tokens FINAL WHERE run_id = 'large'"
    )
    assert (stored["last"], list(stored["response_ids"])) == (1_499_999, [4, 5])


def test_a_sink_refuses_a_database_without_the_schema(stack: Stack, tmp_path: Path) -> None:
    sink = a_sink(stack, tmp_path, "sink_empty")
    with workers(sink):
        wait_until(lambda: not sink.alive, what="the sink gives up")
    assert "claw migrate" in sink.logged()


def test_health_and_metrics(stack: Stack, full: Pool, tmp_path: Path) -> None:
    port = find_port()
    sink = a_sink(stack, tmp_path, full.database, sinks_port=port)
    with workers(sink):
        wait_until(lambda: _status(port, "/readyz") == 200, what="a second sink of the group is ready")
        assert _status(port, "/healthz") == 200
        assert "claw_sinks_lag_records" in _get(port, "/metrics")
        assert sink.end() == 0


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        text: str = answer.read().decode()
        return text


def _status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def a_chain(run: str, prompt: str, length: int) -> list[Located]:
    """Steps of one trajectory, each delta-encoded against the one before."""
    step = a_step((1,), (2,), run_id=run, prompt_uid=prompt, trajectory_uid=f"{prompt}-t0")
    context, steps = [1, 2], [step]
    for index in range(1, length):
        child = a_child(step, context[: -len(step.response_ids) // 4 or None], (3,), (index,))
        context += [3, index]
        step = child
        steps.append(step)
    return [(topics.EVENTS, step) for step in steps]
