"""What a person sees of the demo: a live screen on a terminal, a line a batch elsewhere. All of it is talk: stderr."""

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from claw_r1.demo.run import Progress, View

BARS: Final = " ▁▂▃▄▅▆▇█"
HEIGHT: Final = 5
WIDTH: Final = 72


def plot(curve: list[float], *, width: int = WIDTH, height: int = HEIGHT) -> list[str]:
    """The curve (values 0 to 1, the last `width` of them) as `height` lines of block characters, the highest first."""
    lines = []
    for level in reversed(range(height)):
        cells = [round((min(max(value, 0.0), 1.0) * height - level) * 8) for value in curve[-width:]]
        lines.append("".join(BARS[min(max(cell, 0), 8)] for cell in cells))
    return lines


def facts(progress: Progress) -> list[tuple[str, str]]:
    """The numbers that both views show."""
    tally, counts = progress.tally, progress.counts
    curve = progress.curve
    wanted = progress.options.batches
    trouble = [("trouble", f"{', '.join(progress.troubles)}: ends again and again")] if progress.troubles else []
    return [
        *trouble,
        ("model calls", f"{tally.acknowledged:,} acknowledged, {progress.rate:.0f}/s, {tally.broken} broken off"),
        ("in the pool", f"{counts.stored:,} steps, {max(tally.acknowledged - counts.stored, 0):,} behind"),
        ("games", f"{tally.ended:,} of {tally.begun:,} ended, {tally.won:,} won"),
        ("groups", f"{counts.ready:,} ready of {tally.groups:,}, {counts.discarded} discarded"),
        ("batches", f"{progress.trained:,} trained" + (f" of {wanted}" if wanted else "")),
        ("policy", "unknown" if progress.version is None else f"version {progress.version}"),
        ("ready → trainer", f"{progress.waits[-1]:.0f} ms" if progress.waits else "not measured yet"),
        ("success", f"{curve[-1]:.0%}" if curve else "no batch yet"),
    ]


class Screen:
    """The live screen; `opens` gets the console's URL once, when it is known."""

    def __init__(self, opens: Callable[[str], object] | None = None) -> None:
        self._opens = opens
        self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self._live.console.print(text, highlight=False)

    def show(self, progress: Progress) -> None:
        if self._opens is not None and (url := progress.urls.get("console")):
            self._opens(url)
            self._opens = None
        self._live.update(draw(progress))


def draw(progress: Progress) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for name, value in facts(progress):
        table.add_row(Text(name, style="dim"), value)
    lines = plot(progress.curve)
    labels = ["100%", *[""] * (len(lines) - 2), "0%"]
    curve = Text("\n".join(f"{label:>4} │{line}" for label, line in zip(labels, lines, strict=True)), style="green")
    url = progress.urls.get("console") or progress.urls.get("gateway", "")
    title = f"claw demo · {progress.stage} · {url}"
    return Panel(Group(table, Text("won games by batch", style="dim"), curve), title=title, subtitle="Ctrl-C stops")


class Lines:
    """Plain lines: one a batch."""

    def __init__(self) -> None:
        self._shown = 0
        self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def show(self, progress: Progress) -> None:
        if progress.stage != self._stage:
            self._stage = progress.stage
            self.say(progress.stage)
        if progress.trained > self._shown:
            self._shown = progress.trained
            self.say("; ".join(f"{name}: {value}" for name, value in facts(progress)))


def open_view(*, live: bool, opens: Callable[[str], object] | None = None) -> Screen | Lines:
    """The live screen where standard error is a terminal and one is wanted, else plain lines, which open nothing."""
    return Screen(opens) if live and sys.stderr.isatty() else Lines()


_: type[View] = Screen
