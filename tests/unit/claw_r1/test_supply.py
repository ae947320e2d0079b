"""What a recipe requires is looked for among workers and installed functions, and missed by name."""

from typing import Any

import pytest

from claw_r1.errors import WrongUse
from claw_r1.supply import Known, unsupplied, workers_produce
from tests.factories import a_recipe

NOTHING = Known(frozenset(), frozenset())


def test_what_is_missing_is_named_with_how_to_supply_it() -> None:
    recipe = a_recipe(
        run_id="mine",
        rewards={"required": ["answer", "style"], "on_missing": "zero", "timeout": "90s"},
        annotations={"required": ["ref_log_probs"]},
    )
    answer, style, log_probs = unsupplied(recipe, NOTHING)
    assert "required reward source answer: run mine has none" in answer
    assert "CLAW_WORKERS_REWARDS" in answer
    assert "POST /rewards with source answer" in answer
    assert "zero (rewards.on_missing) 90 s after its end" in answer
    assert "reward source style" in style
    assert "required annotation ref_log_probs" in log_probs
    assert "CLAW_WORKERS_ANNOTATIONS" in log_probs
    assert list(unsupplied(recipe, Known(frozenset({"answer", "style"}), frozenset({"ref_log_probs"})))) == []


def test_nothing_required_is_nothing_missed() -> None:
    assert list(unsupplied(a_recipe(rewards={"required": []}), NOTHING)) == []


def test_workers_produce_what_their_settings_name() -> None:
    environ = {
        "CLAW_WORKERS_REWARDS": "tests.integration.plugins:length",
        "CLAW_WORKERS_ANNOTATIONS": '[{"name": "ref_log_probs", "engine": "http://127.0.0.1:9"}]',
    }
    known = workers_produce(environ)
    assert "length" in known.rewards
    assert known.annotations == {"ref_log_probs"}


def test_an_installed_function_is_known_without_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.integration import plugins

    def point(name: str, *, setting: str) -> Any:
        return {"len": plugins.length, "other": print}[name]

    monkeypatch.setattr("claw_r1.supply.offered", lambda: {"len": "m:length", "other": "m:other"})
    monkeypatch.setattr("claw_r1.supply.load", point)
    assert workers_produce({}).rewards == {"length"}


def test_a_function_that_cannot_be_loaded_is_an_error() -> None:
    with pytest.raises(WrongUse, match="CLAW_WORKERS_REWARDS"):
        workers_produce({"CLAW_WORKERS_REWARDS": "no.such.module:f"})
