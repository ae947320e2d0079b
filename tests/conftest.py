"""Fixtures of the whole suite: the real broker and the real ClickHouse engine, started once a run."""

import time
from collections.abc import Callable, Iterator

import pytest

from claw_r1.local.stack import BACKENDS, RunningStack, running_stack

Stack = RunningStack


def wait_until(condition: Callable[[], bool], *, what: str, timeout: float = 60.0) -> None:
    """Wait for a condition; fail with `what` was waited for."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"after {timeout:.0f} s still not: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The run's broker (`stack.kafka`, host:port) and engine (`stack.clickhouse`, URL).

    They are shared by all tests: give topics, runs and tables names of their own.
    """
    with running_stack(tmp_path_factory.mktemp("stack"), processes=BACKENDS) as running:
        yield running
