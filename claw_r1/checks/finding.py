"""What a check found, and what mends it."""

from dataclasses import dataclass
from typing import Final, Literal

State = Literal["ok", "warn", "bad", "skipped"]
STATES: Final[tuple[State, ...]] = ("ok", "warn", "bad", "skipped")


@dataclass(frozen=True)
class Finding:
    """`warn`: it works, and something is to be known; `bad`: something does not work; `skipped`: it could not be looked at."""

    check: str
    state: State
    says: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.state == "ok" or self.remedy, f"{self.check}: what is not well needs a remedy"


def ok(check: str, says: str) -> Finding:
    return Finding(check, "ok", says)
