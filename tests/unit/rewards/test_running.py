"""A function that is late, that hangs, that raises or that dies costs its own call, and nothing else."""

import asyncio
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from claw_r1 import metrics
from claw_r1.rewards import children, running
from claw_r1.rewards.function import Missing, RewardFunction, Rollout, Score, reward
from claw_r1.rewards.running import Hung, Runner
from tests.conftest import wait_until
from tests.integration import plugins

ROOT = Path(__file__).parents[3]


def run(function: RewardFunction, *rollouts: Rollout, **over: Any) -> list[Score | BaseException]:
    async def play() -> list[Score | BaseException]:
        runner = Runner(function, **({"timeout": 20.0, "attempts": 1, "calls": 2} | over))
        try:
            return await asyncio.gather(*(runner.score(r) for r in rollouts), return_exceptions=True)
        finally:
            await runner.close()

    return asyncio.run(play())


def reason_of(found: Score | BaseException) -> str:
    assert isinstance(found, Missing), repr(found)
    return found.reason


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "BACKOFF", 0.001)


def test_what_fails_is_tried_again_and_then_missing() -> None:
    calls: list[int] = []

    def flaky(worse: int) -> Callable[[Rollout], float]:
        def function(rollout: Rollout) -> float:
            calls.append(1)
            if len(calls) < worse:
                raise OSError("away")
            return 1.0

        return function

    (found,) = run(reward("flaky")(flaky(3)), Rollout(), attempts=3)
    assert (found.value if isinstance(found, Score) else found, len(calls)) == (1.0, 3)
    calls.clear()
    (missing,) = run(reward("flaky")(flaky(9)), Rollout(), attempts=3)
    assert (reason_of(missing), len(calls)) == ("failed", 3)


def test_what_is_no_score_is_not_tried_again() -> None:
    calls: list[int] = []
    (missing,) = run(reward("none")(lambda rollout: calls.append(1)), Rollout(), attempts=5)
    assert (reason_of(missing), len(calls)) == ("none_given", 1)


def test_a_coroutine_that_is_late_is_stopped() -> None:
    @reward("waits")
    async def waits(rollout: Rollout) -> float:
        await asyncio.Event().wait()
        return 0.0

    (missing,) = run(waits, Rollout(), timeout=0.02, attempts=2)
    assert reason_of(missing) == "late"


@pytest.mark.parametrize("error", [TimeoutError, SystemExit, asyncio.CancelledError, StopIteration, RecursionError])
def test_whatever_a_function_raises_is_its_failure_alone(error: type[BaseException]) -> None:
    async def raises(rollout: Rollout) -> float:
        raise error

    def raises_too(rollout: Rollout) -> float:
        raise error

    for call in (raises, raises_too):
        first, second = run(reward("own")(call), Rollout(), Rollout())
        assert (reason_of(first), reason_of(second)) == ("failed", "failed")


def test_a_call_that_is_taken_away_is_no_failure() -> None:
    """By a rebalance, say: whoever has the trajectory next asks again."""
    release = threading.Event()

    async def play(function: RewardFunction) -> int:
        release.clear()
        runner = Runner(function, timeout=30, attempts=3, calls=1)
        call = asyncio.create_task(runner.score(Rollout()))
        for _ in range(5):
            await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        late = runner._late
        release.set()
        await runner.close()
        return late

    async def waits(rollout: Rollout) -> float:
        await asyncio.Event().wait()
        return 0.0

    assert asyncio.run(play(reward("waits")(waits))) == 0
    assert asyncio.run(play(reward("hangs")(lambda rollout: float(release.wait(30))))) == 1


