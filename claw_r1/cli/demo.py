"""`claw demo`: the main job from the command line."""

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from claw_r1.cli.address import data_dir
from claw_r1.errors import UserError

DEFAULT_BATCHES = 30


def demo(
    headless: Annotated[
        bool,
        typer.Option("--headless", help=f"No live screen; ends by itself after --batches (default {DEFAULT_BATCHES})."),
    ] = False,
    batches: Annotated[int | None, typer.Option("--batches", min=1, help="End after so many trained batches.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the tasks and of the sampling (default: the time).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document at the end.")] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the stack's state (default: CLAW_DATA, or .claw).")
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option("--upstream", help="Use the engine at this base URL, without /v1; nothing is learned then."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model that --upstream serves.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Follow one step through all stops and print the datum at each.")
    ] = False,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open the console in a browser.")] = False,
    token_delay: Annotated[
        float, typer.Option("--token-delay", min=0.0, help="Seconds a token of the demo's engine takes.", hidden=True)
    ] = 0.0,
) -> None:
    """Agents play games through the gateway, the pool fills, batches reach a trainer, and a small policy learns.

    Starts a local stack and stops it at the end; the data stay, and the next start goes on with them.
    """
    if (upstream is None) != (model is None):
        raise typer.BadParameter("--upstream and --model go together: the engine, and the name of the model it serves")
    try:
        from claw_r1.cli.console import show
        from claw_r1.demo import run, view
    except ModuleNotFoundError as error:
        raise UserError(f"the demo's packages are not installed ({error}): pip install 'claw-r1[demo]'") from error
    options = run.Options(
        data=data_dir(data),
        batches=batches or (DEFAULT_BATCHES if headless else None),
        seed=int(time.time()) if seed is None else seed,
        upstream=None if upstream is None else upstream.rstrip("/").removesuffix("/v1"),
        model=model or run.MODEL,
        token_delay=token_delay,
    )
    if explain:
        from claw_r1.demo.explain import explain_demo

        explain_demo(options, as_json=as_json)
        return
    try:
        with view.open_view(live=not headless, opens=None if no_open else show) as shown:
            progress = run.run_demo(options, shown)
    except KeyboardInterrupt:
        print("stopped; the data stay", file=sys.stderr)
        return
    result = run.report(progress)
    if as_json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:22} {json.dumps(value)}", file=sys.stderr)
        print("stopped; the data stay, and the same command goes on with them", file=sys.stderr)
