"""Fixtures of the whole suite: the real broker and the real ClickHouse engine, started once a run."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from claw_r1.local.stack import BACKENDS, RunningStack, running_stack

Stack = RunningStack

LONGEST_FIRST = ("kill", "e2e", "fuzz", "integration", "contract", "architecture", "unit")
"""Folders of tests; what waits for processes comes first, so that at a run's end no worker waits for one long file."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files by kind; within one nothing changes."""
    kinds = {name: place for place, name in enumerate(LONGEST_FIRST)}
    root = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        inside = item.path.relative_to(root).parts if item.path.is_relative_to(root) else ()
        return kinds.get(inside[0], 0) if inside else 0

    items.sort(key=place)


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
