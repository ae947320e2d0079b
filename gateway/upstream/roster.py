"""Which engines there are: those of the settings, as changed by the records that every gateway of the fleet reads.

Invariants:
- the newest record of an engine counts; an engine of the settings that was removed stays removed until it is added again;
- a removed engine gets no new call, and is forgotten when its last call has ended;
- the list is bounded, and so are the names that metrics show.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit

from prometheus_client import Counter, Gauge

from claw_r1.errors import UserError, WrongUse
from claw_r1.events import EnginePause, EngineSet
from claw_r1.ids import check_id
from claw_r1.metrics import GATEWAY_ENGINE_CALLS, GATEWAY_ENGINE_IN_FLIGHT, GATEWAY_ENGINE_UP
from gateway.upstream.probe import Capabilities

log = logging.getLogger("claw.gateway.engines")

MAX_ENGINES: Final = 256
MAX_RECORDS: Final = 4 * MAX_ENGINES
MAX_LABELS: Final = 64
"""Engines that metrics name; the others share one label."""
OTHER: Final = "other"
RESULTS: Final = ("answered", "broke_off", "busy", "closed", "refused", "timeout")
"""Of requests to an engine, as metrics tell them apart."""

Kind = Literal["auto", "vllm", "sglang"]
Mode = Literal["hold", "refuse"]


def clean_url(url: str) -> str:
    """An engine's base URL as it is known everywhere: without /v1. Raises WrongUse if it holds more."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise WrongUse(
            "an engine's URL holds no user and no password: give its key by CLAW_GATEWAY_UPSTREAM_KEY or api_key"
        )
    if parts.query or parts.fragment:
        raise WrongUse("an engine's URL ends with its path: leave out what follows ? or #")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def engine_id(url: str) -> str:
    """The id that an engine has by its URL, the same in every gateway: host, port and path.

    Raises UserError for a URL that gives none, and ValueError for what is no URL.
    """
    parts = urlsplit(clean_url(url))
    port = parts.port or (443 if parts.scheme == "https" else 80)
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", f"{parts.hostname}-{port}{parts.path}").strip("-_.")
    return check_id("the engine's name", name)


def named_id(name: str) -> str:
    """The id of an engine that is named by its id or its URL, whether it is known or not. Raises UserError."""
    try:
        return engine_id(name) if "://" in name else check_id("engine", name)
    except ValueError as error:
        raise UserError(f"{name[:200]!r} is no URL: {error}") from error


