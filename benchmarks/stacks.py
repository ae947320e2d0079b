"""Samples of a running process's stacks become tables: where its time goes, by file and by function.

Invariants: pure; the input is py-spy's `raw` format, one line a stack: `function (file:line);… count`, outermost first.
"""

import re
from collections import Counter
from collections.abc import Iterable

_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>[^()]*?)(?::\d+)?\)$")


def shares(lines: Iterable[str]) -> tuple[dict[str, float], dict[str, float]]:
    """(file → share of the samples that were in it, function → share that were in it or in what it called)."""
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    total = 0
    for line in lines:
        stack, _, number = line.rstrip().rpartition(" ")
        if not stack or not number.isdigit():
            continue
        count = int(number)
        total += count
        frames = [_read(frame) for frame in stack.split(";")]
        own[frames[-1][1]] += count
        for name in {f"{function} ({file})" for function, file in frames}:
            within[name] += count
    if not total:
        return {}, {}
    return ({k: n / total for k, n in own.most_common()}, {k: n / total for k, n in within.most_common()})


def _read(frame: str) -> tuple[str, str]:
    """(function, file from its package on)."""
    found = _FRAME.match(frame)
    if found is None:
        return frame, "(no file)"
    file = found["file"]
    for root in ("site-packages/", "python3.11/", "lib/"):
        file = file.rpartition(root)[2]
    parts = file.split("/")
    for place, part in enumerate(parts):
        if part in ("gateway", "claw_r1", "trainer_adapter", "benchmarks"):
            file = "/".join(parts[place:])
            break
    return found["function"], file


def lines_of(title: str, part: dict[str, float], most: int) -> list[str]:
    """A table's lines: the largest shares first."""
    return [title, *(f"{100 * share:5.1f} %  {name}" for name, share in list(part.items())[:most])]
