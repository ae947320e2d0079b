"""What the streams' benchmark writes is what a gateway writes, and what it prints is of the one form."""

import sys

import pytest

from benchmarks import pools, stream_log
from benchmarks.gateways import LeftOut
from benchmarks.report import Report, Value
from benchmarks.stream_log import STEPS, TRAJECTORIES, batches, name_of
from benchmarks.streams_rate import Drained, as_text, median, ratios
from claw_r1.codec import decode
from claw_r1.events import GroupFact, GroupReady, Step
from streams.state import PartitionState
from tests.factories import a_recipe
from tests.unit.streams.partition_log import set_recipe


def test_every_group_is_whole_and_becomes_ready_with_its_last_fact() -> None:
    state = PartitionState(0)
    state.apply(set_recipe(a_recipe(group={"size": TRAJECTORIES})), 0, 1.0)
    ready: dict[str, int] = {}
    for place, (number, raw) in enumerate(batches(stream_log.whole(), "a", 3, side_by_side=2), 1):
        fact = decode(raw.headers, raw.value)
        assert isinstance(fact, GroupFact)
        assert fact.prompt_uid == name_of("a", number)
        assert raw.key == f"default/{fact.prompt_uid}".encode()
        assert dict(raw.headers)["ce_id"] == fact.fact_id.encode()
        if isinstance(fact, Step):
            assert 3_500 <= len(raw.value) <= 4_700
        for output in state.apply(fact, place, 1.0):
            if isinstance(output.event, GroupReady):
                ready[output.event.prompt_uid] = output.event.trained_tokens
    assert ready == {name_of("a", number): TRAJECTORIES * STEPS * 300 for number in range(3)}
    assert state.groups == {}


def test_a_group_without_its_last_end_stays_open() -> None:
    assert len(stream_log.unfinished()) == len(stream_log.whole()) - 1
    assert len(stream_log.announced()) == 1


def test_figures_are_of_steps_and_of_facts() -> None:
    slow, fast = Drained(2.0, 1.0, 100, 4_800), Drained(1.0, 0.5, 100, 4_800)
    assert median([slow, fast, slow]) is slow
    figure = fast.figure()
    assert figure["steps_per_s"] == 2_000
    assert figure["events_per_s"] == 4_800
    assert figure["cpu_us_per_step"] == 250
    figures: list[dict[str, Value]] = [
        {"pool": "other", "call": "put", "steps_per_s": 500.0},
        {"pool": "gone", "left_out": "no network"},
    ]
    assert ratios(figures, 2_000.0) == {"vs_other_put": 4.0}
    report = Report({"processor": "p", "cores": 2, "system": "s", "python": "3", "versions": {}, "load_before": [0.1]})
    report.figures += [{"what": "log to ready group", **figure}, *figures]
    report.ratios |= ratios(figures, 2_000.0)
    text = as_text(report)
    assert "| log to ready group |" in text
    assert "gone was left out: no network" in text


def test_a_pool_that_cannot_be_asked_is_left_out() -> None:
    with pytest.raises(LeftOut, match="exit code 3: no such pool"):
        pools.ask([sys.executable, "-c", "import sys; print('no such pool', file=sys.stderr); sys.exit(3)"])
    assert pools.ask([sys.executable, "-c", "print('talk'); print('{\"put\": 1.5}')"]) == {"put": 1.5}
