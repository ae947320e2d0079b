"""Keys of trajectories become their rollouts, group by group, as the pool was at a moment.

Invariants: what is held is bounded by a page of keys and one batch of prompts, or one prompt where that is larger; a prompt
is read whole, so that a group is never cut in two.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, NamedTuple

from claw_r1 import bus
from claw_r1.clickhouse import ClickHouse, QueryRefused
from claw_r1.datasets.moment import TOPIC_OF, Moment
from claw_r1.datasets.rollouts import Rollout, gather
from claw_r1.datasets.selection import IDS, PURGED, Member, Selection, paged
from claw_r1.errors import UserError
from claw_r1.topics import EVENTS, OUTCOMES, TRAJECTORIES
from streams.backfill.pool import FactPool
from streams.backfill.rounds import Logged
from streams.backfill.run import Places as Places
from streams.backfill.run import await_pool as await_pool

PAGE: Final = 10_000
"""Keys that are held."""
BATCH_BYTES: Final = 32 * 2**20
BATCH_PROMPTS: Final = 128
"""Prompts whose facts are read at once: until one of these is reached."""
Told = Callable[[int, int], None]
"""Is told how much is done, and of how much."""
_TOPICS: Final = (EVENTS, OUTCOMES, TRAJECTORIES)
_NEWEST: Final = " UNION ALL ".join(f"SELECT max(append_time) AS newest FROM {table}" for table in TOPIC_OF)
_SIZES: Final = """
SELECT run_id, prompt_uid,
    sum(7000 + 24 * (length(new_prompt_ids) + length(response_ids)) + 4 * (length(new_messages) + length(reply))) AS bytes
FROM step_tokens WHERE (run_id, prompt_uid) IN {prompts:Array(Tuple(String, String))}
GROUP BY run_id, prompt_uid
"""
"""About what a prompt's steps take in memory."""


class Listed(NamedTuple):
    """A key, and the digest that a snapshot has of it; empty where there is none."""

    member: Member
    digest: str = ""


@dataclass(frozen=True)
class Source:
    """Where keys come from: a question to the pool at a moment."""

    question: str
    moment: Moment
    digests: bool = False
    """Whether the question gives digests too; then it is about a snapshot, and not about the moment."""


async def newest_moment(places: Places, clickhouse: ClickHouse, *, as_of: int | None, wait: float) -> Moment:
    """Wait until the pool has what the log has now; that moment, or an earlier time of it (milliseconds since the epoch).

    Raises UserError if the pool stays behind for `wait` seconds or has nothing.
    """
    ends = await await_pool(places, _TOPICS, await event_partitions(places.kafka), wait)
    if as_of is None:
        as_of = await clickhouse.scalar(f"SELECT toUnixTimestamp64Milli(max(newest)) FROM ({_NEWEST})")
    return Moment(int(as_of or 0), ends)


async def event_partitions(kafka: str) -> list[int]:
    """The partitions of the events, which are those of the streams' topics too."""
    consumer = await bus.start_consumer(kafka, client_id="claw-datasets")
    try:
        return sorted(await bus.partitions_of(consumer, EVENTS))
    finally:
        await bus.stop_consumer(consumer)


async def ask_for(clickhouse: ClickHouse, selection: Selection) -> str:
    """The question of a selection. Raises UserError if it cannot be asked."""
    if selection.sql is None:
        return selection.question()
    try:
        columns = [row[0] for row in (await clickhouse.query(f"DESCRIBE (SELECT * FROM ({selection.sql}\n))")).rows]
    except QueryRefused as error:
        raise UserError(f"the SQL cannot be asked: {error}") from error
    if not set(IDS) & set(columns):
        raise UserError(f"the SQL gives {', '.join(columns)}: let one column be {', or '.join(IDS)}")
    if "run_id" not in columns and selection.run_id is None:
        raise UserError(
            "runs may have prompts and trajectories of the same names: let one column be run_id, or say --run"
        )
    return selection.question(columns)


async def count(clickhouse: ClickHouse, source: Source) -> int:
    """Keys that the source gives."""
    settings = None if source.digests else source.moment.settings()
    found = await clickhouse.query(f"SELECT count() FROM ({source.question})", settings=settings)
    return int(found.rows[0][0])


