"""A Kafka client that is cancelled in its start leaves no connection behind."""

import asyncio
import gc
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from aiokafka.conn import AIOKafkaConnection

from claw_r1 import bus
from tests.conftest import Stack

pytestmark = pytest.mark.stack


async def start_admin(kafka: str, *, client_id: str) -> None:
    async with bus.admin(kafka):
        raise AssertionError(f"{client_id} was not cancelled")


@pytest.mark.parametrize("start", [bus.start_consumer, bus.start_producer, start_admin])
def test_a_start_that_is_cancelled_closes_its_first_connection(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, start: Callable[..., Coroutine[Any, Any, Any]]
) -> None:
    send = AIOKafkaConnection.send

    async def body() -> None:
        asked = asyncio.Event()

        def noted(self: AIOKafkaConnection, request: Any, **more: Any) -> Any:
            if type(request).__name__.startswith("Metadata"):
                asked.set()
            return send(self, request, **more)

        monkeypatch.setattr(AIOKafkaConnection, "send", noted)
        starting = asyncio.create_task(start(stack.kafka, client_id="test"))
        await asked.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        asyncio.run(body())
        gc.collect()
    assert [str(warning.message) for warning in seen] == []
