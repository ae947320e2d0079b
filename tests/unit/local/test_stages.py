"""Reward workers are part of a stack that names something for them to do, and of no other."""

from pathlib import Path

import pytest

from claw_r1.local.stack import StackRequest, environment, plan_waves, stages_of


@pytest.mark.parametrize("name", ["CLAW_WORKERS_REWARDS", "CLAW_WORKERS_ANNOTATIONS"])
def test_a_worker_starts_when_it_has_something_to_do(tmp_path: Path, name: str) -> None:
    request = StackRequest(data=tmp_path, kafka="k:1", clickhouse="http://c:1", env={name: "my_rewards:exact"})
    assert "workers" in stages_of(request)
    ports = {stage: 8000 + number for number, stage in enumerate(stages_of(request))}
    env = environment(request, {"kafka": "k:1", "clickhouse": "http://c:1"}, ports)
    (worker,) = [
        p for wave in plan_waves(request, ports, env) if isinstance(wave, list) for p in wave if p.name == "workers"
    ]
    assert worker.argv[-2:] == ["-m", "streams.workers"]
    assert (worker.env[name], worker.env["CLAW_WORKERS_PORT"]) == ("my_rewards:exact", str(ports["workers"]))


def test_without_a_source_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLAW_WORKERS_REWARDS", "CLAW_WORKERS_ANNOTATIONS"):
        monkeypatch.delenv(name, raising=False)
    assert stages_of(StackRequest(data=tmp_path)) == ["streams", "sinks", "gateway", "console"]
    monkeypatch.setenv("CLAW_WORKERS_REWARDS", "my_rewards:exact")
    assert stages_of(StackRequest(data=tmp_path, processes=("gateway",))) == ["gateway"]
