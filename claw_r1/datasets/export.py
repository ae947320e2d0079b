"""Rollouts become the files of a dataset, part by part, and a killed export goes on where its last part ends.

Invariants: a part is whole before the manifest names it, and the manifest says behind which key the next begins; the folder
has its name only when everything is in it. What is held is a batch of groups and a part's writer.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from claw_r1.clickhouse import ClickHouse
from claw_r1.datasets.containers import ENDING, Part, hf_files, open_part
from claw_r1.datasets.forms import FORMS, Column
from claw_r1.datasets.lines import write_line
from claw_r1.datasets.moment import Moment
from claw_r1.datasets.pool import Source, Told, read_groups
from claw_r1.datasets.rollouts import Rollout
from claw_r1.datasets.selection import Member
from claw_r1.errors import UserError

FACTS: Final = "facts"
"""The form that can be imported again: a line a fact, of JSON only."""
FORM_NAMES: Final = (FACTS, *FORMS)
PART_BYTES: Final = 128 * 2**20
"""A part ends with the first batch of groups that brings it so far."""
MANIFEST: Final = "manifest.json"
VERSION: Final = 1


@dataclass(frozen=True)
class Order:
    """What is exported, where to, and how."""

    target: Path
    form: str
    container: str
    source: Source
    total: int
    """Trajectories."""
    origin: dict[str, Any]
    """What the manifest says of where the rows come from: a snapshot, or a selection."""

    @property
    def columns(self) -> tuple[Column, ...]:
        return () if self.form == FACTS else FORMS[self.form].columns

    @property
    def partial(self) -> Path:
        """The folder until it is whole."""
        return self.target.with_name(self.target.name + ".partial")

    def identity(self) -> dict[str, Any]:
        """What has to be the same for an export to go on."""
        return {
            "version": VERSION,
            "form": self.form,
            "format": self.container,
            "moment": self.source.moment.document(),
            "question": hashlib.sha256(self.source.question.encode()).hexdigest(),
            **self.origin,
        }


@dataclass
class Progress:
    """What is written for good."""

    parts: list[dict[str, Any]] = field(default_factory=list)
    after: Member | None = None
    trajectories: int = 0
    groups: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def rows(self) -> int:
        return sum(part["rows"] for part in self.parts)

    def document(self) -> dict[str, Any]:
        return {
            "parts": self.parts,
            "after": self.after,
            "trajectories": self.trajectories,
            "groups": self.groups,
            "left_out": dict(sorted(self.left_out.items())),
        }

    @classmethod
    def read(cls, document: dict[str, Any]) -> "Progress":
        after = document["after"]
        return cls(
            document["parts"],
            None if after is None else Member(*after),
            document["trajectories"],
            document["groups"],
            Counter(document["left_out"]),
        )


def unfinished(target: Path) -> dict[str, Any] | None:
    """The manifest of an export to `target` that was not finished; None if there is none.

    Raises UserError if the folder is there already, or the manifest cannot be read.
    """
    if target.exists():
        raise UserError(
            f"{target} is there already: an export never writes over one. Choose another place, or remove it"
        )
    path = target.with_name(target.name + ".partial") / MANIFEST
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no manifest: remove {path.parent}, and export again") from error
    return found


async def export(clickhouse: ClickHouse, order: Order, told: Told) -> dict[str, Any]:
    """Write the dataset, or what an earlier call left to write; the summary.

    Raises UserError if the folder is there, or holds an unfinished export of something else.
    """
    done = _resume(order)
    resumed = done.trajectories
    told(done.trajectories, order.total)
    part: _Open | None = None
    async for rollouts in read_groups(clickhouse, order.source, done.after):
        if part is None:
            part = _Open(order, len(done.parts))
        part.take(rollouts)
        told(done.trajectories + part.trajectories, order.total)
        if part.file.size() >= PART_BYTES:
            _finish(order, done, part)
            part = None
    if part is not None:
        _finish(order, done, part)
    elif not done.parts:
        _finish(order, done, _Open(order, 0))
    summary = {
        "path": str(order.target),
        "form": order.form,
        "format": order.container,
        "rows": done.rows,
        "trajectories": done.trajectories,
        "groups": done.groups,
        "left_out": dict(sorted(done.left_out.items())),
        "parts": len(done.parts),
        "bytes": sum(one["bytes"] for one in done.parts),
        "resumed_after": resumed,
    }
    _publish(order, done)
    return summary


def _resume(order: Order) -> Progress:
    found = unfinished(order.target)
    if found is None:
        if order.partial.exists():  # it ended before its first manifest
            shutil.rmtree(order.partial)
        order.partial.mkdir(parents=True)
        _save(order, Progress())
        return Progress()
    if found["identity"] != json.loads(json.dumps(order.identity())):
        raise UserError(
            f"{order.partial} holds an unfinished export of something else: finish it with its own options, or remove it"
        )
    done = Progress.read(found)
    named = {MANIFEST, *(part["name"] for part in done.parts)}
    for path in order.partial.iterdir():
        if path.name not in named:
            path.unlink()
    return done


class _Open:
    """A part that is being written."""

    def __init__(self, order: Order, number: int) -> None:
        self._order = order
        self.name = f"part-{number:05d}.{ENDING[order.container]}"
        self.path = order.partial / f"{self.name}.open"
        self.file: Part = open_part(self.path, order.container, order.columns)
        self.rows = self.trajectories = self.groups = 0
        self.after: Member | None = None
        self.left_out: Counter[str] = Counter()

    def take(self, rollouts: Sequence[Rollout]) -> None:
        self.trajectories += len(rollouts)
        groups = [list(group) for _, group in groupby(rollouts, key=lambda rollout: rollout.member[:3])]
        self.groups += len(groups)
        if self._order.form == FACTS:
            for _, prompt in groupby(rollouts, key=lambda rollout: rollout.member[:2]):
                self._write_facts(list(prompt))
        else:
            rows = [row for group in groups for row in FORMS[self._order.form].rows(group, self.left_out)]
            self.file.write(rows)
            self.rows += len(rows)
        if rollouts:
            self.after = rollouts[-1].member

    def _write_facts(self, members: Sequence[Rollout]) -> None:
        """Those of a prompt once, whoever of its trajectories are members; in the order of the log."""
        facts = {fact.fact_id: (place, fact) for one in members for place, fact in one.placed}
        lines = [write_line(fact) for _, fact in sorted(facts.values(), key=lambda pair: pair[0])]
        self.file.lines(b"".join(lines))
        self.rows += len(lines)


def _finish(order: Order, done: Progress, part: _Open) -> None:
    """Close a part and name it in the manifest."""
    part.file.close()
    digest = hashlib.sha256()
    with part.path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    final = order.partial / part.name
    os.replace(part.path, final)
    done.parts.append(
        {"name": part.name, "rows": part.rows, "bytes": final.stat().st_size, "sha256": digest.hexdigest()}
    )
    done.after = part.after or done.after
    done.trajectories += part.trajectories
    done.groups += part.groups
    done.left_out += part.left_out
    _save(order, done)


def _save(order: Order, done: Progress) -> None:
    _write(order.partial / MANIFEST, json.dumps({"identity": order.identity(), **done.document()}, indent=1).encode())


def _write(path: Path, content: bytes) -> None:
    """All of it, or what was there before."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def _publish(order: Order, done: Progress) -> None:
    if order.container == "hf":
        names = [part["name"] for part in done.parts]
        fingerprint = hashlib.sha256("".join(part["sha256"] for part in done.parts).encode()).hexdigest()
        told = f"claw export, form {order.form}, {json.dumps(order.origin)}"
        for name, content in hf_files(order.columns, names, fingerprint, told).items():
            _write(order.partial / name, content)
    os.replace(order.partial, order.target)
    folder = os.open(order.target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def moment_of(manifest: dict[str, Any]) -> Moment:
    """The moment of an unfinished export, so that the rest of it is of the same."""
    return Moment.read(manifest["identity"]["moment"])
