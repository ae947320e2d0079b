"""A batch is made again from the pool, as its cut says, or it is said what is missing or differs."""

from collections.abc import Mapping

from claw_r1.errors import UserError
from claw_r1.events import BatchCut
from claw_r1.recipes import Recipe
from trainer_adapter.batch import TrainingBatch
from trainer_adapter.pool import Pool
from trainer_adapter.remake import Parts, head_of, list_differing, list_missing, remake_columns

_SHOWN = 10


def rebuild_batch(name: str, *, clickhouse: str = "http://127.0.0.1:8123", database: str = "claw") -> TrainingBatch:
    """The batch that was handed out under this name (RECIPE/SEQUENCE, or the batch's id), the same in every byte.

    Rewards and decisions that came after its cut change nothing. Raises UserError if the pool lacks a part of it, naming the
    parts, or if its columns differ from those of the cut, naming what differs; DependencyUnreachable and RetryableError if
    the pool is away.
    """
    pool = Pool(clickhouse, database)
    cut = pool.find_cut(name)
    return remake(cut, pool.load(cut), pool.recipes(cut.recipe))


def remake(cut: BatchCut, parts: Parts, recipes: Mapping[int, Recipe]) -> TrainingBatch:
    """The cut's batch of its parts; errors as `rebuild_batch`."""
    missing = list(list_missing(cut, parts))
    versions = {cut.recipe_version} | {
        parts.markers[member.run_id, member.group_id].recipe_version
        for member in cut.members
        if member.decisions and (member.run_id, member.group_id) in parts.markers
    }
    missing += [f"version {version} of recipe {cut.recipe}" for version in sorted(versions - recipes.keys())]
    if missing:
        raise UserError(
            f"batch {cut.recipe}/{cut.sequence} cannot be made again: the pool lacks {_shown(missing)}. Has the sink taken in "
            "all of it? `claw status` tells; or it was deleted there."
        )
    batch = TrainingBatch(**head_of(cut), **remake_columns(cut, parts, recipes.__getitem__))
    if batch.digest != cut.digest:
        raise UserError(f"batch {cut.recipe}/{cut.sequence} cannot be made again: {why_it_differs(cut, batch, parts)}")
    return batch


def why_it_differs(cut: BatchCut, batch: TrainingBatch, parts: Parts) -> str:
    """What of a batch, of which nothing is missing, is not as the cut recorded it."""
    names = list_differing(cut, batch)
    differs = f"{', '.join(names)} differ" if names else "its columns differ, and the cut does not say which"
    said = f"{differs} (digest {batch.digest[:16]}, the cut says {cut.digest[:16]})."
    if parts.older:
        return f"{said} The pool stored these before it kept all that they were: {_shown(sorted(parts.older))}."
    return f"{said} Was it cut by another version of this package?"


def _shown(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
