"""A whole system is killed, paused and cut off for a while: every invariant holds, and the faults were real ones."""

import asyncio
from pathlib import Path

import pytest

from tests.chaos.plan import STAGES, deck, draw
from tests.chaos.run import run_chaos

pytestmark = [
    pytest.mark.stack,
    pytest.mark.kill,
    pytest.mark.slow,
    # The checks' own admin client, when its deadline ends in the middle of a connect to a broker that stands still.
    pytest.mark.filterwarnings("ignore:Unclosed AIOKafkaConnection:ResourceWarning"),
]

SEED, SECONDS = 326, 120.0


@pytest.mark.timeout(600)
def test_every_invariant_holds_whatever_strikes(tmp_path: Path) -> None:
    result = asyncio.run(run_chaos(tmp_path, SEED, SECONDS, print))
    print(result.report())
    assert [str(violation) for violation in result.violations] == []
    assert result.faults == draw(SEED, SECONDS)
    assert {(fault.kind, fault.target) for fault in result.faults} == {*deck()}
    assert result.struck.keys() == {fault.kind for fault in result.faults}
    killed = {fault.target for fault in result.faults if fault.kind == "kill"}
    assert {name for name in killed if not result.restarts[name]} == set()
    assert killed & {*STAGES}
    assert result.watermarks > 0
    assert result.counts["call indeterminate"] > 0
    assert (
        min(result.counts[name] for name in ("groups ready", "batches trained", "facts late", "decision acknowledged"))
        > 0
    )
