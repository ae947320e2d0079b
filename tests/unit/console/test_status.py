"""The pool's rows become the numbers that people see, and nothing is invented on the way."""

from claw_r1.probe_answers import Gauge
from console.queries import BUCKETS
from console.status import PolicyLine, engines_of, shape_curves
from tests.unit.console.boards import some_numbers, some_rows


def test_counts_rates_and_history_of_a_stage() -> None:
    steps = next(stage for stage in some_numbers().stages if stage.name == "steps")
    assert (steps.count, steps.per_second) == (11, 0.6)
    assert len(steps.recent) == BUCKETS
    assert (steps.recent[-1], steps.recent[0]) == (6, 5), "the newest bucket is the last"


def test_a_bucket_that_is_older_than_the_history_is_left_out() -> None:
    steps = some_numbers(recent=[{"what": "steps", "bucket": BUCKETS, "n": 9}]).stages[1]
    assert sum(steps.recent) == 0


def test_what_was_left_out_has_its_reason_and_what_was_emitted_is_counted_apart() -> None:
    numbers = some_numbers()
    assert [(r.about, r.reason, r.count) for r in numbers.left_out] == [("group", "too_small", 2)]
    assert numbers.fates == {"group": {"emitted": 3, "discarded": 2}}


def test_a_recipe_has_its_ready_groups_and_its_batches() -> None:
    (recipe,) = some_numbers().recipes
    assert (recipe.in_force, recipe.version, recipe.batch_groups, recipe.ready) == (True, 2, 1, 1)
    assert [(b.sequence, b.reward, b.policy_version) for b in recipe.batches] == [(1, 0.25, 7), (2, None, None)]


def test_a_cut_that_was_stored_before_its_group_makes_no_negative_count() -> None:
    assert some_numbers(ready=[{"recipe": "guess", "ready": 1, "cut": 2}]).recipes[0].ready == 0


def test_an_ended_recipe_stays_visible_behind_those_in_force() -> None:
    recipes = [*some_rows()["recipes"], {"name": "a-first", "version": 3, "recipe": ""}]
    assert [(r.name, r.in_force) for r in some_numbers(recipes=recipes).recipes] == [
        ("guess", True),
        ("a-first", False),
    ]


def test_an_empty_pool_says_so() -> None:
    assert not some_numbers().empty
    assert some_numbers(totals=[{"what": "calls", "n": 0}, {"what": "recipes", "n": 3}]).empty


def test_engines_are_up_down_or_unknown() -> None:
    samples = [
        Gauge("claw_gateway_engine_up", {"engine": "10.0.0.1-8000"}, 1.0),
        Gauge("claw_gateway_engine_in_flight", {"engine": "10.0.0.1-8000"}, 3.0),
        Gauge("claw_gateway_engine_up", {"engine": "b"}, 0.0),
        Gauge("claw_gateway_engine_in_flight", {"engine": "c"}, 0.0),
        Gauge("claw_gateway_in_flight", {}, 3.0),
    ]
    policies = [PolicyLine(run_id="r", engine="http://10.0.0.1:8000", version=7, at=0.0)]
    found = [(e.name, e.up, e.in_flight, e.versions) for e in engines_of(samples, policies)]
    assert found == [("10.0.0.1-8000", True, 3, (7,)), ("b", False, None, ()), ("c", None, 0, ())]


def test_an_engine_of_several_gateways_has_the_calls_of_all() -> None:
    each = [("up", 1.0), ("in_flight", 3.0)], [("up", 0.0), ("in_flight", 4.0)]
    samples = [Gauge(f"claw_gateway_engine_{name}", {"engine": "a"}, value) for said in each for name, value in said]
    assert [(e.up, e.in_flight) for e in engines_of(samples, [])] == [(True, 7)]


def test_a_curve_that_nobody_recorded_says_what_records_it() -> None:
    rows = [{"sequence": 2, "what": "mismatch", "mean": -0.5, "mean_abs": 0.75}]
    found = shape_curves(rows)
    assert found["points"] == [{"sequence": 2, "entropy": None, "mismatch": -0.5, "mismatch_abs": 0.75}]
    assert list(found["missing"]) == ["entropy"]
    assert "token_stats" in found["missing"]["entropy"]
