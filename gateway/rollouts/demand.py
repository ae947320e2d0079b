"""Drivers of rollouts ask how many groups are wanted now.

Invariants: it answers what this gateway admits by; a key sees its own run.
"""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from claw_r1.keys import Key
from gateway.access import check_target
from gateway.rollouts.admission import Standing
from gateway.rollouts.api import Caller
from gateway.rollouts.bodies import Id
from gateway.rollouts.gate import Gate
from gateway.rollouts.wire import BodyRoute

RecipeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,99}$")]


class DemandView(BaseModel):
    """What the trainer of a recipe wants. Without a live trainer nothing is refused, and numbers are as they were last said."""

    recipe: str
    live: bool = Field(description="a trainer is there")
    wanted: int | None = Field(
        None, description="new groups that may begin now; null: any number, or nobody is there to say"
    )
    capacity: int | None = Field(
        None,
        description="groups that may be open, ready or cut: batch_groups × (max_versions + 1); null: the recipe trains groups "
        "of any age, so any number",
    )
    open: int | None = Field(None, description="groups that have begun and have no fate yet")
    ready: int | None = Field(None, description="groups that are ready and in no batch")
    cut: int | None = Field(None, description="groups of batches that are not trained yet")
    run_id: str | None = None
    channel: str | None = None
    batch_groups: int | None = Field(None, description="groups in one batch")
    max_versions: int | None = Field(None, description="the recipe's staleness.max_versions")
    recipe_version: int | None = None
    holder: str | None = Field(None, description="the trainer's name")
    said_at: float | None = Field(None, description="by the broker's clock, seconds since the epoch")


class DemandList(BaseModel):
    """What each recipe wants."""

    recipes: list[DemandView] = Field(description="by name; those of the key's run")


def _view(standing: Standing) -> DemandView:
    demand = standing.want.demand
    return DemandView(
        recipe=demand.recipe,
        live=standing.live,
        wanted=standing.wanted,
        capacity=standing.want.capacity,
        open=standing.open,
        ready=demand.ready,
        cut=demand.cut,
        run_id=demand.run_id,
        channel=demand.channel,
        batch_groups=demand.batch_groups,
        max_versions=demand.max_versions,
        recipe_version=demand.recipe_version,
        holder=demand.holder,
        said_at=standing.want.appended,
    )


def _bound_run(key: Key | None) -> str | None:
    """The only run that a key may see."""
    return key.run_id if key is not None and key.binds else None


def make_demand(gate: Gate) -> APIRouter:
    """The path of demand."""
    router = APIRouter(route_class=BodyRoute, tags=["trajectories"])

    @router.get("/demand", summary="Ask how many groups are wanted")
    async def demand(
        key: Caller,
        recipe: Annotated[RecipeName | None, Query(description="default: all that are known")] = None,
        run_id: Annotated[Id | None, Query(description="only recipes of this run")] = None,
    ) -> DemandView | DemandList:
        """What trainers want now. A recipe whose trainer is not there is not live, and nothing is refused for its sake."""
        check_target(key, run_id=run_id)
        run_id = run_id or _bound_run(key)
        if recipe is None:
            found = [standing for standing in gate.all() if run_id in (None, standing.want.demand.run_id)]
            return DemandList(recipes=[_view(standing) for standing in found])
        standing = gate.stand(recipe)
        if standing is None or run_id not in (None, standing.want.demand.run_id):
            return DemandView(recipe=recipe, live=False)
        return _view(standing)

    return router
