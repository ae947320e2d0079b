"""Fixtures of the whole suite: the real broker and the real ClickHouse engine, started once a run, and a broker to spare."""

import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from claw_r1.local.stack import BACKENDS, RunningStack, is_ready, running_stack

Stack = RunningStack

# A machine that is busy with something else takes its time for an example: that is no fault of the example.
settings.register_profile(
    "unhurried", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")

LONGEST_FIRST = ("kill", "e2e", "fuzz", "integration", "contract", "architecture", "unit")
"""Folders of tests; what waits for processes comes first, so that at a run's end no worker waits for one long file."""
TOGETHER = ("vllm", "clients", "trainers", "browser")
"""Folders whose files share what is dear to start."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files by kind; within one nothing changes."""
    kinds = {name: place for place, name in enumerate(LONGEST_FIRST)}
    root = Path(__file__).parent

    @cache
    def inside(path: Path) -> tuple[str, ...]:
        return path.relative_to(root).parts if path.is_relative_to(root) else (path.name,)

    items.sort(key=lambda item: kinds.get(inside(item.path)[0], 0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under `--dist loadgroup` a file's tests go to one worker, or a folder's.

    pytest-xdist would find a test's group in its node's id, where pytest 9.2 lets it put none: then every test would go
    to any worker, and each worker start what a module shares.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    schedule = LoadGroupScheduling(config, log)
    schedule._split_scope = group_of
    return schedule


def group_of(nodeid: str) -> str:
    """What goes to one worker."""
    path = nodeid.partition("::")[0]
    folder = "vllm" if "vllm" in path else path.removeprefix("tests/").split("/")[0]
    return folder if folder in TOGETHER else path


def wait_until(condition: Callable[[], bool], *, what: str, timeout: float = 60.0) -> None:
    """Wait for a condition; fail with `what` was waited for. A look that takes long leaves as much time to what it looks at."""
    deadline = time.monotonic() + timeout
    while True:
        began = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        assert now < deadline, f"after {timeout:.0f} s still not: {what}"
        time.sleep(min(max(0.05, now - began), 0.5))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The run's broker (`stack.kafka`, host:port) and engine (`stack.clickhouse`, URL).

    They are shared by all tests: give topics, runs and tables names of their own.
    """
    with running_stack(tmp_path_factory.mktemp("stack"), processes=BACKENDS) as running:
        yield running


@pytest.fixture(scope="session")
def _spare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("spare"), processes=("kafka",)) as running:
        yield running


@pytest.fixture(scope="module")
def spare(_spare: Stack) -> Stack:
    """A broker that tests may kill, freeze and fill: to each file as if it were new, without topics and offsets.

    Members of a group that were killed are still waited for, as in `forget_all`: a file that leaves some starts its own.
    """
    from tests.log import forget_all

    wait_until(
        lambda: is_ready(_spare.state.processes["kafka"]), what="the spare broker is ready, whatever was done to it"
    )
    forget_all(_spare.kafka)
    return _spare
