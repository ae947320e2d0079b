"""Several gateway processes behind one port: each is a gateway of its own, and the system spreads connections over them.

Invariants: the processes share nothing but the port; one that dies is started again; a stop is handed on and waited for, so
that every stream ends first.
"""

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Final

from prometheus_client import multiprocess

from claw_r1.errors import WrongUse
from claw_r1.settings import GatewaySettings
from gateway.server import listen

log = logging.getLogger("claw.gateway.workers")

RESTART_AFTER: Final = 1.0
"""Seconds between a worker's death and its next start."""
WRONG_USE: Final = 2
"""The exit code of a process that no new start can help."""


async def serve_by_workers(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Run the workers until `stop`. Raises WrongUse if the port is taken or a worker cannot start at all."""
    with _reserved(settings) as port, tempfile.TemporaryDirectory(prefix="claw-gateway-") as folder:
        environ = os.environ | {
            "CLAW_GATEWAY_WORKERS": "1",
            "CLAW_GATEWAY_SHARED_PORT": "true",
            "CLAW_GATEWAY_PORT": str(port),
            "PROMETHEUS_MULTIPROC_DIR": folder,
        }
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(settings.workers):
                    group.create_task(_keep(number, environ, folder, stop))
        except* WrongUse as wrong:
            raise wrong.exceptions[0] from wrong


@contextlib.contextmanager
def _reserved(settings: GatewaySettings) -> Iterator[int]:
    """The port, free when this begins, and from then on only for processes that share it."""
    with listen(settings.host, settings.port) as alone:
        port: int = alone.getsockname()[1]
    with listen(settings.host, port, shared=True):
        yield port


async def _keep(number: int, environ: dict[str, str], folder: str, stop: asyncio.Event) -> None:
    """Keep one worker running until `stop`."""
    stopped = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            process = await asyncio.create_subprocess_exec(sys.executable, "-m", "gateway", env=environ)
            log.info("a worker starts", extra={"worker": number, "pid": process.pid})
            ended = asyncio.create_task(process.wait())
            try:
                await asyncio.wait((stopped, ended), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if process.returncode is None:
                    process.terminate()
                code = await ended
            multiprocess.mark_process_dead(process.pid, folder)  # type: ignore[no-untyped-call]
            if stop.is_set():
                return
            if code == WRONG_USE:
                raise WrongUse(f"worker {number} cannot start: its last line says why")
            log.error("a worker died and is started again", extra={"worker": number, "exit_code": code})
            await asyncio.wait((stopped,), timeout=RESTART_AFTER)
    finally:
        stopped.cancel()
