"""What a recipe requires, and who is known to produce it: senders that the pool has heard, workers, installed functions.

Nothing is refused here: what a recipe requires may come from a program that has not begun yet.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import ClawError
from claw_r1.events import Reward
from claw_r1.recipes import Recipe
from claw_r1.rewards.finding import load, load_functions, offered
from claw_r1.rewards.function import RewardFunction
from claw_r1.settings import WorkersSettings

POOL_TIMEOUT: Final = 20.0
HEARD: Final = f"""
SELECT DISTINCT 'reward' AS kind, toString(source) AS name FROM rewards WHERE run_id = {{run:String}}
UNION ALL SELECT DISTINCT 'annotation', toString(name) FROM annotations WHERE run_id = {{run:String}}
UNION ALL SELECT 'reward', '{Reward.model_fields["source"].default}'
WHERE (SELECT count() FROM trajectories WHERE run_id = {{run:String}}) = 0
"""
"""The source of rewards that agents send when they end counts as heard until a trajectory of the run has ended without it."""


@dataclass(frozen=True)
class Known:
    """Reward sources and names of annotations that somebody produces."""

    rewards: frozenset[str]
    annotations: frozenset[str]

    def __or__(self, other: "Known") -> "Known":
        return Known(self.rewards | other.rewards, self.annotations | other.annotations)


def workers_produce(environ: Mapping[str, str] | None = None) -> Known:
    """What workers with the settings of this environment produce, and what installed functions would. Raises WrongUse."""
    settings = WorkersSettings.read(environ)
    functions = list(load_functions(settings.rewards, setting="CLAW_WORKERS_REWARDS"))
    installed = [load(name, setting="claw_r1.rewards") for name in offered()]
    functions += [function for function in installed if isinstance(function, RewardFunction)]
    return Known(frozenset(f.name for f in functions), frozenset(source.name for source in settings.annotations))


async def pool_has(url: str, database: str, run_id: str) -> Known:
    """What the pool has of the run, whoever sent it. Raises ClawError if it does not answer."""
    async with await ClickHouse.connect(url, database, timeout=POOL_TIMEOUT) as client:
        rows = (await client.query(HEARD, {"run": run_id})).rows
    heard = {kind: frozenset(name for one, name in rows if one == kind) for kind in ("reward", "annotation")}
    return Known(heard["reward"], heard["annotation"])


async def warn(recipe: Recipe, url: str, database: str) -> list[str]:
    """A sentence for everything that the recipe requires and nothing is known to produce, and for what could not be asked."""
    known, warnings = Known(frozenset(), frozenset()), []
    try:
        known |= workers_produce()
    except ClawError as error:
        warnings.append(f"what workers produce is not known: {error}")
    if any(unsupplied(recipe, known)):
        try:
            known |= await pool_has(url, database, recipe.run_id)
        except ClawError as error:
            return [*warnings, f"whether anything produces what the recipe requires is not known: {error}"]
    return [*warnings, *unsupplied(recipe, known)]


def unsupplied(recipe: Recipe, known: Known) -> Iterator[str]:
    """A sentence for everything that the recipe requires and is not known."""
    for source in _lacks(recipe.rewards.required, known.rewards):
        rule = recipe.rewards
        yield (
            f"nothing is known to produce the required reward source {source}: run {recipe.run_id} has none of it in the pool, "
            f"and no worker or installed function is called so. Name a function of that source in CLAW_WORKERS_REWARDS (`claw "
            f"rewards list` shows those that are installed), or send it: POST /rewards with source {source}. A trajectory "
            f"without it: {rule.on_missing} (rewards.on_missing) {rule.timeout:g} s after its end."
        )
    for name in _lacks(recipe.annotations.required, known.annotations):
        wanted = recipe.annotations
        yield (
            f"nothing is known to produce the required annotation {name}: run {recipe.run_id} has none of it in the pool, and "
            f"no worker makes it. Name an engine for it in CLAW_WORKERS_ANNOTATIONS, or send it: POST /annotations with name "
            f"{name}. A trajectory without it: {wanted.on_missing} (annotations.on_missing) {wanted.timeout:g} s after its end."
        )


def _lacks(required: Collection[str], known: Collection[str]) -> list[str]:
    return [name for name in required if name not in known]
