"""What trainers and engines say about weights becomes the version that labels a token.

Invariants:
- no clock and no network here;
- what an engine says of its weights outranks what was said of the engine; what a trainer trained labels nothing;
- what was said of an engine before its process was lost is void: whoever starts it again says anew what it serves;
- memory is bounded; a forgotten version is unknown.
"""

from collections import OrderedDict
from typing import Final, TypeVar

from claw_r1.events import Policy

MAX_SAID: Final = 65536
"""Pairs of run and engine whose version is held, and runs whose trained version is."""
K = TypeVar("K")
V = TypeVar("V")


class Policies:
    """Engine URL and run → the version of the weights that sample now."""

    def __init__(self) -> None:
        self._said: OrderedDict[tuple[str, str], Policy] = OrderedDict()
        self._trained: OrderedDict[str, Policy] = OrderedDict()
        self._told: dict[str, int] = {}
        self._void: dict[str, int] = {}
        self._next = 0

    def version(self, engine: str, run_id: str) -> int | None:
        """The version that the engine serves now, as far as it is known.

        A response's version is this, asked before its first token was sampled (for an answer that comes whole: before the
        call was sent) and after its last, if the two are equal.
        """
        told = self._told.get(engine)
        if told is not None:
            return told
        said = self._said.get((run_id, engine))
        return None if said is None else said.version

    def take(self, policy: Policy, offset: int) -> None:
        """A record of `claw.policy.v1`."""
        self._next = max(self._next, offset + 1)
        if policy.engine is None:
            _put(self._trained, policy.run_id, policy)
        elif offset >= self._void.get(policy.engine, 0):
            _put(self._said, (policy.run_id, policy.engine), policy)

    def drop(self, key: str) -> None:
        """A record was withdrawn; `key` is `run_id` or `run_id/engine`."""
        run_id, slash, engine = key.partition("/")
        if slash:
            self._said.pop((run_id, engine), None)
        else:
            self._trained.pop(run_id, None)

    def tell(self, engine: str, version: int | None) -> None:
        """What the engine itself says; None: it says nothing that is a number."""
        if version is None:
            self._told.pop(engine, None)
        else:
            self._told[engine] = version

    def lose(self, engine: str) -> None:
        """The engine's process is gone: what it served is no longer known."""
        self._told.pop(engine, None)
        self._void[engine] = self._next
        for key in [key for key in self._said if key[1] == engine]:
            del self._said[key]

    def forget(self, engine: str) -> None:
        """The engine was removed."""
        self._told.pop(engine, None)
        self._void.pop(engine, None)

    def trained(self, run_id: str) -> Policy | None:
        """The newest weights that a trainer committed."""
        return self._trained.get(run_id)

    def runs(self) -> list[str]:
        """Every run of which something is known."""
        return sorted(self._trained.keys() | {run_id for run_id, _ in self._said})

    def served(self, run_id: str) -> list[Policy]:
        """What was said of engines for this run, by engine."""
        return sorted(
            (said for (run, _), said in self._said.items() if run == run_id), key=lambda said: said.engine or ""
        )

    def told(self, engine: str) -> int | None:
        """What the engine itself says."""
        return self._told.get(engine)


def _put(table: OrderedDict[K, V], key: K, value: V) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > MAX_SAID:
        table.popitem(last=False)
