"""The rollout API's paths: a body of JSON or msgpack is checked, its deed is done, and the answer or the error goes back.

Invariants: upstream Claw-R1's paths and JSON keep working; every answer that is no result has the one error shape; who may call
was decided before (`scope["state"]["key"]`).
"""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request

from claw_r1.blobs import Blobs
from claw_r1.keys import Key
from claw_r1.settings import GatewaySettings
from gateway.calls.chains import ChainMemory
from gateway.calls.feedback import Responses
from gateway.durable.recorder import Recorder
from gateway.limits import Limits
from gateway.rollouts.bodies import (
    Accepted,
    AnnotationBodies,
    CancelBody,
    CompleteNamed,
    CompletePrompt,
    CompleteTrajectory,
    Decided,
    DecisionBodies,
    FeedbackBody,
    GenerateBody,
    Generated,
    Group,
    GroupBody,
    Id,
    InitTrajectory,
    Ok,
    RegisterNamed,
    RegisterTrajectory,
    RewardAnswer,
    RewardBodies,
    RewardQuestion,
    SubmitSteps,
    Submitted,
    Trajectory,
)
from gateway.rollouts.documents import describe
from gateway.rollouts.gate import Gate
from gateway.rollouts.generation import Generation
from gateway.rollouts.refusals import answer_errors
from gateway.rollouts.registrar import ChainKey, Registrar
from gateway.rollouts.rollout import Rollouts
from gateway.rollouts.scoring import Scoring, find_reward
from gateway.rollouts.submission import Submissions
from gateway.rollouts.wire import BodyRoute
from gateway.sessions import Sessions
from gateway.upstream.fleet import Fleet

Uid = Annotated[Id, Path()]


def caller(request: Request) -> Key | None:
    """The key that was verified, None if the call came without one."""
    key = (request.scope.get("state") or {}).get("key")
    return key if isinstance(key, Key) else None


Caller = Annotated[Key | None, Depends(caller)]


def make_api(
    settings: GatewaySettings,
    recorder: Recorder,
    sessions: Sessions,
    fleet: Fleet,
    limits: Limits,
    memory: ChainMemory[ChainKey],
    *,
    blobs: Blobs,
    responses: Responses,
    gate: Gate,
    others: Sequence[APIRouter] = (),
) -> FastAPI:
    """The rollout API, with other routers of the gateway beside it, and one OpenAPI document of them all.

    Raises WrongUse for a reward function that cannot be loaded.
    """
    registrar = Registrar(settings.run, recorder, sessions, memory)
    rollouts = Rollouts(settings, recorder, registrar, responses, gate)
    submissions = Submissions(recorder, registrar, memory, blobs)
    scoring = Scoring(find_reward(settings.reward), settings.reward_timeout)
    generation = Generation(settings, fleet, limits)
    api = FastAPI(title="Claw-R1 gateway", version="1", docs_url=None, redoc_url=None, redirect_slashes=False)
    api.router.route_class = BodyRoute
    for router in (
        _trajectories(rollouts),
        _judgements(rollouts),
        _white_box(registrar, submissions, scoring, generation),
    ):
        api.include_router(router)
    for router in others:
        api.include_router(router)
    answer_errors(api)
    describe(api)
    return api


