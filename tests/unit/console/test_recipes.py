"""Recipes as the page lists them: what is ready, and for how many batches that is enough."""

import json
from typing import Any

import pytest

from console import recipes


@pytest.mark.parametrize(
    ("batch", "enough"),
    [({"groups": 8}, 2), ({"groups": 8, "tokens": None}, 2), ({"groups": 8, "tokens": 9000}, None)],
)
def test_ready_groups_are_enough_for_batches_of_groups_and_nobody_knows_for_batches_of_tokens(
    batch: dict[str, Any], enough: int | None
) -> None:
    line = {"name": "x", "run_id": "r", "version": 1, "recipe": json.dumps({"batch": batch}), "at": 0.0}
    ready = {"recipe": "x", "ready": 20, "cut": 3}
    (shown,) = recipes.shape({"recipes": [line], "batches": [], "fates": [], "ready": [ready], "oldest": []})
    assert (shown["ready"], shown["batches_ready"]) == (17, enough)
