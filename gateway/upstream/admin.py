"""Operators and trainers say which engines there are, when they pause, what they serve, and how a run's calls are treated.

Invariants: an answer is given when the change is durable and known here; engines' keys are never shown.
"""

import time
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from claw_r1 import topics
from claw_r1.errors import UserError
from claw_r1.events import EngineSet, ModelPlace, Policy, RunConfig, SamplingSet
from claw_r1.keys import Key
from claw_r1.settings import Url
from gateway.access import PERMISSION, check_target
from gateway.replies import Refusal
from gateway.rollouts.api import Caller
from gateway.rollouts.bodies import Id
from gateway.rollouts.wire import BodyRoute
from gateway.upstream.fleet import Fleet
from gateway.upstream.probe import Capabilities
from gateway.upstream.roster import MAX_ENGINES, Engine, Kind, Mode, clean_url, engine_id, named_id

MAX_LISTED = 1000
"""Runs that GET /policy lists."""


def _clean(url: str) -> str:
    try:
        engine_id(url)
        return clean_url(url)
    except UserError as error:
        raise ValueError(str(error)) from error


EngineUrl = Annotated[Url, AfterValidator(_clean)]
EngineName = Annotated[str, Field(min_length=1, max_length=2048, description="an engine's id or URL")]
Weight = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False, description="share of the trajectories")]
ApiKey = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[\x21-\x7e]+$")]


ENGINES_MEANT: Final = "default: all; with a run's key, those that may serve its policies, and no other may be named"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EngineBody(_Body):
    """An engine to add. One that is there already is set anew."""

    url: EngineUrl = Field(description="base URL, without /v1")
    weight: Weight = 1.0
    kind: Kind = "auto"
    api_key: ApiKey | None = Field(None, description="the engine's own key; default: CLAW_GATEWAY_UPSTREAM_KEY")


class EngineChange(_Body):
    """What is not given stays as it is."""

    weight: Weight | None = None
    draining: bool | None = Field(None, description="true: it gets no new calls")
    kind: Kind | None = None
    api_key: ApiKey | None = None


class PauseBody(_Body):
    """Which engines get no new calls, and what becomes of calls while no other engine may take them."""

    engines: list[EngineName] | None = Field(None, max_length=MAX_ENGINES, description=ENGINES_MEANT)
    mode: Mode = Field(
        "hold", description="hold: calls wait up to CLAW_GATEWAY_PAUSE_HOLD, then 429; refuse: 429 at once"
    )


class ResumeBody(_Body):
    """Which engines take calls again."""

    engines: list[EngineName] | None = Field(None, max_length=MAX_ENGINES, description=ENGINES_MEANT)


class EngineView(BaseModel):
    """An engine as this worker sees it."""

    id: str
    url: str
    weight: float
    kind: Kind
    draining: bool
    leaving: bool = Field(description="removed, with calls still in flight")
    paused: Mode | None
    health: Literal["unknown", "up", "down"]
    in_flight: int = Field(description="calls of this worker")
    failures: int = Field(description="tries of this worker that got no answer")
    has_key: bool
    served_version: int | None = Field(description="what the engine says of its weights, if that is a number")
    capabilities: Capabilities | None = Field(description="null until the engine was up once")


class EngineList(BaseModel):
    """The fleet's engines."""

    engines: list[EngineView]


class PolicyBody(_Body):
    """The version of the weights that an engine, or every engine of the run's policies, serves from now on."""

    run_id: Id | None = None
    engine: EngineName | None = None
    version: int = Field(ge=0, lt=2**63)
    trainer_step: int | None = Field(None, ge=0, lt=2**63)
    weights_digest: str | None = Field(None, max_length=256)


class ServedView(BaseModel):
    """The version that an engine serves."""

    engine: str
    version: int | None = Field(description="what labels tokens now: the engine's own word, else what was said of it")
    said: int | None = Field(description="by POST /policy")


class RunPolicy(BaseModel):
    """A run's versions."""

    run_id: str
    trained_version: int | None = Field(description="what the trainer committed last; labels nothing")
    engines: list[ServedView]


class PolicyList(BaseModel):
    """What each run's weights are, as far as is known."""

    runs: list[RunPolicy]


class PlaceBody(_Body):
    """Where calls of a model name go, and whether what they sample is trained."""

    engines: list[EngineName] | None = Field(None, max_length=MAX_ENGINES, description="default: any")
    role: Literal["policy", "frozen"] = Field("policy", description="only what a policy samples is trained")
    policy: Id | None = None


class SamplingBody(_Body):
    """Sampling that a run sets whatever its agents ask for."""

    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)


class RunBody(_Body):
    """How a run's calls are treated from now on; what is not given is at its default."""

    models: dict[Annotated[str, Field(max_length=256)], PlaceBody] = Field(
        default_factory=dict, max_length=256, description="by the name that agents ask for; `*` is every other name"
    )
    sampling: SamplingBody = SamplingBody()
    tito: bool = Field(False, description="send the tokens that are held instead of rendering messages again")
    routed_experts: bool = False


