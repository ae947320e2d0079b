"""A call's key and the engines' loads become the order in which the engines are tried.

Invariants: no clock and no network here; the same key, engines and loads give the same order in every process; an engine
that comes or goes moves only the keys that prefer it.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

ALWAYS_ROOM: Final = 8
"""Calls that an engine takes whatever its share is: the parallel calls of one agent belong to one prefix cache."""


@dataclass(frozen=True, slots=True)
class Share:
    """An engine as the balance sees it; `weight` > 0, `load` in calls."""

    name: str
    weight: float = 1.0
    load: int = 0
    down: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """Every engine's name, best first, and why the first is not the one that the key prefers."""

    order: tuple[str, ...]
    passed_over: Literal["load", "down"] | None = None


def choose(key: str, shares: Sequence[Share], *, factor: float) -> Choice:
    """The order for a call that is not among the loads yet.

    Rendezvous hashing with bounded loads: an engine whose load has reached `factor` times its share of all calls is passed
    over while another has room (Mirrokni et al., "Consistent hashing with bounded loads", 2016); those that are down come last.
    """
    preferred = sorted(shares, key=lambda share: (-_score(share, key), share.name))
    up = [share for share in preferred if not share.down]
    calls = 1 + sum(share.load for share in up)
    weight = sum(share.weight for share in up)
    ranked = sorted(preferred, key=lambda share: (share.down, not share.down and _full(share, calls, weight, factor)))
    passed_over: Literal["load", "down"] | None = None
    if ranked and ranked[0] is not preferred[0]:
        passed_over = "down" if preferred[0].down else "load"
    return Choice(tuple(share.name for share in ranked), passed_over)


def _full(share: Share, calls: int, weight: float, factor: float) -> bool:
    return share.load >= max(ALWAYS_ROOM, math.ceil(factor * calls * share.weight / weight))


def _score(share: Share, key: str) -> float:
    """Highest wins; the chance to win is proportional to the weight (weighted rendezvous hashing)."""
    digest = hashlib.blake2b(f"{share.name}\n{key}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "little") + 0.5) / 2.0**64
    return share.weight / -math.log(uniform) if uniform < 1.0 else math.inf
