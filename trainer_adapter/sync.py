"""The same stream for trainers without an event loop: every call runs on a thread of its own loop and blocks."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from claw_r1.errors import UserError
from trainer_adapter.batch import TrainingBatch, held_of
from trainer_adapter.stream import AsyncBatch, AsyncBatchStream
from trainer_adapter.waiting import Waiting

T = TypeVar("T")


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch(TrainingBatch):
    """A batch that was handed out and can be acknowledged."""

    sequence: int
    stream: "BatchStream" = field(repr=False)
    source: AsyncBatch = field(repr=False)
    traceparent: str | None = field(default=None, repr=False)
    """Of the batch's span, for spans of the trainer's own; None: batches are not told."""

    def commit(
        self,
        *,
        policy_version: int,
        trainer_step: int | None = None,
        weights_digest: str | None = None,
        token_stats: Mapping[str, Any] | None = None,
    ) -> None:
        """Record that the optimiser step is done and made this policy version.

        The same commit again does nothing. `token_stats` go to the pool: arrays by name, one number per token ([T], or an
        array for each sample), NaN where there is none; `log_probs` is the trainer's log-prob before the step, nats. Raises
        UserError, and records nothing, for a commit out of order, a version that does not rise, or arrays of another length;
        Superseded if another trainer took the recipe; RetryableError if the broker stays away.
        """
        self.stream.commit(
            self,
            policy_version=policy_version,
            trainer_step=trainer_step,
            weights_digest=weights_digest,
            token_stats=token_stats,
        )


class BatchStream:
    """The batches of one recipe, in order, each durable as a cut before it is handed out.

        with BatchStream("grpo-main", kafka="127.0.0.1:9092") as stream:
            for batch in stream:
                train(batch)
                batch.commit(policy_version=version)

    Arguments, guarantees and errors are those of `AsyncBatchStream`. Safe to use from several threads.
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
        self._make: Callable[[], AsyncBatchStream] = lambda: AsyncBatchStream(
            recipe,
            kafka=kafka,
            holder=holder,
            take_over=take_over,
            from_start=from_start,
            timeout=timeout,
            appear=appear,
            prefetch_bytes=prefetch_bytes,
            deadline=deadline,
            pool=pool,
            database=database,
            trace=trace,
        )
        self._timeout = timeout
        self._stream: AsyncBatchStream | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Take the recipe and begin to read ahead; raises what `AsyncBatchStream.open` raises."""
        loop = asyncio.new_event_loop()
        self._loop = loop
        self._thread = threading.Thread(target=loop.run_forever, name="claw-trainer", daemon=True)
        self._thread.start()
        self._stream = self._make()
        try:
            self._wait(self._stream.open())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the broker. Batches that were handed out and not committed come again at the next start."""
        loop, thread, stream = self._loop, self._thread, self._stream
        if loop is None or thread is None:
            return
        try:
            if stream is not None:
                self._wait(stream.close())
        finally:
            self._loop = self._stream = self._thread = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.next(self._timeout)

    def next(self, timeout: float | None = None) -> Batch:
        """The next batch. Waits `timeout` seconds (None: for ever).

        Raises NoBatchYet (a TimeoutError) that says why; Superseded; InvalidRecord for a record that cannot be read.
        """
        handed = self._wait(self._open_stream().next(timeout))
        return Batch(stream=self, source=handed, traceparent=handed.traceparent, **held_of(handed))

    def commit(
        self,
        batch: Batch,
        *,
        policy_version: int,
        trainer_step: int | None = None,
        weights_digest: str | None = None,
        token_stats: Mapping[str, Any] | None = None,
    ) -> None:
        """What `batch.commit` does."""
        self._wait(
            self._open_stream().commit(
                batch.source,
                policy_version=policy_version,
                trainer_step=trainer_step,
                weights_digest=weights_digest,
                token_stats=token_stats,
            )
        )

    def cursor(self) -> int:
        """The sequence of the last committed batch, 0 before the first: what a checkpoint keeps."""
        return self._ask(lambda stream: stream.cursor())

    def seek(self, cursor: int) -> None:
        """Go on after batch `cursor`: the batches after it come again from their cuts, then new ones.

        Batches that were handed out before can no longer be committed. Raises UserError for a cursor that no batch has.
        """
        self._ask(lambda stream: stream.seek(cursor))

    @property
    def policy_version(self) -> int | None:
        """The newest trained version of the run; the next commit must be above. None if nothing was trained yet."""
        return self._ask(lambda stream: stream.policy_version)

    @property
    def counts(self) -> Counter[str]:
        """Records that were not taken in, by reason, since the stream was opened."""
        return self._ask(lambda stream: stream.counts)

    def waiting(self) -> Waiting:
        """What the next new batch waits for."""
        return self._ask(lambda stream: stream.waiting())

    def _open_stream(self) -> AsyncBatchStream:
        if self._stream is None:
            raise UserError("the stream is not open: use it in a `with` block")
        return self._stream

    def _ask(self, question: Callable[[AsyncBatchStream], T]) -> T:
        stream = self._open_stream()

        async def answer() -> T:
            return question(stream)

        return self._wait(answer())

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the trainer's thread must not leave a taker behind
            raise