class RunView(BaseModel):
    """How a run's calls are treated."""

    run_id: str
    models: dict[str, ModelPlace]
    sampling: SamplingSet
    tito: bool
    routed_experts: bool


RunId = Annotated[Id, Path()]
EngineId = Annotated[Id, Path()]


class Admin:
    """The deeds."""

    def __init__(self, fleet: Fleet, default_run: str) -> None:
        self._fleet = fleet
        self._default_run = default_run

    # ----------------------------------------------------------------------------------------------------------- engines

    def show(self) -> EngineList:
        return EngineList(engines=[self._view(engine) for engine in self._fleet.roster.all()])

    async def add(self, body: EngineBody) -> EngineView:
        await self._fleet.catch_up(topics.ENGINES)
        identity = engine_id(body.url)
        known = self._fleet.roster.get(identity)
        if known is not None and known.url != body.url:
            raise Refusal(
                409,
                f"{body.url} would have the id {identity}, which {known.url} has: give it another host name or path",
                param="url",
                code="engine_exists",
            )
        if known is None and len(self._fleet.roster.here) >= MAX_ENGINES:
            raise Refusal(409, f"there are {MAX_ENGINES} engines: remove one first", code="too_many_engines")
        await self._fleet.set_engine(
            EngineSet(
                fleet=self._fleet.name,
                engine_id=identity,
                url=body.url,
                weight=body.weight,
                kind=body.kind,
                api_key=body.api_key,
                at=time.time(),
            )
        )
        return self._view(self._fleet.find(identity))

    async def change(self, identity: str, body: EngineChange) -> EngineView:
        await self._fleet.catch_up(topics.ENGINES)
        self._fleet.find(identity)
        # Without a record it is an engine of the settings, and its record must not outlive them: it names no URL.
        record = self._fleet.roster.record(identity) or EngineSet(fleet=self._fleet.name, engine_id=identity, at=0.0)
        change = body.model_dump(exclude_none=True)
        await self._fleet.set_engine(record.model_copy(update=change | {"at": time.time()}))
        return self._view(self._fleet.find(identity))

    async def remove(self, identity: str) -> EngineView:
        await self._fleet.catch_up(topics.ENGINES)
        engine = self._fleet.find(identity)
        await self._fleet.remove(engine)
        return self._view(engine)

    async def pause(self, body: PauseBody, key: Key | None) -> EngineList:
        await self._fleet.catch_up(topics.ENGINES, topics.RUNS)
        await self._fleet.pause(self._named(body.engines, key), body.mode)
        return self.show()

    async def resume(self, body: ResumeBody, key: Key | None) -> EngineList:
        await self._fleet.catch_up(topics.ENGINES, topics.RUNS)
        await self._fleet.resume(self._named(body.engines, key))
        return self.show()

    def _named(self, names: list[str] | None, key: Key | None) -> list[Engine]:
        """The engines that are meant. A trainer of one run means those that may serve its policies, whose weights it changes.

        Raises Refusal: 404 for one that is not there, 403 for one that is not the run's.
        """
        own = None
        if key is not None and key.binds and key.run_id is not None and key.scope != "admin":
            own = self._fleet.models.policy_engines(key.run_id)
        if names is None:
            return [engine for engine in self._fleet.roster.here if own is None or engine.id in own]
        engines = [self._fleet.find(name) for name in dict.fromkeys(names)]
        for engine in engines:
            if own is not None and engine.id not in own:
                raise Refusal(
                    403,
                    f"this key is for run {key and key.run_id}, no policy of which is served by {engine.id}: POST "
                    "/runs/{run_id} says which engines serve it",
                    kind=PERMISSION,
                    param="engines",
                    code="other_engine",
                )
        return engines

    def _view(self, engine: Engine) -> EngineView:
        return EngineView(
            id=engine.id,
            url=engine.url,
            weight=engine.weight,
            kind=engine.kind,
            draining=engine.draining,
            leaving=engine.leaving,
            paused=engine.paused,
            health=engine.health,
            in_flight=engine.in_flight,
            failures=engine.failures,
            has_key=engine.api_key is not None,
            served_version=self._fleet.policies.told(engine.url),
            capabilities=engine.capabilities,
        )

    # ----------------------------------------------------------------------------------------------------------- policy

    async def say(self, body: PolicyBody, key: Key | None) -> RunPolicy:
        run_id = self._run(body.run_id, key)
        await self._fleet.catch_up(topics.ENGINES, topics.RUNS)
        if body.engine is not None:
            engines = [self._fleet.find(body.engine)]
        else:
            wanted = self._fleet.models.policy_engines(run_id)
            engines = [engine for engine in self._fleet.roster.here if wanted is None or engine.id in wanted]
        if not engines:
            raise Refusal(404, f"no engine serves run {run_id}: add one by POST /engines", code="unknown_engine")
        await self._fleet.say(
            Policy(
                run_id=run_id,
                engine=engine.url,
                version=body.version,
                trainer_step=body.trainer_step,
                weights_digest=body.weights_digest,
                at=time.time(),
            )
            for engine in engines
        )
        return self._policy(run_id)

    def policies(self, run_id: str | None, key: Key | None) -> PolicyList:
        if run_id is None and (key is None or key.run_id is None or not key.binds):
            return PolicyList(runs=[self._policy(run) for run in self._fleet.policies.runs()[:MAX_LISTED]])
        return PolicyList(runs=[self._policy(self._run(run_id, key))])

    def _policy(self, run_id: str) -> RunPolicy:
        policies = self._fleet.policies
        trained = policies.trained(run_id)
        said = {policy.engine or "": policy.version for policy in policies.served(run_id)}
        urls = sorted(said.keys() | {engine.url for engine in self._fleet.roster.here})
        return RunPolicy(
            run_id=run_id,
            trained_version=None if trained is None else trained.version,
            engines=[ServedView(engine=url, version=policies.version(url, run_id), said=said.get(url)) for url in urls],
        )

    def _run(self, run_id: str | None, key: Key | None) -> str:
        """The run that is meant. Raises Refusal(403) if it is not the key's."""
        run_id = run_id or (None if key is None else key.run_id) or self._default_run
        check_target(key, run_id=run_id)
        return run_id

    # ------------------------------------------------------------------------------------------------------------- runs

    async def configure(self, run_id: str, body: RunBody) -> RunView:
        models = {name: _place(place) for name, place in body.models.items()}
        config = RunConfig(
            run_id=run_id,
            models=models,
            sampling=SamplingSet(**body.sampling.model_dump()),
            tito=body.tito,
            routed_experts=body.routed_experts,
            at=time.time(),
        )
        await self._fleet.configure(config)
        return self.run(run_id)

    def run(self, run_id: str) -> RunView:
        config = self._fleet.models.config(run_id)
        return RunView(
            run_id=run_id,
            models=config.models,
            sampling=config.sampling,
            tito=config.tito,
            routed_experts=config.routed_experts,
        )


