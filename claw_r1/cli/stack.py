"""`claw up`, `claw down`, `claw status`: the local stack from the command line."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from claw_r1.cli.address import clickhouse_address, data_dir, database_name, kafka_address
from claw_r1.cli.options import AsJson
from claw_r1.clickhouse import without_password
from claw_r1.local import stack as local
from claw_r1.local.jars import ensure_jars, print_progress
from claw_r1.local.state import StackState, read_state
from claw_r1.settings import ConsoleSettings

if TYPE_CHECKING:
    from claw_r1.checks.system import System
    from claw_r1.probe_answers import Process

Data = Annotated[
    Path | None, typer.Option("--data", help="Folder of the stack's state (default: CLAW_DATA, or .claw).")
]


def up(
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when everything is ready; `claw down` stops it.")
    ] = False,
    as_json: AsJson = False,
    data: Data = None,
    kafka: Annotated[
        str | None, typer.Option("--kafka", help="Use the broker at HOST:PORT instead of a local one.")
    ] = None,
    clickhouse: Annotated[
        str | None, typer.Option("--clickhouse", help="Use the ClickHouse at this URL instead of a local one.")
    ] = None,
    upstream: Annotated[
        list[str] | None, typer.Option("--upstream", help="Base URL of an engine, without /v1; may be repeated.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", help=f"Start only these of {', '.join(local.ALL)}; may be repeated.")
    ] = None,
    brokers: Annotated[
        int | None,
        typer.Option(
            "--brokers", help="Local brokers: 1, or 3 that keep three copies (default: those the folder has, or 1)."
        ),
    ] = None,
    gateways: Annotated[
        int | None, typer.Option("--gateways", min=1, max=16, help="Gateways (default: as at the last start, or 1).")
    ] = None,
    streams: Annotated[
        int | None, typer.Option("--streams", min=1, max=16, help="Stream workers: 1, 2 or 4 (default: the same).")
    ] = None,
    sinks: Annotated[int | None, typer.Option("--sinks", min=1, max=16, help="Sinks (default: the same).")] = None,
) -> None:
    """Start the local stack and keep it running; if it is up already, say where it is."""
    if unknown := set(only or ()) - set(local.ALL):
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: choose from {', '.join(local.ALL)}", param_hint="--only"
        )
    folder = data_dir(data)
    many = {"gateway": gateways, "streams": streams, "sinks": sinks}
    request = local.StackRequest(
        data=folder,
        processes=only or local.ALL,
        brokers=brokers,
        many={stage: number for stage, number in many.items() if number is not None},
        kafka=kafka,
        clickhouse=clickhouse,
        upstreams=upstream or (),
    )
    local.check_request(request)
    if read_state(folder).alive:
        state = local.wait_until_ready(folder)
        local.check_running(request, state)
        _say(f"a stack is already up on {folder}")
        _print_where(state, as_json)
        return
    if kafka is None and "kafka" in request.processes:
        ensure_jars(progress=print_progress)
    if detach:
        supervisor = local.launch(request)
        try:
            state = local.wait_ready(folder, supervisor, report=_say)
        except KeyboardInterrupt:
            supervisor.terminate()
            supervisor.wait(local.STOP_TIMEOUT_S)
            _say("stopped before everything was ready; the same command starts again")
            raise
        _print_where(state, as_json)
        _say(f"claw down --data {folder} stops it" if data else "claw down stops it")
        return

    def ready(state: StackState) -> None:
        _print_where(state, as_json)
        _say("everything is ready; Ctrl-C stops it")

    local.supervise(request, _say, ready)
    _say("stopped; the data stay, and the same command goes on with them")


def down(data: Data = None) -> None:
    """Stop the stack and wait until it has stopped. Its data stay."""
    folder = data_dir(data)
    _say(f"the stack on {folder} is stopped" if local.stop(folder) else f"no stack is up on {folder}")


def status(as_json: AsJson = False, data: Data = None) -> None:
    """Show every process of the local stack, and of the whole system what is behind, dead letters and the pool; exit code 1
    unless all processes are ready. Without a local stack: of the cluster that CLAW_KAFKA and CLAW_CLICKHOUSE name, and the
    processes whose health URLs CLAW_CONSOLE_GATEWAYS, _STREAMS, _SINKS and _WORKERS name."""
    folder = data_dir(data)
    state = read_state(folder)
    rows = describe(state)
    phase = state.phase if state.alive else "down"
    system = _look(folder, state)
    if as_json:
        urls = state.urls if state.alive else {}
        shown = None if system is None else system.model_dump()
        print(json.dumps({"phase": phase, "urls": urls, "processes": rows, "system": shown}))
    elif not state.alive:
        _say(f"no stack is up on {folder}" + (f"; the last start failed: {state.error}" if state.error else ""))
    else:
        _print_processes(rows)
    if system is not None and not as_json:
        _print_system(system)
    if not state.alive and system is not None:
        healthy = not system.errors and all(process.state == "ready" for process in system.processes)
    else:
        healthy = phase == "ready" and all(row["ready"] for row in rows.values())
    if not healthy:
        raise typer.Exit(1)


def _look(folder: Path, state: StackState) -> "System | None":
    """None where there is neither a local stack nor a cluster that the environment names."""
    named = {"kafka", "clickhouse"} <= state.urls.keys() if state.alive else bool(os.environ.get("CLAW_KAFKA"))
    if not named:
        return None
    from claw_r1.checks.system import look
    from claw_r1.probes import places_of

    stages = {} if state.alive else places_of(ConsoleSettings.read(), named=True)
    return asyncio.run(look(kafka_address(None, folder), clickhouse_address(None, folder), database_name(None), stages))


def _print_processes(rows: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"{'process':12} {'pid':>8} {'state':12} {'restarts':>8} {'port':>6}  log")
    for name, row in rows.items():
        words = "ready" if row["ready"] else "starting" if row["up"] else "down"
        words = "crash loop" if row["crash_looping"] else words
        port = "" if row["port"] is None else row["port"]
        print(f"{name:12} {row['pid'] or '':>8} {words:12} {row['restarts']:>8} {port:>6}  {row['log']}")


def _print_asked(processes: "Sequence[Process]") -> None:
    print(f"{'process':12} {'state':8} {'version':10} {'behind':>8}  url")
    for process in processes:
        version, behind = process.version or "?", "?" if process.behind is None else process.behind
        print(f"{process.name:12} {process.state:8} {version:10} {behind:>8}  {process.url}")
        if process.detail:
            print(f"{'':12} {process.detail}")


def _print_system(system: "System") -> None:
    if system.processes:
        _print_asked(system.processes)
    for stage, number in system.passed_over.items():
        print(f"{stage}: {number} more processes were not asked")
    if system.brokers is not None:
        print(f"\nbrokers: {system.brokers.told()}")
    told = ", ".join(f"{part} {'nothing yet' if lag is None else lag}" for part, lag in system.behind.items())
    if told:
        print(f"\nnot committed yet (streams: also what open groups hold back): {told}")
    if system.dead_letters is not None:
        letters = ", ".join(f"{topic} {number}" for topic, number in system.dead_letters.items() if number)
        print(f"dead letters: {letters or 'none'}")
    if system.pool is not None:
        held = ", ".join(f"{number} {name}" for name, number in system.pool.items() if name != "newest")
        print(f"the pool: {held}; newest step {system.pool['newest'] or 'none'}")
    for name, why in system.errors.items():
        print(f"{name}: {why}")


def describe(state: StackState) -> dict[str, dict[str, Any]]:
    """Per process: pid, up, ready (asked now), restarts, port, last exit code, log."""
    rows = {}
    for name, process in state.processes.items():
        up = process.identity is not None and process.identity.find() is not None
        rows[name] = {
            "pid": process.identity.pid if process.identity is not None and up else None,
            "up": up,
            "ready": local.is_ready(process),
            "restarts": process.restarts,
            "crash_looping": process.crash_looping,
            "last_exit": process.last_exit,
            "port": process.port,
            "log": process.log,
        }
    return rows


def _print_where(state: StackState, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"urls": state.urls, "processes": dict(state.pids)}), flush=True)
        return
    for name, url in state.urls.items():
        print(f"{name:12} {without_password(url)}", flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
