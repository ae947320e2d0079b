"""The gateway listens, and drains when it is told to stop.

Invariants: when the stop comes, readiness goes red, no connection is accepted any more, calls in flight end, the producer
flushes, and only then the process exits.
"""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Final

import uvicorn

from claw_r1.errors import WrongUse
from claw_r1.settings import GatewaySettings
from gateway.app import Gateway

READY_WITHIN: Final = 10.0
"""Longest time for which a worker that cannot serve leaves a port without a listener, seconds."""
LOOK_EVERY: Final = 0.5
"""Seconds between looks whether another worker listens."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process owns its signals: this server must not take them."""
        yield


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A socket that is bound, before anything else is started; `shared`: others of this kind may have the same port.

    Raises WrongUse.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise WrongUse(
            f"the gateway cannot listen on {host}:{port}: {error.strerror}. Free it, or choose others with "
            "CLAW_GATEWAY_HOST and CLAW_GATEWAY_PORT."
        ) from error
    return bound


@contextlib.asynccontextmanager
async def listening(settings: GatewaySettings, stop: asyncio.Event | None = None) -> AsyncIterator[Gateway]:
    """A gateway that listens; at the end it drains. Raises WrongUse if it cannot listen, or must not without a secret.

    A worker of several may listen later; `stop` ends its waiting.
    """
    gateway = Gateway(settings)
    listener = listen(settings.host, settings.port, shared=settings.shared_port)
    config = uvicorn.Config(
        gateway,
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # nothing here believes what a header says of its sender
        timeout_keep_alive=75,
        backlog=4096,
    )
    config.load()
    server = _Server(config)
    async with gateway.running():
        if settings.shared_port:
            await _ready(gateway, settings, stop or asyncio.Event())
        task = asyncio.create_task(server.serve(sockets=[listener]), name="gateway")
        try:
            while not server.started:
                if task.done():
                    task.result()
                    raise OSError(f"the gateway stopped listening on {settings.host}:{settings.port}")
                await asyncio.sleep(0.01)
            yield gateway
        finally:
            gateway.draining = True
            server.should_exit = True
            await task


async def _ready(gateway: Gateway, settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Wait until calls can be served: a worker that listens takes connections from those that can serve them.

    Where no other worker listens it waits for a while only, since somebody must say why nothing is served.
    """
    end = asyncio.get_running_loop().time() + READY_WITHIN
    while gateway.ready() is not None and not stop.is_set():
        if asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        elif await _is_served(settings.host, settings.port):
            await asyncio.sleep(LOOK_EVERY)
        else:
            return


async def _is_served(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        async with asyncio.timeout(1.0):
            _, writer = await asyncio.open_connection("127.0.0.1" if host == "0.0.0.0" else host, port)
    except OSError:  # TimeoutError too
        return False
    writer.close()
    return True


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Serve until `stop`."""
    async with listening(settings, stop):
        gc.freeze()  # what was made at the start lives as long as the process: no collection need look at it
        gc.set_threshold(20_000, 20, 20)  # a call makes hundreds of objects and hardly a cycle
        await stop.wait()
