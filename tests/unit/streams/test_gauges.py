"""What a stream worker says of a partition ends with the partition."""

import asyncio
from pathlib import Path

from prometheus_client import REGISTRY

from claw_r1 import metrics
from claw_r1.settings import StreamsSettings
from streams.partition import PartitionWorker


def test_the_numbers_of_a_partition_that_is_given_up_are_not_told_any_more(tmp_path: Path) -> None:
    async def play() -> None:
        worker = PartitionWorker(StreamsSettings(worker="w0", spill=str(tmp_path)), 93)
        for gauge in (metrics.STREAMS_LAG, metrics.STREAMS_OPEN_GROUPS):
            gauge.labels(93).set(50_000)
        worker.tidy()
        await worker.stop()

    asyncio.run(play())
    for name in ("claw_streams_lag_records", "claw_streams_open_groups", "claw_streams_spilled_steps"):
        assert REGISTRY.get_sample_value(name, {"partition": "93"}) is None


def test_copies_conflicts_and_prompts_that_are_used_again_are_counted(tmp_path: Path) -> None:
    names = [f"claw_streams_{name}_total" for name in ("duplicates", "conflicts", "reused_prompts")]

    def counted() -> list[float]:
        return [REGISTRY.get_sample_value(name) or 0.0 for name in names]

    async def play() -> None:
        worker = PartitionWorker(StreamsSettings(worker="w0", spill=str(tmp_path)), 94)
        worker.state.duplicates, worker.state.conflicts, worker.state.reused_prompts = 5, 2, 1
        worker.tidy()
        worker.state.duplicates += 1
        worker.tidy()
        await worker.stop()

    before = counted()
    asyncio.run(play())
    assert [after - value for after, value in zip(counted(), before, strict=True)] == [6, 2, 1]
