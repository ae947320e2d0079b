"""A broker for tests that ill-treat it."""

import asyncio
from collections.abc import Iterator

import pytest

from claw_r1 import topics
from claw_r1.bus import apply_topics
from claw_r1.local.stack import RunningStack, running_stack

pytest.register_assert_rewrite("tests.kill.gateway.play")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A broker of this module's own, to be ill-treated."""
    with running_stack(tmp_path_factory.mktemp("broker"), processes=("kafka",)) as running:
        asyncio.run(apply_topics(running.kafka, topics.all_topics()))
        yield running
