"""What agents, log, trainer and pool saw is put together rightly, and agents play what they are told."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.end_agents import GAP, Plan, Played
from benchmarks.end_latency import put_together
from benchmarks.end_stand import Reading
from benchmarks.end_to_end import (
    PARTS,
    Measured,
    as_text,
    as_window,
    growth_figures,
    main,
    process_figures,
    shape_figure,
    stops_figure,
)
from benchmarks.gateways import LeftOut, end, wait_ready
from benchmarks.report import Report
from benchmarks.shapes import Shape, conversation
from claw_r1.local.ports import find_port

SHAPE = conversation(64, 16, 8, 3)


def a_reading(at: float, cpu: float, others: float = 0.0) -> Reading:
    names = ("gateway", "streams", "sinks", "kafka", "clickhouse", "trainer")
    flows = ("events", "trajectories", "batches", "outcomes", "inserted")
    mine = cpu * len(names)
    return Reading(
        at,
        dict.fromkeys(names, cpu),
        dict.fromkeys(names, 2**20),
        {flow: at * 100 * (place + 1) for place, flow in enumerate(flows)},
        mine,
        mine + others,
    )


def a_window(trajectories: int = 4) -> Measured:
    window = as_window(
        SHAPE, trajectories, a_reading(0.0, 1.0), a_reading(10.0, 1.5, 3.0), 1.0, 2, None, held_out=False
    )
    full = {**window.bytes, "requests": 1_200.0, "answers": 2_400.0}
    return Measured("w1", type(window)(**{**vars(window), "bytes": full}), dict.fromkeys(window.cpu, 2**20), 1.2)


def test_a_window_is_the_difference_of_two_readings() -> None:
    window = a_window().window
    assert (window.work.seconds, window.work.steps, window.work.trajectories) == (10.0, 12.0, 4.0)
    assert window.work.new_tokens == 4 * (64 + 3 * 16 + 2 * 8)
    assert window.work.sampled_tokens == 4 * 3 * 16
    assert window.work.prompt_tokens == 4 * (64 + 88 + 112)
    assert window.cpu["streams"] == pytest.approx(0.5)
    assert window.bytes["batches"] == pytest.approx(3_000.0)
    assert window.others == pytest.approx((3.0 - 1.0) / 20.0), "the agents' second was not others'"


def test_figures_and_tables() -> None:
    measured = a_window()
    by_process = {str(figure["process"]): figure for figure in process_figures(measured)}
    assert by_process["gateway"]["cpu_us_per_step"] == pytest.approx(0.5e6 / 12)
    assert by_process["gateway"]["in_bytes_per_step"] == pytest.approx(300.0)
    assert by_process["sinks"]["in_bytes_per_step"] == pytest.approx((1 + 2 + 3 + 4) * 1_000 / 12)
    report = Report({"processor": "p", "cores": 2, "system": "s", "python": "3", "versions": {}, "load_before": [0.1]})
    report.figures += [stops_figure("half of it", measured), shape_figure(SHAPE, 120.0, measured), *by_process.values()]
    text = as_text(report)
    assert "### What a step costs" in text
    assert "### Shapes" in text
    assert "### Memory" not in text


def test_stops_are_told_apart() -> None:
    calls = [("g0-0", 10.0, 0.2), ("g0-1", 10.0, 0.3), ("g0-0", 10.5, 0.1)]
    appended = {"g0-0": [10.1, 10.55], "g0-1": [10.15]}
    groups, marked = {"g0": 11.0, "g1": 12.0}, {"g0": 11.01, "g1": 12.02}
    stops = put_together(calls, groups, appended, marked, {"g0": 12.5, "g1": 12.5})
    assert stops.acknowledged == [0.2, 0.3, 0.1]
    assert stops.on_log == pytest.approx([0.1, 0.15, 0.05])
    assert stops.ready == pytest.approx([0.01, 0.02])
    assert stops.in_hand == pytest.approx([0.5]), "a batch is as late as its last group's end"
    with pytest.raises(LeftOut, match="its agent saw more"):
        put_together(calls, groups, {"g0-0": [10.1]}, marked, {"g0": 12.5, "g1": 12.5})
    with pytest.raises(LeftOut, match="group g1"):
        put_together(calls, groups, appended, {"g0": 11.0}, {"g0": 12.5, "g1": 12.5})


def test_growth_is_from_the_first_quarter_to_the_end() -> None:
    samples = [{"gateway": min(place, 10) * 2**20, "sinks": place * 2**20} for place in range(40)]
    gateway, sinks = growth_figures(samples, 3_000)
    assert (gateway["rss_mb_at_quarter"], gateway["growth_mb"]) == (7.5, 2.5)
    assert sinks["growth_mb"] == pytest.approx(37.5 - 7.5)
    assert sinks["growth_bytes_per_step"] == pytest.approx(30 * 2**20 / 2_250)
    with pytest.raises(LeftOut, match="19 looks"):
        growth_figures(samples[:19], 3_000)


@pytest.mark.parametrize(
    "argv",
    [
        ["--shape", "1,2"],
        ["--shape", "64,0,0,1"],
        ["--rate", "0"],
        ["--minutes", "nan"],
        ["--only", "all"],
        ["--only", "rates", "--keep", "x"],
    ],
)
def test_arguments_that_are_none(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(argv)
    assert refused.value.code == 2
    assert PARTS == ("rates", "shapes")


# --------------------------------------------------------------------------------------------------------------- agents


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a stub engine, which answers calls by their marks, whatever their path, and all else with nothing."""
    port, log = find_port(), tmp_path_factory.mktemp("engine") / "log"
    with log.open("wb") as output:
        argv = [sys.executable, "-m", "benchmarks.stub_engine", str(port), json.dumps([asdict(SHAPE)])]
        process = subprocess.Popen(argv, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_ready(process, f"http://127.0.0.1:{port}/v1/models", log)
        yield port
    finally:
        end(process)


def play(plan: Plan) -> Played:
    done = subprocess.run(plan.argv(), capture_output=True, text=True, check=True)
    return Played(**json.loads(done.stdout))


@pytest.mark.parametrize("steps_per_s", [None, 60.0])
def test_agents_play_every_trajectory_to_its_end(engine: int, tmp_path: Path, steps_per_s: float | None) -> None:
    seen = tmp_path / "seen.json"
    played = play(Plan("w1", engine, asdict(SHAPE), 3, 2, connections=4, steps_per_s=steps_per_s, seen=str(seen)))
    assert (played.steps, played.errors, played.error) == (3 * 2 * 3, 0, None)
    assert played.sent > 18 * 64
    assert played.received > 18 * 64
    told = json.loads(seen.read_text())
    assert sorted(told["groups"]) == ["w1-0", "w1-1", "w1-2"]
    for uid in (f"w1-{group}-{member}" for group in range(3) for member in range(2)):
        outs = [out for name, out, _ in told["calls"] if name == uid]
        assert len(outs) == 3
        assert outs == sorted(outs)
        if steps_per_s is not None:
            assert outs[-1] - outs[0] >= 2 * GAP - 0.05, "an agent's calls come one after the other"
    if steps_per_s is not None:
        assert played.ended - played.begun >= 5 * 3 / steps_per_s + 2 * GAP - 0.05, "trajectories begin at the rate"


def test_a_call_that_fails_ends_its_trajectory_and_is_counted() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def played() -> Played:
        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        async with server:
            plan = Plan("w1", server.sockets[0].getsockname()[1], asdict(SHAPE), 1, 2)
            return await asyncio.to_thread(play, plan)

    found = asyncio.run(played())
    assert (found.steps, found.errors) == (0, 2)
    assert found.error is not None
    assert found.error.startswith("HTTP/1.1 503")


def test_a_conversation_is_named_by_its_sizes() -> None:
    shape = conversation(1_200, 300, 100, 15)
    assert shape.name == "c1200_300_100_15"
    assert isinstance(shape, Shape)
    assert shape.new_tokens == 1_200 + 15 * 300 + 14 * 100
    assert shape.all_prompt_tokens == 15 * 4_000
    with pytest.raises(ValueError, match="no conversation"):
        conversation(1, 300, 100, 15)
