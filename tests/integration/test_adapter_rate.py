"""The adapter's benchmark runs: a trainer's process takes what it wrote, and tells of it."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.adapter_log import STEP, TRAJECTORIES
from benchmarks.adapter_rate import Effort, Stand, measure_latency, measure_memory, measure_rate
from benchmarks.gateways import Cores
from tests.conftest import Stack

pytestmark = pytest.mark.stack

SMALL = Effort(batches=1, rounds=1, probes=5, long_groups=2)


def test_every_part_is_measured(stack: Stack, tmp_path: Path) -> None:
    stand = Stand(stack.kafka, Cores(None, None), tmp_path)
    rate = asyncio.run(measure_rate(stand, SMALL, "one step", STEP))
    assert rate["steps"] == 256 * TRAJECTORIES
    latency = asyncio.run(measure_latency(stand, SMALL, "two groups", 2))
    assert latency["p50_ms"]
    memory = asyncio.run(measure_memory(stand, SMALL.long_groups))
    assert memory["raw_mb"] == pytest.approx(2 * TRAJECTORIES * 32_768 * 9 / 1e6)
    assert memory["peak_over_raw"]
