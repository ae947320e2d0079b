"""Calls go out and answers come in, many at a time, over aiohttp (`pip install claw-r1[client]`).

Invariants: those of claw_r1.client.sync, of which this is the asyncio form.
"""

import asyncio
import functools
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, Unpack

import aiohttp

from claw_r1.client import requests
from claw_r1.client.calls import (
    MSGPACK,
    Address,
    Call,
    Floats,
    GatewayAway,
    Generated,
    Ids,
    Json,
    Patience,
    Reply,
    Trajectory,
    read,
    retry_after,
)
from claw_r1.client.course import Course, end_of
from claw_r1.client.steps import Step, StepFields
from claw_r1.errors import ClawError
from claw_r1.recipes import EndStatus

P = ParamSpec("P")
T = TypeVar("T")
_NOTHING: Final[Mapping[str, Any]] = {}


def _deed(build: Callable[P, Call[T]]) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, T]]:
    """A method that makes the call and awaits its answer."""

    @functools.wraps(build)
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(build(*args, **kwargs))

    return method


class AsyncClient:
    """A gateway, for programs that await; used as a block. `api_key`: of `claw keys mint`, where the gateway asks for one."""

    def __init__(
        self, url: str, *, api_key: str | None = None, patience: Patience | None = None, connections: int = 256
    ) -> None:
        address = Address.of(url)
        self._url = (
            f"{'https' if address.secure else 'http'}://{_bracketed(address.host)}:{address.port}{address.prefix}"
        )
        self._patience = patience or Patience()
        self._connections = connections
        self._headers = {"content-type": MSGPACK, "accept": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None

    init_trajectory = _deed(requests.init_trajectory)
    complete_trajectory = _deed(requests.complete_trajectory)
    open_group = _deed(requests.open_group)
    cancel_group = _deed(requests.cancel_group)
    reward = _deed(requests.reward)
    annotate = _deed(requests.annotate)
    feedback = _deed(requests.feedback)
    decide = _deed(requests.decide)
    submit_steps = _deed(requests.submit_steps)
    generate = _deed(requests.generate)
    compute_reward = _deed(requests.compute_reward)

    def trajectory(
        self,
        *,
        prompt_uid: str | None = None,
        trajectory_uid: str | None = None,
        run_id: str | None = None,
        channel: str | None = None,
        task_id: str | None = None,
        metadata: Json = _NOTHING,
    ) -> "AsyncBeginning":
        """A trajectory that begins where its `async with` does and ends there too, failed if an error leaves the block."""
        return AsyncBeginning(
            self,
            requests.init_trajectory(
                prompt_uid=prompt_uid,
                trajectory_uid=trajectory_uid,
                run_id=run_id,
                channel=channel,
                task_id=task_id,
                metadata=metadata,
            ),
        )

    async def send(self, call: Call[T]) -> T:
        """The call's answer. Raises CallRefused, or GatewayAway when patience is at its end."""
        tried = 0
        while True:
            tried += 1
            asked = None
            try:
                reply = await self._try(call)
                asked = reply.retry_after
                return read(call, reply)
            except GatewayAway as error:
                wait = self._patience.wait(tried, random.random(), asked)
                if wait is None:
                    error.add_note(f"tried {tried} times")
                    raise
            await asyncio.sleep(wait)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _try(self, call: Call[Any]) -> Reply:
        """One answer. Raises GatewayAway if none came."""
        if self._session is None:  # made in the loop that uses it
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        try:
            timeout = aiohttp.ClientTimeout(total=self._patience.of(call))
            async with self._session.post(
                self._url + call.path, data=call.body, allow_redirects=False, timeout=timeout
            ) as response:
                body = await response.read()
                return Reply(response.status, body, retry_after(response.headers.get("retry-after")))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise GatewayAway(
                f"{call.path}: no answer from {self._url}: {str(error) or type(error).__name__}"
            ) from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class AsyncBeginning:
    """A trajectory before its block."""

    def __init__(self, client: AsyncClient, init: Call[Trajectory]) -> None:
        self._client = client
        self._init = init
        self._rollout: AsyncRollout | None = None

    async def __aenter__(self) -> "AsyncRollout":
        self._rollout = AsyncRollout(self._client, await self._client.send(self._init))
        return self._rollout

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        rollout = self._rollout
        if rollout is None or rollout.ended:
            return
        status, reason = end_of(error)
        try:
            await rollout.complete(status=status, reason=reason)
        except ClawError as second:
            if error is None:
                raise
            error.add_note(f"its trajectory {rollout.trajectory_uid} could not be ended: {second}")


class AsyncRollout(Course):
    """A trajectory that has begun."""

    def __init__(self, client: AsyncClient, began: Trajectory) -> None:
        super().__init__(began)
        self._client = client

    async def submit_step(
        self, prompt_ids: Ids, response_ids: Ids, log_probs: Floats | None = None, **more: Unpack[StepFields]
    ) -> str:
        """Record a step that was sampled; its id names it to rewards and annotations."""
        step = Step(prompt_ids=prompt_ids, response_ids=response_ids, log_probs=log_probs, **more)
        return (await self.submit_steps([step]))[0]

    async def submit_steps(self, steps: Sequence[Step]) -> list[str]:
        """Record steps in one request: all of them, or an error."""
        return (await self._client.send(self._submit(steps))).step_ids

    async def generate(self, prompt_ids: Ids, sampling_params: Json = _NOTHING) -> Generated:
        """Sample of this trajectory's engine, tokens in and tokens out. Nothing is recorded."""
        return await self._client.send(self._generate(prompt_ids, sampling_params))

    async def reward(
        self,
        value: float | None,
        *,
        source: str = "reward",
        step_id: str | None = None,
        components: Mapping[str, float] = _NOTHING,
        revision: int | None = None,
        metadata: Json = _NOTHING,
    ) -> None:
        """Score the trajectory, or a step of it. Said again, the newest value counts; None withdraws it."""
        await self._client.send(self._reward(value, source, step_id, components, revision, metadata))

    async def annotate(
        self, step_id: str, name: str, values: Floats, *, source: str = "annotation", revision: int | None = None
    ) -> None:
        """Give a step a named array, a number for each response token."""
        await self._client.send(self._annotate(step_id, name, values, source, revision))

    async def complete(
        self, *, reward: float | None = None, status: EndStatus = "completed", reason: str | None = None
    ) -> None:
        """Say that the trajectory is over."""
        await self._client.send(self._end(reward, status, reason))
        self.ended = True
