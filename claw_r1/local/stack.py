"""The local stack: which processes there are, on which ports, with which settings; and how a program starts one.

`python -m claw_r1.local.stack REQUEST` is the supervisor of one stack (REQUEST is a StackRequest as JSON).
`claw up`, `claw demo` and the tests all start it this way and read DATA/stack.json.
"""

import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel

from claw_r1 import wire
from claw_r1.errors import ClawError, DependencyUnreachable, UserError, exit_code
from claw_r1.local.archive import ensure_archive
from claw_r1.local.broker import SIZES, Node, broker_answers, broker_names, brokers_on, prepare_brokers
from claw_r1.local.jars import ensure_jars, print_progress
from claw_r1.local.ports import HOST, find_port
from claw_r1.local.several import SEVERAL, count, own_settings, process_names, stage_of
from claw_r1.local.state import (
    Identity,
    ProcessState,
    StackState,
    end_orphans,
    exclusive,
    is_dead,
    is_frozen,
    read_state,
)
from claw_r1.local.supervisor import GUARD, Process, Report, StartFailed, Supervisor, Task, Wave, tail, why_not_ready
from claw_r1.settings import PASSWORD_VARIABLE, PROCESSES
from claw_r1.topics import DEFAULT_EVENTS_PARTITIONS

DEFAULT_DATA = Path(".claw")
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 90.0
DEATH_TIMEOUT_S = 30.0
EXTERNAL_TIMEOUT_S = 5.0
EXIT_ALREADY_UP = 4
# From taking the lock of the data directory to the first state written there.
LOCK_TO_STATE_S = 30.0

# The processes of the project, in the order of their start: what reads facts comes up before what lets them in.
STAGES = ("streams", "workers", "sinks", "gateway", "console")
MODULES = {"workers": "streams.workers"}
"""Of stages that are called otherwise than their module."""
BACKENDS = ("kafka", "clickhouse")
ALL = (*BACKENDS, *STAGES)


class StackRequest(BaseModel):
    """What to run on a data directory.  Given `kafka` (host:port) or `clickhouse` (URL), no local one is started.

    `brokers` None: as many as the data have, else one; `many`: how many of a stage, where it says nothing as many as before,
    else one.  `extra` processes start before the stages; `env` goes to every process.
    """

    data: Path = DEFAULT_DATA
    processes: Sequence[str] = ALL
    brokers: int | None = None
    many: Mapping[str, int] = {}
    kafka: str | None = None
    clickhouse: str | None = None
    upstreams: Sequence[str] = ()
    extra: Sequence[Process] = ()
    env: Mapping[str, str] = {}


class AlreadyUp(ClawError):
    """Another supervisor holds the data directory."""


def stages_of(request: StackRequest) -> list[str]:
    """The stages asked for that this installation has, and that have something to do."""
    return [
        name
        for name in STAGES
        if name in request.processes
        and _is_installed(MODULES.get(name, name))
        and (name != "workers" or _has_work(request))
    ]


def _has_work(request: StackRequest) -> bool:
    """Whether the settings name a source of rewards or annotations."""
    environ = {**os.environ, **request.env}
    return bool(environ.get("CLAW_WORKERS_REWARDS") or environ.get("CLAW_WORKERS_ANNOTATIONS"))


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(f"{package}.__main__") is not None


def settled(request: StackRequest, before: StackState) -> StackRequest:
    """The request with its numbers said: those of the data and of the last start, where it leaves them open."""
    many = {stage: request.many.get(stage) or before.many.get(stage) or 1 for stage in SEVERAL}
    brokers = request.brokers or brokers_on(request.data) or 1
    return request.model_copy(update={"brokers": brokers, "many": many})


def processes_of(request: StackRequest) -> list[str]:
    """The processes of the stages, in the order of their start."""
    return [name for stage in stages_of(request) for name in process_names(stage, request.many.get(stage, 1))]


def has_brokers(request: StackRequest) -> bool:
    """Whether brokers of the stack's own are wanted."""
    return "kafka" in request.processes and request.kafka is None


def _broker_ports(ports: Mapping[str, int]) -> list[str]:
    return [name for name in ports if stage_of(name) == "kafka" and not name.endswith("-controller")]


