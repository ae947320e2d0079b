"""A trainer takes batches and acknowledges them: hand-over and commit, on asyncio.

The order of things, each durable before the next begins: the groups are ready → the cut is made and written → the batch is
handed out → the trainer trains → the commit is written, and with it the run's new policy version. Whatever stops in between
is taken up again from the history: a cut that was not trained comes again as it was, before any new one.
"""

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from claw_r1.errors import DependencyUnreachable, RetryableError, UserError, needing
from claw_r1.events import BatchCut, BatchTrained, Decision, GroupReady, Outcome, Policy
from claw_r1.ids import new_id
from trainer_adapter.asking import ASK_S, Asking
from trainer_adapter.batch import TrainingBatch, held_of
from trainer_adapter.cut import Selection, call_futile, call_late
from trainer_adapter.demand import Demander, Stock
from trainer_adapter.ledger import (
    Entry,
    Ledger,
    Superseded,
    cut_entry,
    fate_entry,
    policy_entry,
    stats_entry,
    trained_entry,
)
from trainer_adapter.outlook import Outlook
from trainer_adapter.pool import Pool
from trainer_adapter.rebuild import why_it_differs
from trainer_adapter.remake import Parts, head_of, list_missing, name_samples, remake_columns
from trainer_adapter.source import Trimmed
from trainer_adapter.stats import list_stats, read_stats
from trainer_adapter.tenure import await_free
from trainer_adapter.waiting import Waiting

if TYPE_CHECKING:
    from trainer_adapter.tracing import BatchTracing

log = logging.getLogger("claw.trainer")

_AWAY = (RetryableError, DependencyUnreachable)
"""What says, once a stream is open, that the broker is away and may come back."""
_PAUSE_S = 0.5
_TELL_S = 30.0
_PROBE_S = 1.0
GRACE_S: Final = 1.0
"""How much longer than its `timeout` a `next` may wait; half of it is for saying why."""


class NoBatchYet(TimeoutError):
    """No batch within the time given; `waiting` says what is missing."""

    def __init__(self, message: str, waiting: Waiting) -> None:
        super().__init__(message)
        self.waiting = waiting


