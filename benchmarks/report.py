"""What a benchmark measured becomes one JSON document, a table and a picture; all benchmarks share this form.

Invariants: pure; a figure is one row of names and numbers, unknown is None; a ratio is ours over theirs.
"""

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

Value = str | int | float | None
Figure = Mapping[str, Value]
"""A row: what was measured (names), then the numbers with their units in their names."""


@dataclass
class Report:
    """What a run gives: `python -m benchmarks.… --json` prints it."""

    machine: dict[str, Any]
    figures: list[dict[str, Value]] = field(default_factory=list)
    ratios: dict[str, float | None] = field(default_factory=dict)

    def json(self) -> str:
        """One JSON document: {"machine": {}, "figures": [], "ratios": {}}."""
        return json.dumps({"machine": self.machine, "figures": self.figures, "ratios": self.ratios}, indent=1)

    def where(self) -> str:
        """One line of it for people."""
        busy = ", ".join(str(load) for load in self.machine["load_before"])
        versions = ", ".join(f"{name} {version}" for name, version in self.machine["versions"].items())
        return (
            f"{self.machine['processor']}, {self.machine['cores']} cores, {self.machine['system']}, "
            f"Python {self.machine['python']}, {versions}. Load before the run: {busy}."
        )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank percentile of values in rising order, `share` in (0, 1]; None if there are none."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ratio(ours: Value, theirs: Value) -> float | None:
    """Ours over theirs, three digits; None if one is missing."""
    if not isinstance(ours, int | float) or not isinstance(theirs, int | float) or theirs == 0:
        return None
    return float(f"{ours / theirs:.3g}")


def machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Where a benchmark ran: processor, cores, system, load before the run, versions of what matters."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "versions": {package: metadata.version(package) for package in packages},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def sections(
    report: Report, columns: Mapping[str, Sequence[str]], marks: Mapping[str, str], ratios: str = "Ours over theirs"
) -> str:
    """A table by title, of the figures that have the title's mark; then the ratios, and what was left out."""
    parts = [report.where()]
    for title, named in columns.items():
        if mine := [figure for figure in report.figures if marks[title] in figure]:
            parts.append(f"### {title}\n\n{table(mine, named)}")
    if report.ratios:
        values = [{"ratio": name, "value": value} for name, value in report.ratios.items()]
        parts.append(f"### {ratios}\n\n{table(values, ('ratio', 'value'))}")
    parts += [
        f"{figure.get('pool', figure.get('what'))} was left out: {figure['left_out']}"
        for figure in report.figures
        if "left_out" in figure
    ]
    return "\n\n".join(parts)


def table(figures: Sequence[Figure], columns: Sequence[str]) -> str:
    """The figures as a Markdown table, numbers to three digits; a missing number is a dash."""
    rows = [[_cell(figure.get(column)) for column in columns] for figure in figures]
    heads = [column.replace("_", " ") for column in columns]
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(columns))]
    lines = [heads, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _cell(value: Value) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def between(text: str, name: str, new: str) -> str:
    """A document with what stands between its marks `<!-- name: begin -->` and `<!-- name: end -->` replaced.

    Raises ValueError if it has not both.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the document has no {begin} … {end}")
    return f"{head}{begin}\n\n{new}\n\n{end}{tail}"


ROW = 22
LABEL = 190
BAR = 420
_INK = "#3b6ea5"
_OTHER = "#b9c4d0"


def bars(charts: Sequence[tuple[str, Sequence[tuple[str, float | None]]]], *, ours: str) -> str:
    """An SVG of bar charts one below the other: (title, [(label, value)]); lengths are logarithmic, values are printed.

    The label `ours` is drawn in the strong colour; a missing value has no bar.
    """
    parts: list[str] = []
    y = 8
    for title, rows in charts:
        y += ROW
        parts.append(f'<text x="8" y="{y}" font-weight="bold">{escape(title)}</text>')
        values = [value for _, value in rows if value is not None and value > 0]
        low = min(values, default=1.0) / 3
        span = math.log(max(values, default=1.0) / low) or 1.0
        for label, value in rows:
            y += ROW
            parts.append(f'<text x="{LABEL - 8}" y="{y}" text-anchor="end">{escape(label)}</text>')
            width = 0.0 if value is None or value <= 0 else BAR * math.log(value / low) / span
            colour = _INK if label == ours else _OTHER
            parts.append(f'<rect x="{LABEL}" y="{y - 13}" width="{width:.1f}" height="16" fill="{colour}"/>')
            parts.append(f'<text x="{LABEL + width + 6:.1f}" y="{y}">{_cell(value)}</text>')
        y += ROW // 2
    size = f'width="{LABEL + BAR + 90}" height="{y + 8}"'
    style = 'font-family="system-ui, sans-serif" font-size="13" fill="#222"'
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )
