"""The whole loop with real parts on this machine's CPU: `make demo-vllm`, or `python -m examples.vllm_loop [--steps N]`.

    agents → gateway → vLLM                       a tiny model with random weights
    facts → streams → ready groups → BatchStream → TRL's GRPOTrainer → new weights → the same vLLM

After every change of weights the log-probs that the gateway captured are held against the trainer's own: equal within 1e-3
for the version that sampled, and not for the one before. Anything else, and a step that the pool lacks, ends with an error.
Everything is in a folder that is removed at the end, and all processes end with this one.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from claw_r1.clickhouse import ClickHouse
from claw_r1.local.jars import ensure_jars, print_progress
from claw_r1.local.ports import HOST, find_port
from claw_r1.local.stack import RunningStack, running_stack
from claw_r1.local.supervisor import GUARD, Process, StartFailed
from claw_r1.recipes import BatchRule, GroupRule, Recipe, Staleness
from claw_r1.registry import apply_recipe
from examples.vllm_loop.agents import play_groups
from tests.environments import is_made
from tests.trainers import install as trainers
from tests.vllm import install as vllm
from tests.vllm.serve import make_model, server_command, server_environment

ROOT: Final = Path(__file__).parents[2]
RUN: Final = "vllm-loop"
GROUPS, SIZE = 4, 8
PARTS: Final = ("kafka", "clickhouse", "streams", "sinks", "gateway")
SETTLE_S: Final = 60.0
# Every token of a batch is of the newest version: nothing is sampled while a batch is trained.
RECIPE: Final = Recipe(
    name="vllm-loop",
    run_id=RUN,
    group=GroupRule(size=SIZE, idle=60.0),
    batch=BatchRule(groups=GROUPS),
    staleness=Staleness(max_versions=0, unknown="drop"),
)
# The trainer's libraries: no accelerator, no network, and no second thread beside the engine's.
ENVIRONMENT: Final = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # the next start is twice as fast
    "PYTHONPATH": str(ROOT),
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


class LoopFailed(Exception):
    """The loop did not close; the text says where."""


@dataclass
class Row:
    """What is known of an optimiser step."""

    version: int
    reward: float
    tokens: int
    gap: float
    gap_before: float | None
    seconds: float = 0.0


def check_installed() -> None:
    """Raise LoopFailed if the machine cannot run the parts, or has not got them."""
    for name, part in (("vLLM", vllm), ("TRL", trainers)):
        if reason := part.cannot():
            raise LoopFailed(f"{name} cannot run here: {reason}")
        if not is_made(part.place()):
            raise LoopFailed(f"{name} is not installed: run `make setup-ci`")


@contextlib.contextmanager
def parts(folder: Path) -> Iterator[tuple[RunningStack, str]]:
    """The stack with the engine as one more of its processes, and the engine's URL."""
    ensure_jars(progress=print_progress)
    make_model(folder / "model", "--ends")
    port = find_port()
    engine = f"http://{HOST}:{port}"
    served = Process(
        name="engine",
        argv=server_command(folder / "model", port),
        env=server_environment(),
        ready=f"{engine}/health",
        port=port,
        start_timeout=240.0,
    )
    env = {"CLAW_GATEWAY_RUN": RUN, "CLAW_SECRET": ""}
    with running_stack(folder / "data", processes=PARTS, upstreams=[engine], extra=[served], env=env) as stack:
        yield stack, engine


