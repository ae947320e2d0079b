"""Numbers become pictures here: inline SVG without a style attribute, so that the content policy can forbid those.

Widths stretch with the page (`preserveAspectRatio="none"`); words stay outside the drawing, so that they stay sharp.
"""

import math
from collections.abc import Sequence
from typing import Final

from console.markup import Markup, element
from console.status import BatchPoint

WIDTH: Final = 600
HEIGHT: Final = 160
SMOOTH: Final = 3
"""Batches in the moving mean."""


def draw_bars(values: Sequence[int], label: str) -> Markup:
    """A bar a bucket, the newest at the right."""
    top, step = max([*values, 1]), 100 / max(len(values), 1)
    bars = [
        element("rect", x=_n(i * step), y=_n(24 - 24 * v / top), width=_n(step * 0.7), height=_n(24 * v / top))
        for i, v in enumerate(values)
        if v
    ]
    return element(
        "svg", bars, class_="bars", viewBox="0 0 100 24", preserveAspectRatio="none", role="img", aria_label=label
    )


def draw_share(part: float, whole: float, label: str) -> Markup:
    """A bar that is full when part reaches whole."""
    share = min(1.0, part / whole) if whole > 0 else 0.0
    return element(
        "svg",
        element("rect", class_="rest", width=100, height=6, rx=1),
        element("rect", width=_n(100 * share), height=6, rx=1),
        class_="share",
        viewBox="0 0 100 6",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """What the axis spans: 0 to 1 if that holds every value, else whole steps around them."""
    low, high = min(values), max(values)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    step = 10.0 ** math.floor(math.log10(max(high - low, abs(high), abs(low), 1e-9)))
    return min(0.0, math.floor(low / step) * step), max(0.0, math.ceil(high / step) * step)


def smooth(values: Sequence[float]) -> list[float]:
    """The mean of each value and those before it, SMOOTH at most."""
    windows = [values[max(0, i - SMOOTH + 1) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def draw_curve(batches: Sequence[BatchPoint]) -> Markup | None:
    """The reward over batches: each batch thin, the moving mean bold; None without a known reward."""
    known = [(batch, batch.reward) for batch in batches if batch.reward is not None]
    if not known:
        return None
    rewards = [reward for _, reward in known]
    low, high = value_range(rewards)
    step = WIDTH / max(len(known) - 1, 1)

    def place(index: int, value: float) -> str:
        return f"{_n(index * step)} {_n(HEIGHT - HEIGHT * (value - low) / (high - low))}"

    def line(values: Sequence[float]) -> str:
        ends = values if len(values) > 1 else [*values, *values]
        return "M" + "L".join(place(i, v) for i, v in enumerate(ends))

    bold = line(smooth(rewards))
    grid = [element("path", class_="grid", d=f"M0 {y}H{WIDTH}") for y in (0.5, HEIGHT / 2, HEIGHT - 0.5)]
    touch = [
        element(
            "rect",
            element("title", _say(batch)),
            class_="touch",
            x=_n((i - 0.5) * step),
            y=0,
            width=_n(step if len(known) > 1 else 2 * WIDTH),
            height=HEIGHT,
        )
        for i, (batch, _) in enumerate(known)
    ]
    drawing = element(
        "svg",
        grid,
        element("path", class_="area", d=f"{bold}V{HEIGHT}H0Z"),
        element("path", class_="thin", d=line(rewards)),
        element("path", class_="bold", d=bold),
        touch,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"mean reward of batches {known[0][0].sequence} to {known[-1][0].sequence}, now {rewards[-1]:.2f}",
    )
    heights = [element("span", f"{value:g}") for value in (high, (low + high) / 2, low)]
    return element(
        "div",
        element("div", heights, class_="heights"),
        drawing,
        element(
            "div",
            element("span", f"batch {known[0][0].sequence}"),
            element("span", f"batch {known[-1][0].sequence}"),
            class_="lengths",
        ),
        class_="curve",
    )


def _say(batch: BatchPoint) -> str:
    trained = "not yet acknowledged" if batch.policy_version is None else f"made policy {batch.policy_version}"
    left = f", {batch.excluded} left out" if batch.excluded else ""
    return f"batch {batch.sequence}: reward {batch.reward:.3f}, {batch.groups} groups{left}, {trained}"


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