@dataclass(slots=True, weakref_slot=True, eq=False)
class Engine:
    """An engine as this process knows it; `url` is without /v1."""

    url: str
    id: str = ""
    weight: float = 1.0
    kind: Kind = "auto"
    api_key: str | None = field(default=None, repr=False)
    draining: bool = False
    leaving: bool = False
    """Removed, with calls still in flight."""
    paused: Mode | None = None
    in_flight: int = 0
    failures: int = 0
    down_until: float = 0.0
    lost: bool = False
    """Nobody listened at its port when it was looked at last."""
    health: Literal["unknown", "up", "down"] = "unknown"
    capabilities: Capabilities | None = None
    label: str = OTHER
    """In metrics."""
    wake: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Set when its health is to be looked at now."""
    calls: Gauge = field(init=False, repr=False)
    answered: Counter = field(init=False, repr=False)

    @property
    def speaks(self) -> str:
        """The kind that was said, else the kind that it says itself to be."""
        return self.kind if self.kind != "auto" or self.capabilities is None else self.capabilities.kind

    def __post_init__(self) -> None:
        self.calls = GATEWAY_ENGINE_IN_FLIGHT.labels(self.label)
        self.answered = GATEWAY_ENGINE_CALLS.labels(self.label, "answered")


class Roster:
    """The engines by id."""

    def __init__(self, urls: Sequence[str], *, key: str = "") -> None:
        self._fixed = {engine_id(url): clean_url(url) for url in urls}
        if len(self._fixed) != len({clean_url(url) for url in urls}):
            raise WrongUse("two engines of CLAW_GATEWAY_UPSTREAM differ only in signs that their ids cannot hold")
        self._key = key
        self._records: dict[str, EngineSet] = {}
        self._pauses: dict[str, Mode] = {}
        self._engines: dict[str, Engine] = {}
        self._leaving: list[Engine] = []
        self._labels: set[str] = set()
        self._changed = asyncio.Event()
        self.on_new: Callable[[Engine], None] = _ignore
        self.on_gone: Callable[[Engine], None] = _ignore
        self.on_resume: Callable[[Engine, Callable[[], None]], None] = _at_once
        """Told before an engine takes calls again; what it is given lets it."""

    def start(self) -> None:
        """The engines of the settings are there from here on."""
        for identity in self._fixed:
            self._settle(identity)

    @property
    def here(self) -> list[Engine]:
        """The engines that are not removed."""
        return list(self._engines.values())

    @property
    def changed(self) -> asyncio.Event:
        """Set at the next change."""
        return self._changed

    def enter(self, engine: Engine) -> None:
        """A call begins."""
        engine.in_flight += 1
        engine.calls.inc()

    def exit(self, engine: Engine) -> None:
        """A call has ended."""
        engine.in_flight -= 1
        engine.calls.dec()
        self._forget_if_idle(engine)

    def all(self) -> list[Engine]:
        """Every engine by id, with those that end their last calls."""
        return sorted([*self._engines.values(), *self._leaving], key=lambda engine: engine.id)

    def get(self, name: str) -> Engine | None:
        """The engine with this id or URL."""
        if "://" not in name:
            return self._engines.get(name)
        try:
            found = self._engines.get(engine_id(name))
        except (UserError, ValueError):
            return None
        return found if found is not None and found.url == clean_url(name) else None

    def is_fixed(self, identity: str) -> bool:
        """Whether the settings name the engine."""
        return identity in self._fixed

    def record(self, identity: str) -> EngineSet | None:
        """The newest record of an engine."""
        return self._records.get(identity)

    def take(self, identity: str, record: EngineSet | None) -> None:
        """A record of an engine, or its tombstone."""
        if record is None:
            self._records.pop(identity, None)
        elif identity in self._records or len(self._records) < MAX_RECORDS:
            self._records[identity] = record
        else:
            log.error("an engine is left out: too many are on record", extra={"engine": identity})
            return
        self._settle(identity)

    def take_pause(self, identity: str, pause: EnginePause | None) -> None:
        """A pause of an engine, or its end. An engine that is not known (yet) may be paused, too."""
        engine = self._engines.get(identity)
        if pause is None:
            self._pauses.pop(identity, None)
        elif engine is not None or identity in self._pauses or len(self._pauses) < MAX_RECORDS:
            self._pauses[identity] = pause.mode
        else:
            log.error("a pause is left out: too many are on record", extra={"engine": identity})
        if engine is None:
            return
        if pause is not None:
            engine.paused = pause.mode
        elif engine.paused is not None:
            self.on_resume(engine, lambda: self._release(engine))
        self._notify()

    def _release(self, engine: Engine) -> None:
        engine.paused = self._pauses.get(engine.id)
        self._notify()

    def _settle(self, identity: str) -> None:
        """Make an engine what the settings and the records say of it."""
        record = self._records.get(identity)
        url = (record.url if record is not None else None) or self._fixed.get(identity)
        engine = self._engines.get(identity)
        if url is None or (record is not None and record.removed):
            if engine is not None:
                self._leave(engine)
            return
        if engine is None:
            if len(self._engines) >= MAX_ENGINES:
                log.error("an engine is left out: there are too many", extra={"engine": url})
                return
            engine = Engine(url, identity, label=self._label(identity), paused=self._pauses.get(identity))
            self._engines[identity] = engine
            self._set(engine, record)
            self.on_new(engine)
        else:
            self._set(engine, record)
        self._notify()

    def _set(self, engine: Engine, record: EngineSet | None) -> None:
        engine.weight = 1.0 if record is None else record.weight
        engine.kind = "auto" if record is None else record.kind
        engine.api_key = (None if record is None else record.api_key) or self._key or None
        engine.draining = record is not None and record.draining

    def _leave(self, engine: Engine) -> None:
        del self._engines[engine.id]
        engine.leaving = True
        self._leaving.append(engine)
        self._forget_if_idle(engine)
        self._notify()

    def _forget_if_idle(self, engine: Engine) -> None:
        if engine.leaving and engine.in_flight == 0 and engine in self._leaving:
            self._leaving.remove(engine)
            if engine.id not in self._engines and engine.label != OTHER:
                self._labels.discard(engine.label)
                GATEWAY_ENGINE_UP.remove(engine.label)
                GATEWAY_ENGINE_IN_FLIGHT.remove(engine.label)
                for result in RESULTS:
                    GATEWAY_ENGINE_CALLS.remove(engine.label, result)
            self.on_gone(engine)
            log.info("an engine is gone", extra={"engine": engine.url})

    def _label(self, identity: str) -> str:
        if identity not in self._labels and len(self._labels) >= MAX_LABELS:
            return OTHER
        self._labels.add(identity)
        return identity

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _ignore(engine: Engine) -> None:
    return None


def _at_once(engine: Engine, release: Callable[[], None]) -> None:
    release()
