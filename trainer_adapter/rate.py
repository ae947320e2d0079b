"""How fast a recipe's batches come off its broker: read, decoded and packed as a trainer gets them, and nothing committed."""

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from claw_r1.errors import UserError
from claw_r1.recipes import Staleness
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.ledger import Ledger
from trainer_adapter.outlook import Outlook


@dataclass
class Rate:
    """What was read and packed."""

    batches: int = 0
    groups: int = 0
    samples: int = 0
    steps: int = 0
    tokens: int = 0
    column_bytes: int = 0
    """Of token columns: ids, mask, log-probs, annotations, and advantages that are by token."""
    seconds: float = 0.0
    """From the first look at the broker to the last of the batches that were there already."""
    pack_seconds: float = 0.0
    """Of `seconds`, what it took to make columns of what was read."""
    live: int = 0
    """Batches of which a group became ready while it was waited for; they are not in the numbers above."""
    hand_over_p50: float | None = None
    """Seconds from the broker's append of such a batch's last GroupReady to the batch in hand; None: there were none."""
    hand_over_p99: float | None = None


def measure_rate(
    recipe: str,
    *,
    kafka: str = "127.0.0.1:9092",
    follow: float = 0.0,
    caught_up: Callable[[Rate], None] = lambda rate: None,
    prefetch_bytes: int = 2**31,
    deadline: float = 60.0,
) -> Rate:
    """Read all ready groups that the recipe's topic holds, from its beginning, then those of `follow` seconds more.

    `caught_up` is called when what was there is read. Batches are as the recipe says, but staleness is not asked, and nothing
    is cut, committed or taken from a trainer. Raises UserError for a recipe or topic that does not exist, or if no batch was
    there; DependencyUnreachable and RetryableError if the broker is away.
    """
    return asyncio.run(_measure(recipe, kafka, follow, caught_up, prefetch_bytes, deadline))


async def _measure(
    recipe: str, kafka: str, follow: float, caught_up: Callable[[Rate], None], prefetch_bytes: int, deadline: float
) -> Rate:
    ledger = Ledger(
        recipe, kafka=kafka, holder="", deadline=deadline
    )  # without its history: from the topic's beginning
    outlook = Outlook(recipe, ledger, kafka=kafka, prefetch_bytes=prefetch_bytes, deadline=deadline)
    rate, waits = Rate(), list[float]()
    began = time.perf_counter()
    try:
        await outlook.open(from_start=True, appear=0.0)
        outlook.source.recipes = {
            version: known.model_copy(update={"staleness": Staleness()})
            for version, known in outlook.source.recipes.items()
        }
        while (taken := await _take(outlook, rate)) is not None:
            _count(rate, taken[0])
        rate.seconds = time.perf_counter() - began
        caught_up(rate)
        end = time.monotonic() + follow
        while time.monotonic() < end:
            try:
                await outlook.source.changed(end)
            except TimeoutError:
                break
            while (taken := await _take(outlook, Rate())) is not None:
                waits.append(time.time() - taken[1])
    finally:
        await outlook.close()
    if not rate.batches and not waits:
        raise UserError(f"no batch of recipe {recipe} was there: {outlook.waiting().describe(time.time())}")
    rate.live = len(waits)
    if waits:
        rate.hand_over_p50 = statistics.median(waits)
        rate.hand_over_p99 = sorted(waits)[min(len(waits) - 1, int(0.99 * len(waits)))]
    return rate


async def _take(outlook: Outlook, rate: Rate) -> tuple[TrainingBatch, float] | None:
    """The next batch, and when its last group became ready, seconds since the epoch."""
    selection = await outlook.select()
    if selection is None:
        return None
    began = time.perf_counter()
    batch = await outlook.build(selection)
    rate.pack_seconds += time.perf_counter() - began
    cut = outlook.describe_cut(selection, batch, holder="", at=time.time())
    outlook.ledger.history.put(cut.sequence, cut)
    outlook.shelf.settle(cut.cursor)
    return batch, max(group.ready_at for group in selection.members)


def _count(rate: Rate, batch: TrainingBatch) -> None:
    columns: list[NDArray[Any]] = [
        batch.token_ids,
        batch.loss_mask,
        batch.rollout_log_probs,
        *batch.annotations.values(),
    ]
    columns += [] if batch.token_advantages is None else [batch.token_advantages]
    rate.batches += 1
    rate.groups += len(batch.groups)
    rate.samples += len(batch)
    rate.steps += sum(map(len, batch.spans_as_read))
    rate.tokens += batch.tokens
    rate.column_bytes += sum(column.nbytes for column in columns)
