"""Names of things: their form, how new ones are made, and how derived ones follow from what they name.

Derived ids are digests of their parts, so that a replay, a retry or a second worker gives the same id.
"""

import hashlib
import os
import re
import time

from claw_r1.errors import UserError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def check_id(field: str, value: str) -> str:
    """Return `value` if it has the form of an id, else raise UserError naming the field."""
    if not _ID.fullmatch(value):
        raise UserError(
            f"{field} {value[:40]!r} is not an id: use 1 to 128 of A-Z a-z 0-9 _ . - and begin with a letter or a digit"
        )
    return value


def new_id() -> str:
    """A new id of 32 hex digits that sorts by creation time (milliseconds), as UUID version 7 does (RFC 9562)."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


def derived_id(*parts: object) -> str:
    """The id of 32 hex digits that these parts always give."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = str(part).encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return digest.hexdigest()


def group_id(prompt_uid: str, round_: int, part: int = 1) -> str:
    """A group is one round of a prompt: rounds count from 1, and the first has the prompt's own name. Part 2 is a further
    group that a recipe makes of the round's late trajectories."""
    round_id = prompt_uid if round_ == 1 else f"{prompt_uid}#{round_}"
    return round_id if part == 1 else f"{round_id}+{part}"


def split_group_id(name: str) -> tuple[str, int, int]:
    """(prompt_uid, round, part) of a `group_id`: an id of a prompt holds neither `#` nor `+`."""
    round_id, _, part = name.partition("+")
    prompt_uid, _, round_ = round_id.partition("#")
    return prompt_uid, int(round_ or 1), int(part or 1)


def split_batch_name(name: str) -> tuple[str, int] | None:
    """(recipe, sequence) of a batch that is named RECIPE/SEQUENCE; None: the name is a batch's id. Raises UserError."""
    recipe, slash, sequence = name.rpartition("/")
    if not slash:
        return None
    if not sequence.isdecimal():
        raise UserError(f"{name!r} names no batch: write RECIPE/SEQUENCE, such as grpo-main/7, or the batch's id")
    return recipe, int(sequence)


def recipe_key(name: str, version: int, partition: int) -> bytes:
    """The Kafka key of what a partition knows of a recipe's version."""
    return f"{name}@{version}/{partition}".encode()


def event_key(run_id: str, prompt_uid: str) -> bytes:
    """The Kafka key of every fact of a group, so that one partition holds and orders them all."""
    return f"{run_id}/{prompt_uid}".encode()
