"""What the adapter's benchmark writes is what a stream worker writes, and its tables have the one form."""

import pytest

from benchmarks.adapter_log import LONG, STEP, TRAJECTORIES, TURNS, Shape, Template
from benchmarks.adapter_rate import as_text, memory_figure, rate_figure, ratios
from benchmarks.report import Report, Value
from benchmarks.stream_log import name_of
from claw_r1.codec import decode
from claw_r1.events import GroupReady, Sample
from tests.factories import a_recipe
from trainer_adapter.cut import select
from trainer_adapter.groups import Remembered, Shelf


@pytest.mark.parametrize("shape", [STEP, TURNS])
def test_every_group_is_ready_and_fit_to_train(shape: Shape) -> None:
    template, shelf = Template(shape), Shelf(Remembered())
    records = [record for number in range(3) for record in template.records(name_of("a", number))]
    for offset, record in enumerate(records):
        event = decode(record.headers, record.value)
        assert isinstance(event, Sample | GroupReady)
        assert record.key == f"default/{event.prompt_uid}".encode()
        shelf.put(offset, event, 1.0, record.value)
    selection = select(shelf.ready, a_recipe(batch={"groups": 3}), 1)
    assert selection is not None
    assert selection.excluded == ()
    assert [group.marker.group_id for group in selection.members] == [name_of("a", number) for number in range(3)]
    samples = [sample for group in selection.members for sample in group.samples]
    assert {sample.tokens for sample in samples} == {shape.tokens}
    assert {sample.trained_tokens for sample in samples} == {shape.steps * shape.response}
    assert not any(shelf.counts.values())


def test_the_shapes_are_those_of_the_goals() -> None:
    assert STEP.tokens == 512 + 128
    assert LONG.tokens == 32_768


def test_figures_and_tables() -> None:
    found = {
        "seconds": 2.0,
        "cpu": 1.0,
        "samples": 1_000,
        "tokens": 1_000 * TURNS.tokens,
        "grown": 1.25 * 4 * LONG.row_bytes,
    }
    rate = rate_figure("turns", TURNS, found)
    assert (rate["rows_per_s"], rate["steps_per_s"], rate["cpu_us_per_row"]) == (500, 2_500, 1_000)
    memory = memory_figure(TRAJECTORIES, found)
    assert memory["peak_over_raw"] == pytest.approx(1.25)
    figures: list[dict[str, Value]] = [
        {"pool": "other", "call": "get", "rows_per_s": 250.0},
        {"pool": "gone", "left_out": "no network"},
    ]
    assert ratios(figures, rate["rows_per_s"]) == {"vs_other_get": 2.0}
    report = Report({"processor": "p", "cores": 2, "system": "s", "python": "3", "versions": {}, "load_before": [0.1]})
    report.figures += [rate, memory, *figures]
    text = as_text(report)
    assert "| turns" in text
    assert "### Memory" in text
    assert "### Latency" not in text
    assert "gone was left out: no network" in text