def choose_ports(request: StackRequest, before: Mapping[str, int]) -> dict[str, int]:
    """A free port for everything that listens: the one it had before, if that is still free."""
    names = processes_of(request)
    if has_brokers(request):
        names += [port for name in broker_names(request.brokers or 1) for port in (name, f"{name}-controller")]
    if "clickhouse" in request.processes and request.clickhouse is None:
        names.append("clickhouse")
    taken = {process.port for process in request.extra if process.port is not None}
    ports: dict[str, int] = {}
    for name in names:
        others = [port for other, port in before.items() if other != name]
        ports[name] = find_port(before.get(name), taken=[*taken, *ports.values(), *others])
    return ports


def urls_of(request: StackRequest, ports: Mapping[str, int]) -> dict[str, str]:
    """Where each part is: kafka as host:port of every broker, with commas between, everything else as a URL."""
    gateways = [name for name in ports if stage_of(name) == "gateway"]
    urls = {name: f"http://{HOST}:{ports[name]}" for name in (*gateways, "console", "clickhouse") if name in ports}
    password = {**os.environ, **request.env}.get(PASSWORD_VARIABLE)
    if password and "clickhouse" in ports:
        urls["clickhouse"] = f"http://default:{quote(password, safe='')}@{HOST}:{ports['clickhouse']}"
    if brokers := _broker_ports(ports):
        urls["kafka"] = ",".join(f"{HOST}:{ports[name]}" for name in brokers)
    external = {"kafka": request.kafka, "clickhouse": request.clickhouse}
    return {**urls, **{name: url for name, url in external.items() if url is not None}}


def environment(request: StackRequest, urls: Mapping[str, str], ports: Mapping[str, int]) -> dict[str, str]:
    """The CLAW_* settings of every process of the stack."""
    data = request.data.resolve()
    env = {
        "CLAW_DATA": str(data),
        "CLAW_BLOBS": os.environ.get("CLAW_BLOBS") or str(data / "blobs"),
        "CLAW_STREAMS_SPILL": os.environ.get("CLAW_STREAMS_SPILL") or str(data / "spill"),
    }
    if "kafka" in urls:
        env["CLAW_KAFKA"] = urls["kafka"]
    if "clickhouse" in urls:
        env["CLAW_CLICKHOUSE"] = urls["clickhouse"]
    if request.upstreams:
        env["CLAW_GATEWAY_UPSTREAM"] = ",".join(request.upstreams)
    for name in STAGES:
        if name in ports:
            env[f"CLAW_{name.upper()}_PORT"] = str(ports[name])
    if "gateway" in ports and "CLAW_GATEWAY_SPOOL" not in os.environ:
        env["CLAW_GATEWAY_SPOOL"] = str(request.data.resolve() / "spool")
    # A worker keeps its name over restarts of the stack, so that its partitions come back to it at once.
    env["CLAW_STREAMS_WORKER"] = env["CLAW_WORKERS_MEMBER"] = "local-0"
    if "console" in ports:
        for stage in ("gateway", "streams", "sinks", "workers"):
            if places := [f"http://{HOST}:{port}" for name, port in ports.items() if stage_of(name) == stage]:
                all_of = "gateways" if stage == "gateway" else stage
                env[f"CLAW_CONSOLE_{all_of.upper()}"] = ",".join(places)
        if "gateway" in ports:
            env["CLAW_CONSOLE_GATEWAY"] = f"http://{HOST}:{ports['gateway']}"
    return {**env, **request.env}


def plan_waves(
    request: StackRequest, ports: Mapping[str, int], env: Mapping[str, str], archive: Path | None = None
) -> list[Wave]:
    """What to start, in waves; prepares the broker's storage on the way. `archive`: of its classes."""
    data = request.data.resolve()
    backends: list[Process] = []
    nodes = [
        Node(name, number, ports[name], ports[f"{name}-controller"])
        for number, name in enumerate(_broker_ports(ports), 1)
    ]
    if nodes:
        commands = prepare_brokers(data, nodes, archive=archive, progress=print_progress)
        # At once: a broker that stops asks the others to lead in its place, and the last would ask in vain.
        backends += [
            Process(
                name=node.name,
                argv=argv,
                ready=f"kafka://{HOST}:{node.port}",
                port=node.port,
                start_timeout=180.0,  # three start at once, on as many cores as there are
                stop_timeout=45.0,  # and so they stop
                stops_with="kafka",
            )
            for node, argv in zip(nodes, commands, strict=True)
        ]
    if "clickhouse" in ports:
        where = ["--path", str(data / "clickhouse"), "--port", str(ports["clickhouse"])]
        ready = f"http://{HOST}:{ports['clickhouse']}/ping"
        argv = [*python_module("claw_r1.local.clickhouse"), *where]
        backends.append(
            Process(name="clickhouse", argv=argv, env=dict(request.env), ready=ready, port=ports["clickhouse"])
        )
    stages = [
        Process(
            name=name,
            argv=python_module(MODULES.get(stage_of(name), stage_of(name))),
            env={**env, **own_settings(name, ports[name], {**os.environ, **env})},
            ready=f"http://{HOST}:{ports[name]}/readyz",
            port=ports[name],
        )
        for name in processes_of(request)
    ]
    command = python_module("claw_r1.cli.entry")
    waves: list[Wave] = [backends] if backends else []
    if stages:
        waves.append(Task(name="topics", argv=[*command, "topics", "apply"], env=env))
        waves.append(Task(name="migrations", argv=[*command, "migrate"], env=env))
    if request.extra:
        waves.append([process.model_copy(update={"env": {**env, **process.env}}) for process in request.extra])
    if stages:
        waves.append(stages)
    return waves


