"""What a fleet needs of this project: fitted on what `benchmarks.end_to_end` measured, and checked against what it held out.

`python -m benchmarks.scale_model --gpus 1000` prints one fleet, without `--gpus` the page of three. Nothing is measured here.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.command import Command, hand_over
from benchmarks.costs import GOAL, Check, Costs, Window, check, check_bytes, fit
from benchmarks.fleet import REASONS, Assumptions, Fleet, Needs, needs
from benchmarks.report import Report, Value, table

MEASUREMENTS: Final = Path(__file__).parent / "measurements" / "end_to_end.json"
FLEETS: Final = (100, 1_000, 10_000)
BUSY: Final = 0.1
"""Share of the cores that others had in any window: above it the machine was busy."""
NAMES: Final = {
    "gateway": "gateways",
    "streams": "stream workers",
    "sinks": "sinks",
    "kafka": "brokers",
    "clickhouse": "ClickHouse machines",
    "trainer": "trainers' adapters",
}


@dataclass(frozen=True)
class Measurements:
    """What end_to_end kept."""

    machine: dict[str, Any]
    group: int
    batch: int
    windows: tuple[Window, ...]

    @classmethod
    def read(cls, path: Path) -> "Measurements":
        """Raises ValueError for a file that holds none, OSError for one that cannot be read."""
        try:
            kept = json.loads(path.read_text())
            windows = tuple(Window.read(window) for window in kept["windows"])
            return cls(kept["machine"], kept["group"], kept["batch"], windows)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} holds no measurements: {error!r}") from error

    @property
    def others(self) -> float:
        """The largest share of the cores that others had in a window; unknown counts as all."""
        return max(1.0 if window.others is None else window.others for window in self.windows)

    @property
    def fastest(self) -> float:
        """The most steps a second that a window made."""
        return max(window.work.steps / window.work.seconds for window in self.windows)

    def state(self) -> str:
        """Whether the machine was quiet, in a sentence."""
        share = f"others had up to {self.others:.0%} of its cores in a window"
        if self.others > BUSY:
            return (
                f"**The machine was busy: {share}. Bytes and disks are right all the same. Processor times, and the "
                "numbers of processes that follow from them, are no measure of anything: at the few steps a second that "
                "went through, what a second costs hides what a step costs. Measure again on a quiet machine.**"
            )
        return f"The machine was quiet: {share}."


# --------------------------------------------------------------------------------------------------------------- tables


def cost_figures(costs: Costs) -> list[dict[str, Value]]:
    """Fitted processor time by process."""
    return [
        {
            "process": name,
            "us_a_step": 1e6 * cost.steps,
            "us_a_trajectory": 1e6 * cost.trajectories,
            "us_for_1000_new_tokens": 1e9 * cost.new_tokens,
            "us_for_1000_sampled": 1e9 * cost.sampled_tokens,
            "us_for_1000_prompt_tokens": 1e9 * cost.prompt_tokens,
            "ms_a_second": 1e3 * cost.seconds,
        }
        for name, cost in costs.cpu.items()
    ]


def byte_figures(costs: Costs) -> list[dict[str, Value]]:
    """Fitted bytes by flow."""
    return [
        {
            "flow": name,
            "bytes_a_step": cost.steps,
            "bytes_a_trajectory": cost.trajectories,
            "bytes_a_new_token": cost.new_tokens,
            "bytes_a_sampled_token": cost.sampled_tokens,
            "bytes_a_prompt_token": cost.prompt_tokens,
        }
        for name, cost in costs.bytes.items()
    ]


def check_figures(checks: Sequence[Check], what: str, unit: str, factor: float) -> list[dict[str, Value]]:
    """A row a process (or flow) and window that was held out."""
    return [
        {
            "held_out": one.shape,
            "offered_per_s": one.offered_steps_per_s,
            what: one.what,
            f"measured_{unit}": factor * one.measured,
            f"predicted_{unit}": factor * one.predicted,
            "error": f"{one.error:+.0%}",
            "within_goal": "yes" if abs(one.error) <= GOAL else "no",
        }
        for one in checks
    ]


def fleet_figure(need: Needs) -> dict[str, Value]:
    """One fleet as a row."""
    gateways, brokers = need.part("gateway"), need.part("kafka")
    return {
        "gpus": need.fleet.gpus,
        "steps_per_s": need.fleet.steps_per_s,
        "gateways": gateways.instances,
        "partitions": need.partitions,
        "stream_workers": need.part("streams").instances,
        "sinks": need.part("sinks").instances,
        "brokers": brokers.instances,
        "clickhouse_machines": need.part("clickhouse").instances,
        "trainers": need.trainers,
        "cores_used": need.cores,
        "open_steps_gb": need.open_steps_gb,
        "agents_mb_per_s": gateways.in_mb_s,
        "brokers_in_mb_per_s": brokers.in_mb_s,
        "brokers_out_mb_per_s": brokers.out_mb_s,
        "log_tb_a_day": need.log_tb_a_day,
        "log_tb_kept": need.log_tb,
        "pool_tb_a_day": need.pool_tb_a_day,
        "pool_tb_kept": need.pool_tb,
    }


def part_figures(need: Needs) -> list[dict[str, Value]]:
    """One fleet's parts."""
    return [
        {
            "part": NAMES[part.name],
            "number": part.instances,
            "by": part.bound,
            "steps_per_s_each": need.fleet.steps_per_s / part.instances,
            "cores_used_in_all": part.cores,
            "in_mb_per_s": part.in_mb_s,
            "out_mb_per_s": part.out_mb_s,
        }
        for part in need.parts
    ]


