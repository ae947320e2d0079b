"""What the next batch of a recipe would be, seen from its history and its ready groups: nothing is written here.

A trainer stands on it, and so does whoever only wants to look.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from claw_r1.errors import UserError
from claw_r1.events import BatchCut, Sample
from claw_r1.ids import derived_id
from trainer_adapter.batch import TrainingBatch, build_columns
from trainer_adapter.credit import gae_of
from trainer_adapter.cut import Selection, fill, go_on, name_exclusions, name_members, take
from trainer_adapter.filling import Filling
from trainer_adapter.groups import ReadyGroup, Shelf
from trainer_adapter.held import HeldSample
from trainer_adapter.ledger import Ledger
from trainer_adapter.records import Mark, Row
from trainer_adapter.remake import measure
from trainer_adapter.source import Source
from trainer_adapter.staleness import mask_stale
from trainer_adapter.waiting import Waiting, explain_wait


class Outlook:
    """The recipe's history on `ledger`, its topic as `source` reads it, and the groups that no cut has on the shelf."""

    def __init__(self, recipe: str, ledger: Ledger, *, kafka: str, prefetch_bytes: int, deadline: float) -> None:
        self.ledger = ledger
        self.source = Source(recipe, kafka=kafka, enough=lambda: self.fill().full, deadline=deadline)
        self.begin = 0
        """Offset at which the reading began."""
        self._shelf: Shelf | None = None
        self._prefetch_bytes = prefetch_bytes
        self._filled: dict[bool, tuple[tuple[object, ...], Filling]] = {}
        """By `on`: the last filling, and of what it follows beside the groups that came since."""

    async def open(self, *, from_start: bool, appear: float) -> None:
        """Read on where the history ends; what is there is read when this returns. Errors as `Source.open`."""
        history = self.ledger.history
        last = history.last_cut
        start: int | None = 0 if from_start else None
        if last is not None:
            start = last.cursor if last.resume is None else last.resume
        cursor = None if last is None else last.cursor
        self._shelf = Shelf(
            history.taken, floor=cursor or 0, read_below=history.read_below, max_bytes=self._prefetch_bytes
        )
        self.begin = await self.source.open(self._shelf, start=start, cursor=cursor, appear=appear)

    async def close(self) -> None:
        await self.source.close()

    def check_open(self) -> None:
        """Raise UserError if the stream is not open."""
        if self._shelf is None:
            raise UserError("the stream is not open: use it in a `with` block")

    @property
    def shelf(self) -> Shelf:
        self.check_open()
        assert self._shelf is not None
        return self._shelf

    @property
    def policy_version(self) -> int | None:
        """The newest trained version of the run; None if nothing was trained yet."""
        newest = self.ledger.history.newest
        committed = None if newest is None else newest.policy_version
        announced = self.source.trained_version(self.source.recipe.run_id)
        return max((v for v in (committed, announced) if v is not None), default=None)

    @property
    def counts(self) -> Counter[str]:
        """Records that were not taken in, by reason."""
        return self.source.counts + (self._shelf.counts if self._shelf else Counter())

    def waiting(self) -> Waiting:
        """What the next new batch waits for."""
        return explain_wait(
            self.source.recipe,
            self.fill(on=True),
            sequence=self.ledger.history.last_sequence + 1,
            strays=self.shelf.strays,
            ended=self.source.ended,
            full=self.source.full,
        )

    def ready(self) -> Iterator[ReadyGroup]:
        """The groups that no cut has, as people's decisions leave them; to be read before anything is awaited."""
        return self.shelf.decide(self.source.recipe_of)

    def fill(self, *, on: bool = False) -> Filling:
        """The next batch, by what was read so far; with `on` the groups behind a full one are judged too.

        A group is judged again only if more has changed than that further ones came.
        """
        source, trained = self.source, self.policy_version
        recipe = source.recipe
        follows_from = (self.shelf.changes, recipe, len(source.recipes), trained)
        known = self._filled.get(on)
        if known is not None and known[0] == follows_from:
            filling = known[1]
            if on or not filling.full:
                go_on(filling, self.shelf.decide(source.recipe_of, filling.judged), recipe, trained, on=on)
        else:
            filling = fill(self.ready(), recipe, trained, on=on)
            self._filled[on] = follows_from, filling
        return filling

    async def select(self) -> Selection | None:
        """The next batch's groups, by all that is on the topic now; None: they do not fill a batch."""
        caught_up = False
        while (filling := self.fill()).full or filling.lacking:
            if filling.lacking:
                self.shelf.fill(await self.load(filling.lacking))
            elif caught_up:
                break
            else:
                await self.source.catch_up()
                caught_up = True
        return take(filling)

    async def build(self, selection: Selection) -> TrainingBatch:
        """The next new batch, of these groups; it has no id yet."""
        # As the groups were chosen: a new version of the recipe, or of the policy, may come while bodies are read.
        recipe, version, trained = self.source.recipe, self.source.recipe_version, self.policy_version
        self._filled.clear()  # what the cut leaves out is not to be held by it
        absent = [sample for group in selection.members for sample in group.samples if sample.wire is None]
        pairs = self._take(selection, await self.load(absent))
        return TrainingBatch(
            batch_id="",
            recipe=recipe.name,
            recipe_version=version,
            run_id=recipe.run_id,
            sequence=self.ledger.history.last_sequence + 1,
            trained_version=trained,
            **build_columns(pairs, recipe.algorithm, gae_of(recipe), tokens=selection.tokens),
        )

    def describe_cut(self, selection: Selection, batch: TrainingBatch, *, holder: str, at: float) -> BatchCut:
        """The cut that says what `build` gave; `at` in seconds since the epoch."""
        history = self.ledger.history
        assert batch.sequence is not None
        return BatchCut(
            batch_id=derived_id("batch", batch.recipe, batch.run_id, batch.sequence, batch.digest),
            recipe=batch.recipe,
            recipe_version=batch.recipe_version,
            run_id=batch.run_id,
            sequence=batch.sequence,
            members=name_members(selection),
            excluded=name_exclusions(selection),
            start=self.begin if history.last_cut is None else history.last_cut.cursor,
            cursor=selection.cursor,
            needs=selection.needs,
            resume=self.shelf.resume_at(selection.cursor, selection.groups),
            policy_version=batch.trained_version,
            digest=batch.digest,
            checksums=batch.checksums,
            sizes=measure(batch),
            holder=holder,
            at=at,
        )

    def _take(self, selection: Selection, loaded: dict[str, Sample]) -> Iterator[tuple[Mark, Iterable[Row]]]:
        """Every member with its samples: those that were loaded, the others from the shelf. What is taken is let go of; should
        the cut not become durable, it is read again."""
        shelf = self.shelf
        for group in selection.members:
            rows: list[Row] = []
            for held in group.samples:
                # What decisions changed is not on the topic, and stays until the cut is durable.
                row = held.row if group.origin is not None else shelf.take(held)
                rows.append(loaded.pop(held.sample_id) if row is None else row)
            yield group.mark, mask_stale(rows, selection.floor)

    async def load(self, absent: list[HeldSample]) -> dict[str, Sample]:
        """These samples, read again."""
        if not absent:
            return {}
        first, last = min(s.offset for s in absent), max(s.offset for s in absent)
        bodies, _ = await self.source.load(first, last + 1, samples={s.sample_id for s in absent})
        return bodies