def python_module(module: str) -> list[str]:
    """The command for a module of this installation (-P: never one that lies in the current directory)."""
    return [sys.executable, "-P", "-m", module]


def supervise(
    request: StackRequest, report: Report, on_ready: Callable[[StackState], None] = lambda state: None
) -> None:
    """Be the supervisor of the stack until SIGTERM, SIGINT or SIGHUP.  Call it from the main thread.

    Raises AlreadyUp, DependencyUnreachable, UserError, or StartFailed after everything was stopped again.
    """
    check_request(request)
    make_logs(request.data)
    archive = ensure_archive(ensure_jars(progress=print_progress), report) if has_brokers(request) else None
    with exclusive(request.data) as held:
        if not held:
            raise AlreadyUp(f"a stack is already up on {request.data}")
        before = read_state(request.data)
        for name in end_orphans(before):
            report(f"{name} was left by a supervisor that was killed: ended")
        request = settled(request, before)
        ports = choose_ports(request, before.ports)
        urls = urls_of(request, ports)
        env = environment(request, urls, ports)
        check_spools(request, env)
        state = StackState(
            phase="starting",
            supervisor=Identity.of(os.getpid()),
            urls=urls,
            ports={**before.ports, **ports},
            many=dict(request.many),
        )
        supervisor = Supervisor(request.data, state, report)
        waves = plan_waves(request, ports, env, archive)
        supervisor.run(waves, on_ready=lambda: on_ready(state))


def check_request(request: StackRequest) -> None:
    """Raise UserError for names that do not exist, WrongUse for settings and addresses of a wrong form, and
    DependencyUnreachable for given servers that do not answer."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # a broker that does not answer yet is no error here
    for name in request.processes:
        if name not in ALL:
            raise UserError(f"there is no process {name!r}: choose from {', '.join(ALL)}")
    for extra in request.extra:
        if stage_of(extra.name) in ALL:
            raise UserError(f"an extra process cannot be called {extra.name!r}")
    check_brokers(request)
    check_many(request)
    check_settings(request)
    if not request.kafka and "kafka" in request.processes and wire.kafka_options()["security_protocol"] != "PLAINTEXT":
        raise UserError(
            "CLAW_KAFKA_PROTOCOL is set, and the local broker speaks PLAINTEXT only\n"
            "Name the broker that it is meant for with --kafka HOST:PORT, or take the setting out."
        )
    if request.kafka and not broker_answers(request.kafka, EXTERNAL_TIMEOUT_S):
        raise DependencyUnreachable(
            f"no Kafka broker answers at {request.kafka}\nCheck --kafka, or leave it out to start a local one."
        )
    if request.clickhouse and (reason := why_not_ready(request.clickhouse.rstrip("/") + "/ping")):
        raise DependencyUnreachable(
            f"no ClickHouse answers at {request.clickhouse}: {reason}\n"
            "Check --clickhouse, or leave it out to start a local one."
        )


def check_brokers(request: StackRequest) -> None:
    """Raise UserError for a number of brokers that cannot be, or that is not the data's."""
    wanted, there = request.brokers, brokers_on(request.data)
    if wanted is None:
        return
    if wanted not in SIZES:
        raise UserError(f"a local stack has {' or '.join(map(str, SIZES))} brokers, not {wanted}")
    if not has_brokers(request):
        raise UserError("--brokers is for brokers that the stack starts: leave it out, or leave --kafka and --only out")
    if there not in (None, wanted):
        raise UserError(
            f"the stack on {request.data} has {_told(there or 0, 'broker')}, not {wanted}, and its records lie on them\n"
            f"Leave --brokers out to go on with what is there, or name another folder with --data DIR."
        )