def refuse_nothing(total: int, selection: Selection) -> None:
    """Raises UserError if a selection gives no trajectory."""
    if total == 0:
        of_run = "" if selection.run_id is None else f" of run {selection.run_id}, channel {selection.channel},"
        raise UserError(
            f"nothing is selected: no trajectory{of_run} that ended by then fits. `claw trajectories` lists those there are"
        )


async def read_groups(
    clickhouse: ClickHouse, source: Source, after: Member | None = None
) -> AsyncIterator[list[Rollout]]:
    """Batches of whole groups in the order of their keys, from the one behind `after` on.

    Raises UserError if the pool lacks facts of a trajectory; of a snapshot, if it gives others than those of the digest, or
    is to forget some.
    """
    if source.digests:
        await _refuse_purged(clickhouse, source)
    async for page in _pages(clickhouse, source, after):
        by_prompt = {prompt: list(rows) for prompt, rows in groupby(page, key=lambda one: one.member[:2])}
        for batch in await _batches(clickhouse, list(by_prompt)):
            rollouts: list[Rollout] = []
            for run, prompts in groupby(batch, key=lambda prompt: prompt[0]):
                facts = await FactPool(clickhouse, run, source.moment.settings()).facts([name for _, name in prompts])
                for name, logged in facts.items():
                    rollouts += _made(by_prompt[run, name], logged)
            yield rollouts


async def _refuse_purged(clickhouse: ClickHouse, source: Source) -> None:
    found = await clickhouse.scalar(f"SELECT count() FROM ({source.question}) WHERE (run_id, prompt_uid) IN ({PURGED})")
    if found:
        raise UserError(
            f"{found} trajectories of the snapshot are of runs that were purged since: the snapshot cannot be had again"
        )


def _made(listed: Sequence[Listed], logged: Sequence[Logged] | None) -> list[Rollout]:
    """The rollouts of one prompt."""
    run, prompt = listed[0].member[:2]
    if logged is None:
        raise UserError(f"the pool lacks what a step of prompt {prompt} (run {run}) was made of: select without it")
    in_order = sorted(logged, key=lambda one: one.offset)
    made = gather([one.fact for one in in_order if one.fact is not None], [one.member for one in listed])
    _check(listed, made)
    return made


def _check(listed: Sequence[Listed], made: Sequence[Rollout]) -> None:
    for one, rollout in zip(listed, made, strict=True):
        if one.digest and one.digest != rollout.digest:
            raise UserError(
                f"the pool has other facts of trajectory {rollout.member.trajectory_uid} (run {rollout.member.run_id}) than "
                "when the snapshot was made: its run was purged, or rows were removed. The snapshot cannot be had again."
            )


async def _pages(clickhouse: ClickHouse, source: Source, after: Member | None) -> AsyncIterator[list[Listed]]:
    """Keys in order, prompts whole unless one has more than a page."""
    held: list[Listed] = []
    settings = None if source.digests else source.moment.settings()
    more = ("digest",) if source.digests else ()
    while True:
        found = await clickhouse.query(paged(source.question, after, PAGE, more), settings=settings)
        page = [Listed(Member(*row[:4]), *row[4:]) for row in found.rows]
        held += page
        if len(page) < PAGE:
            break
        after = page[-1].member
        last = held[-1].member[:2]
        whole = [one for one in held if one.member[:2] != last]
        if whole:
            yield whole
            held = held[len(whole) :]
    if held:
        yield held


async def _batches(clickhouse: ClickHouse, prompts: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """The prompts in lists of at most about BATCH_BYTES and BATCH_PROMPTS."""
    found = await clickhouse.query(_SIZES, {"prompts": list(prompts)})
    sizes = {(run, prompt): size for run, prompt, size in found.rows}
    batches: list[list[tuple[str, str]]] = []
    held = 0
    for prompt in prompts:
        size = sizes.get(prompt, 0)
        if not batches or held + size > BATCH_BYTES or len(batches[-1]) >= BATCH_PROMPTS:
            batches.append([])
            held = 0
        batches[-1].append(prompt)
        held += size
    return batches
