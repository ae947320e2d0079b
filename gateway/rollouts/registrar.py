"""What a caller names finds its place, and the place is known to every replica before anything is said of it.

Invariants:
- run, prompt and channel come from the path or the body, else from the key, else from the index, else the default run;
- a key speaks only of what it is bound to;
- the index is written before a trajectory's first fact and erased after its end.
"""

import logging
import time

from claw_r1 import topics
from claw_r1.errors import RetryableError
from claw_r1.events import Event
from claw_r1.ids import new_id
from claw_r1.keys import Key
from gateway.calls.chains import ChainMemory
from gateway.durable.recorder import Recorder
from gateway.places import Session
from gateway.replies import Refusal
from gateway.sessions import Sessions

log = logging.getLogger("claw.gateway.rollout")

ChainKey = tuple[str, str, str]


class Registrar:
    """Places of trajectories and groups, for one request at a time."""

    def __init__(self, default_run: str, recorder: Recorder, sessions: Sessions, memory: ChainMemory[ChainKey]) -> None:
        self._default_run = default_run
        self._recorder = recorder
        self._sessions = sessions
        self._memory = memory

    def run_of(self, key: Key | None, run_id: str | None) -> str:
        """The run of what is no trajectory. Raises Refusal(403)."""
        return self._claimed_run(key, run_id) or self._default_run

    def prompt_of(self, key: Key | None, prompt_uid: str | None) -> str | None:
        """The prompt that the body or the key names. Raises Refusal(403)."""
        bound = key.prompt_uid if key else None
        if bound is not None and prompt_uid not in (None, bound):
            raise _foreign("prompt_uid", bound, "other_prompt")
        return prompt_uid or bound

    async def find(
        self,
        key: Key | None,
        trajectory_uid: str | None,
        prompt_uid: str | None = None,
        *,
        run_id: str | None = None,
        channel: str | None = None,
    ) -> tuple[Session, bool]:
        """The place, and whether the index does not say it yet.

        Raises Refusal: 400 if no trajectory is named, 403 if the key is for another, 404 if its prompt is not known, 409 if it
        belongs to another run.
        """
        bound = key.trajectory_uid if key else None
        if bound is not None and trajectory_uid not in (None, bound):
            raise _foreign("trajectory_uid", bound, "other_trajectory")
        trajectory_uid = trajectory_uid or bound
        if trajectory_uid is None:
            raise Refusal(
                400,
                "this names no trajectory: send trajectory_uid, or the trajectory's session key",
                param="trajectory_uid",
                code="missing_field",
            )
        run_id = self._claimed_run(key, run_id)
        prompt_uid = self.prompt_of(key, prompt_uid)
        if prompt_uid is None:
            known = await self._sessions.find(trajectory_uid)
            if known is None:
                raise _unknown(trajectory_uid)
            prompt_uid = known.prompt_uid
        channel = channel or (key.channel if key else None)
        return await self._sessions.resolve(trajectory_uid, prompt_uid, run_id=run_id, channel=channel)

    async def begin(
        self, key: Key | None, trajectory_uid: str | None, prompt_uid: str, *, run_id: str | None, channel: str | None
    ) -> tuple[Session, bool]:
        """The same for a trajectory that may be new: without a name it gets one."""
        if trajectory_uid is not None or (key is not None and key.trajectory_uid is not None):
            return await self.find(key, trajectory_uid, prompt_uid, run_id=run_id, channel=channel)
        channel = channel or (key.channel if key else None)
        return Session(self.run_of(key, run_id), prompt_uid, new_id(), channel), True

    async def enter(
        self,
        key: Key | None,
        trajectory_uid: str | None,
        prompt_uid: str | None = None,
        *,
        run_id: str | None = None,
        channel: str | None = None,
    ) -> Session:
        """The place, which every replica knows from now on. Raises what `find` does."""
        session, fresh = await self.find(key, trajectory_uid, prompt_uid, run_id=run_id, channel=channel)
        if fresh:
            await self.write(session)
        return session

    async def write(self, session: Session) -> None:
        """Write the index."""
        key = session.trajectory_uid.encode()
        await self._recorder.publish(session.index, topic=topics.TRAJECTORY_INDEX, key=key)
        self._sessions.put(session)

    async def end(self, session: Session, *facts: Event) -> None:
        """Record the trajectory's last facts and forget it."""
        await self._recorder.publish(*facts)
        await self.forget(session)

    async def forget(self, session: Session) -> None:
        """The trajectory's end is durable."""
        self._memory.forget((session.run_id, session.prompt_uid, session.trajectory_uid))
        try:
            await self._recorder.erase(topics.TRAJECTORY_INDEX, session.trajectory_uid.encode())
        except RetryableError as error:
            # The end itself is durable; an index entry too many costs a line in a compacted topic.
            log.warning("a finished trajectory stays in the index", extra={"error": str(error)})

    def _claimed_run(self, key: Key | None, run_id: str | None) -> str | None:
        bound = key.run_id if key else None
        if bound is not None and run_id not in (None, bound):
            raise _foreign("run_id", bound, "other_run")
        return run_id or bound


def is_self_reported(key: Key | None) -> bool:
    """Whether a reward that came with this key is the agent's own word."""
    return key is not None and key.scope == "rollout"


def is_admitted(key: Key | None) -> bool:
    """Whether the key is of a group that was let in."""
    return key is not None and key.admitted


def now() -> float:
    """Seconds since the epoch, as facts are stamped."""
    return time.time()


def _foreign(name: str, bound: str, code: str) -> Refusal:
    return Refusal(
        403,
        f"the key is for the {name} {bound} alone: send that one or none, or use the key of the one that you mean",
        param=name,
        code=code,
    )


def _unknown(trajectory_uid: str) -> Refusal:
    return Refusal(
        404,
        f"trajectory {trajectory_uid} is not known here: send its prompt_uid (and run_id, if not the default)",
        param="prompt_uid",
        code="unknown_trajectory",
    )