def assumption_figures(assumed: Assumptions) -> list[dict[str, Value]]:
    return [
        {"assumption": one.name, "value": getattr(assumed, one.name), "what_and_why": REASONS[one.name]}
        for one in fields(assumed)
    ]


def _turned(rows: Sequence[dict[str, Value]], head: str) -> str:
    """Rows as columns: few fleets, many numbers."""
    columns = [f"{row[head]:,}" for row in rows]
    names = [name for name in rows[0] if name != head]
    turned = [
        {head: name.replace("_", " "), **{column: row[name] for column, row in zip(columns, rows, strict=True)}}
        for name in names
    ]
    return table(turned, (head, *columns))


def judge(checks: Sequence[Check]) -> str:
    """How many predictions are good enough, and which is the worst."""
    if not checks:
        return "Nothing was held out: the fit is not checked."
    good = sum(abs(one.error) <= GOAL for one in checks)
    worst = max(checks, key=lambda one: abs(one.error))
    where = worst.shape if worst.offered_steps_per_s is None else f"{worst.shape} at a steady rate"
    said = f"{good} of {len(checks)} predictions are within {GOAL:.0%}"
    return f"{said}; the worst is {worst.what} of {where}, {worst.error:+.0%}."


def as_page(kept: Measurements, costs: Costs, fleets: Sequence[Needs], assumed: Assumptions) -> str:
    """All tables for people, with where the costs were measured."""
    shape = fleets[0].fleet.shape
    said = (
        f"A conversation is of {shape.turns} turns: a first prompt of {shape.first:,} tokens, {shape.sampled:,} sampled and "
        f"{shape.observed:,} observed a turn."
    )
    times, flows = check(costs, kept.windows), check_bytes(costs, kept.windows)
    named = "A shape's name is its first prompt, the sampled and the observed tokens of a turn, its turns."
    where = f"Measured with groups of {kept.group} and batches of {kept.batch} groups. {Report(kept.machine).where()}"
    reach = (
        f"The fastest window made {kept.fastest:,.0f} steps a second. A process of which the tables ask many times that is "
        "beyond what was measured."
    )
    parts = [
        f"{where}\n\n{kept.state()}\n\n{reach}",
        f"### Fleets\n\n{said}\n\n{_turned([fleet_figure(need) for need in fleets], 'gpus')}",
        *(f"### The parts of {need.fleet.gpus:,} GPUs\n\n{_rows(part_figures(need))}" for need in fleets),
        f"### Fitted processor time\n\n{_rows(cost_figures(costs))}",
        f"### Fitted bytes\n\n{_rows(byte_figures(costs))}",
        f"### Processor time, checked\n\n{judge(times)} {named}\n\n{_rows(check_figures(times, 'process', 's', 1.0))}",
        f"### Bytes, checked\n\n{judge(flows)}\n\n{_rows(check_figures(flows, 'flow', 'mb', 1e-6))}",
        f"### Assumptions\n\n{_rows(assumption_figures(assumed))}",
    ]
    return "\n\n".join(parts)


