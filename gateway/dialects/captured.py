"""What a reply of an engine gives up: its tokens, log-probs, versions and text, choice by choice.

Invariants: nothing is needed; what is missing is None and never guessed; what no record can hold is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
from msgspec import Raw, Struct

from claw_r1.codec import pack_ids
from claw_r1.events import BlobRef, VersionSpan

MAX_CHOICES: Final = 128
MISSING_LOG_PROB: Final = -9999.0
"""What vLLM writes for a log-prob that it does not have."""
_TOO_LARGE: Final = float(np.finfo("<f4").max)


@dataclass(slots=True)
class Choice:
    """One choice of a reply, as captured; None is what the engine did not give."""

    index: int
    response_ids: bytes | None = None
    log_probs: bytes | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    versions: tuple[VersionSpan, ...] = ()
    reply: bytes | None = None
    """JSON object: the assistant message."""
    prompt_json: bytes | None = None
    """JSON array of the token ids of this choice's own prompt, where the choices of a call have several."""
    routed_experts: bytes | None = None
    """JSON string: base64 of a NumPy file, or of the numbers alone."""
    experts_layout: tuple[int, int | None] | None = None
    """Of numbers alone: (tokens, layers; None: not known)."""
    experts: BlobRef | None = None
    """The same, stored."""
    faults: tuple[str, ...] = ()


@dataclass(slots=True)
class Captured:
    """A reply, as captured."""

    prompt_json: bytes | None = None
    """JSON array of the token ids of the prompt that all choices share."""
    choices: list[Choice] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    model: str | None = None
    response_id: str | None = None
    faults: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    """Of the step."""

    @property
    def aborted(self) -> bool:
        """Whether the engine gave the call up, as it does when its weights change."""
        return any(choice.finish_reason == "abort" for choice in self.choices)


class Version(Struct):
    """A span of tokens as vLLM writes it."""

    version: int | str | None = None
    start: int = 0
    end: int = 0


def given(raw: Raw) -> bytes | None:
    """The JSON of a member; None if it is absent or null."""
    value = bytes(raw)
    return value if value and value != b"null" else None


def read_versions(versions: Sequence[Version] | None) -> tuple[VersionSpan, ...]:
    """The spans that a record can hold."""
    if not versions:
        return ()
    held = ((label(v.version), v.start, v.end) for v in versions or () if 0 <= v.start <= v.end < 2**32)
    return tuple(VersionSpan(version=version, start=start, end=end) for version, start, end in held)


def label(version: int | str | None) -> int | None:
    """Labels are free text to an engine; only a number says which policy it was."""
    if isinstance(version, str):
        version = int(version) if version.isascii() and version.isdigit() and len(version) < 20 else None
    return version if version is not None and 0 <= version < 2**63 else None


def read_usage(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the engine counted, if a record can hold it."""
    try:
        msgspec.msgpack.encode(usage)
    except (OverflowError, ValueError, RecursionError):
        return None
    return usage


def read_stop_reason(reason: int | str | None) -> int | str | None:
    """The stop string or token id; a number that no record can hold as text."""
    return str(reason) if isinstance(reason, int) and not -(2**63) <= reason < 2**63 else reason


def pack(choice: Choice, ids: Sequence[int] | None, log_probs: Sequence[float | None] | None) -> None:
    """Give a choice its tokens, with the faults that they show."""
    try:
        choice.response_ids = None if ids is None else pack_ids(ids)
    except (OverflowError, ValueError):
        choice.faults += ("bad_token_ids",)
    if log_probs is not None:
        try:
            values = np.fromiter(log_probs, "<f8", len(log_probs))
        except TypeError:  # one of them is None
            values = np.array([MISSING_LOG_PROB if value is None else value for value in log_probs], "<f8")
        if values.size and not (
            np.minimum.reduce(values) > MISSING_LOG_PROB and np.maximum.reduce(values) < _TOO_LARGE
        ):
            choice.faults += ("log_prob_missing",)
            with np.errstate(over="ignore"):  # what 32 bits cannot hold becomes infinite
                choice.log_probs = values.astype("<f4").tobytes()
        else:
            choice.log_probs = values.astype("<f4").tobytes()
