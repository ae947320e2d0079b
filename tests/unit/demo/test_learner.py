"""The demo's trainer ends with a word where it cannot go on, and with the exit code that says whose fault it is."""

import signal
import sys
from pathlib import Path

import pytest

from claw_r1 import bus
from claw_r1.demo import learner
from claw_r1.local.ports import find_port


def test_a_broker_that_is_away_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bus, "START_DEADLINE", 0.5)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    place = f"127.0.0.1:{find_port()}"
    command = ["learner", "--kafka", place, "--recipe", "r", "--session", "s", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        learner.main()
    assert ended.value.code == 3
    assert f"the trainer ends: no Kafka broker answers at {place}" in caplog.text
