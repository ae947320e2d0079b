"""A broker and an engine of the sink's kill tests' own."""

import asyncio
from collections.abc import Iterator

import pytest

from claw_r1 import bus, topics
from claw_r1.local.stack import BACKENDS, RunningStack, running_stack


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A broker and an engine of these tests' own, since they are killed."""
    with running_stack(tmp_path_factory.mktemp("sinks"), processes=BACKENDS) as stack:
        asyncio.run(bus.apply_topics(stack.kafka, topics.all_topics()))
        yield stack
