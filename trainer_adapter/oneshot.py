"""A batch is built from the pool once, beside all streams: of the ready groups of a recipe that conditions pick, as of a time.

Nothing is cut and nothing committed. The groups are those that the streams emitted, and what is made of them is what a cut at
that time would have made: the same decisions, the same columns. Conditions take trajectories out of the rows, not out of their
group's baseline, as a recipe's filters do.
"""

import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from claw_r1.dry_run import list_untold, picking_sql, until
from claw_r1.errors import UserError
from claw_r1.events import GroupReady, Sample
from claw_r1.ids import derived_id
from claw_r1.recipes import Recipe, Staleness
from claw_r1.rules import Condition, sql_literal
from claw_r1.topics import EVENTS, batch_topic
from trainer_adapter.batch import TrainingBatch, build_columns
from trainer_adapter.credit import gae_of
from trainer_adapter.cut import reason_against
from trainer_adapter.decisions import curate_group, is_about
from trainer_adapter.groups import ReadyGroup
from trainer_adapter.held import judge_sample
from trainer_adapter.pool import CHUNK, Pool, Row
from trainer_adapter.pool_rows import read_decision, read_marker, read_sample
from trainer_adapter.records import mark_of

log = logging.getLogger("claw.trainer")

Pair = tuple[GroupReady, list[Sample]]
Picked = Collection[tuple[str, str]] | None
"""(prompt_uid, trajectory_uid) of the trajectories that conditions pick; None: all."""

MAX_TOKENS: Final = 2**28


def build_batch(
    recipe: str,
    where: Iterable[Condition | Mapping[str, Any]] = (),
    as_of: datetime | float | None = None,
    *,
    groups: int | None = None,
    tokens: int | None = None,
    max_tokens: int = MAX_TOKENS,
    clickhouse: str = "http://127.0.0.1:8123",
    database: str = "claw",
) -> TrainingBatch:
    """A batch of the groups that became ready for a recipe, from the pool.

    - `where`: conditions in the vocabulary of a recipe's filters, all of which hold of a trajectory and its group, such as
      `{"field": "task_id", "op": "eq", "value": "sum-7"}`. They ask what the pool knew at `as_of`, late rewards included.
    - `as_of`: a time (with its zone, or seconds since the epoch): what the log got later is not there. None: now.
    - `groups`: the newest so many, in ready order. None: all.
    - `tokens`: the newest whole groups, until the next one would go beyond so many, as with a recipe's `batch.tokens`.
    - `max_tokens`: more is refused, since the batch is held in memory, with about 9 bytes a token.

    Rewards of columns are those of the emission, or what decisions up to `as_of` say. The recipe's batch size, mix and
    staleness are not asked. `sequence` is None, `batch_id` follows from the contents. Raises UserError for a recipe, a
    condition or a time that is none, where no group fits, and for a batch that is too large; DependencyUnreachable and
    RetryableError if the pool is away.
    """
    moment = _read_time(as_of)
    pool = Pool(clickhouse, database)
    versions = pool.recipes(recipe, until(moment))
    if not versions:
        raise UserError(
            f"the pool has no recipe {recipe} that was applied by then: `claw recipes list` shows those in force"
        )
    rule = versions[max(versions)]
    picked = _pick(pool, rule, where, moment)
    left_out: Counter[str] = Counter()
    pairs: list[Pair] = []
    held = 0
    with contextlib.closing(_fitting(pool, versions, picked, moment, left_out)) as fitting:
        for pair in itertools.islice(fitting, groups):
            size = sum(len(sample.loss_mask) for sample in pair[1])
            if tokens is not None and held + size > tokens:
                if not pairs:
                    raise UserError(
                        f"the newest group that fits has {size} tokens, more than the {tokens} that you ask for"
                    )
                break
            pairs.append(pair)
            held += size
            if held > max_tokens:
                raise UserError(
                    f"the batch has more than {max_tokens} tokens: pick less with `where`, `groups` or `tokens`, or raise "
                    "`max_tokens`"
                )
    said = ", ".join(f"{n} {reason}" for reason, n in left_out.most_common())
    if not pairs:
        raise UserError(
            f"no ready group of recipe {recipe} fits{f' (left out: {said})' if said else ''}: `claw recipes backfill {recipe}` "
            "judges groups that began before the recipe"
        )
    log.info("a one-shot batch", extra={"recipe": recipe, "groups": len(pairs), "left_out": said})
    pairs.reverse()
    head: dict[str, Any] = {"recipe": recipe, "recipe_version": max(versions), "run_id": rule.run_id, "sequence": None}
    columns = build_columns(pairs, rule.algorithm, gae_of(rule))
    trained = _trained_version(pool, rule.run_id, moment)
    batch = TrainingBatch(batch_id="", trained_version=trained, **head, **columns)
    return replace(batch, batch_id=derived_id("one-shot", recipe, batch.digest))


def _read_time(as_of: datetime | float | None) -> float:
    if as_of is None:
        return time.time()
    if not isinstance(as_of, datetime):
        return float(as_of)
    if as_of.tzinfo is None:
        raise UserError(f"as_of {as_of.isoformat()} has no time zone: write datetime(…, tzinfo=UTC), or seconds")
    return as_of.timestamp()


