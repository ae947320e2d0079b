"""A run and a model name become a place: which engines may serve the call, and whether what they sample is trained.

Invariants: no clock and no network here; a run that maps names serves no other name, since an unmapped user simulator
would be trained as the policy; the newest record of a run counts.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from claw_r1.events import ModelPlace, RunConfig
from gateway.replies import Refusal

log = logging.getLogger("claw.gateway.models")

ANY_NAME: Final = "*"
MAX_RUNS: Final = 65536


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a call goes; `engines` are ids, None: any."""

    engines: frozenset[str] | None = None
    role: Literal["policy", "frozen"] = "policy"
    policy: str | None = None


_ANYWHERE: Final = Placement()


class Models:
    """The runs' configurations, as the newest records say, and the default of the settings."""

    def __init__(self, default: Mapping[str, ModelPlace] | None = None) -> None:
        self._default = dict(default or {})
        self._runs: OrderedDict[str, RunConfig] = OrderedDict()
        self._placements: dict[str, dict[str, Placement]] = {}
        self._unsaid: RunConfig | None = None
        """Of the run that was asked for last, if nothing is said of it."""
        self._fallback = {name: _placement(place) for name, place in self._default.items()}

    def config(self, run_id: str) -> RunConfig:
        """How the run's calls are treated."""
        known = self._runs.get(run_id)
        if known is not None:
            return known
        if self._unsaid is None or self._unsaid.run_id != run_id:
            self._unsaid = RunConfig(run_id=run_id, models=self._default, at=0.0)
        return self._unsaid

    def place(self, run_id: str, model: str | None) -> Placement:
        """Where a call of this model goes. Raises Refusal(404) if the run maps names, and not this one."""
        placements = self._placements.get(run_id, self._fallback)
        if not placements:
            return _ANYWHERE
        placement = placements.get(model or "") or placements.get(ANY_NAME)
        if placement is None:
            raise Refusal(
                404,
                f"run {run_id} has no model {(model or '')[:200]!r}: ask for {' or '.join(sorted(placements))}, or map it by "
                f"POST /runs/{run_id}",
                param="model",
                code="model_not_found",
            )
        return placement

    def policy_engines(self, run_id: str) -> frozenset[str] | None:
        """Engines that may serve the run's policies; None: any."""
        placements = self._placements.get(run_id, self._fallback).values()
        named = [placement.engines for placement in placements if placement.role == "policy"]
        if placements and None not in named:
            return frozenset().union(*(engines for engines in named if engines is not None))
        return None

    def take(self, config: RunConfig) -> None:
        """A record of `claw.runs.v1`."""
        self._runs[config.run_id] = config
        self._runs.move_to_end(config.run_id)
        self._placements[config.run_id] = {name: _placement(place) for name, place in config.models.items()}
        while len(self._runs) > MAX_RUNS:
            run_id, _ = self._runs.popitem(last=False)
            del self._placements[run_id]
            log.error("a run's configuration is forgotten: too many runs have one", extra={"run_id": run_id})

    def drop(self, run_id: str) -> None:
        """The run's configuration was withdrawn."""
        self._runs.pop(run_id, None)
        self._placements.pop(run_id, None)


def _placement(place: ModelPlace) -> Placement:
    engines = None if place.engines is None else frozenset(place.engines)
    return Placement(engines, place.role, place.policy)
