"""What a fleet of gateways knows together: its engines, the versions that they serve, and how its runs are treated.

Invariants: every change is a record on a compacted topic that every gateway reads, so that workers and replicas agree and a
restart changes nothing; gateways of other fleets share the broker and not the engines.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import Protocol

from claw_r1 import topics
from claw_r1.errors import InvalidRecord
from claw_r1.events import EnginePause, EngineSet, Event, ModelPlace, Policy, RunConfig
from claw_r1.ids import new_id
from claw_r1.settings import GatewaySettings
from gateway.replies import Refusal, unavailable
from gateway.upstream.engines import Engines
from gateway.upstream.models import Models, Placement
from gateway.upstream.policies import Policies
from gateway.upstream.roster import Engine, Mode, named_id
from gateway.upstream.tables import Tables
from gateway.upstream.vitals import Vitals


class Publisher(Protocol):
    """Makes records durable."""

    async def publish(self, *events: Event, topic: str, key: bytes | None) -> None: ...

    async def erase(self, topic: str, key: bytes) -> None: ...


class Fleet:
    """Engines, policies and models of this gateway, as all gateways of its fleet have them."""

    def __init__(self, settings: GatewaySettings, publisher: Publisher) -> None:
        self.name = settings.fleet
        self._publisher = publisher
        self.engines = Engines(
            settings.upstream,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
            key=settings.upstream_key.get_secret_value(),
            load_factor=settings.load_factor,
            pause_hold=settings.pause_hold,
        )
        self.roster = self.engines.roster
        self.policies = Policies()
        self.models = Models({name: _by_id(place) for name, place in settings.models.items()})
        self._vitals = Vitals(
            self.engines,
            self.policies,
            health_interval=settings.health_interval,
            version_interval=settings.version_interval,
        )
        takes = {
            topics.ENGINES: self._take_engine,
            topics.POLICY: self._take_policy,
            topics.RUNS: self._take_run,
        }
        self._nothing = f"-{new_id()}"
        """No engine and no run has this name."""
        self._catching_up = asyncio.Lock()
        self._tables = Tables(settings.kafka, takes, deadline=settings.ack_timeout)

    @property
    def reason(self) -> str | None:
        """Why this gateway may not know what the fleet knows; None if it does."""
        return self._tables.reason

    @property
    def was_read(self) -> bool:
        """This gateway knew what the fleet knows at some time since its start."""
        return self._tables.was_read

    def place(self, run_id: str, model: str | None) -> Placement:
        """Where a call goes. Raises Refusal: 404 for a model that the run does not map, 503 while nothing is known yet."""
        if not self._tables.was_read:
            raise unavailable(f"how runs and engines are set up is not known yet: {self.reason}", code="tables_unread")
        return self.models.place(run_id, model)

    def able(self, placement: Placement) -> list[Engine]:
        """The engines that may serve a call at this place."""
        return [e for e in self.roster.here if placement.engines is None or e.id in placement.engines]

    def start(self) -> None:
        """Connect to engines and broker in the background."""
        self.engines.start()
        self._tables.start()

    async def stop(self) -> None:
        await self._tables.stop()
        await self._vitals.stop()
        await self.engines.stop()

    # ----------------------------------------------------------------------------------------------------------- changes

    def find(self, name: str) -> Engine:
        """The engine with this id or URL. Raises Refusal(404)."""
        engine = self.roster.get(name)
        if engine is None:
            known = ", ".join(engine.id for engine in self.roster.here[:16]) or "none"
            raise Refusal(
                404, f"there is no engine {name[:200]!r}: known are {known}", param="engine", code="unknown_engine"
            )
        return engine

    async def set_engine(self, record: EngineSet) -> None:
        """Add, change or remove an engine in every gateway. Raises RetryableError."""
        await self._write(topics.ENGINES, f"{self.name}/{record.engine_id}", record)

    async def remove(self, engine: Engine) -> None:
        """Remove an engine in every gateway: it gets no new calls and is forgotten after its last one."""
        if self.roster.is_fixed(engine.id):
            await self.set_engine(
                EngineSet(fleet=self.name, engine_id=engine.id, url=engine.url, removed=True, at=time.time())
            )
        else:
            await self._erase(topics.ENGINES, f"{self.name}/{engine.id}")
        await self._erase(topics.ENGINES, f"{self.name}/{engine.id}/pause")

    async def pause(self, engines: Iterable[Engine], mode: Mode) -> None:
        """Keep new calls from engines, in every gateway."""
        await asyncio.gather(
            *(
                self._write(
                    topics.ENGINES,
                    f"{self.name}/{engine.id}/pause",
                    EnginePause(fleet=self.name, engine_id=engine.id, mode=mode, at=time.time()),
                )
                for engine in engines
            )
        )

    async def resume(self, engines: Iterable[Engine]) -> None:
        """Let engines take calls again, in every gateway."""
        await asyncio.gather(*(self._erase(topics.ENGINES, f"{self.name}/{engine.id}/pause") for engine in engines))
        await self._vitals.settle()

    async def say(self, policies: Iterable[Policy]) -> None:
        """Tell every gateway what engines serve."""
        await asyncio.gather(
            *(self._write(topics.POLICY, f"{policy.run_id}/{policy.engine}", policy) for policy in policies)
        )

    async def configure(self, config: RunConfig) -> None:
        """Set how a run's calls are treated, in every gateway."""
        await self._write(topics.RUNS, config.run_id, config)

    async def catch_up(self, *names: str) -> None:
        """Return when this gateway knows what others were told before, by topic. Raises RetryableError.

        A record that means nothing comes back after all that was written before it; its key is this gateway's own, and one
        waits at a time, so that none takes another's for its own.
        """
        async with self._catching_up:
            for topic in names:
                await self._erase(topic, f"{self.name}/{self._nothing}" if topic == topics.ENGINES else self._nothing)

    async def _write(self, topic: str, key: str, event: EngineSet | EnginePause | Policy | RunConfig) -> None:
        await self._tables.write(
            topic, key, event.at, lambda: self._publisher.publish(event, topic=topic, key=key.encode())
        )

    async def _erase(self, topic: str, key: str) -> None:
        await self._tables.write(topic, key, None, lambda: self._publisher.erase(topic, key.encode()))

    # ----------------------------------------------------------------------------------------------------------- records

    def _take_engine(self, key: str, event: Event | None, offset: int) -> None:
        fleet, _, rest = key.partition("/")
        identity, _, what = rest.partition("/")
        if event is None:
            if fleet == self.name and what == "pause":
                self.roster.take_pause(identity, None)
            elif fleet == self.name and not what:
                self.roster.take(identity, None)
        elif isinstance(event, EngineSet):
            if not event.weight > 0:
                raise InvalidRecord("undecodable", f"an engine's weight is {event.weight}")
            if event.fleet == self.name:
                self.roster.take(event.engine_id, event)
        elif isinstance(event, EnginePause):
            if event.fleet == self.name:
                self.roster.take_pause(event.engine_id, event)
        else:
            raise InvalidRecord("unknown_type", f"a {event.TYPE} is no record of an engine")

    def _take_policy(self, key: str, event: Event | None, offset: int) -> None:
        if event is None:
            self.policies.drop(key)
        elif isinstance(event, Policy):
            self.policies.take(event, offset)
            engine = None if event.engine is None else self.roster.get(event.engine)
            if engine is not None:
                engine.wake.set()  # if it tells its weights, they are new now
        else:
            raise InvalidRecord("unknown_type", f"a {event.TYPE} is no policy")

    def _take_run(self, key: str, event: Event | None, offset: int) -> None:
        if event is None:
            self.models.drop(key)
        elif isinstance(event, RunConfig):
            self.models.take(event)
        else:
            raise InvalidRecord("unknown_type", f"a {event.TYPE} is no run's configuration")


def _by_id(place: ModelPlace) -> ModelPlace:
    return place if place.engines is None else place.model_copy(update={"engines": tuple(map(named_id, place.engines))})