def _trajectories(rollouts: Rollouts) -> APIRouter:
    router = APIRouter(route_class=BodyRoute, tags=["trajectories"])

    @router.post("/init_trajectory", summary="Begin a trajectory")
    async def init_trajectory(key: Caller, body: InitTrajectory | None = None) -> Trajectory:
        """Take or make ids, and answer the base URL and the key for an agent."""
        return await rollouts.init(body or InitTrajectory(), key)

    @router.post("/{trajectory_uid}/{prompt_uid}/v1/register_trajectory", summary="Describe a trajectory")
    async def register_here(
        trajectory_uid: Uid, prompt_uid: Uid, key: Caller, body: RegisterTrajectory | None = None
    ) -> Ok:
        """Say a trajectory's channel, task and metadata."""
        return await rollouts.register(trajectory_uid, prompt_uid, body or RegisterTrajectory(), key)

    @router.post("/{trajectory_uid}/{prompt_uid}/v1/complete_trajectory", summary="End a trajectory")
    async def complete_here(
        trajectory_uid: Uid, prompt_uid: Uid, key: Caller, body: CompleteTrajectory | None = None
    ) -> Ok:
        """Say that a trajectory is over, with its reward if it has one."""
        return await rollouts.complete(trajectory_uid, prompt_uid, body or CompleteTrajectory(), key)

    @router.post("/v1/register_trajectory", summary="Describe a trajectory, named in the body or by the key")
    async def register_named(key: Caller, body: RegisterNamed | None = None) -> Ok:
        """Say a trajectory's channel, task and metadata."""
        body = body or RegisterNamed()
        return await rollouts.register(body.trajectory_uid, body.prompt_uid, body, key)

    @router.post("/v1/complete_trajectory", summary="End a trajectory, named in the body or by the key")
    async def complete_named(key: Caller, body: CompleteNamed | None = None) -> Ok:
        """Say that a trajectory is over, with its reward if it has one."""
        body = body or CompleteNamed()
        return await rollouts.complete(body.trajectory_uid, body.prompt_uid, body, key)

    @router.post("/complete_trajectory/{trajectory_uid}", summary="End a trajectory, named in the path")
    async def complete_by_uid(trajectory_uid: Uid, key: Caller, body: CompletePrompt | None = None) -> Ok:
        """Say that a trajectory is over, with its reward if it has one."""
        body = body or CompletePrompt()
        return await rollouts.complete(trajectory_uid, body.prompt_uid, body, key)

    @router.post("/groups", summary="Announce a group")
    async def groups(key: Caller, body: GroupBody | None = None) -> Group:
        """Announce a sampling round of a task and how many trajectories it will have."""
        return await rollouts.open_group(body or GroupBody(), key)

    @router.post("/groups/{prompt_uid}/cancel", summary="Cancel a group")
    async def cancel(prompt_uid: Uid, key: Caller, body: CancelBody | None = None) -> Ok:
        """Say that a group will not be finished: nothing of it is trained."""
        return await rollouts.cancel_group(prompt_uid, body or CancelBody(), key)

    return router


def _judgements(rollouts: Rollouts) -> APIRouter:
    router = APIRouter(route_class=BodyRoute, tags=["judgements"])

    @router.post("/rewards", summary="Reward steps, trajectories or groups")
    async def rewards(body: RewardBodies, key: Caller) -> Accepted:
        """One reward or a list of them; a key of the scope rollout makes them self-reported."""
        return await rollouts.reward(body if isinstance(body, list) else [body], key)

    @router.post("/annotations", summary="Annotate steps")
    async def annotations(body: AnnotationBodies, key: Caller) -> Accepted:
        """One named array on a step's response tokens, or a list of them."""
        return await rollouts.annotate(body if isinstance(body, list) else [body], key)

    @router.post("/decisions", summary="Decide about steps, trajectories or groups")
    async def decisions(body: DecisionBodies, key: Caller) -> Decided:
        """One decision or a list of them: they change what is trained until a batch has their group, and are late then."""
        return await rollouts.decide(body if isinstance(body, list) else [body], key)

    @router.post("/feedback", summary="Say what an answer was worth")
    async def feedback(body: FeedbackBody, key: Caller) -> Accepted:
        """Feedback of a person or a program, by the reply's id: a value becomes a reward, other words a tag or a note."""
        return await rollouts.feedback(body, key)

    return router


def _white_box(registrar: Registrar, submissions: Submissions, scoring: Scoring, generation: Generation) -> APIRouter:
    router = APIRouter(route_class=BodyRoute, tags=["white-box agents"])

    @router.post("/submit_steps", summary="Submit steps")
    async def submit_steps(
        body: SubmitSteps, key: Caller, channel: Annotated[Id | None, Query(description="of all the steps")] = None
    ) -> Submitted:
        """Steps that an agent sampled itself: all of a request are recorded, or none was found right."""
        return await submissions.submit(body, channel, key)

    @router.post("/compute_reward", summary="Ask the reward function")
    async def compute_reward(body: RewardQuestion) -> RewardAnswer:
        """Score a response by the function that the gateway was started with. Nothing is recorded."""
        return await scoring.score(body)

    @router.post("/generate", summary="Sample tokens")
    async def generate(body: GenerateBody, key: Caller, request: Request) -> Generated:
        """Tokens in, tokens out, of an engine. Nothing is recorded: submit the step that they become part of."""
        run_id = registrar.run_of(key, body.run_id)
        return await generation.generate(body, run_id, key, request.scope["headers"], request.receive)

    return router
