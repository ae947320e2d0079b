"""The pool is asked for the prompts that began before an offset of a partition, in that order, and for all their facts.

Invariants: what is held in memory is bounded by an index page and one batch of prompts, or one prompt where that is larger.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from claw_r1.clickhouse import ClickHouse, Settings
from claw_r1.events import Outcome
from claw_r1.topics import EVENTS
from streams.backfill.rounds import Closing, Logged
from streams.backfill.rows import READERS, Row, is_whole, join_tokens, read_closing, read_fact, read_outcome

PAGE: Final = 20_000
"""Prompts of the index that are held."""
BATCH_BYTES: Final = 64 * 2**20
BATCH_PROMPTS: Final = 256
"""Prompts whose facts are read at once: until one of these is reached."""
_STEP_BYTES: Final = 7_000
_TOKEN_BYTES: Final = 24
"""About what a step, and each of its own tokens, take in memory."""

_PLACES: Final = " UNION ALL ".join(
    f"SELECT prompt_uid, offset, {size} AS size FROM {table} WHERE run_id = {{run:String}} AND partition = {{partition:UInt32}}"
    for table, size in (
        *((table, "0") for table in READERS if table != "steps"),
        ("steps", f"{_STEP_BYTES} + {_TOKEN_BYTES} * (toUInt64(prompt_len) - prefix_len + response_len)"),
    )
)
_INDEX: Final = f"""
SELECT prompt_uid, min(offset) AS first, sum(size) AS bytes
FROM ({_PLACES})
GROUP BY prompt_uid HAVING first >= {{from:UInt64}} AND first < {{before:UInt64}}
"""
_SAID: Final = """
SELECT * FROM outcomes FINAL
WHERE run_id = {run:String} AND prompt_uid IN {prompts:Array(String)} AND pos IS NOT NULL
    AND (outcome = 'closed' OR recipe = {recipe:String} OR (outcome = 'late' AND reason = 'never_opened'))
"""
_FACTS: Final = "SELECT * FROM {table} FINAL WHERE run_id = {{run:String}} AND prompt_uid IN {{prompts:Array(String)}}"
_PURGED: Final = """
SELECT max(offset) FROM purges
WHERE run_id = {run:String} AND topic = {topic:String} AND partition = {partition:UInt32} HAVING count() > 0
"""


class Indexed(NamedTuple):
    """A prompt of the run."""

    prompt_uid: str
    first: int
    """Offset of its oldest fact."""
    bytes: int
    """About what its facts take in memory."""


@dataclass
class Known:
    """What the ledger says of a prompt."""

    closings: list[Closing] = field(default_factory=list)
    said: dict[int, list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    """The recipe's outcomes by round."""
    orphans: dict[str, int] = field(default_factory=dict)
    """Ids of facts that nothing opened → the position at which that was said."""

    def opened(self, one: Logged) -> bool:
        """Whether it came into a group: what waited in vain for a fact to open one made none."""
        closings = [closing.pos for closing in self.closings]
        given_up = {pos for pos in self.orphans.values() if pos not in closings}
        if one.fact is not None:
            return self.orphans.get(one.fact.fact_id) not in given_up
        return not any(one.offset < pos and not any(one.offset < at < pos for at in closings) for pos in given_up)


class FactPool:
    """The pool's facts of one run; `settings` go with every question."""

    def __init__(self, clickhouse: ClickHouse, run_id: str, settings: Settings | None = None) -> None:
        self._clickhouse = clickhouse
        self._run = run_id
        self._settings = settings

    async def count(self, partition: int, before: int) -> int:
        """Prompts of the run whose oldest fact on the partition lies before the offset."""
        asked = {"partition": partition, "from": 0, "before": before}
        return int(await self._scalar(f"SELECT count() FROM ({_INDEX})", asked))

    async def purged_below(self, partition: int) -> int:
        """What lies below this offset of the partition is to be forgotten; 0: nothing."""
        return int(await self._scalar(_PURGED, {"topic": EVENTS, "partition": partition}) or 0)

    async def batches(self, partition: int, before: int) -> AsyncIterator[list[Indexed]]:
        """The prompts whose oldest fact on the partition lies before the offset, by that fact, in batches."""
        start = 0
        while True:
            asked = {"partition": partition, "from": start, "before": before}
            found = await self._rows(f"{_INDEX} ORDER BY first LIMIT {PAGE}", asked)
            page = [Indexed(row["prompt_uid"], row["first"], row["bytes"]) for row in found]
            for batch in _cut(page):
                yield batch
            if len(page) < PAGE:
                return
            start = page[-1].first + 1

    async def known(self, prompts: Sequence[str], recipe: str) -> dict[str, Known]:
        """What the ledger says of the prompts, by prompt."""
        found: dict[str, Known] = {prompt: Known() for prompt in prompts}
        for row in await self._rows(_SAID, {"prompts": list(prompts), "recipe": recipe}):
            one = found[row["prompt_uid"]]
            if row["recipe"] == recipe:
                one.said[row["round"]].append(read_outcome(row))
            elif row["outcome"] == "closed":
                one.closings.append(read_closing(row))
            elif row["fact_id"] is not None:
                one.orphans[row["fact_id"]] = row["pos"]
        return found

    async def facts(self, prompts: Sequence[str]) -> dict[str, list[Logged] | None]:
        """All facts of the prompts, by prompt; None for one of which the pool has not all that a step was, or that has facts
        in two partitions: as the events grew between, their offsets say no order."""
        homes: dict[str, int] = {}
        found: dict[str, list[Logged] | None] = {prompt: [] for prompt in prompts}
        for table in READERS:
            for row in await self._table(table, prompts):
                prompt = row["prompt_uid"]
                torn = table == "steps" and ("response_ids" not in row or not is_whole(row))
                if torn or homes.setdefault(prompt, row["partition"]) != row["partition"]:
                    found[prompt] = None
                elif (facts := found[prompt]) is not None:
                    facts.append(read_fact(table, row))
        return found

    async def _table(self, table: str, prompts: Sequence[str]) -> list[Row]:
        rows: list[Row] = list(await self._rows(_FACTS.format(table=table), {"prompts": list(prompts)}))
        if table != "steps":
            return rows
        return join_tokens(rows, await self._rows(_FACTS.format(table="step_tokens"), {"prompts": list(prompts)}))

    async def _rows(self, sql: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
        return (await self._clickhouse.query(sql, {"run": self._run, **asked}, settings=self._settings)).dicts()

    async def _scalar(self, sql: str, asked: dict[str, Any]) -> Any:
        return await self._clickhouse.scalar(sql, {"run": self._run, **asked})


def _cut(page: Sequence[Indexed]) -> list[list[Indexed]]:
    """Batches of at most about BATCH_BYTES and BATCH_PROMPTS."""
    batches: list[list[Indexed]] = []
    size = 0
    for one in page:
        if not batches or size + one.bytes > BATCH_BYTES or len(batches[-1]) >= BATCH_PROMPTS:
            batches.append([])
            size = 0
        batches[-1].append(one)
        size += one.bytes
    return batches