def check_many(request: StackRequest) -> None:
    """Raise UserError for numbers of processes that cannot be."""
    for stage, number in request.many.items():
        if stage not in SEVERAL or number < 1:
            raise UserError(f"a stack has one or more of {', '.join(SEVERAL)}, not {number} of {stage!r}")
    if DEFAULT_EVENTS_PARTITIONS % (streams := request.many.get("streams", 1)):
        shares = [
            number for number in range(1, DEFAULT_EVENTS_PARTITIONS + 1) if not DEFAULT_EVENTS_PARTITIONS % number
        ]
        raise UserError(
            f"the events have {DEFAULT_EVENTS_PARTITIONS} partitions, and of {streams} stream workers one may get none\n"
            f"Take {', '.join(map(str, shares[:-1]))} or {shares[-1]}."
        )


def check_running(request: StackRequest, state: StackState) -> None:
    """Raise UserError if the stack that runs has other numbers of processes than are asked for."""
    for stage, number in request.many.items():
        if (running := count(state.processes, stage)) != number:
            raise UserError(
                f"a stack with {_told(running, stage)} is up on {request.data}, not with {number}\n"
                f"Stop it with `claw down`, and start it with the number you want: its data stay."
            )


def check_spools(request: StackRequest, env: Mapping[str, str]) -> None:
    """Raise UserError if facts wait in the spool of a gateway that would not be started."""
    if "gateway" not in stages_of(request):
        return
    spool = Path({**os.environ, **env}.get("CLAW_GATEWAY_SPOOL") or "spool")
    gateways = request.many.get("gateway", 1)
    for folder in sorted(spool.parent.glob(f"{spool.name}-*")):
        place = folder.name.removeprefix(f"{spool.name}-")
        if place.isdecimal() and int(place) > gateways and any(folder.glob("worker-*/*.segment")):
            raise UserError(
                f"{folder} holds facts that the brokers do not have yet, and is that of gateway {place}\n"
                f"Start with --gateways {place}, and with fewer once that folder is empty."
            )


def _told(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1 and not what.endswith('s'))}"


def check_settings(request: StackRequest) -> None:
    """Raise WrongUse for what a process would refuse of its environment: here one hears of it, there it is in a log."""
    given = {
        "CLAW_KAFKA": request.kafka,
        "CLAW_CLICKHOUSE": request.clickhouse,
        "CLAW_GATEWAY_UPSTREAM": ",".join(request.upstreams),
    }
    environ = {**os.environ, **{name: value for name, value in given.items() if value}, **request.env}
    for settings in PROCESSES.values():
        settings.read(environ)