@contextlib.contextmanager
def trainer(stack: RunningStack, engine: str, folder: Path, steps: int) -> Iterator["subprocess.Popen[str]"]:
    """The trainer's process, in its own environment; what it tells is on its standard output."""
    command = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid())]
    command += [str(trainers.place() / "bin" / "python"), "-m", "examples.vllm_loop.train"]
    command += ["--kafka", stack.kafka, "--gateway", stack.urls["gateway"], "--engine", engine, "--run", RUN]
    command += ["--recipe", RECIPE.name, "--model", str(folder / "model"), "--steps", str(steps)]
    command += ["--groups", str(GROUPS), "--size", str(SIZE)]
    env = os.environ | ENVIRONMENT
    with (folder / "trainer.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def keep_tokens(gateway: str) -> None:
    """Conversations go on as the tokens that were sampled: noise, read again as text, is other tokens."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{gateway}/runs/{RUN}", json.dumps({"tito": True}).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def events(process: "subprocess.Popen[str]") -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"event"'):
            yield json.loads(line)


def close_the_loop(stack: RunningStack, engine: str, folder: Path, steps: int) -> tuple[list[Row], int]:
    """Play for every version that is served, until the trainer has made its steps; how these went, and the calls made.

    Raises LoopFailed.
    """
    rows: list[Row] = []
    calls = 0
    began = time.monotonic()
    with trainer(stack, engine, folder, steps) as process:
        for event in events(process):
            kind = event.pop("event")
            if kind == "serves" and len(rows) < steps:
                played = play_groups(stack.urls["gateway"], f"v{event['version']}", GROUPS, SIZE)
                calls += sum(one.calls for one in played)
            elif kind == "took":
                rows.append(Row(**event))
            elif kind == "trained":
                rows[-1].seconds, began = time.monotonic() - began, time.monotonic()
                say_row(rows[-1])
        if process.wait(timeout=180) != 0 or len(rows) != steps:
            last = (folder / "trainer.log").read_text(errors="replace").strip().splitlines()[-15:]
            raise LoopFailed(
                f"the trainer ended with {process.returncode} after {len(rows)} of {steps} batches:\n" + "\n".join(last)
            )
    return rows, calls


def say_row(row: Row) -> None:
    before = "        –" if row.gap_before is None else f"{row.gap_before:9.2e}"
    print(
        f"{row.version:7}  {row.reward:6.3f}  {row.tokens:6}  {row.gap:9.2e}  {before}  {row.seconds:7.1f}", flush=True
    )


async def settle(clickhouse: str, calls: int, batches: int) -> None:
    """Wait until the pool has the step of each call, and each batch's commit. Raises LoopFailed."""
    end = time.monotonic() + SETTLE_S
    async with await ClickHouse.connect(clickhouse, "claw") as client:
        while True:
            stored = await client.scalar("SELECT uniqExact(step_id) FROM steps WHERE status = 'complete'")
            trained = await client.scalar("SELECT uniqExact(batch_id) FROM trained")
            if (stored, trained) == (calls, batches):
                return
            if time.monotonic() > end:
                raise LoopFailed(
                    f"the pool has {stored} steps of {calls} calls, {trained} commits of {batches} batches"
                )
            await asyncio.sleep(0.2)


def run(steps: int) -> None:
    began = time.monotonic()
    check_installed()
    with tempfile.TemporaryDirectory(prefix="claw-vllm-loop-") as name:
        folder = Path(name)
        print("starting a broker, the pool, the stages and vLLM …", flush=True)
        with parts(folder) as (stack, engine):
            asyncio.run(apply_recipe(stack.kafka, RECIPE, deadline=60.0))
            keep_tokens(stack.urls["gateway"])
            print(
                f"ready after {time.monotonic() - began:.0f} s; {steps} steps of {GROUPS} groups of {SIZE}", flush=True
            )
            print("version  reward  tokens   max gap  gap before  seconds", flush=True)
            rows, calls = close_the_loop(stack, engine, folder, steps)
            asyncio.run(settle(stack.clickhouse, calls, steps))
    say_end(rows, calls, time.monotonic() - began)


def say_end(rows: Sequence[Row], calls: int, seconds: float) -> None:
    others = [row.gap_before for row in rows if row.gap_before is not None]
    found = [
        ("batches trained", f"{len(rows)}"),
        ("model calls, and as many steps in the pool", f"{calls}"),
        ("mean reward, first and last batch", f"{rows[0].reward:.3f} → {rows[-1].reward:.3f}"),
        ("largest gap of log-probs after a sync", f"{max(row.gap for row in rows):.1e}"),
        ("smallest gap to the version before", f"{min(others):.1e}" if others else "–"),
        ("seconds in all", f"{seconds:.0f}"),
    ]
    print()
    for name, value in found:
        print(f"{name:44}{value}")
    print("The loop is closed; nothing is left behind.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.vllm_loop", description=__doc__)
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        run(given.steps)
    except (LoopFailed, StartFailed) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
