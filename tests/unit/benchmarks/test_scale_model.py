"""The scale model recovers costs that are known, is judged by what it has not seen, and never asks less for more."""

import json
import math
import random
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.costs import BYTES_BY, CPU_BY, Check, Cost, Costs, Window, Work, check, check_bytes, fit, solve
from benchmarks.end_stand import FLOWS, STAGES
from benchmarks.fleet import REASONS, Assumptions, Fleet, Needs, count, needs
from benchmarks.scale_model import MEASUREMENTS, Measurements, as_page, judge, main
from benchmarks.shapes import Shape, conversation

ROOT = Path(__file__).parents[3]
SHAPES = [
    conversation(*sizes)
    for sizes in (
        (128, 32, 32, 5),
        (512, 128, 100, 5),
        (1200, 300, 100, 15),
        (512, 512, 100, 1),
        (4000, 300, 500, 5),
        (64, 900, 7, 2),
    )
]
KNOWN = Costs(
    {name: Cost(**{quantity: (place + 2) * 1e-6 for place, quantity in enumerate(by)}) for name, by in CPU_BY.items()},
    {name: Cost(**{quantity: place + 3.0 for place, quantity in enumerate(by)}) for name, by in BYTES_BY.items()},
)


def a_window(shape: Shape, steps_per_s: float = 500.0, *, held_out: bool = False, factor: float = 1.0) -> Window:
    """Ten seconds of a shape that cost what is known, times `factor`."""
    trajectories = 10 * steps_per_s / shape.turns
    work = Work(
        10.0,
        trajectories * shape.turns,
        trajectories,
        trajectories * shape.new_tokens,
        trajectories * shape.turns * shape.sampled,
        trajectories * shape.all_prompt_tokens,
    )
    return Window(
        shape.name,
        work,
        {name: factor * cost(work) for name, cost in KNOWN.cpu.items()},
        {name: factor * cost(work) for name, cost in KNOWN.bytes.items()},
        steps_per_s,
        held_out,
        0.01,
    )


def windows() -> list[Window]:
    return [a_window(shape, rate) for shape in SHAPES for rate in (100.0, 700.0)]


def as_kept(kept: list[Window]) -> dict[str, Any]:
    machine = {
        "processor": "p",
        "cores": 2,
        "system": "s",
        "python": "3",
        "versions": {},
        "load_before": [0.1, 0.1, 0.1],
    }
    return {"machine": machine, "group": 8, "batch": 8, "windows": [window.plain() for window in kept]}


def test_known_costs_are_recovered() -> None:
    found = fit(windows())
    for name, cost in KNOWN.cpu.items():
        assert asdict(found.cpu[name]) == pytest.approx(asdict(cost), rel=1e-6), name
    for name, cost in KNOWN.bytes.items():
        assert asdict(found.bytes[name]) == pytest.approx(asdict(cost), rel=1e-6), name


def test_noise_of_five_per_cent_leaves_predictions_within_the_goal() -> None:
    rng = random.Random(3)
    noisy = [
        replace(one, cpu={name: value * rng.uniform(0.95, 1.05) for name, value in one.cpu.items()})
        for one in windows()
    ]
    unseen = a_window(conversation(800, 200, 150, 8), 300.0, held_out=True)
    errors = [one.error for one in check(fit([*noisy, unseen]), [unseen])]
    assert max(map(abs, errors)) < 0.2
    assert any(errors)


def test_what_is_held_out_is_judged_and_not_fitted() -> None:
    dear = a_window(conversation(800, 200, 150, 8), held_out=True, factor=2.0)
    costs = fit([*windows(), dear])
    assert asdict(costs.cpu["gateway"]) == pytest.approx(asdict(KNOWN.cpu["gateway"]), rel=1e-6)
    found = check(costs, [*windows(), dear])
    assert {one.what for one in found} == {*CPU_BY, "all"}
    assert [one.error for one in found] == pytest.approx([-0.5] * len(found))
    assert [one.error for one in check_bytes(costs, [dear])] == pytest.approx([-0.5] * len(BYTES_BY))
    assert "0 of 7 predictions are within 20%" in judge(found)
    assert judge([]) == "Nothing was held out: the fit is not checked."


def test_an_error_is_above_zero_where_the_model_asks_for_too_much() -> None:
    assert Check("s", "gateway", None, measured=2.0, predicted=3.0).error == pytest.approx(0.5)


@given(st.integers(0, 2**32 - 1))
def test_no_cost_is_below_zero_and_none_fits_better_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, values = rng.random((6, 4)), rng.random(6) + 0.1
    found = solve(rows, values)
    assert (found >= 0).all()

    def left(costs: Any) -> float:
        return float((((rows @ costs - values) / values) ** 2).sum())

    for place in range(4):
        for step in (1e-4, -1e-4):
            moved = found.copy()
            moved[place] = max(0.0, moved[place] + step)
            assert left(moved) >= left(found) - 1e-9


