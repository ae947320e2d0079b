"""Bytes between clients and a server pass through here, late or not at all."""

import asyncio
import contextlib

CHUNK = 65_536


class Proxy:
    """A TCP proxy on a port of this machine: `delay` seconds are added to what passes; `cut` closes and refuses connections."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.delay = 0.0
        self.refuses = False
        self.passed = 0
        """Bytes."""
        self.closed = 0
        """Connections that `cut` closed."""
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self._close_all()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Close every connection at once, also in the middle of a record, and let nobody in until `mend`."""
        self.refuses = True
        self.closed += len(self._open) // 2
        self._close_all()

    def mend(self) -> None:
        self.refuses = False
        self.delay = 0.0

    def _close_all(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.target)
        both = {writer, inner_writer}
        self._open |= both
        try:
            ways = [self._pass(reader, inner_writer), self._pass(inner_reader, writer)]
            tasks = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in tasks:
                    one.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._open -= both
            inner_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            if self.delay:
                await asyncio.sleep(self.delay)
            writer.write(data)
            self.passed += len(data)
            await writer.drain()
