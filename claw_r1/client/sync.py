"""Calls go out and answers come in, one at a time, over the standard library's HTTP; several threads may share a client.

Invariants: a call is tried again, after a growing random wait, whenever that may help, because all are idempotent; every try
has a deadline, and so has the whole.
"""

import functools
import http.client
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar, Unpack

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

MAX_IDLE: Final = 16
"""Connections that are kept for the next calls."""
P = ParamSpec("P")
T = TypeVar("T")
_NOTHING: Final[Mapping[str, Any]] = {}


def _deed(build: Callable[P, Call[T]]) -> Callable[Concatenate["Client", P], T]:
    """A method that makes the call and waits for its answer."""

    @functools.wraps(build)
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(build(*args, **kwargs))

    return method


class Client:
    """A gateway, for programs that wait. `api_key`: of `claw keys mint`, where the gateway asks for one."""

    def __init__(self, url: str, *, api_key: str | None = None, patience: Patience | None = None) -> None:
        self._address = Address.of(url)
        self._patience = patience or Patience()
        self._headers = {"content-type": MSGPACK, "accept": "application/json"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._tls = ssl.create_default_context() if self._address.secure else None
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

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
    ) -> "Rollout":
        """Begin a trajectory; as a block it ends where the block does, failed if an error leaves it."""
        began = self.init_trajectory(
            prompt_uid=prompt_uid,
            trajectory_uid=trajectory_uid,
            run_id=run_id,
            channel=channel,
            task_id=task_id,
            metadata=metadata,
        )
        return Rollout(self, began)

    def send(self, call: Call[T]) -> T:
        """The call's answer. Raises CallRefused, or GatewayAway when patience is at its end."""
        tried = 0
        while True:
            tried += 1
            asked = None
            try:
                reply = self._try(call)
                asked = reply.retry_after
                return read(call, reply)
            except GatewayAway as error:
                wait = self._patience.wait(tried, random.random(), asked)
                if wait is None:
                    error.add_note(f"tried {tried} times")
                    raise
            time.sleep(wait)

    def close(self) -> None:
        """Close the kept connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _try(self, call: Call[Any]) -> Reply:
        """One answer. Raises GatewayAway if none came."""
        kept = self._take()
        if kept is not None:
            try:
                return self._ask(kept, call)
            except (ConnectionError, http.client.HTTPException, OSError):
                kept.close()  # the gateway may have closed it while it was idle: that says nothing of the gateway
        fresh = self._connect()
        try:
            return self._ask(fresh, call)
        except (http.client.HTTPException, OSError) as error:
            fresh.close()
            where = f"{self._address.host}:{self._address.port}"
            raise GatewayAway(f"{call.path}: no answer from {where}: {str(error) or type(error).__name__}") from error

    def _ask(self, connection: http.client.HTTPConnection, call: Call[Any]) -> Reply:
        timeout = self._patience.of(call)
        connection.timeout = timeout
        if connection.sock is not None:
            connection.sock.settimeout(timeout)
        connection.request("POST", self._address.prefix + call.path, call.body, self._headers)
        with connection.getresponse() as response:
            body = response.read()
            reply = Reply(response.status, body, retry_after(response.getheader("retry-after")))
            closes = response.will_close
        with self._lock:
            if not closes and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return reply
        connection.close()
        return reply

    def _take(self) -> http.client.HTTPConnection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is not None:
            return http.client.HTTPSConnection(self._address.host, self._address.port, context=self._tls)
        return http.client.HTTPConnection(self._address.host, self._address.port)


class Rollout(Course):
    """A trajectory that has begun. As a block it ends where the block does."""

    def __init__(self, client: Client, began: Trajectory) -> None:
        super().__init__(began)
        self._client = client

    def submit_step(
        self, prompt_ids: Ids, response_ids: Ids, log_probs: Floats | None = None, **more: Unpack[StepFields]
    ) -> str:
        """Record a step that was sampled; its id names it to rewards and annotations."""
        step = Step(prompt_ids=prompt_ids, response_ids=response_ids, log_probs=log_probs, **more)
        return self.submit_steps([step])[0]

    def submit_steps(self, steps: Sequence[Step]) -> list[str]:
        """Record steps in one request: all of them, or an error."""
        return self._client.send(self._submit(steps)).step_ids

    def generate(self, prompt_ids: Ids, sampling_params: Json = _NOTHING) -> Generated:
        """Sample of this trajectory's engine, tokens in and tokens out. Nothing is recorded."""
        return self._client.send(self._generate(prompt_ids, sampling_params))

    def reward(
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
        self._client.send(self._reward(value, source, step_id, components, revision, metadata))

    def annotate(
        self, step_id: str, name: str, values: Floats, *, source: str = "annotation", revision: int | None = None
    ) -> None:
        """Give a step a named array, a number for each response token."""
        self._client.send(self._annotate(step_id, name, values, source, revision))

    def complete(
        self, *, reward: float | None = None, status: EndStatus = "completed", reason: str | None = None
    ) -> None:
        """Say that the trajectory is over."""
        self._client.send(self._end(reward, status, reason))
        self.ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.ended:
            return
        status, reason = end_of(error)
        try:
            self.complete(status=status, reason=reason)
        except ClawError as second:
            if error is None:
                raise
            error.add_note(f"its trajectory {self.trajectory_uid} could not be ended: {second}")
