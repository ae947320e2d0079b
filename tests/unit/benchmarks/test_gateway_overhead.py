"""Runs become rows, and rows ratios."""

import pytest

from benchmarks.gateway_overhead import DIRECT, Case, draw, ratios, row
from benchmarks.gateways import OURS
from benchmarks.load import Result

CASE = Case("rl", 32)


def a_result(p50: float, speed: float) -> Result:
    return Result(
        calls=100,
        errors=0,
        error=None,
        seconds=1.0,
        requests_per_s=speed,
        p50=p50,
        p99=2 * p50,
        cpu_per_call=0.0002,
        rss_before=2**20,
        rss_after=2**21,
        all_calls=120,
    )


def test_a_row_is_the_median_of_the_rounds_less_the_engines_own() -> None:
    direct = [a_result(0.001, 9000)]
    figure = row(CASE, OURS, [a_result(p50, speed) for p50, speed in ((0.002, 10), (0.009, 30), (0.003, 20))], direct)
    assert figure["added_p50_ms"] == pytest.approx(2.0)
    assert figure["added_p99_ms"] == pytest.approx(4.0)
    assert figure["requests_per_s"] == 20
    assert figure["cpu_ms_per_request"] == pytest.approx(0.2)
    assert figure["rss_after_mb"] == 2.0
    assert figure["calls"] == 300
    assert row(CASE, DIRECT, direct, direct)["added_p50_ms"] is None


def test_ratios_are_ours_over_each_others_by_case() -> None:
    speeds = {OURS: 500.0, "pass-through": 1000.0, "vllm-router": 2000.0, DIRECT: 9000.0}
    figures = [row(CASE, name, [a_result(0.001, speed)], []) for name, speed in speeds.items()]
    assert ratios(figures) == {"rl_c32_vs_passthrough": 0.5, "rl_c32_vs_vllm_router": 0.25}


def test_the_picture_shows_every_gateway() -> None:
    figures = [row(Case("rl", c), name, [a_result(0.001, 10)], []) for c in (1, 32) for name in (DIRECT, OURS)]
    figures.append({"gateway": "litellm", "left_out": "no network"})
    assert draw(figures).count(f">{OURS}<") == 2
