"""The supervisor's promises, on stand-in processes: order, restart, one per data directory, no orphans, same again."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from claw_r1.local.ports import find_port, is_free
from claw_r1.local.stack import (
    EXIT_ALREADY_UP,
    RunningStack,
    StackRequest,
    launch,
    running_stack,
    stop,
    wait_ready,
)
from claw_r1.local.state import read_state
from claw_r1.local.supervisor import CRASH_LOOP, Process, StartFailed
from tests.conftest import wait_until

STAND_IN = str(Path(__file__).with_name("stand_in.py"))


def a_stand_in(name: str, *, port: int | None = None, env: dict[str, str] | None = None) -> Process:
    port = port or find_port()
    return Process(
        name=name,
        argv=[sys.executable, STAND_IN, "serve", str(port)],
        env=env or {},
        ready=f"http://127.0.0.1:{port}/readyz",
        port=port,
    )


def a_failing(name: str, how: str, *arguments: str) -> Process:
    ready = f"http://127.0.0.1:{find_port()}/"
    return Process(name=name, argv=[sys.executable, STAND_IN, how, *arguments], ready=ready)


def a_request(data: Path, extra: Sequence[Process]) -> StackRequest:
    return StackRequest(data=data, processes=(), extra=extra)


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_processes_run_with_their_environment_and_stop_with_the_stack(tmp_path: Path) -> None:
    process = a_stand_in("one", env={"STAND_IN": "hello"})
    with running_stack(tmp_path, processes=(), extra=[process], env={"CLAW_LOG_LEVEL": "INFO"}) as stack:
        pid = stack.pids["one"]
        with urllib.request.urlopen(process.ready, timeout=5) as answer:
            assert answer.read() == b"hello"
        assert "stand-in serves" in stack.log("one")
        assert stack.state.phase == "ready"
    assert not alive(pid)
    assert read_state(tmp_path).phase == "down"
    assert read_state(tmp_path).pids == {}


def test_a_killed_process_is_started_again_and_counted(tmp_path: Path) -> None:
    with running_stack(tmp_path, processes=(), extra=[a_stand_in("one"), a_stand_in("two")]) as stack:
        untouched = stack.pids["two"]
        first = stack.kill("one")
        stack.wait_restarted("one", first)
        assert stack.state.processes["one"].restarts == 1
        assert stack.state.processes["one"].last_exit == -signal.SIGKILL
        assert stack.pids["two"] == untouched


def test_a_process_that_ends_again_and_again_fails_the_start_and_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(StartFailed, match=r"broken ended \d times(?s:.*)stand-in ends with message"),
        running_stack(tmp_path, processes=(), extra=[a_stand_in("one"), a_failing("broken", "exit", "message")]),
    ):
        raise AssertionError("a stack with a broken process came up")
    assert read_state(tmp_path).phase == "failed"
    assert read_state(tmp_path).pids == {}


def test_a_crash_loop_after_the_start_is_reported_and_heals(tmp_path: Path) -> None:
    switch, port = tmp_path / "switch", find_port()
    switch.touch()
    argv = [sys.executable, STAND_IN, "exit-until", str(switch), str(port)]
    process = Process(name="moody", argv=argv, ready=f"http://127.0.0.1:{port}/", port=port)
    with running_stack(tmp_path / "data", processes=(), extra=[process]) as stack:
        switch.unlink()
        first = stack.kill("moody")
        wait_until(lambda: stack.state.processes["moody"].crash_looping, what="the crash loop is reported")
        assert stack.state.processes["moody"].restarts >= CRASH_LOOP
        switch.touch()
        stack.wait_restarted("moody", first)


def test_a_second_stack_on_the_same_data_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with running_stack(tmp_path, processes=(), extra=[a_stand_in("one")]) as stack:
        pids = stack.pids
        second = launch(a_request(tmp_path, [a_stand_in("one")]))
        assert second.wait(60) == EXIT_ALREADY_UP
        assert stack.pids == pids
        assert stack.state.phase == "ready"
        assert "already up" in (tmp_path / "logs" / "supervisor.log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="this machine's kernel does not end children with their parent")
def test_a_killed_supervisor_leaves_no_orphans_and_the_same_data_goes_on(tmp_path: Path) -> None:
    process = a_stand_in("one")
    supervisor = launch(a_request(tmp_path, [process]))
    state = wait_ready(tmp_path, supervisor)
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: not alive(state.pids["one"]), what="the child is gone with its supervisor")
    assert not read_state(tmp_path).alive
    with running_stack(tmp_path, processes=(), extra=[process]) as stack:
        assert stack.pids["one"] != state.pids["one"]


def test_what_a_killed_supervisor_left_is_ended_by_the_next_start(tmp_path: Path) -> None:
    process = a_stand_in("one")
    with running_stack(tmp_path, processes=(), extra=[process]) as stack:
        state = stack.state
    left = subprocess.Popen([sys.executable, STAND_IN, "serve", str(process.port)], start_new_session=True)
    born = psutil.Process(left.pid).create_time()
    one = state.processes["one"]
    assert one.identity is not None
    identity = one.identity.model_copy(update={"pid": left.pid, "born": born})
    state.processes["one"] = one.model_copy(update={"identity": identity})
    (tmp_path / "stack.json").write_text(state.model_dump_json())
    with running_stack(tmp_path, processes=(), extra=[process]) as stack:
        assert left.wait(60) == -signal.SIGKILL
        assert stack.pids["one"] != left.pid


def test_a_process_id_that_was_given_to_somebody_else_is_left_alone(tmp_path: Path) -> None:
    with running_stack(tmp_path, processes=(), extra=[a_stand_in("one")]) as stack:
        state = stack.state
    one = state.processes["one"]
    assert one.identity is not None
    identity = one.identity.model_copy(update={"pid": os.getpid(), "born": one.identity.born - 1000})
    state.processes["one"] = one.model_copy(update={"identity": identity})
    (tmp_path / "stack.json").write_text(state.model_dump_json())
    with running_stack(tmp_path, processes=(), extra=[a_stand_in("one")]):
        assert alive(os.getpid())


def test_stop_ends_a_stack_that_runs_by_itself(tmp_path: Path) -> None:
    supervisor = launch(a_request(tmp_path, [a_stand_in("one")]))
    state = wait_ready(tmp_path, supervisor)
    assert stop(tmp_path)
    assert supervisor.wait(30) == 0
    assert not alive(state.pids["one"])
    assert not stop(tmp_path)


def test_a_stack_in_a_process_that_is_killed_dies_with_it(tmp_path: Path) -> None:
    port = find_port()
    program = (
        "import sys; from pathlib import Path\n"
        "from claw_r1.local.stack import running_stack\n"
        "from claw_r1.local.supervisor import Process\n"
        f"one = Process(name='one', argv=[sys.executable, {STAND_IN!r}, 'serve', '{port}'],"
        f" ready='http://127.0.0.1:{port}/')\n"
        f"with running_stack(Path({str(tmp_path)!r}), processes=(), extra=[one]) as stack:\n"
        "    print('up', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        pid = RunningStack(tmp_path).pids["one"]
        parent.kill()
    if sys.platform == "linux":
        wait_until(lambda: not alive(pid), what="the stack died with its program")
    assert stop(tmp_path) == (sys.platform != "linux")


def test_the_ports_of_the_last_start_are_taken_again(tmp_path: Path) -> None:
    with running_stack(tmp_path, processes=("clickhouse",)) as stack:
        url = stack.clickhouse
    with running_stack(tmp_path, processes=("clickhouse",)) as stack:
        assert stack.clickhouse == url
    port = int(url.rpartition(":")[2])
    taken = subprocess.Popen([sys.executable, STAND_IN, "serve", str(port)])
    try:
        wait_until(lambda: not is_free(port), what="the port is taken")
        with running_stack(tmp_path, processes=("clickhouse",)) as stack:
            assert stack.clickhouse != url
    finally:
        taken.kill()
        taken.wait()