def _pick(pool: Pool, rule: Recipe, where: Iterable[Condition | Mapping[str, Any]], moment: float) -> Picked:
    """The trajectories that the conditions pick; None without conditions."""
    try:
        conditions = tuple(one if isinstance(one, Condition) else Condition.model_validate(one) for one in where)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"a condition of `where` is none: {said}") from error
    if not conditions:
        return None
    asking = rule.model_copy(update={"filters": conditions})
    if untold := list_untold(asking):
        raise UserError(f"the pool does not tell {', '.join(untold)}: leave these conditions out")
    return {(row["prompt_uid"], row["trajectory_uid"]) for row in pool.ask(picking_sql(asking, moment))}


def _trained_version(pool: Pool, run_id: str, moment: float) -> int | None:
    question = (
        "SELECT max(policy_version) AS newest FROM policies "
        f"WHERE run_id = {sql_literal(run_id)} AND engine IS NULL AND {until(moment)} HAVING count() > 0"
    )
    return next((row["newest"] for row in pool.ask(question)), None)


def _fitting(
    pool: Pool, versions: Mapping[int, Recipe], picked: Picked, moment: float, left_out: Counter[str]
) -> Generator[Pair, None, None]:
    """The groups that fit, the newest first; why others do not is counted."""
    newest = versions[max(versions)]
    rule = newest.model_copy(update={"staleness": Staleness(unknown=newest.staleness.unknown)})
    listed = pool.ask(
        "SELECT run_id, prompt_uid, group_id, offset, arrayMap(m -> m.trajectory_uid, members) AS uids FROM groups FINAL "
        f"WHERE run_id = {sql_literal(rule.run_id)} AND recipe = {sql_literal(rule.name)} AND {until(moment)} "
        "ORDER BY append_time DESC, offset DESC"
    )
    some = (row for row in listed if picked is None or any((row["prompt_uid"], uid) in picked for uid in row["uids"]))
    while chunk := list(itertools.islice(some, CHUNK)):
        for group in _load(pool, rule.name, chunk, moment):
            pair, reason = _judge(group, versions, picked, rule)
            if reason is None:
                yield pair
            else:
                left_out[reason] += 1


class _Stored:
    """A group's rows: its marker, its samples, and the decisions on its prompt."""

    def __init__(self, marker: Row, samples: Mapping[str, Sample], decisions: Iterable[Row]) -> None:
        self.marker = read_marker(marker)
        self.offset: int = marker["offset"]
        self.samples = [samples[name] for name in self.marker.sample_ids if name in samples]
        known = {decision.fact_id for decision in self.marker.curation}
        read = [read_decision(row) for row in decisions if row["fact_id"] not in known and _is_later(row, marker)]
        self.later = [decision for decision in read if is_about(decision, self.marker)]


def _is_later(decision: Row, marker: Row) -> bool:
    """Whether a decision came behind the group: what came before is in the marker, or was of an earlier round."""
    if decision["topic"] == EVENTS:
        return bool(decision["offset"] >= marker["pos"])
    if decision["topic"] == batch_topic(marker["recipe"]):
        return bool(decision["offset"] > marker["offset"])
    return bool(decision["append_time"] > marker["append_time"])


def _load(pool: Pool, recipe: str, chunk: list[Row], moment: float) -> Iterator[_Stored]:
    """The groups in the order of the chunk."""
    keys = [(row["run_id"], row["group_id"]) for row in chunk]
    samples = {row["sample_id"]: read_sample(row) for row in pool.rows_of("samples", recipe, keys)}
    decisions: dict[str, list[Row]] = {}
    for row in pool.decision_rows(keys, until(moment)):
        decisions.setdefault(row["prompt_uid"], []).append(row)
    markers = {(row["group_id"], row["offset"]): row for row in pool.rows_of("groups", recipe, keys)}
    for row in chunk:
        marker = markers.get((row["group_id"], row["offset"]))
        if marker is None:
            raise UserError(f"group {row['group_id']} was removed from the pool meanwhile: build the batch again")
        yield _Stored(marker, samples, decisions.get(row["prompt_uid"], ()))


def _judge(group: _Stored, versions: Mapping[int, Recipe], picked: Picked, rule: Recipe) -> tuple[Pair, str | None]:
    """The group with its decisions applied and only what is picked, and why it does not fit."""
    marker, samples = group.marker, group.samples
    if len(samples) < len(marker.sample_ids):
        return (marker, samples), "samples_missing"
    if group.later:
        curated = curate_group(marker, samples, group.later, versions.get(marker.recipe_version, rule))
        if curated.reason is not None:
            return (marker, samples), curated.reason
        marker, samples = curated.marker, list(curated.samples)
    if picked is not None:
        samples = [sample for sample in samples if (marker.prompt_uid, sample.trajectory_uid) in picked]
        marker = marker.model_copy(update={"sample_ids": tuple(sample.sample_id for sample in samples)})
    held = tuple(judge_sample(group.offset, sample) for sample in samples)
    reason = reason_against(ReadyGroup(mark_of(marker, marker), group.offset, held, marker.at), rule, None)
    return (marker, samples), reason
