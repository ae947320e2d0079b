"""The state file and the lock of a data directory, ports, and the bound of a log."""

import os
import socket
import sys
from pathlib import Path

import pytest

from claw_r1.errors import UserError, WrongUse
from claw_r1.local.ports import find_port, is_free
from claw_r1.local.stack import StackRequest, check_request, launch, urls_of
from claw_r1.local.state import Identity, ProcessState, StackState, exclusive, read_state, write_state
from claw_r1.local.supervisor import Process, Supervisor, bound_log, tail


def test_what_was_written_is_read(tmp_path: Path) -> None:
    one = ProcessState(identity=Identity.of(os.getpid()), port=1234, restarts=2)
    state = StackState(phase="ready", supervisor=Identity.of(os.getpid()), ports={"a": 1}, processes={"one": one})
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state
    assert read_state(tmp_path).alive
    assert read_state(tmp_path).pids == {"one": os.getpid()}


def test_a_password_of_the_pool_is_in_its_url_and_the_state_is_for_its_owner(tmp_path: Path) -> None:
    request = StackRequest(data=tmp_path, env={"CLAW_CLICKHOUSE_PASSWORD": "a:b@c"})
    urls = urls_of(request, {"clickhouse": 8123})
    assert urls["clickhouse"] == "http://default:a%3Ab%40c@127.0.0.1:8123"
    write_state(tmp_path, StackState(urls=urls))
    assert (tmp_path / "stack.json").stat().st_mode & 0o077 == 0


def test_no_file_is_a_stack_that_is_down(tmp_path: Path) -> None:
    assert read_state(tmp_path / "nothing") == StackState()
    assert not StackState().alive


def test_a_state_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    with pytest.raises(UserError, match=r"stack\.json is damaged"):
        read_state(tmp_path)
    with pytest.raises(UserError, match="--data"):
        read_state(tmp_path / "stack.json")


@pytest.mark.parametrize(
    ("request_", "environ", "words"),
    [
        (StackRequest(kafka="foo:bar"), {}, "CLAW_KAFKA='foo:bar': write host:port"),
        (StackRequest(clickhouse="127.0.0.1:8123"), {}, "write http://host:port"),
        (StackRequest(upstreams=["http://a:1", "b"]), {}, "CLAW_GATEWAY_UPSTREAM"),
        (StackRequest(), {"CLAW_KAFAK": "x"}, "did you mean CLAW_KAFKA"),
        (StackRequest(), {"CLAW_SINKS_PORT": "x"}, "CLAW_SINKS_PORT"),
    ],
)
def test_a_stack_that_its_processes_would_refuse_is_refused_first(
    monkeypatch: pytest.MonkeyPatch, request_: StackRequest, environ: dict[str, str], words: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WrongUse, match=words):
        check_request(request_)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"(?s)cannot write to .*file: .*--data"):
        launch(StackRequest(data=tmp_path / "file"))


def test_a_full_disk_keeps_no_process_from_being_stopped(tmp_path: Path) -> None:
    said: list[str] = []
    supervisor = Supervisor(tmp_path, StackState(), said.append)
    (tmp_path / "stack.json").mkdir()
    sleeper = Process(name="sleeper", argv=[sys.executable, "-c", "import time; time.sleep(600)"])
    supervisor.run([[sleeper]], on_ready=supervisor.request_stop)
    assert any("cannot be written" in line for line in said)


def test_a_process_is_known_by_its_birth_too() -> None:
    me = Identity.of(os.getpid())
    assert me.find() is not None
    assert me.model_copy(update={"born": me.born - 100}).find() is None
    assert me.model_copy(update={"pid": 2**22 + 1}).find() is None


def test_the_lock_is_held_by_one(tmp_path: Path) -> None:
    with exclusive(tmp_path) as first, exclusive(tmp_path) as second:
        assert (first, second) == (True, False)
    with exclusive(tmp_path) as third:
        assert third


def test_the_preferred_port_is_taken_if_it_is_free() -> None:
    port = find_port()
    assert find_port(port) == port
    assert find_port(port, taken=[port]) != port
    with socket.create_server(("127.0.0.1", port)):
        assert not is_free(port)
        assert find_port(port) != port
    assert is_free(port)


def test_a_log_over_its_limit_begins_anew(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    bound_log(log, 10)
    log.write_text("123456789\n")
    bound_log(log, 10)
    assert log.read_text() == "123456789\n"
    with log.open("a") as writer:
        writer.write("more\n")
        writer.flush()
        bound_log(log, 10)
        writer.write("after\n")
    assert log.read_text() == "after\n"
    assert (tmp_path / "one.log.1").read_text() == "123456789\nmore\n"


def test_the_tail_of_a_log_is_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "one.log"
    log.write_text("".join(f"line {number}\n" for number in range(3000)))
    assert tail(log, 2) == "line 2998\nline 2999"
