"""A selection becomes a snapshot: its members with their digests, then one row that says that they are all there.

Invariants: a snapshot without its row does not exist; a name is given once, and of two makers of one name the first has it;
what a snapshot gives is read from the facts as of its moment, and checked against the digests.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pyarrow as pa

from claw_r1.clickhouse import UNKNOWN_DATABASE, UNKNOWN_TABLE, ClickHouse, QueryRefused
from claw_r1.datasets.moment import Moment
from claw_r1.datasets.pool import Source, Told, ask_for, count, read_groups, refuse_nothing
from claw_r1.datasets.rollouts import Rollout
from claw_r1.datasets.selection import KEYS, Selection
from claw_r1.errors import UserError
from claw_r1.ids import check_id, new_id
from claw_r1.rules import sql_literal

_FIELDS: Final = "name, snapshot_id, created, author, selection, as_of, ends, trajectories, groups, steps, content_hash"
_MEMBER_SCHEMA: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("snapshot_id", *KEYS)),
        ("steps", pa.uint32()),
        ("digest", pa.string()),
    ]
)
_SNAPSHOT_SCHEMA: Final = pa.schema(
    [
        ("name", pa.string()),
        ("snapshot_id", pa.string()),
        ("created", pa.timestamp("us", tz="UTC")),
        ("author", pa.string()),
        ("selection", pa.string()),
        ("as_of", pa.timestamp("ms", tz="UTC")),
        ("ends", pa.string()),
        ("trajectories", pa.uint64()),
        ("groups", pa.uint64()),
        ("steps", pa.uint64()),
        ("content_hash", pa.string()),
    ]
)


@dataclass(frozen=True)
class Snapshot:
    """What is known of a snapshot beside its members."""

    name: str
    snapshot_id: str
    created: datetime
    author: str
    selection: Selection
    moment: Moment
    trajectories: int
    groups: int
    steps: int
    content_hash: str

    @property
    def source(self) -> Source:
        """Its members, by key, with their digests."""
        mine = sql_literal(self.snapshot_id)
        question = f"SELECT {', '.join(KEYS)}, digest FROM snapshot_members FINAL WHERE snapshot_id = {mine}"
        return Source(question, self.moment, digests=True)

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "snapshot_id": self.snapshot_id,
            "created": self.created.isoformat(),
            "author": self.author,
            "selection": self.selection.document(),
            "as_of": datetime.fromtimestamp(self.moment.as_of / 1000, UTC).isoformat(),
            "ends": self.moment.document()["ends"],
            "trajectories": self.trajectories,
            "groups": self.groups,
            "steps": self.steps,
            "content_hash": self.content_hash,
        }


class Snapshots:
    """The snapshots of a pool."""

    def __init__(self, clickhouse: ClickHouse) -> None:
        self._clickhouse = clickhouse

    async def all(self, name: str | None = None) -> list[Snapshot]:
        """Every snapshot, or the one of a name, by name."""
        only = "" if name is None else f"WHERE name = {sql_literal(name)} "
        question = f"SELECT {_FIELDS} FROM snapshots {only}ORDER BY name, created, snapshot_id LIMIT 1 BY name"
        try:
            rows = (await self._clickhouse.query(question)).dicts()
        except QueryRefused as error:
            if error.code in (UNKNOWN_TABLE, UNKNOWN_DATABASE):
                raise UserError(
                    f"{error}\nThe pool does not keep snapshots yet: `claw migrate` makes the tables."
                ) from error
            raise
        return [_read(row) for row in rows]

    async def get(self, name: str) -> Snapshot:
        """Raises UserError if there is none of that name."""
        found = await self.all(name)
        if not found:
            raise UserError(f"there is no snapshot {name}: `claw snapshots list` shows those there are")
        return found[0]

    async def get_whole(self, name: str) -> Snapshot:
        """Raises UserError if there is none of that name, or some of its members were purged."""
        snapshot = await self.get(name)
        gone = snapshot.trajectories - await count(self._clickhouse, snapshot.source)
        if gone:
            raise UserError(
                f"{gone} of the {snapshot.trajectories} trajectories of snapshot {name} are of runs that were purged since: "
                "the snapshot cannot be had again"
            )
        return snapshot

    async def create(
        self, name: str, selection: Selection, moment: Moment, *, author: str, now: datetime, told: Told
    ) -> Snapshot:
        """Select, read every member's facts once, and keep keys and digests.

        Raises UserError if the name is taken or nothing is selected; then nothing is kept.
        """
        check_id("name", name)
        await self._refuse_taken(name)
        source = Source(await ask_for(self._clickhouse, selection), moment)
        total = await count(self._clickhouse, source)
        refuse_nothing(total, selection)
        told(0, total)
        made = new_id()
        try:
            tally = await self._keep(made, source, lambda done: told(done, total))
            if tally.trajectories != total:
                raise UserError(
                    f"the selection gave {total} trajectories, then {tally.trajectories}: write SQL that answers the same twice"
                )
            snapshot = Snapshot(
                name,
                made,
                now,
                author,
                selection,
                moment,
                tally.trajectories,
                tally.groups,
                tally.steps,
                tally.hash.hexdigest(),
            )
            await self._refuse_taken(name)
            await self._insert("snapshots", _SNAPSHOT_SCHEMA, [_row(snapshot)], token=made)
            if (await self.get(name)).snapshot_id != made:
                raise UserError(f"another snapshot {name} was made at the same time, and has the name")
        except BaseException:
            await self._forget(made)
            raise
        return snapshot

    async def delete(self, name: str) -> Snapshot:
        """Forget a snapshot; the trajectories stay. Raises UserError if there is none of that name."""
        snapshot = await self.get(name)
        await self._forget(snapshot.snapshot_id)
        return snapshot

    async def diff(self, one: str, other: str, limit: int) -> dict[str, Any]:
        """How many members only one has, both have alike, and both have with other facts; the first `limit` that differ."""
        first, second = await self.get(one), await self.get(other)
        keys = ", ".join(KEYS)
        compared = (
            f"SELECT {keys}, multiIf(count() = 2, if(uniqExact(digest) = 1, 'same', 'changed'), "
            f"any(snapshot_id) = {sql_literal(first.snapshot_id)}, 'removed', 'added') AS kind "
            f"FROM snapshot_members FINAL WHERE snapshot_id IN ({sql_literal(first.snapshot_id)}, "
            f"{sql_literal(second.snapshot_id)}) GROUP BY {keys}"
        )
        counts = dict((await self._clickhouse.query(f"SELECT kind, count() FROM ({compared}) GROUP BY kind")).rows)
        listed = await self._clickhouse.query(
            f"SELECT kind, {keys} FROM ({compared}) WHERE kind != 'same' ORDER BY {keys} LIMIT {limit}"
        )
        if first.snapshot_id == second.snapshot_id:
            counts = {"same": first.trajectories}
        return {
            "from": first.name,
            "to": second.name,
            **{kind: int(counts.get(kind, 0)) for kind in ("added", "removed", "changed", "same")},
            "members": [] if first.snapshot_id == second.snapshot_id else listed.dicts(),
        }

    async def _refuse_taken(self, name: str) -> None:
        if await self.all(name):
            raise UserError(
                f"there is a snapshot {name} already, and it never changes: choose another name, or delete it"
            )

    async def _keep(self, snapshot_id: str, source: Source, told: Callable[[int], None]) -> "_Tally":
        tally = _Tally()
        number = 0
        async for rollouts in read_groups(self._clickhouse, source):
            rows = [tally.take(snapshot_id, rollout) for rollout in rollouts]
            await self._insert("snapshot_members", _MEMBER_SCHEMA, rows, token=f"{snapshot_id}-{number}")
            number += 1
            told(tally.trajectories)
        return tally

    async def _insert(self, table: str, schema: Any, rows: Sequence[tuple[Any, ...]], *, token: str) -> None:
        columns = [
            pa.array(values, type=field.type) for values, field in zip(zip(*rows, strict=True), schema, strict=True)
        ]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
        await self._clickhouse.insert_arrow(table, schema.names, sink.getvalue().to_pybytes(), token=token)

    async def _forget(self, snapshot_id: str) -> None:
        for table in ("snapshots", "snapshot_members"):
            await self._clickhouse.command(f"DELETE FROM {table} WHERE snapshot_id = {sql_literal(snapshot_id)}")


class _Tally:
    """Members as they come, in the order of their keys."""

    def __init__(self) -> None:
        self.trajectories = self.groups = self.steps = 0
        self.hash = hashlib.sha256()
        self._group: tuple[str, str, str] | None = None

    def take(self, snapshot_id: str, rollout: Rollout) -> tuple[Any, ...]:
        """The member's row."""
        self.trajectories += 1
        self.steps += rollout.steps
        self.groups += rollout.member[:3] != self._group
        self._group = rollout.member[:3]
        self.hash.update("\t".join((*rollout.member, rollout.digest)).encode() + b"\n")
        return (snapshot_id, *rollout.member, rollout.steps, rollout.digest)


def _row(snapshot: Snapshot) -> tuple[Any, ...]:
    return (
        snapshot.name,
        snapshot.snapshot_id,
        snapshot.created,
        snapshot.author,
        msgspec.json.encode(snapshot.selection.document()).decode(),
        datetime.fromtimestamp(snapshot.moment.as_of / 1000, UTC),
        msgspec.json.encode(snapshot.moment.document()["ends"]).decode(),
        snapshot.trajectories,
        snapshot.groups,
        snapshot.steps,
        snapshot.content_hash,
    )


def _read(row: dict[str, Any]) -> Snapshot:
    as_of = row["as_of"].replace(tzinfo=UTC)
    ends = msgspec.json.decode(row["ends"])
    return Snapshot(
        name=row["name"],
        snapshot_id=row["snapshot_id"],
        created=row["created"].replace(tzinfo=UTC),
        author=row["author"],
        selection=Selection.model_validate_json(row["selection"]),
        moment=Moment.read({"as_of": round(as_of.timestamp() * 1000), "ends": ends}),
        trajectories=row["trajectories"],
        groups=row["groups"],
        steps=row["steps"],
        content_hash=row["content_hash"],
    )