def test_too_few_shapes_are_no_fit() -> None:
    with pytest.raises(ValueError, match="3 shapes of conversations were measured, and a fit needs 4"):
        fit([a_window(shape) for shape in SHAPES[:3]] + [a_window(SHAPES[3], held_out=True)])


# ---------------------------------------------------------------------------------------------------------------- needs


def ask(gpus: int = 1_000, assumed: Assumptions | None = None, **more: Any) -> Needs:
    assumed = assumed or Assumptions()
    return needs(Fleet.of(gpus, assumed, **more), KNOWN, assumed)


def numbers(need: Needs) -> list[float]:
    """Everything that a fleet needs."""
    parts = [number for part in need.parts for number in (part.instances, part.cores, part.in_mb_s, part.out_mb_s)]
    own = [getattr(need, one.name) for one in fields(need) if one.name not in ("fleet", "parts")]
    return [*parts, *own, need.cores]


def assert_no_less(small: Needs, large: Needs) -> None:
    assert all(more >= less * (1 - 1e-9) for less, more in zip(numbers(small), numbers(large), strict=True))


@given(st.floats(1.0, 1e5), st.floats(1.0, 10.0))
def test_more_steps_never_need_less(rate: float, factor: float) -> None:
    assert_no_less(ask(steps_per_s=rate), ask(steps_per_s=rate * factor))


@given(st.integers(1, 2_000), st.integers(0, 2_000), st.integers(2, 8_000))
def test_more_tokens_never_need_less(sampled: int, observed: int, first: int) -> None:
    asked: dict[str, Any] = {"sampled": sampled, "observed": observed, "first": first, "turns": 5, "steps_per_s": 900.0}
    for name in ("sampled", "observed", "first"):
        assert_no_less(ask(**asked), ask(**{**asked, name: asked[name] + 500}))


def test_a_rate_follows_from_what_gpus_sample() -> None:
    assumed = Assumptions(tokens_per_gpu_s=2_000.0, rollout_share=0.5)
    fleet = Fleet.of(100, assumed, sampled=200)
    assert fleet.steps_per_s == 100 * 0.5 * 2_000 / 200
    assert Fleet.of(100, assumed, steps_per_s=7.0).steps_per_s == 7.0
    work = Fleet.of(1, assumed, first=10, sampled=3, observed=2, turns=4, steps_per_s=8.0).work
    assert (work.steps, work.trajectories) == (8.0, 2.0)
    assert work.new_tokens == 2 * (10 + 4 * 3 + 3 * 2)
    assert work.sampled_tokens == 2 * 4 * 3
    assert work.prompt_tokens == 2 * (10 + 15 + 20 + 25)


def test_instances_leave_room_for_what_they_cost_by_themselves() -> None:
    assert count(1.0, 0.0, 1.0, 0.5) == 2
    assert count(1.0, 0.1, 1.0, 0.5) == 3
    assert count(0.0, 0.1, 1.0, 0.5) == 1
    with pytest.raises(ValueError, match=r"a process spends 0\.60 cores before any work"):
        count(1.0, 0.6, 1.0, 0.5)


def test_there_are_as_many_brokers_as_copies_and_more_partitions_than_workers() -> None:
    need = ask(1, steps_per_s=0.01)
    assert need.part("kafka").instances == 3
    assert need.part("clickhouse").instances == 2
    assert need.partitions == 4
    large = ask(10_000)
    assert large.partitions == 4 * large.part("streams").instances > 4


def test_open_groups_ask_for_workers_too() -> None:
    long = ask(assumed=Assumptions(open_seconds=36_000.0, worker_memory_gb=1.0)).part("streams")
    assert (long.instances, long.bound) == (
        math.ceil(ask(assumed=Assumptions(open_seconds=36_000.0)).open_steps_gb),
        "memory",
    )
    short = ask(assumed=Assumptions(open_seconds=0.0)).part("streams")
    assert (short.instances < long.instances, short.bound) == (True, "cores")


def test_what_one_process_was_seen_to_do_bounds_its_number() -> None:
    assumed = Assumptions(utilisation=0.5, sink_steps_per_s=100.0, worker_steps_per_s=50.0)
    need = ask(1, assumed, steps_per_s=4_100.0)
    assert (need.part("sinks").instances, need.part("streams").instances) == (82, 164)


@pytest.mark.parametrize(
    ("part", "bound", "change"),
    [
        ("kafka", "copies", {"log_days": 0.0, "outcome_days": 0.0, "batch_days": 0.0}),
        ("kafka", "network", {"network_mb_s": 1.0}),
        ("kafka", "disk speed", {"disk_mb_s": 1.0}),
        ("kafka", "disk space", {"broker_disk_tb": 0.01}),
        ("streams", "speed", {"worker_steps_per_s": 10.0}),
        ("sinks", "speed", {"sink_steps_per_s": 10.0}),
        ("clickhouse", "network", {"network_mb_s": 0.1}),
        ("clickhouse", "disk space", {"pool_days": 3_650.0}),
    ],
)
def test_machines_are_bound_by_what_they_have_least_of(part: str, bound: str, change: dict[str, float]) -> None:
    assumed = Assumptions(**change)  # type: ignore[arg-type]
    found = ask(100, assumed).part(part)
    assert found.bound == bound
    assert found.instances >= ask(100).part(part).instances or bound == "copies"


