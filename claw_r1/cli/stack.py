"""`claw up`, `claw down`, `claw status`: the local stack from the command line."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from claw_r1.cli.address import data_dir
from claw_r1.clickhouse import without_password
from claw_r1.local import stack as local
from claw_r1.local.jars import ensure_jars, print_progress
from claw_r1.local.state import StackState, read_state

Data = Annotated[
    Path | None, typer.Option("--data", help="Folder of the stack's state (default: CLAW_DATA, or .claw).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


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
) -> None:
    """Start the local stack and keep it running; if it is up already, say where it is."""
    if unknown := set(only or ()) - set(local.ALL):
        raise typer.BadParameter(
            f"{', '.join(sorted(unknown))}: choose from {', '.join(local.ALL)}", param_hint="--only"
        )
    folder = data_dir(data)
    request = local.StackRequest(
        data=folder, processes=only or local.ALL, kafka=kafka, clickhouse=clickhouse, upstreams=upstream or ()
    )
    local.check_request(request)
    if read_state(folder).alive:
        _say(f"a stack is already up on {folder}")
        _print_where(local.wait_until_ready(folder), as_json)
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
    """Show every process; exit code 1 unless all of them are ready."""
    folder = data_dir(data)
    state = read_state(folder)
    rows = describe(state)
    phase = state.phase if state.alive else "down"
    if as_json:
        print(json.dumps({"phase": phase, "urls": state.urls if state.alive else {}, "processes": rows}))
    elif not state.alive:
        _say(f"no stack is up on {folder}" + (f"; the last start failed: {state.error}" if state.error else ""))
    else:
        print(f"{'process':12} {'pid':>8} {'state':12} {'restarts':>8} {'port':>6}  log")
        for name, row in rows.items():
            words = "ready" if row["ready"] else "starting" if row["up"] else "down"
            words = "crash loop" if row["crash_looping"] else words
            port = "" if row["port"] is None else row["port"]
            print(f"{name:12} {row['pid'] or '':>8} {words:12} {row['restarts']:>8} {port:>6}  {row['log']}")
    if phase != "ready" or not all(row["ready"] for row in rows.values()):
        raise typer.Exit(1)


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