def test_threads_that_hang_are_given_up_and_when_all_do_the_process_has_to_end() -> None:
    release = threading.Event()
    function = reward("hangs")(lambda rollout: float(release.wait(30)))

    async def play() -> None:
        runner = Runner(function, timeout=0.05, attempts=3, calls=2)
        for _ in range(2):
            with pytest.raises(Missing) as missing:
                await runner.score(Rollout())
            assert missing.value.reason == "late"
        with pytest.raises(Hung, match="process=True"):
            await runner.score(Rollout())
        release.set()
        while runner._late:  # noqa: ASYNC110 - threads count down, and no one tells when
            await asyncio.sleep(0.005)
        runner.timeout = 30.0
        assert (await runner.score(Rollout())).value == 1.0
        await runner.close()

    asyncio.run(play())


def test_no_more_calls_run_at_once_than_may() -> None:
    here, most = 0, 0

    @reward("counts")
    async def counts(rollout: Rollout) -> float:
        nonlocal here, most
        here += 1
        most = max(most, here)
        await asyncio.sleep(0)
        here -= 1
        return 1.0

    found = run(counts, *[Rollout()] * 20, calls=3)
    assert (len(found), most) == (20, 3)


def test_processes_that_hang_or_die_are_replaced() -> None:
    """One slot: what comes after a call that hung, or whose process died, is answered by a new process."""
    hang, fine = Rollout(metadata={"hang": True}), Rollout()
    first, second = run(plugins.hangs, hang, fine, calls=1)
    assert (reason_of(first), second) == ("late", Score(1.0))
    (dead,) = run(plugins.dies, fine)
    assert reason_of(dead) == "failed"
    assert "exit code 7" in str(dead)


PARENT = """
import asyncio, sys
from claw_r1.rewards.children import Child
from claw_r1.rewards.function import Rollout
rollout = Rollout(metadata={"hang": True, "tell": sys.argv[1]})
asyncio.run(Child("tests.integration.plugins:hangs").call(rollout, 60))
"""


def test_a_functions_process_does_not_outlive_a_worker_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(told)], cwd=ROOT)
    try:
        wait_until(lambda: told.exists() and bool(told.read_text()), what="the function runs")
        child = psutil.Process(int(told.read_text()))
        assert child.is_running()
    finally:
        parent.kill()
        parent.wait(30)
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running()


def test_a_process_answers_every_rollout_until_its_input_ends() -> None:
    def frame(rollout: Rollout) -> bytes:
        body = pickle.dumps(rollout)
        return len(body).to_bytes(4, "little") + body

    def answers(reference: str, *rollouts: Rollout) -> list[Any]:
        target = io.BytesIO()
        children.serve(reference, io.BytesIO(b"".join(map(frame, rollouts))), target)
        target.seek(0)
        found = []
        while head := target.read(4):
            found.append(pickle.loads(target.read(int.from_bytes(head, "little"))))
        return found

    said = Rollout(messages=[{"role": "user", "content": "q"}, {"role": "assistant", "content": "four"}])
    assert answers("tests.integration.plugins:length", said, said) == [children.READY, *[(Score(4.0), None)] * 2]
    assert answers("tests.integration.plugins:broken", said)[1] == (None, ("failed", "KeyError: 'truth'", True))
    assert answers("tests.integration.plugins:length", Rollout())[1][1][0] == "context_lost"
    assert answers("tests.integration.plugins:nothing", said)[1][1] == (
        "none_given",
        "the function gave no reward",
        False,
    )


def test_reasons_without_end_take_a_bounded_number_of_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_reasons", set())

    def lacking(rollout: Rollout) -> float:
        raise Missing(f"no tests of task {rollout.metadata['task']}", "", retry=True)

    rollouts = [Rollout(metadata={"task": number}) for number in range(100)]
    found = run(reward("lacking")(lacking), *rollouts, attempts=2)
    assert len({reason_of(one) for one in found}) == 100
    told = [sample for family in metrics.WORKERS_RETRIES.collect() for sample in family.samples]
    counts = {
        sample.labels["reason"]: sample.value
        for sample in told
        if sample.labels["source"] == "lacking" and sample.name.endswith("_total")
    }
    assert len(counts) == metrics.MAX_REASONS + 1
    assert sum(counts.values()) == 100
    assert counts["other"] == 100 - metrics.MAX_REASONS
