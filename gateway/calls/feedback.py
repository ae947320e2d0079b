"""A reply's id leads back to the step that was recorded of it, for feedback that comes later.

Invariants: no clock and no broker here; memory is bounded, and what was put in first is forgotten first.
"""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Origin:
    """The step of a reply."""

    run_id: str
    prompt_uid: str
    trajectory_uid: str
    step_id: str


class Responses:
    """Reply id → origin, for the newest `limit` replies of this process."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._origins: OrderedDict[str, Origin] = OrderedDict()

    def __len__(self) -> int:
        return len(self._origins)

    def put(self, response_id: str, origin: Origin) -> None:
        """Remember a reply whose step is durable; one of the same id takes the other's place."""
        self._origins[response_id] = origin
        self._origins.move_to_end(response_id)
        if len(self._origins) > self._limit:
            self._origins.popitem(last=False)

    def get(self, response_id: str) -> Origin | None:
        """None: never given here, or so long ago that it is forgotten."""
        return self._origins.get(response_id)