def _place(body: PlaceBody) -> ModelPlace:
    try:
        engines = None if body.engines is None else tuple(map(named_id, body.engines))
    except UserError as error:
        raise Refusal(400, str(error), param="models", code="invalid_field") from error
    return ModelPlace(engines=engines, role=body.role, policy=body.policy)


def make_admin(fleet: Fleet, *, default_run: str) -> APIRouter:
    """The paths of engines, policy and runs."""
    admin = Admin(fleet, default_run)
    router = APIRouter(route_class=BodyRoute, tags=["engines"])

    @router.get("/engines", summary="List the engines")
    async def list_engines() -> EngineList:
        """Every engine with its state in this worker."""
        return admin.show()

    @router.post("/engines", summary="Add an engine")
    async def add_engine(body: EngineBody) -> EngineView:
        """Add an engine to every gateway of the fleet, or set one that is there anew."""
        return await admin.add(body)

    @router.post("/engines/pause", summary="Pause engines")
    async def pause_engines(key: Caller, body: PauseBody | None = None) -> EngineList:
        """Keep new calls from engines, as while their weights change. Calls in flight go on."""
        return await admin.pause(body or PauseBody(engines=None, mode="hold"), key)

    @router.post("/engines/resume", summary="Resume engines")
    async def resume_engines(key: Caller, body: ResumeBody | None = None) -> EngineList:
        """Let engines take calls again; those that tell their weights are asked first."""
        return await admin.resume(body or ResumeBody(engines=None), key)

    @router.patch("/engines/{engine_id}", summary="Change an engine")
    async def change_engine(engine_id: EngineId, body: EngineChange) -> EngineView:
        """Change its weight, kind or key, or drain it."""
        return await admin.change(engine_id, body)

    @router.delete("/engines/{engine_id}", summary="Remove an engine")
    async def remove_engine(engine_id: EngineId) -> EngineView:
        """Give it no new calls, and forget it after its last one."""
        return await admin.remove(engine_id)

    @router.get("/policy", summary="List the served versions")
    async def list_policies(key: Caller, run_id: Annotated[Id | None, Query()] = None) -> PolicyList:
        """Which version each engine serves, by run."""
        return admin.policies(run_id, key)

    @router.post("/policy", summary="Say which version is served")
    async def say_policy(key: Caller, body: PolicyBody) -> RunPolicy:
        """Label the tokens that an engine, or every engine of the run's policies, samples from now on."""
        return await admin.say(body, key)

    @router.get("/runs/{run_id}", summary="Show how a run is set up")
    async def show_run(run_id: RunId) -> RunView:
        """The configuration in force."""
        return admin.run(run_id)

    @router.post("/runs/{run_id}", summary="Set up a run")
    async def configure_run(run_id: RunId, body: RunBody) -> RunView:
        """Map its models to engines and roles, and override its sampling; replaces what was set before."""
        return await admin.configure(run_id, body)

    return router