def _rows(figures: Sequence[dict[str, Value]]) -> str:
    return table(figures, tuple(figures[0]) if figures else ())


# --------------------------------------------------------------------------------------------------------- command line


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    command = Command("scale_model", __doc__, quick=None)
    command.add_argument(
        "--gpus", type=int, metavar="N", help=f"GPUs of the fleet (default: {', '.join(map(str, FLEETS))})"
    )
    command.add_argument(
        "--steps-per-s", type=float, metavar="N", help="model calls a second of the fleet; default: by what GPUs sample"
    )
    command.add_argument("--tokens-per-step", type=int, default=300, metavar="N", help="sampled tokens of a step (300)")
    command.add_argument("--observed", type=int, default=100, metavar="N", help="tokens between two steps (100)")
    command.add_argument("--first", type=int, default=1_200, metavar="N", help="tokens of a first prompt (1200)")
    command.add_argument("--turns", type=int, default=15, metavar="N", help="steps of a trajectory (15)")
    command.add_argument("--measurements", type=Path, default=MEASUREMENTS, metavar="FILE", help="what end_to_end kept")
    for one in fields(Assumptions):
        assert one.default is not MISSING
        kind: Callable[[str], float] = int if isinstance(one.default, int) else float
        command.add_argument(
            f"--{one.name.replace('_', '-')}",
            type=kind,
            default=one.default,
            metavar="N",
            help=f"{REASONS[one.name]} ({one.default:g})".replace("%", "%%"),
        )
    arguments = command.read(argv)
    if arguments.steps_per_s is not None and arguments.gpus is None:
        command.error("--steps-per-s is one fleet's: say --gpus too")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Exit 0; 1 if there are no measurements that a model can be fitted on; 2 for a load or an assumption that is none."""
    arguments = _arguments(argv)
    try:
        kept = Measurements.read(arguments.measurements)
        costs = fit(kept.windows)
    except (OSError, ValueError) as error:
        print(f"there is no model: {error}. `make bench-end-to-end` measures.", file=sys.stderr)
        return 1
    try:
        assumed = replace(Assumptions(), **{one.name: getattr(arguments, one.name) for one in fields(Assumptions)})
        found = [
            needs(
                Fleet.of(
                    gpus,
                    assumed,
                    first=arguments.first,
                    sampled=arguments.tokens_per_step,
                    observed=arguments.observed,
                    turns=arguments.turns,
                    steps_per_s=arguments.steps_per_s,
                ),
                costs,
                assumed,
            )
            for gpus in ((arguments.gpus,) if arguments.gpus is not None else FLEETS)
        ]
    except ValueError as error:
        print(f"this is no fleet: {error}", file=sys.stderr)
        return 2
    report = Report(kept.machine)
    for need in found:
        report.figures += [fleet_figure(need), *({"gpus": need.fleet.gpus, **row} for row in part_figures(need))]
    report.figures += [*cost_figures(costs), *byte_figures(costs)]
    report.figures += check_figures(check(costs, kept.windows), "process", "s", 1.0)
    report.figures += check_figures(check_bytes(costs, kept.windows), "flow", "mb", 1e-6)
    hand_over(report, as_page(kept, costs, found, assumed), "scale model", arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
