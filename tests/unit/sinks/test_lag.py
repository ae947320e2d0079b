"""What a sink says of a partition ends with the partition."""

import asyncio

from aiokafka import TopicPartition
from prometheus_client import REGISTRY

from claw_r1.metrics import SINKS_LAG
from claw_r1.settings import SinksSettings
from sinks.app import Sink
from sinks.plan import Partition


def test_the_lag_of_a_partition_that_is_given_up_is_not_told_any_more() -> None:
    async def play() -> None:
        sink = Sink(SinksSettings(), asyncio.Event())
        tp = TopicPartition("a-topic", 3)
        sink._partitions = {tp: Partition("a-topic/3", 0, "generation")}
        SINKS_LAG.labels(tp.topic, str(tp.partition)).set(300_000)
        await sink.on_partitions_revoked([tp])

    asyncio.run(play())
    assert REGISTRY.get_sample_value("claw_sinks_lag_records", {"topic": "a-topic", "partition": "3"}) is None
