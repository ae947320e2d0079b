"""`claw bench`: how fast a part of a running stack is, measured where it runs."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from claw_r1.cli.address import kafka_address
from claw_r1.cli.options import AsJson, Kafka

if TYPE_CHECKING:
    from trainer_adapter.rate import Rate

app = typer.Typer(help="Measure how fast a part of a running stack is.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure how fast a part of a running stack is."""


@app.command()
def trainer(
    recipe: Annotated[str, typer.Option("--recipe", help="The recipe whose ready groups are read.")],
    follow: Annotated[
        float, typer.Option("--follow", min=0, help="Seconds to wait for groups that become ready meanwhile.")
    ] = 0.0,
    kafka: Kafka = None,
    as_json: AsJson = False,
) -> None:
    """Read all ready groups that a recipe's topic holds, make batches of them, and say how fast; commits nothing."""
    from trainer_adapter.rate import measure_rate

    def tell(read: "Rate") -> None:
        if follow:
            print(f"{read.batches} batches were there; following for {follow:g} s", file=sys.stderr)

    rate = measure_rate(recipe, kafka=kafka_address(kafka), follow=follow, caught_up=tell)
    if as_json:
        print(json.dumps(asdict(rate)))
        return
    if rate.batches:
        print(
            f"{rate.batches} batches, {rate.groups} groups, {rate.samples} samples, {rate.steps} steps, {rate.tokens} tokens "
            f"in {rate.seconds:.3f} s, of which {rate.pack_seconds:.3f} s to pack"
        )
        for number, unit in ((rate.steps, "steps/s"), (rate.tokens, "tokens/s"), (rate.column_bytes / 1e9, "GB/s")):
            print(
                f"{number / rate.seconds:>14,.3f} {unit}"
                if unit == "GB/s"
                else f"{number / rate.seconds:>14,.0f} {unit}"
            )
    if rate.hand_over_p50 is not None and rate.hand_over_p99 is not None:
        print(
            f"{rate.live} batches from GroupReady to in hand: p50 {1000 * rate.hand_over_p50:.1f} ms, "
            f"p99 {1000 * rate.hand_over_p99:.1f} ms"
        )