@dataclass(frozen=True, eq=False, kw_only=True)
class AsyncBatch(TrainingBatch):
    """A batch that was handed out and can be acknowledged."""

    sequence: int
    stream: "AsyncBatchStream" = field(repr=False)
    cut: BatchCut = field(repr=False)
    lap: int = field(repr=False)
    traceparent: str | None = field(default=None, repr=False)
    """Of the batch's span, for spans of the trainer's own; None: batches are not told."""

    async def commit(
        self,
        *,
        policy_version: int,
        trainer_step: int | None = None,
        weights_digest: str | None = None,
        token_stats: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that the optimiser step is done and made this policy version: see `AsyncBatchStream.commit`."""
        await self.stream.commit(
            self,
            policy_version=policy_version,
            trainer_step=trainer_step,
            weights_digest=weights_digest,
            token_stats=token_stats,
        )


class AsyncBatchStream:
    """The batches of one recipe, in order, each durable as a cut before it is handed out.

    A recipe has one trainer. While another one is alive, opening the recipe raises RecipeHeld and changes nothing; one that was
    killed is listened for, 10 s long, or not at all if it ran on this machine. Whoever opens the recipe last has it: an
    earlier trainer that comes back gets `Superseded` at its next write. Without `seek` a stream goes on after the last commit.
    Not for use from several event loops.

    - `holder`: the trainer's name in cuts and messages. The same name is the same trainer, started anew. Without one
      it is named HOST:PROCESS and six digits of chance, and only this process is the same trainer.
    - `take_over`: take the recipe also from a trainer that is alive.
    - `from_start`: for a recipe that has no cut yet: True begins with the oldest ready group that the topic holds, False
      with the groups that become ready from now on.
    - `timeout`: seconds that iteration waits for a batch; None waits for ever and says every 30 s in the log why.
    - `appear`: seconds to wait at start for the recipe and its topic to exist.
    - `prefetch_bytes`: bytes of ready samples that are kept in memory ahead; more is read again when its cut is made.
    - `deadline`: seconds after which a broker that does not answer is an error of the single operation.
    - `pool`, `database`: ClickHouse URL and database of the pool. A batch that comes again is made from there if the recipe's
      topic was trimmed; and a wait says which groups are open and what they are short of.
    - `trace`: tell each batch as an OpenTelemetry span, from its hand-over to its commit; where to is said by the standard
      OTEL_* variables. It needs the extra `otel`.
    """

    def __init__(
        self,
        recipe: str,
        *,
        kafka: str = "127.0.0.1:9092",
        holder: str | None = None,
        take_over: bool = False,
        from_start: bool = True,
        timeout: float | None = None,
        appear: float = 10.0,
        prefetch_bytes: int = 512 * 2**20,
        deadline: float = 30.0,
        pool: str | None = None,
        database: str = "claw",
        trace: bool = False,
    ) -> None:
        self._name = recipe
        self._kafka = kafka
        self._take_over = take_over
        self._named = holder or None
        self._holder = holder or f"{socket.gethostname()}:{os.getpid()}:{new_id()[-6:]}"
        self._from_start = from_start
        self._timeout = timeout
        self._appear = appear
        self._deadline = deadline
        self._ledger = Ledger(recipe, kafka=kafka, holder=self._holder, deadline=deadline)
        self._outlook = Outlook(recipe, self._ledger, kafka=kafka, prefetch_bytes=prefetch_bytes, deadline=deadline)
        self._source = self._outlook.source
        self._pool = None if pool is None else Pool(pool, database)
        self._asking = Asking(None if pool is None else Pool(pool, database, timeout=ASK_S))
        self._demander = Demander(self._stock, kafka=kafka, holder=self._holder)
        self._trace = trace
        self._tracing: BatchTracing | None = None
        self._handed = 0
        self._position = 0
        self._lap = 0
        self._handing = asyncio.Lock()
        self._committing = asyncio.Lock()

    # ------------------------------------------------------------------------------------------------------- life

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Take the recipe, read its history, begin to read ahead.

        Raises RecipeHeld if another trainer has the recipe, and then nothing is changed; DependencyUnreachable; UserError for a
        recipe or topic that does not exist; WrongUse for OTEL_* variables that cannot be followed.
        """
        if self._trace:
            self._tracing = self._source.tracing = _open_tracing(self._name)
        try:
            if not self._take_over:
                await await_free(self._kafka, self._name, self._named)
            await self._ledger.open()
            self._demander.start(self._ledger.since)  # before the long reading, in which a second trainer may come
            self._handed = self._position = self._ledger.history.position
            await self._outlook.open(from_start=self._from_start, appear=self._appear)
            await self._announce_policy()
        except BaseException:
            await self.close()
            raise

    async def _announce_policy(self) -> None:
        """Publish the newest commit's policy version if the policy topic has not got it."""
        newest = self._ledger.history.newest
        if newest is None:
            return
        announced = self._source.trained_version(newest.run_id)
        if announced is None or announced < newest.policy_version:
            await self._ledger.append([policy_entry(_policy_of(newest))])

    async def close(self) -> None:
        """Let go of the broker. Batches that were handed out and not committed come again at the next start."""
        await self._demander.close()
        await self._asking.close()
        await self._outlook.close()
        await self._ledger.close()
        if self._tracing is not None:
            tracing, self._tracing = self._tracing, None
            await tracing.stop()

    # ------------------------------------------------------------------------------------------------------- state

    @property
    def policy_version(self) -> int | None:
        """The newest trained version of the run; the next commit must be above. None if nothing was trained yet."""
        return self._outlook.policy_version

    @property
    def counts(self) -> Counter[str]:
        """Records that were not taken in, by reason, since the stream was opened."""
        return self._outlook.counts

    def cursor(self) -> int:
        """The sequence of the last committed batch, 0 before the first: what a checkpoint keeps."""
        return self._position

    def seek(self, cursor: int) -> None:
        """Go on after batch `cursor`: the batches after it come again from their cuts, then new ones.

        Batches that were handed out before can no longer be committed, and a `next` that is on its way begins again from here.
        Nothing is recorded until the next commit. Raises UserError for a cursor that no batch has.
        """
        last = self._ledger.history.last_sequence
        if not 0 <= cursor <= last:
            raise UserError(f"recipe {self._name} has no batch {cursor}: a cursor is 0 to {last} (its newest cut)")
        self._handed = self._position = cursor
        self._lap += 1
        if self._tracing is not None:
            self._tracing.give_up("seek")
        self._source.wake()

    def waiting(self) -> Waiting:
        """What the next new batch waits for."""
        return self._outlook.waiting()

    def _stock(self) -> Stock | None:
        """What is wanted and there, for those who sample, as far as it was read; None while the recipe was not."""
        source = self._source
        if not source.recipes:
            return None
        waiting = self.waiting()
        return Stock(
            source.recipe,
            source.recipe_version,
            a_batch=waiting.a_batch,
            ready=waiting.usable,
            cut=self._ledger.history.untrained(self._position),
            ended=source.ended or self._ledger.lost,
        )

    # ------------------------------------------------------------------------------------------------------- hand-over

    def __aiter__(self) -> AsyncIterator[AsyncBatch]:
        return self

    async def __anext__(self) -> AsyncBatch:
        return await self.next(self._timeout)

    async def next(self, timeout: float | None = None) -> AsyncBatch:
        """The next batch: one that was cut and not trained, else a new one as soon as its groups are ready.

        Waits `timeout` seconds (None: for ever) and at most GRACE_S more, through a broker's absence too; a batch that is there
        by then is made and handed out, if that takes longer too. Raises NoBatchYet (a TimeoutError) that says why; Superseded;
        InvalidRecord for a record on the recipe's topic that cannot be read.
        """
        self._outlook.check_open()
        end = None if timeout is None else time.monotonic() + timeout
        try:
            async with (
                asyncio.timeout(None if timeout is None else max(0.0, timeout) + GRACE_S) as limit,
                self._handing,
            ):
                while True:
                    try:
                        return await self._hand_over(end, timeout, limit)
                    except _AWAY as error:
                        if end is not None and time.monotonic() + _PAUSE_S > end:
                            raise NoBatchYet(f"no batch within {timeout:g} s: {error}", self.waiting()) from error
                        log.warning("no batch yet, trying again", extra={"recipe": self._name, "error": str(error)})
                        await asyncio.sleep(_PAUSE_S)
        except TimeoutError as error:
            if isinstance(error, NoBatchYet) or not limit.expired():
                raise
            waiting, why = replace(self.waiting(), broker_away=True), "the broker does not answer"
            if self._handing.locked():
                waiting, why = self.waiting(), "another call of `next` waits for it"
            raise NoBatchYet(f"no batch within {timeout:g} s: {why}", waiting) from None

    async def _hand_over(self, end: float | None, timeout: float | None, limit: asyncio.Timeout) -> AsyncBatch:
        due = limit.when()
        while True:
            lap = self._lap
            await self._settle()
            sequence = self._handed + 1
            try:
                if sequence in self._ledger.history.cuts:
                    limit.reschedule(None)  # it is there: making it is no wait
                    batch = await self._replay(sequence)
                elif (selection := await self._select(end, timeout)) is not None:
                    limit.reschedule(None)
                    batch = await self._cut(selection)
            finally:
                if not limit.expired():
                    limit.reschedule(due)
            if lap == self._lap:  # else a seek came meanwhile: the batch, if there is one, has its cut and its turn
                self._handed = batch.sequence
                return batch
            if self._tracing is not None:
                self._tracing.give_up("seek", sequence)

    async def _settle(self) -> None:
        """After a transaction whose end was not known: learn it, and let go of groups that are in a cut after all."""
        if await self._ledger.mend() and (last := self._ledger.history.last_cut) is not None:
            self._outlook.shelf.settle(last.cursor)

    async def _select(self, end: float | None, timeout: float | None) -> Selection | None:
        """The groups of a new batch as soon as they are there; None if a seek came before."""
        source, lap = self._source, self._lap
        while lap == self._lap:
            if source.late_is_full:
                await self._answer()
            selection = await self._outlook.select()
            if selection is not None and lap == self._lap:
                return selection
            await self._answer()
            tell = time.monotonic() + _TELL_S
            try:
                await source.changed(tell if end is None else min(tell, end))
            except TimeoutError:
                left = ASK_S if end is None else end + GRACE_S / 2 - time.monotonic()
                waiting = await self._look_around(min(ASK_S, left))
                why = waiting.describe(time.time())
                if end is not None and time.monotonic() >= end:
                    raise NoBatchYet(f"no batch within {timeout:g} s: {why}", waiting) from None
                log.info("waiting for groups", extra={"recipe": self._name, "why": why})
        return None

    async def _look_around(self, within: float) -> Waiting:
        """What is waited for, with the groups that are open, of which only the pool knows; it takes at most so many seconds."""
        _, is_away = await asyncio.gather(
            self._asking.ask(self._source.recipe, within=within),
            self._source.broker_is_away(min(_PROBE_S, within)),
        )
        return replace(self._asking.tell(self.waiting()), broker_away=is_away)

    async def _answer(self) -> None:
        """Say of decisions that came too late that they did, though there is no cut or commit to say it with."""
        if fates := self._fates():
            await self._ledger.append(fates)
            self._forget(fates)

    def _fates(self) -> list[Entry]:
        """What is to be said of decisions that came too late."""
        too_late = self._outlook.shelf.too_late.values()
        return [fate_entry(fate) for fate in call_late(self._name, too_late, time.time())]

    def _forget(self, fates: list[Entry]) -> None:
        """These were said."""
        said = self._outlook.shelf.too_late
        for entry in fates:
            if isinstance(entry.event, Outcome) and entry.event.fact_id is not None:
                said.pop((entry.event.fact_id, entry.event.group_id), None)

    async def _cut(self, selection: Selection) -> AsyncBatch:
        shelf = self._outlook.shelf
        fates = self._fates()
        batch = await self._outlook.build(selection)
        cut = self._outlook.describe_cut(selection, batch, holder=self._holder, at=time.time())
        futile = [fate_entry(fate) for fate in call_futile(self._name, selection, cut.sequence, cut.at)]
        await self._ledger.append([cut_entry(cut), *fates, *futile])
        shelf.settle(cut.cursor, [group.key for group in selection.groups])
        self._forget(fates)
        return self._hand_out(cut, held_of(batch))

    async def _replay(self, sequence: int) -> AsyncBatch:
        """The batch of a cut, made again of what the topic or, where that was trimmed, the pool holds; the same in every
        byte."""
        cut = await self._ledger.read_cut(sequence)
        if purged := sorted({m.run_id for m in cut.members} & self._outlook.shelf.purged):
            raise UserError(
                f"batch {sequence} of recipe {self._name} is not handed out again: run {', '.join(purged)} was purged since. "
                "Train another run, with a recipe of its own."
            )
        parts = await self._parts(cut)
        batch = self._hand_out(cut, remake_columns(cut, parts, self._source.recipe_of))
        if batch.digest != cut.digest:
            why = why_it_differs(cut, batch, parts)
            raise UserError(f"batch {sequence} of recipe {self._name} cannot be made again: {why}")
        return batch

    async def _parts(self, cut: BatchCut) -> Parts:
        offsets = {offset for m in cut.members for offset in (m.offset, *(d.offset for d in m.decisions))}
        try:
            samples, others = await self._source.load(
                cut.needs, max(offsets) + 1, samples=name_samples(cut), offsets=offsets
            )
        except Trimmed:
            if self._pool is None:
                raise
            log.info("a batch is made again from the pool", extra={"recipe": self._name, "sequence": cut.sequence})
            parts = await asyncio.to_thread(self._pool.load, cut)
            if missing := ", ".join(list_missing(cut, parts)):
                raise UserError(
                    f"neither the recipe's topic nor the pool has all of batch {cut.sequence}: {missing}"
                ) from None
            return parts
        markers = {(e.run_id, e.group_id): e for e in others.values() if isinstance(e, GroupReady)}
        return Parts(samples, markers, {e.fact_id: e for e in others.values() if isinstance(e, Decision)})

    def _hand_out(self, cut: BatchCut, columns: dict[str, Any]) -> AsyncBatch:
        trace = None if self._tracing is None else self._tracing.hand_out(cut, columns)
        return AsyncBatch(stream=self, cut=cut, lap=self._lap, traceparent=trace, **(columns | head_of(cut)))

    # ------------------------------------------------------------------------------------------------------- commit

    async def commit(
        self,
        batch: AsyncBatch,
        *,
        policy_version: int,
        trainer_step: int | None = None,
        weights_digest: str | None = None,
        token_stats: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that a batch's optimiser step is done and that the run's weights are now `policy_version`.

        Batches are committed in the order in which they were handed out; versions rise. The same commit again does
        nothing. Waits through a broker's absence up to twice `deadline`. Raises UserError, and records nothing, for a
        commit out of order, a version that does not rise, or token_stats of another length; Superseded; RetryableError if
        the broker stays away: then the same call again finds out whether it was recorded.

        `token_stats` go to the pool: arrays by name, one number per token of the batch ([T], or an array for each sample),
        NaN where there is none. `log_probs` is the trainer's log-prob of the token before the step, nats; other names, such
        as `clipped`, are kept too.
        """
        columns = read_stats(batch, token_stats or {})
        async with self._committing:
            began = time.monotonic()
            while True:
                try:
                    await self._settle()
                    if self._is_recorded(batch, policy_version):
                        self._position = max(self._position, batch.sequence)
                        self._end_span(batch, policy_version)
                        return
                    await self._check_commit(batch, policy_version)
                    trained = BatchTrained(
                        batch_id=batch.batch_id,
                        recipe=self._name,
                        run_id=batch.run_id,
                        sequence=batch.sequence,
                        cursor=batch.cut.cursor,
                        policy_version=policy_version,
                        trainer_step=trainer_step,
                        weights_digest=weights_digest,
                        holder=self._holder,
                        at=time.time(),
                    )
                    fates = self._fates()
                    stats = map(stats_entry, list_stats(batch, columns, trained))
                    await self._ledger.append(
                        [*stats, trained_entry(trained, batch.traceparent), policy_entry(_policy_of(trained)), *fates]
                    )
                    self._forget(fates)
                    if batch.lap == self._lap:  # else a seek came meanwhile, and what it said stands
                        self._position = batch.sequence
                    self._end_span(batch, policy_version)
                    return
                except Superseded:
                    if self._tracing is not None:
                        self._tracing.give_up("superseded")
                    raise
                except _AWAY as error:
                    if (away := time.monotonic() - began) > 2 * self._deadline:
                        raise RetryableError(
                            f"batch {batch.sequence} of recipe {self._name} is trained, and whether that is recorded is not "
                            f"known: the broker has not confirmed it for {away:.0f} s ({error}). When it is back, call commit "
                            "again with the same version: it is recorded once, however often you call. Or start the trainer "
                            "again from its checkpoint: what was not recorded comes again."
                        ) from error
                    log.warning("commit not confirmed", extra={"recipe": self._name, "error": str(error)})
                    await asyncio.sleep(_PAUSE_S)

    def _end_span(self, batch: AsyncBatch, policy_version: int) -> None:
        if self._tracing is not None:
            self._tracing.commit(batch.sequence, policy_version)

    def _is_recorded(self, batch: AsyncBatch, policy_version: int) -> bool:
        last = self._ledger.history.last_trained
        return (
            last is not None
            and batch.lap == self._lap
            and (last.batch_id, last.policy_version) == (batch.batch_id, policy_version)
        )

    async def _check_commit(self, batch: AsyncBatch, policy_version: int) -> None:
        if batch.stream is not self or batch.lap != self._lap:
            raise UserError(f"batch {batch.sequence} was handed out before the last seek: take it again and train it")
        if batch.sequence <= self._position:
            raise UserError(f"batch {batch.sequence} is committed already; batch {self._position} was the last one")
        if batch.sequence != self._position + 1:
            raise UserError(f"batch {batch.sequence} cannot be committed before batch {self._position + 1}")
        newest = self.policy_version
        if policy_version < 0 or (newest is not None and policy_version <= newest):
            await self._ledger.check_alone()  # if another trainer raised it, that is the thing to say
            raise UserError(
                f"policy version {policy_version} does not rise: run {batch.run_id} has trained up to {newest}. A restored "
                "trainer goes on at stream.policy_version + 1."
            )


def _open_tracing(recipe: str) -> "BatchTracing":
    with needing("otel", "trace=True"):
        from trainer_adapter.tracing import open_tracing
    return open_tracing(recipe)


def _policy_of(trained: BatchTrained) -> Policy:
    return Policy(
        run_id=trained.run_id,
        version=trained.policy_version,
        trainer_step=trained.trainer_step,
        weights_digest=trained.weights_digest,
        at=trained.at,
    )
