"""What the next batch of a recipe would be, and why its groups wait: seen as a trainer sees it, without taking the recipe.

Nothing is written and nobody is fenced.
"""

import asyncio
import time
from dataclasses import dataclass, replace

from claw_r1.errors import ClawError
from trainer_adapter.cut import fill
from trainer_adapter.groups import ReadyGroup
from trainer_adapter.ledger import Ledger
from trainer_adapter.outlook import Outlook
from trainer_adapter.pool import Pool
from trainer_adapter.tenure import find_holder
from trainer_adapter.waiting import Waiting


@dataclass(frozen=True)
class PreviewGroup:
    """A ready group that the next batch would get, or leave out."""

    group_id: str
    run_id: str
    reason: str | None
    """Why it would be left out; None: it would be a member."""
    samples: int
    tokens: int
    trained_tokens: int
    """As emitted; tokens that are too stale may be masked."""
    oldest_version: int | None
    """Of its trained tokens whose version is known."""
    newest_version: int | None
    staleness: int | None
    """Versions that the oldest is behind the newest trained one."""
    reward_mean: float | None
    decisions: int
    """Of people, since it was emitted."""


@dataclass(frozen=True)
class Preview:
    """The next new batch of a recipe, as its cut would be now."""

    recipe: str
    recipe_version: int
    run_id: str
    sequence: int
    is_full: bool
    """A trainer that asked now would get it."""
    members: tuple[PreviewGroup, ...]
    """All of a full batch, else those that it has so far; in ready order."""
    excluded: tuple[PreviewGroup, ...]
    """Ready groups before its last that it would leave out."""
    tokens: int
    policy_version: int | None
    """The newest trained one, by which staleness is judged."""
    untrained: tuple[int, ...]
    """Batches that are cut and not committed: a trainer that begins anew gets these first."""
    holder: str | None
    """The trainer that has the recipe now; None: none is alive."""
    waiting: Waiting
    said_at: float
    """Seconds since the epoch."""


def preview_batch(
    recipe: str,
    *,
    kafka: str = "127.0.0.1:9092",
    pool: str | None = None,
    database: str = "claw",
    deadline: float = 30.0,
) -> Preview:
    """What the next batch would be now. Changes nothing.

    `pool`: ClickHouse URL, to say what the groups that are still open are short of. Raises UserError for a recipe or topic that
    does not exist, DependencyUnreachable and RetryableError if the broker is away.
    """
    return asyncio.run(_preview(recipe, kafka, pool, database, deadline))


async def _preview(recipe: str, kafka: str, pool: str | None, database: str, deadline: float) -> Preview:
    ledger = Ledger(recipe, kafka=kafka, holder="", deadline=deadline)
    await ledger.look()
    outlook = Outlook(recipe, ledger, kafka=kafka, prefetch_bytes=512 * 2**20, deadline=deadline)
    try:
        await outlook.open(from_start=True, appear=0.0)
        selection = await outlook.select()
        holder = await find_holder(kafka, recipe)
        waiting = outlook.waiting()
        if pool is not None:
            waiting = await _ask(Pool(pool, database, timeout=deadline), outlook, waiting)
        source, history, trained = outlook.source, ledger.history, outlook.policy_version
        filling = fill(outlook.ready(), source.recipe, trained)
        return Preview(
            recipe=recipe,
            recipe_version=source.recipe_version,
            run_id=source.recipe.run_id,
            sequence=waiting.sequence,
            is_full=selection is not None,
            members=tuple(_describe(group, None, trained) for group in filling.members),
            excluded=tuple(_describe(group, reason, trained) for group, reason in filling.excluded),
            tokens=sum(group.tokens_left(filling.floor) for group in filling.members),
            policy_version=trained,
            untrained=tuple(range(history.position + 1, history.last_sequence + 1)),
            holder=None if holder is None else holder.holder,
            waiting=waiting,
            said_at=time.time(),
        )
    finally:
        await outlook.close()


async def _ask(pool: Pool, outlook: Outlook, waiting: Waiting) -> Waiting:
    try:
        found = await asyncio.to_thread(pool.open_groups, outlook.source.recipe, time.time())
    except ClawError as error:
        return replace(waiting, open_unknown=str(error))
    return replace(waiting, open=found)


def _describe(group: ReadyGroup, reason: str | None, trained: int | None) -> PreviewGroup:
    oldest = min((s.oldest_version for s in group.samples if s.oldest_version is not None), default=None)
    return PreviewGroup(
        group_id=group.mark.group_id,
        run_id=group.mark.run_id,
        reason=reason,
        samples=len(group.samples),
        tokens=group.tokens_left(None),
        trained_tokens=sum(sample.trained_tokens for sample in group.samples),
        oldest_version=oldest,
        newest_version=max((s.newest_version for s in group.samples if s.newest_version is not None), default=None),
        staleness=None if oldest is None or trained is None else trained - oldest,
        reward_mean=group.marker.reward_mean,
        decisions=len((group.origin or group).decisions),
    )
