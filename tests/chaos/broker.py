"""A broker that clients reach through the proxy: its second listener tells them the proxy's address as its own."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from claw_r1 import bus
from claw_r1.errors import ClawError
from claw_r1.local.broker import Node, prepare_brokers
from claw_r1.local.jars import ensure_jars
from claw_r1.local.java import find_archive
from claw_r1.local.ports import HOST, find_port
from claw_r1.local.state import is_frozen
from claw_r1.local.supervisor import GUARD

START_TIMEOUT_S = 180.0


class Broker:
    """`direct` is its own address, `proxied` the port to which a proxy passes on; started again when it was killed."""

    def __init__(self, data: Path, proxy_port: int) -> None:
        self.data = data
        self.direct_port, self.proxied_port, controller = find_port(), find_port(), find_port()
        self.direct = f"{HOST}:{self.direct_port}"
        (self._argv,) = prepare_brokers(
            data, [Node("kafka", 1, self.direct_port, controller)], archive=find_archive(ensure_jars())
        )
        properties = data.resolve() / "kafka" / "server.properties"
        text = properties.read_text("utf-8")
        plain = f"PLAINTEXT://{HOST}:{self.direct_port}"
        text = text.replace(f"\nlisteners={plain},", f"\nlisteners={plain},PROXIED://{HOST}:{self.proxied_port},")
        text = text.replace(
            f"\nadvertised.listeners={plain}", f"\nadvertised.listeners={plain},PROXIED://{HOST}:{proxy_port}"
        )
        text = text.replace("protocol.map=PLAINTEXT:PLAINTEXT,", "protocol.map=PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,")
        properties.write_text(text, "utf-8")
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Returns when it answers."""
        command = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), *self._argv]
        self._launch(command)
        self.starts += 1
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await self._answers():
                assert self._is_alive(), f"the broker ended: {self.data / 'broker.log'}"
                await asyncio.sleep(0.1)

    async def _answers(self) -> bool:
        try:
            await bus.stop_consumer(await bus.start_consumer(self.direct, client_id="chaos"))
        except ClawError:
            return False
        return True

    def _is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _launch(self, command: list[str]) -> None:
        with (self.data / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self._process is not None
        self._process.kill()
        await asyncio.to_thread(self._process.wait, 30)

    async def freeze(self) -> None:
        """Stop it where it stands, until `wake`."""
        os.kill(self.pid, signal.SIGSTOP)
        async with asyncio.timeout(10):
            while not is_frozen(self.pid):  # noqa: ASYNC110  nobody tells of another process's threads
                await asyncio.sleep(0.01)

    def wake(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    async def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.wake()
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, 20)
            except subprocess.TimeoutExpired:
                await self.kill()
