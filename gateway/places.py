"""Where trajectories belong, held in bounded memory.

Invariants: no clock and no broker here; what is over is forgotten first, then what was used longest ago, and that is counted.
"""

from collections import OrderedDict
from dataclasses import dataclass

from claw_r1.events import TrajectoryIndex


@dataclass(frozen=True, slots=True)
class Session:
    """Where a trajectory belongs; channel None: the join decides."""

    run_id: str
    prompt_uid: str
    trajectory_uid: str
    channel: str | None = None
    provisional: bool = False
    """The prompt was made for a caller that named none: its first use makes it the trajectory's, or it is replaced."""

    @property
    def index(self) -> TrajectoryIndex:
        return TrajectoryIndex(
            run_id=self.run_id,
            prompt_uid=self.prompt_uid,
            trajectory_uid=self.trajectory_uid,
            channel=self.channel,
            provisional=self.provisional,
        )


class Places:
    """Trajectory → session, bounded."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: OrderedDict[str, Session] = OrderedDict()
        self._over: OrderedDict[str, Session] = OrderedDict()
        """Ended; late calls still belong where they belonged."""
        self.evicted = 0
        """Places of trajectories that had not ended."""

    def get(self, trajectory_uid: str) -> Session | None:
        session = self._known.get(trajectory_uid)
        if session is None:
            return self._over.get(trajectory_uid)
        self._known.move_to_end(trajectory_uid)
        return session

    def pop(self, trajectory_uid: str) -> Session | None:
        return self._known.pop(trajectory_uid, None) or self._over.pop(trajectory_uid, None)

    def end(self, trajectory_uid: str) -> None:
        """The trajectory is over."""
        session = self._known.pop(trajectory_uid, None)
        if session is not None:
            self._over[trajectory_uid] = session

    def put(self, session: Session) -> None:
        self._over.pop(session.trajectory_uid, None)
        self._known[session.trajectory_uid] = session
        self._known.move_to_end(session.trajectory_uid)
        while len(self._known) + len(self._over) > self._limit:
            if self._over:
                self._over.popitem(last=False)
            else:
                self._known.popitem(last=False)
                self.evicted += 1
