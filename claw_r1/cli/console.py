"""`claw console`: the screens beside a stack that runs elsewhere, or over a recorded run with no services at all."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from claw_r1.cli.address import clickhouse_address, database_name, kafka_address
from claw_r1.cli.options import ClickHouseUrl, Database, Kafka
from claw_r1.errors import UserError
from claw_r1.local.ports import find_port
from claw_r1.local.stack import python_module, running_stack

START_WITHIN: Final = 60.0
STOP_WITHIN: Final = 15.0
WANTED_PORT: Final = 8103


def console(
    demo_data: Annotated[
        bool, typer.Option("--demo-data", help="Show a recorded run, read-only; nothing else need run.")
    ] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the browser.")] = False,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Port (default: 8103, or a free one).")
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Show alone: decide and publish nothing.")] = False,
    kafka: Kafka = None,
    clickhouse: ClickHouseUrl = None,
    database: Database = None,
) -> None:
    """Look at the pool in a browser: `claw up` runs a console too, this is one more, here, until Ctrl-C."""
    if demo_data and (kafka or clickhouse or database):
        raise typer.BadParameter("a recorded run has its own engine: leave the addresses out", param_hint="--demo-data")
    chosen = port or find_port(WANTED_PORT)
    with contextlib.ExitStack() as opened:
        if demo_data:
            env = opened.enter_context(recorded())
        else:
            env = {
                "CLAW_KAFKA": kafka_address(kafka),
                "CLAW_CLICKHOUSE": clickhouse_address(clickhouse),
                "CLAW_DATABASE": database_name(database),
            } | ({"CLAW_CONSOLE_READ_ONLY": "true"} if read_only else {})
        process = opened.enter_context(serving(env, chosen))
        url = f"http://127.0.0.1:{chosen}"
        print(url, flush=True)
        print(
            "Ctrl-C ends it" + (", and what is shown is a recorded run" if demo_data else ""),
            file=sys.stderr,
            flush=True,
        )
        if not no_open:
            show(url)
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
            if process.returncode:
                raise UserError(f"the console ended ({process.returncode}): what it said is above")


def show(url: str) -> None:
    """Open a browser where there is a screen for one: a browser of text would take the terminal."""
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(url)


@contextlib.contextmanager
def recorded() -> Iterator[Mapping[str, str]]:
    """An engine in a folder of its own that has the recorded run; the settings of a console over it."""
    from claw_r1.demo import recording

    # A key or a password of the environment is of another engine.
    plain = {"CLAW_SECRET": "", "CLAW_CLICKHOUSE_PASSWORD": "", "CLAW_DATABASE": "claw"}
    with (
        tempfile.TemporaryDirectory(prefix="claw-console-") as folder,
        running_stack(Path(folder), processes=("clickhouse",), env=plain) as stack,
    ):
        env = {**plain, "CLAW_CLICKHOUSE": stack.clickhouse, "CLAW_CONSOLE_READ_ONLY": "true"}
        made = subprocess.run(
            [*python_module("claw_r1.cli.entry"), "migrate"],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=START_WITHIN,
            check=False,
        )
        if made.returncode != 0:
            raise UserError(f"the tables of the recorded run were not made: {made.stderr.strip()[-500:]}")
        asyncio.run(recording.load(stack.clickhouse, "claw"))
        yield env


@contextlib.contextmanager
def serving(env: Mapping[str, str], port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """A console that answers on the port; it ends with the block. Raises UserError if it does not start."""
    command = python_module("console")
    own = {**os.environ, **env, "CLAW_CONSOLE_PORT": str(port)}
    process = subprocess.Popen(command, env=own, start_new_session=True)
    ended = signal.signal(signal.SIGTERM, _interrupt)
    try:
        deadline = time.monotonic() + START_WITHIN
        while not _answers(port):
            if process.poll() is not None:
                raise UserError(f"the console did not start ({process.returncode}): what it said is above")
            if time.monotonic() > deadline:
                raise UserError(f"the console does not answer on port {port} after {START_WITHIN:g} s")
            time.sleep(0.1)
        yield process
    finally:
        signal.signal(signal.SIGTERM, ended)
        process.terminate()
        try:
            process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
