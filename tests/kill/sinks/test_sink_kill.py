"""The sink, or the engine under it, dies at every point of a flush: what was acknowledged is in the pool, each once."""

import signal
from pathlib import Path

import pytest

from claw_r1.local.stack import RunningStack
from claw_r1.local.state import Identity
from tests.conftest import wait_until
from tests.kill.sinks.play import GROUPS, a_burst, a_pool, a_sink, check_stored
from tests.pool import write
from tests.workers import Worker, workers

pytestmark = [pytest.mark.stack, pytest.mark.kill]
LONG = pytest.mark.slow


@pytest.mark.parametrize(
    "point", ["promised", "inserted", pytest.param("inserted all", marks=LONG), pytest.param("stored", marks=LONG)]
)
def test_a_sink_killed_in_a_flush_is_repeated_exactly(
    backends: RunningStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    run = f"kill_{point.replace(' ', '_')}"
    pool = a_pool(backends, run)
    write(backends.kafka, a_burst(run))
    for name, value in (("POINT", point), ("TIMES", "2"), ("SIGNAL", "KILL")):
        monkeypatch.setenv(f"TEST_SINK_{name}", value)
    dying = a_sink(backends, tmp_path / "dying.log", run, "tests.kill.sinks.stoppable")
    with workers(dying):
        wait_until(lambda: not dying.alive, what=f"the sink kills itself at {point}\n{dying.logged()}")
    heir = a_sink(backends, tmp_path / "heir.log", run)
    with workers(heir):
        check_stored(pool, run, GROUPS)
        assert heir.end() == 0


def test_a_sink_that_wakes_after_its_successor_doubles_nothing(
    backends: RunningStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between promise and insert for longer than its session, then woken beside the new owner."""
    run = "zombie"
    pool = a_pool(backends, run)
    write(backends.kafka, a_burst(run))
    for name, value in (("POINT", "promised"), ("TIMES", "2"), ("SIGNAL", "STOP")):
        monkeypatch.setenv(f"TEST_SINK_{name}", value)
    zombie = a_sink(backends, tmp_path / "zombie.log", run, "tests.kill.sinks.stoppable")
    heir = a_sink(backends, tmp_path / "heir.log", run)
    with workers(zombie):
        wait_until(lambda: _stopped(zombie), what="the sink stops itself")
        with workers(heir):
            check_stored(pool, run, GROUPS)
            zombie.signal(signal.SIGCONT)
            write(backends.kafka, a_burst(run, GROUPS))
            check_stored(pool, run, 2 * GROUPS)
            assert heir.end() == 0
        assert zombie.alive
        assert zombie.end() == 0
    check_stored(pool, run, 2 * GROUPS)


def _stopped(worker: Worker) -> bool:
    process = Identity.of(worker.pid).find()
    return process is not None and process.status() == "stopped"


def test_the_engine_killed_under_the_sink_loses_nothing(backends: RunningStack, tmp_path: Path) -> None:
    run = "engine"
    pool = a_pool(backends, run)
    sink = a_sink(backends, tmp_path / "sink.log", run, sinks_flush_rows=100)
    with workers(sink):
        write(backends.kafka, a_burst(run))
        pool.wait_for(f"SELECT count() > 0 FROM steps WHERE run_id = '{run}'", 1)
        pid = backends.kill("clickhouse")
        write(backends.kafka, a_burst(run, GROUPS))
        backends.wait_restarted("clickhouse", pid)
        write(backends.kafka, a_burst(run, 2 * GROUPS))
        check_stored(pool, run, 3 * GROUPS)
        assert sink.alive
        assert sink.starts == 1
        assert sink.end() == 0


@LONG
def test_the_broker_killed_under_the_sink_loses_nothing(backends: RunningStack, tmp_path: Path) -> None:
    run = "broker"
    pool = a_pool(backends, run)
    sink = a_sink(backends, tmp_path / "sink.log", run, sinks_flush_rows=100)
    with workers(sink):
        write(backends.kafka, a_burst(run))
        pool.wait_for(f"SELECT count() > 0 FROM steps WHERE run_id = '{run}'", 1)
        pid = backends.kill("kafka")
        backends.wait_restarted("kafka", pid)
        write(backends.kafka, a_burst(run, GROUPS))
        if not sink.alive:  # away for longer than it waits: its supervisor starts it again
            sink.start()
        check_stored(pool, run, 2 * GROUPS)
        assert sink.end() == 0
