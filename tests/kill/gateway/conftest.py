"""A broker for tests that ill-treat it."""

import asyncio

import pytest

from claw_r1 import topics
from claw_r1.bus import apply_topics
from claw_r1.local.stack import RunningStack

pytest.register_assert_rewrite("tests.kill.gateway.play")


@pytest.fixture(scope="module")
def broker(spare: RunningStack) -> RunningStack:
    """A broker to be ill-treated."""
    asyncio.run(apply_topics(spare.kafka, topics.all_topics()))
    return spare
