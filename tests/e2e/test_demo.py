"""The main job from start to end: what agents sent is what the pool holds and what the trainer got, and the policy learns."""

from pathlib import Path

import psutil
import pytest

from claw_r1.demo.ledger import read_ledger
from claw_r1.demo.run import BATCH_GROUPS, GROUP_SIZE
from tests.conftest import wait_until
from tests.e2e.headless import Demo

REACHABLE = 1.0  # binary search wins every game


@pytest.mark.stack
@pytest.mark.timeout(600)
def test_a_start_loses_nothing_and_the_next_goes_on(tmp_path: Path) -> None:
    batches = 2
    with Demo(tmp_path, "--headless", "--batches", str(batches), "--seed", "7", "--json") as demo:
        first = demo.result()
    assert first["steps_sent"] == first["steps_acknowledged"] == first["steps_stored"] > 0
    assert first["steps_indeterminate"] == 0
    assert first["capture_ok"] is True
    assert first["batches"] == first["policy_version"] == batches
    assert first["groups_ready"] == batches * BATCH_GROUPS
    assert first["groups_discarded"] == 0
    assert first["trajectories"] == batches * BATCH_GROUPS * GROUP_SIZE
    assert 0 <= first["reward_first"] <= 1
    assert {"gateway", "kafka", "clickhouse"} <= first["urls"].keys()

    with Demo(tmp_path, "--seed", "8", "--json") as demo:
        wait_until(lambda: demo.lines("batches", "trained") > batches, what="a batch more", timeout=240)
        demo.check_alive()
        pids = list(demo.state.pids.values())
        demo.interrupt()
        second = demo.result()
    assert second["policy_version"] > batches
    assert second["batches"] >= 1
    assert second["steps_stored"] >= second["steps_acknowledged"] > 0
    assert not any(psutil.pid_exists(pid) for pid in pids)

    entries = read_ledger(demo.ledger)
    begun = [entry.trajectory_uid for entry in entries if entry.event == "begun"]
    assert len(begun) == len(set(begun)) == first["trajectories"] + second["trajectories"]
    steps = [entry.step_id for entry in entries if entry.event == "acknowledged"]
    assert None not in steps
    assert len(steps) == len(set(steps)) == first["steps_acknowledged"] + second["steps_acknowledged"]


@pytest.mark.slow
@pytest.mark.stack
@pytest.mark.timeout(1200)
def test_the_success_rate_rises(tmp_path: Path) -> None:
    """On the whole stack; tests/unit/demo/test_learning.py plays as many batches of more seeds without one."""
    batches = 18
    with Demo(tmp_path, "--headless", "--batches", str(batches), "--seed", "0", "--json") as demo:
        result = demo.result(timeout=1100)
    assert result["batches"] == result["policy_version"] == batches
    assert result["steps_sent"] == result["steps_acknowledged"] == result["steps_stored"]
    assert result["reward_last"] >= result["reward_first"] + 0.3
    assert result["reward_last"] >= 0.8 * REACHABLE