def test_disks_hold_what_retention_keeps() -> None:
    assumed = Assumptions(log_days=2.0, outcome_days=2.0, batch_days=2.0, pool_days=3.0)
    need = ask(assumed=assumed)
    assert need.log_tb == pytest.approx(2 * need.log_tb_a_day)
    assert need.pool_tb == pytest.approx(3 * need.pool_tb_a_day)
    a_step = sum(KNOWN.bytes[name](need.fleet.work) for name in ("events", "trajectories", "batches", "outcomes"))
    assert need.log_tb_a_day == pytest.approx(a_step * 86_400 * 3 / 1e12)


@pytest.mark.parametrize(
    "nonsense",
    [
        {"utilisation": 0.0},
        {"utilisation": 1.1},
        {"rollout_share": 1.5},
        {"replication": 0},
        {"tokens_per_gpu_s": float("nan")},
        {"log_days": -1.0},
        {"sink_steps_per_s": 0.0},
    ],
)
def test_assumptions_that_are_none(nonsense: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(nonsense))):
        Assumptions(**nonsense)


@pytest.mark.parametrize(
    "nonsense",
    [
        {"gpus": 0},
        {"sampled": 0},
        {"turns": 0},
        {"observed": -1},
        {"first": 0},
        {"steps_per_s": 0.0},
        {"steps_per_s": float("inf")},
    ],
)
def test_loads_that_are_none(nonsense: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\d|inf"):
        ask(**nonsense)


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": {"gateway": 0.0}},
        {"bytes": {"events": float("nan")}},
        {"work": {"seconds": 0.0, "steps": 5.0}},
        {"work": {"seconds": -1.0, "steps": 5.0}},
        {"work": {"steps": 5.0, "days": 1.0}},
        {"shade": "blue"},
    ],
)
def test_windows_that_are_none(change: dict[str, Any]) -> None:
    plain = a_window(SHAPES[0]).plain()
    assert Window.read(json.loads(json.dumps(plain))) == a_window(SHAPES[0])
    with pytest.raises(ValueError, match=r"\w"):
        Window.read({**plain, **change})


def test_every_assumption_has_its_reason_and_every_process_its_cost() -> None:
    assert set(REASONS) == {one.name for one in fields(Assumptions)}
    assert set(CPU_BY) == {*STAGES, "trainer"}
    assert set(BYTES_BY) == {*FLOWS, "requests", "answers", "inserted"}


# ----------------------------------------------------------------------------------------------------------------- page


def test_a_busy_machine_is_named_as_one(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    file.write_text(json.dumps(as_kept(windows())))
    assert Measurements.read(file).state().startswith("The machine was quiet")
    for others in (0.3, None):
        file.write_text(json.dumps(as_kept([*windows(), replace(a_window(SHAPES[0]), others=others)])))
        assert "The machine was busy" in Measurements.read(file).state()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "kept.json"
    assert main(["--measurements", str(file)]) == 1
    file.write_text("[]")
    assert main(["--measurements", str(file)]) == 1
    file.write_text(json.dumps(as_kept([*windows(), a_window(SHAPES[0], held_out=True)])))
    asked = ["--measurements", str(file), "--gpus", "1000", "--steps-per-s", "2500", "--tokens-per-step", "400"]
    capsys.readouterr()
    assert main([*asked, "--json"]) == 0
    (fleet,) = [f for f in json.loads(capsys.readouterr().out)["figures"] if "stream_workers" in f]
    assert (fleet["gpus"], fleet["steps_per_s"]) == (1000, 2500)
    assert main([*asked, "--utilisation", "0.25", "--json"]) == 0
    (cautious,) = [f for f in json.loads(capsys.readouterr().out)["figures"] if "stream_workers" in f]
    assert cautious["gateways"] > fleet["gateways"]
    assert main([*asked, "--utilisation", "7"]) == 2
    assert main([*asked, "--turns", "0"]) == 2
    assert "this is no fleet" in capsys.readouterr().err


def test_the_page_is_what_the_kept_measurements_give() -> None:
    kept, assumed = Measurements.read(MEASUREMENTS), Assumptions()
    costs = fit(kept.windows)
    fleets = [needs(Fleet.of(gpus, assumed), costs, assumed) for gpus in (100, 1_000, 10_000)]
    page = (ROOT / "docs/scale.md").read_text("utf-8")
    assert as_page(kept, costs, fleets, assumed) in page, (
        "make bench-end-to-end, or python -m benchmarks.scale_model --into"
    )
