"""What a fleet of gateways knows together: engines, their pauses, and how runs are treated; kept on compacted topics.

Invariants: the newest record of a key counts; nothing here is a fact about a group.
"""

from typing import Literal

from pydantic import Field

from claw_r1.event_base import Event, Part


class EngineSet(Event):
    """An engine of a fleet of gateways, as it is from now on; the newest record of an engine counts."""

    TYPE = "engine-set"
    fleet: str
    engine_id: str
    url: str | None = None
    """None: an engine of the gateways' own settings, of which this record changes the rest."""
    weight: float = 1.0
    kind: Literal["auto", "vllm", "sglang"] = "auto"
    api_key: str | None = None
    draining: bool = False
    removed: bool = False
    at: float


class EnginePause(Event):
    """An engine takes no new calls from now on; a tombstone resumes it. Apart from EngineSet: another hand writes it."""

    TYPE = "engine-pause"
    fleet: str
    engine_id: str
    mode: Literal["hold", "refuse"] = "hold"
    at: float


class ModelPlace(Part):
    """Where calls of a model name go, and whether what they sample is trained."""

    engines: tuple[str, ...] | None = None
    """Engine ids; None: any."""
    role: Literal["policy", "frozen"] = "policy"
    policy: str | None = None


class SamplingSet(Part):
    """Sampling that a run sets whatever its agents ask for; None: as they ask."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


class RunConfig(Event):
    """How the gateways treat a run's calls; the newest record of a run counts."""

    TYPE = "run-config"
    run_id: str
    models: dict[str, ModelPlace] = Field(default_factory=dict)
    """By the name that agents ask for; `*` is every other name. Empty: any name is the policy, on any engine."""
    sampling: SamplingSet = SamplingSet()
    tito: bool = False
    """Send the tokens that are held instead of rendering them again."""
    routed_experts: bool = False
    at: float
