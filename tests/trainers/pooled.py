"""What a run's trajectories became, as a batch of a recipe that takes them all."""

import asyncio
from typing import Any

from claw_r1.recipes import Recipe
from claw_r1.registry import apply_recipe
from trainer_adapter import Batch, BatchStream


def take_all(
    kafka: str, name: str, *, size: int, groups: int, sources: tuple[str, ...], run_id: str = "", channel: str = "train"
) -> Recipe:
    """The recipe, in force; of the run of its name unless another one is named."""
    fields: dict[str, Any] = {"name": name, "run_id": run_id or name, "channel": channel}
    fields |= {"group": {"size": size}, "batch": {"groups": groups}}
    recipe = Recipe.model_validate(fields | {"rewards": {"required": sources}})
    asyncio.run(apply_recipe(kafka, recipe, deadline=60.0))
    return recipe


def next_batch(kafka: str, recipe: Recipe) -> Batch:
    with BatchStream(recipe.name, kafka=kafka) as stream:
        return stream.next(60)
