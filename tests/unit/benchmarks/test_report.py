"""Numbers become a document, a table and a picture."""

import json
from xml.etree import ElementTree

import pytest

from benchmarks.report import Report, bars, between, machine, percentile, ratio, table


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile(values, 1.0) == 100.0
    assert percentile([7.0], 0.5) == 7.0
    assert percentile([], 0.5) is None


def test_ratio_has_three_digits_and_is_none_where_a_number_is_missing() -> None:
    assert ratio(1.0, 3.0) == 0.333
    assert ratio(12345.0, 10.0) == 1230.0
    assert ratio(None, 3.0) is None
    assert ratio(1.0, 0.0) is None


def test_document_has_the_three_parts() -> None:
    report = Report(machine(("msgspec",)), [{"gateway": "ours", "p50_ms": 0.5}], {"rl_c32_vs_vllm_router": 0.25})
    document = json.loads(report.json())
    assert list(document) == ["machine", "figures", "ratios"]
    assert document["figures"] == [{"gateway": "ours", "p50_ms": 0.5}]
    assert document["ratios"]["rl_c32_vs_vllm_router"] == 0.25
    assert document["machine"]["cores"] >= 1
    assert set(document["machine"]["versions"]) == {"msgspec"}


def test_table_has_a_line_for_each_figure_and_dashes_for_what_is_missing() -> None:
    lines = table([{"name": "a", "value": 1234.5}, {"name": "b", "value": None}], ("name", "value")).splitlines()
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines] == [
        ["name", "value"],
        ["----", "-----"],
        ["a", "1,234"],
        ["b", "–"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_picture_is_xml_with_a_bar_for_each_value() -> None:
    drawn = ElementTree.fromstring(bars([("t < u", [("a", 10.0), ("b", 1000.0), ("none", None)])], ours="a"))
    widths = [float(r.attrib["width"]) for r in drawn.iter("{http://www.w3.org/2000/svg}rect") if r.get("x")]
    assert len(widths) == 3
    assert 0 < widths[0] < widths[1]
    assert widths[2] == 0
    texts = [text.text for text in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "t < u" in texts
    assert "–" in texts


@pytest.mark.parametrize("rows", [[], [("a", None)], [("a", 1.0)]])
def test_picture_of_little_is_drawn_too(rows: list[tuple[str, float | None]]) -> None:
    assert bars([("title", rows)], ours="a").startswith("<svg")


def test_a_documents_marked_part_is_replaced_and_nothing_else() -> None:
    text = "before\n<!-- speed: begin -->old<!-- speed: end -->\nafter\n"
    once = between(text, "speed", "new")
    assert once == "before\n<!-- speed: begin -->\n\nnew\n\n<!-- speed: end -->\nafter\n"
    assert between(once, "speed", "new") == once
    with pytest.raises(ValueError, match="memory"):
        between(text, "memory", "new")
