"""The command line that benchmarks share: what is measured, and where the result goes."""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from benchmarks.report import Report, between


class Command(argparse.ArgumentParser):
    """Options that all of them have; `add_argument` adds a benchmark's own.

    `quick` says what the small form is; None: there is none. `parts` are what `--only` may name, `one` what each of them is
    called. `profile` says whose time `--profile` samples.
    """

    def __init__(
        self,
        module: str,
        about: str | None,
        *,
        quick: str | None,
        parts: Sequence[str] = (),
        one: str = "part",
        profile: str | None = None,
    ) -> None:
        super().__init__(prog=f"python -m benchmarks.{module}", description=about)
        self._parts, self._one = parts, one
        if quick:
            self.add_argument("--quick", action="store_true", help=quick)
        self.add_argument("--json", action="store_true", help="print one JSON document: machine, figures, ratios")
        self.add_argument("--into", type=Path, metavar="FILE", help="write the tables between a document's marks too")
        if parts:
            named = ", ".join(parts)
            self.add_argument("--only", metavar=f"{one.upper()}S", help=f"{one}s, separated by commas: {named}")
        if profile:
            self.add_argument("--profile", type=Path, metavar="FOLDER", help=f"where {profile} goes, sampled by py-spy")

    def read(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The arguments; `parts` are the chosen ones. Exits with 2 if they are wrong."""
        arguments = self.parse_args(argv)
        if self._parts:
            arguments.parts = list(self._parts) if arguments.only is None else arguments.only.split(",")
            if unknown := [part for part in arguments.parts if part not in self._parts]:
                self.error(f"no such {self._one}: {', '.join(unknown)}")
        return arguments


def run(main: Callable[[], int]) -> int:
    """What `main` returns. A benchmark that is told to end (SIGTERM) ends what it started too, and exits with 143."""
    signal.signal(signal.SIGTERM, _end)
    return main()


def _end(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def say(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def hand_over(report: Report, text: str, mark: str, arguments: argparse.Namespace) -> None:
    """Print the result, and write `text` between the marks of the document that was named."""
    if arguments.into:
        arguments.into.write_text(between(arguments.into.read_text(), mark, text))
    print(report.json() if arguments.json else text)
