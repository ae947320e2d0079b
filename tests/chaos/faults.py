"""The faults of a plan strike a running system, and are taken back."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from claw_r1.local.stack import RunningStack
from tests.chaos.broker import Broker
from tests.chaos.evidence import AWAY, Watch
from tests.chaos.load import Load
from tests.chaos.plan import Fault
from tests.chaos.proxy import Proxy

SLOW_S = 0.15
"""Seconds by which a slow network is late, each way."""


@dataclass
class Striker:
    """What is struck, and what was done to it."""

    stack: RunningStack
    broker: Broker
    proxy: Proxy
    load: Load
    watch: Watch
    say: Callable[[str], None]
    seed: int
    struck: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Faults whose target was down just then."""
    begun: float = field(default_factory=time.monotonic)
    _broker_is_struck: asyncio.Lock = field(default_factory=asyncio.Lock)
    """What comes for the broker before it is back waits: nobody else starts it again."""

    async def strike_all(self, faults: Sequence[Fault]) -> None:
        """Each at its second; returns when all have been taken back."""
        self.begun = time.monotonic()
        try:
            async with asyncio.TaskGroup() as tasks:
                for fault in faults:
                    await asyncio.sleep(max(0.0, self.begun + fault.at - time.monotonic()))
                    tasks.create_task(self._strike(fault))
        finally:
            self.heal()

    def heal(self) -> None:
        """Whatever was left paused or cut goes on."""
        self.proxy.mend()
        self.broker.wake()
        self.load.skewed = self.load.burst = False
        for pid in self.stack.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _strike(self, fault: Fault) -> None:
        done = await self._do(fault)
        if done:
            self.struck[fault.kind] += 1
        else:
            self.missed += 1
            self._tell(f"{fault}: it was down")

    async def _do(self, fault: Fault) -> bool:
        match fault.kind:
            case "kill" if fault.target == "kafka":
                async with self._broker_is_struck:
                    self._tell(str(fault))
                    await self.broker.kill()
                    await asyncio.sleep(random.Random(f"{self.seed}/{fault.at}").uniform(0.0, 2.0))
                    await self.broker.start()
            case "kill":
                return await self._kill(fault)
            case "pause":
                return await self._pause(fault)
            case "cut":
                self._tell(str(fault))
                self.proxy.cut()
                await asyncio.sleep(fault.lasts)
                self.proxy.refuses = False
            case "slow":
                self._tell(str(fault))
                self.proxy.delay = SLOW_S
                await asyncio.sleep(fault.lasts)
                self.proxy.delay = 0.0
            case "spool":
                async with self._broker_is_struck:
                    self._tell(f"{fault}: it stands still")
                    self.load.burst = True
                    await self.broker.freeze()
                    await asyncio.sleep(fault.lasts)
                    self.broker.wake()
                    self.load.burst = False
            case "skew":
                self._tell(str(fault))
                self.load.skewed = True
                await asyncio.sleep(fault.lasts)
                self.load.skewed = False
        return True

    async def _kill(self, fault: Fault) -> bool:
        if not self._signal(fault.target, signal.SIGKILL):
            return False
        self._tell(str(fault))
        with contextlib.suppress(*AWAY):
            if fault.target.endswith("streams"):
                await self.watch.streams()
            elif fault.target.endswith("sinks"):
                await self.watch.sinks()
        return True

    async def _pause(self, fault: Fault) -> bool:
        pid = self._signal(fault.target, signal.SIGSTOP)
        if pid is None:
            return False
        self._tell(str(fault))
        await asyncio.sleep(fault.lasts)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        return True

    def _signal(self, target: str, number: int) -> int | None:
        """The process that got it; None: there is none just now."""
        pid = self.stack.pids.get(target)
        if pid is None:
            return None
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return None
        return pid

    def _tell(self, text: str) -> None:
        self.say(f"{time.monotonic() - self.begun:7.1f} s  {text}")