@dataclass(frozen=True)
class RunningStack:
    """A stack that runs on `data`, seen from outside."""

    data: Path

    @property
    def state(self) -> StackState:
        return read_state(self.data)

    @property
    def urls(self) -> dict[str, str]:
        return self.state.urls

    @property
    def pids(self) -> Mapping[str, int]:
        return self.state.pids

    @property
    def kafka(self) -> str:
        """host:port of the broker; of each broker, with commas between."""
        return self.urls["kafka"]

    @property
    def clickhouse(self) -> str:
        """http URL of ClickHouse."""
        return self.urls["clickhouse"]

    def log(self, name: str) -> str:
        return Path(self.state.processes[name].log).read_text("utf-8", errors="replace")

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to one process; the supervisor starts it again.  The id of the process that got it.

        After SIGKILL no thread of it runs: a signal is sent before it is taken.
        """
        pid = self.pids[name]
        os.kill(pid, number)
        if number == signal.SIGKILL:
            _wait(lambda: is_dead(pid), DEATH_TIMEOUT_S, f"{name} is dead")
        return pid

    def freeze(self, name: str, timeout: float = 10.0) -> int:
        """Stop one process where it stands; SIGCONT wakes it.  The id of the process, no thread of which runs now."""
        pid = self.kill(name, signal.SIGSTOP)
        _wait(lambda: is_frozen(pid), timeout, f"{name} stands still")
        return pid

    def wait_restarted(self, name: str, old_pid: int, timeout: float = 120.0) -> None:
        """Wait until a process of another id than `old_pid` is ready."""

        def restarted() -> bool:
            process = self.state.processes[name]
            return process.identity is not None and process.identity.pid != old_pid and is_ready(process)

        _wait(restarted, timeout, f"{name} is ready again")


def is_ready(process: ProcessState) -> bool:
    return process.identity is not None and process.identity.find() is not None and not why_not_ready(process.ready)


def make_logs(data: Path) -> Path:
    """The folder of the logs.  Raises UserError if `data` cannot be written."""
    logs = data / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        (logs / "supervisor.log").open("ab").close()
    except OSError as error:
        raise UserError(
            f"cannot write to {data}: {error.strerror}\nName a folder that can be written with --data DIR."
        ) from error
    return logs


def launch(request: StackRequest, *, dies_with_us: bool = False) -> subprocess.Popen[bytes]:
    """Start a supervisor in the background; it writes to DATA/logs/supervisor.log."""
    logs = make_logs(request.data)
    command = [*python_module("claw_r1.local.stack"), request.model_dump_json()]
    if dies_with_us:
        command = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *command]
    with (logs / "supervisor.log").open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait_ready(
    data: Path,
    supervisor: subprocess.Popen[bytes],
    timeout: float = START_TIMEOUT_S,
    report: Report = lambda line: None,
) -> StackState:
    """Wait until the stack that `supervisor` starts is ready; its lines go to `report` meanwhile.

    Raises StartFailed with what it said.
    """
    log = data / "logs" / "supervisor.log"

    with log.open("rb") as lines:
        lines.seek(0, os.SEEK_END)

        def settled() -> bool:
            for line in lines:
                report(line.decode(errors="replace").rstrip())
            state = read_state(data)
            ours = state.supervisor is not None and state.supervisor.pid == supervisor.pid
            return supervisor.poll() is not None or (ours and state.phase == "ready")

        _wait(settled, timeout, f"the stack on {data} is ready (log: {log})")
    if supervisor.returncode == EXIT_ALREADY_UP:
        report(f"a stack is already coming up on {data}")
        _wait(lambda: read_state(data).alive, LOCK_TO_STATE_S, f"the stack on {data} says who runs it")
        return wait_until_ready(data, timeout)
    if supervisor.returncode is not None:
        state = read_state(data)
        raise StartFailed(state.error or f"the supervisor ended (exit {supervisor.returncode}):\n{tail(log)}")
    return read_state(data)


def wait_until_ready(data: Path, timeout: float = START_TIMEOUT_S) -> StackState:
    """Wait until the stack that somebody else starts on `data` is ready.  Raises StartFailed if it ends instead."""

    def settled() -> bool:
        state = read_state(data)
        return state.phase == "ready" or not state.alive

    _wait(settled, timeout, f"the stack on {data} is ready")
    state = read_state(data)
    if not state.alive:
        raise StartFailed(state.error or f"the stack on {data} stopped while it was starting")
    return state


def stop(data: Path, timeout: float = STOP_TIMEOUT_S) -> bool:
    """Stop the stack on `data` and wait for its end; False if none was up."""
    state = read_state(data)
    found = state.supervisor.find() if state.supervisor else None
    if found is None:
        return bool(end_orphans(state))
    found.terminate()
    _wait(lambda: not read_state(data).alive, timeout, f"the stack on {data} stopped")
    return True


@contextlib.contextmanager
def running_stack(
    data: Path,
    *,
    processes: Sequence[str] = ALL,
    brokers: int | None = None,
    many: Mapping[str, int] | None = None,
    kafka: str | None = None,
    clickhouse: str | None = None,
    upstreams: Sequence[str] = (),
    extra: Sequence[Process] = (),
    env: Mapping[str, str] | None = None,
    timeout: float = START_TIMEOUT_S,
) -> Iterator[RunningStack]:
    """A stack for the length of a with block; it dies with this process too.  Raises StartFailed."""
    request = StackRequest(
        data=data,
        processes=processes,
        brokers=brokers,
        many=many or {},
        kafka=kafka,
        clickhouse=clickhouse,
        upstreams=upstreams,
        extra=extra,
        env=env or {},
    )
    supervisor = launch(request, dies_with_us=True)
    try:
        wait_ready(data, supervisor, timeout)
        yield RunningStack(data)
    finally:
        if supervisor.poll() is None:
            supervisor.terminate()
        supervisor.wait(STOP_TIMEOUT_S)


def _wait(condition: Callable[[], bool], timeout: float, what: str) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise StartFailed(f"after {timeout:.0f} s still not: {what}")
        time.sleep(0.05)


def main() -> int:
    request = StackRequest.model_validate_json(sys.argv[1])

    def report(line: str) -> None:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", file=sys.stderr, flush=True)

    try:
        supervise(request, report)
    except AlreadyUp as error:
        report(str(error))
        return EXIT_ALREADY_UP
    except ClawError as error:
        report(f"error: {error}")
        return exit_code(error)
    except OSError as error:
        report(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
