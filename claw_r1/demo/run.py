"""The demo as a whole: a local stack with an engine and a trainer of its own, agents at work, and what came of it.

Who runs where: the stack's supervisor keeps the engine and the trainer running, as it does every other process; the agents
are a process of their own, paced from here; here the lines that both write are read and the pool is asked.
Invariants: agents are never more than `AHEAD` batches of groups ahead of the trainer; ids of one start begin with its
session, so nothing is shared between starts on the same data but the recipe, the log and the weights.
"""

import asyncio
import contextlib
import logging
import signal
import statistics
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import numpy as np

from claw_r1.clickhouse import ClickHouse, without_password
from claw_r1.demo import learner, pool, tokens
from claw_r1.demo.engine import MODEL
from claw_r1.demo.ledger import Tail, Tally
from claw_r1.errors import ClawError, DependencyUnreachable, RetryableError, UserError
from claw_r1.ids import new_id
from claw_r1.local.jars import ensure_jars, print_progress
from claw_r1.local.ports import HOST, find_port
from claw_r1.local.stack import ALL, RunningStack, python_module, running_stack
from claw_r1.local.state import read_state
from claw_r1.local.supervisor import Process
from claw_r1.recipes import BatchRule, GroupRule, Recipe, RewardRule
from claw_r1.registry import active_recipes, apply_recipe
from claw_r1.settings import Settings

RUN: Final = "demo"
__all__ = ["MODEL", "RECIPE", "RUN", "Options", "Progress", "View", "report", "run_demo"]

GROUP_SIZE: Final = 8
BATCH_GROUPS: Final = 6
AHEAD: Final = 2  # batches; more makes the data old, less lets the agents wait
POLL_S: Final = 0.1
FLUSH_AGE: Final = "1s"  # fewer, larger inserts: the demo shares two cores with everything else
COUNT_EVERY_S: Final = 2.0
DRAIN_S: Final = 60.0
SETTLE_S: Final = 90.0
UPSTREAM_S: Final = 10.0
STALL_S: Final = 180.0  # the longest outage that the agents sit out is a third of it
END_OF_CURVE: Final = 3  # batches over which the first and the last success rate are averaged

# A lost trajectory must not hold its group back for long: games last a second.
RECIPE: Final = Recipe(
    name="demo",
    run_id=RUN,
    group=GroupRule(size=GROUP_SIZE, min_size=GROUP_SIZE // 2, idle=60.0, max_age=300.0, end_grace=2.0),
    rewards=RewardRule(timeout=20.0),
    batch=BatchRule(groups=BATCH_GROUPS),
)

log = logging.getLogger("claw.demo")


class DemoFailed(ClawError):
    """The demo cannot go on; the message says which part, and where its log is."""


@dataclass(frozen=True)
class Options:
    """What to run. `batches` None: until stopped; `upstream`: an engine's base URL without /v1, in place of the demo's own,
    that serves `model`; `token_delay`: seconds a token of the demo's engine takes."""

    data: Path
    batches: int | None = None
    seed: int = 0
    upstream: str | None = None
    model: str = MODEL
    token_delay: float = 0.0

    @property
    def folder(self) -> Path:
        return self.data.resolve() / "demo"


@dataclass(slots=True)
class Progress:
    """Everything that is known while the demo runs; what a view shows."""

    options: Options
    session: str
    urls: Mapping[str, str]
    tally: Tally = field(default_factory=Tally)
    counts: pool.Counts = field(default_factory=pool.Counts)
    first: int | None = None
    """The recipe's cursor at the start of the session."""
    taken: dict[int, learner.Line] = field(default_factory=dict)
    """By sequence; the last of a batch that came again."""
    trained: int = 0
    version: int | None = None
    own_groups: int = 0
    waits: list[float] = field(default_factory=list)
    stage: str = "starting"
    troubles: list[str] = field(default_factory=list)
    """Processes that end again and again."""
    rates: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=60))
    """(monotonic time, acknowledged calls)."""

    def learn(self, line: bytes) -> None:
        """Take in a line of the trainer."""
        said = msgspec.json.decode(line, type=learner.Line)
        if said.session != self.session:
            return
        if said.event == "opened":
            self.first = said.sequence if self.first is None else self.first
            self.version = said.version
        elif said.event == "taken":
            self.taken[said.sequence] = said
            self.own_groups = sum(batch.own or 0 for batch in self.taken.values())
            if said.ready_ms is not None:
                self.waits.append(said.ready_ms)
        else:
            self.trained = max(self.trained, said.sequence - (self.first or 0))
            self.version = said.version

    @property
    def curve(self) -> list[float]:
        """Success rate by batch."""
        return [line.success or 0.0 for _, line in sorted(self.taken.items())]

    @property
    def rate(self) -> float:
        """Acknowledged calls a second, over the last seconds."""
        if len(self.rates) < 2:
            return 0.0
        (start, before), (now, after) = self.rates[0], self.rates[-1]
        return (after - before) / max(now - start, 1e-9)

    @property
    def done(self) -> bool:
        return self.options.batches is not None and self.trained >= self.options.batches

    @property
    def settled(self) -> bool:
        """Whether the pool holds every acknowledged step, a fate of every trajectory and every group that was emitted."""
        counts, tally = self.counts, self.tally
        return counts.stored >= tally.acknowledged and counts.fated >= tally.begun and counts.owed == 0

    def allowance(self) -> int:
        """Groups that may be begun in all: those that are gone, and `AHEAD` batches more, but none that nobody waits for."""
        gone, ahead = self.own_groups + self.counts.discarded, AHEAD
        if self.options.batches is not None:
            ahead = min(ahead, self.options.batches - len(self.taken))
        return gone + ahead * BATCH_GROUPS


class View(Protocol):
    """Shows progress to a person."""

    def say(self, text: str) -> None:
        """One line of talk."""

    def show(self, progress: Progress) -> None:
        """The state of things; called often."""


def report(progress: Progress) -> dict[str, Any]:
    """The result as one JSON document."""
    tally, counts, curve = progress.tally, progress.counts, progress.curve
    waits = np.array(progress.waits) if progress.waits else None
    return {
        "steps_sent": tally.sent,
        "steps_acknowledged": tally.acknowledged,
        "steps_indeterminate": tally.indeterminate,
        "steps_stored": counts.stored,
        "trajectories": tally.begun,
        "groups_ready": counts.ready,
        "groups_discarded": counts.discarded,
        "batches": progress.trained,
        "reward_first": statistics.fmean(curve[:END_OF_CURVE]) if curve else None,
        "reward_last": statistics.fmean(curve[-END_OF_CURVE:]) if curve else None,
        "policy_version": progress.version,
        "ready_to_trainer_ms": {
            name: None if waits is None else round(float(np.percentile(waits, share)), 3)
            for name, share in (("p50", 50), ("p99", 99))
        },
        "capture_ok": counts.stored > 0 and counts.captured_badly == 0,
        "urls": dict(progress.urls),
    }


# --------------------------------------------------------------------------------------------------------------- set-up


def processes(options: Options, session: str, record: Path | None = None) -> tuple[list[Process], str]:
    """The engine and the trainer for the supervisor, and the engine's URL; with `record`, an engine that writes down what
    it samples, and no trainer."""
    own = options.upstream is None
    port = find_port()
    url = options.upstream or f"http://{HOST}:{port}"
    train = [*python_module("claw_r1.demo.learner"), "--recipe", RECIPE.name, "--session", session]
    train += ["--folder", str(options.folder), "--batches", str(options.batches or 0)]
    trainer = Process(name="trainer", argv=[*train, "--engine", url] if own else train)
    if not own:
        return [trainer], url
    serve = [*python_module("claw_r1.demo.engine"), "--port", str(port), "--seed", str(options.seed)]
    serve += ["--weights", str(options.folder / "weights.npz"), "--token-delay", str(options.token_delay)]
    if record is not None:
        serve += ["--record", str(record)]
    served = Process(name="engine", argv=serve, ready=f"{url}/health", port=port)
    return [served] if record is not None else [served, trainer], url


def check_upstream(url: str, model: str) -> None:
    """Raise DependencyUnreachable if no engine answers there, UserError if it does not serve the model."""
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=UPSTREAM_S) as answer:
            served = [str(entry["id"]) for entry in msgspec.json.decode(answer.read())["data"]]
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise DependencyUnreachable(
            f"no OpenAI-compatible engine answers at {url}/v1/models ({error}).\nCheck --upstream (the base URL, without /v1)."
        ) from error
    if model not in served:
        raise UserError(f"{url} does not serve {model!r}: say --model with one of {', '.join(served)}")


@contextlib.contextmanager
def demo_stack(options: Options, session: str, *, run: str = RUN, record: Path | None = None) -> Iterator[RunningStack]:
    """The stack with the demo's engine and trainer. Raises UserError if one is up on the data, StartFailed."""
    if read_state(options.data).alive:
        raise UserError(
            f"a stack is already up on {options.data}, and the demo starts one with an engine and a trainer of its own.\n"
            f"Stop it with `claw down --data {options.data}`, or give the demo another folder with --data."
        )
    options.folder.mkdir(parents=True, exist_ok=True)
    ensure_jars(progress=print_progress)
    extra, engine_url = processes(options, session, record)
    # The demo's agents have no keys, and need none on loopback: a secret of the environment is not theirs.
    env = {"CLAW_GATEWAY_RUN": run, "CLAW_SECRET": "", "CLAW_SINKS_FLUSH_AGE": FLUSH_AGE}
    if options.upstream is None:
        file = options.folder / "tokenizer.json"
        file.write_bytes(msgspec.json.encode(tokens.tokenizer()))
        env["CLAW_CONSOLE_TOKENIZERS"] = f"{MODEL}={file}"
    with running_stack(options.data, processes=ALL, upstreams=[engine_url], extra=extra, env=env) as stack:
        yield stack


async def ensure_recipe(kafka: str, recipe: Recipe) -> None:
    """Apply the recipe unless it is the one in force."""
    for known in await active_recipes(kafka):
        if known.name == recipe.name and known.recipe == recipe:
            return
    await apply_recipe(kafka, recipe, deadline=60.0)


# ---------------------------------------------------------------------------------------------------------------- agents


class Agents:
    """The agents' process, seen from here."""

    def __init__(self, process: asyncio.subprocess.Process, output: Path) -> None:
        self._process = process
        self._output = output
        self._allowed = 0

    @classmethod
    async def start(cls, options: Options, session: str, gateway: str) -> "Agents":
        command = [*python_module("claw_r1.demo.driver"), "--gateway", gateway, "--model", options.model]
        command += ["--session", session, "--seed", str(options.seed), "--size", str(GROUP_SIZE)]
        command += ["--ledger", str(options.folder / "ledger.jsonl")]
        output = options.data.resolve() / "logs" / "agents.log"
        with output.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.PIPE, stdout=file, stderr=file, start_new_session=True
            )
        return cls(process, output)

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> None:
        """Raise DemoFailed if they have ended."""
        if self._process.returncode is not None:
            lines = self._output.read_text(errors="replace").splitlines()[-5:]
            said = "\n".join(lines)
            raise DemoFailed(
                f"the agents ended (exit {self._process.returncode}):\n{said}\n(all of it: {self._output})"
            )

    def allow(self, groups: int) -> None:
        if groups > self._allowed:
            self._allowed = groups
            self._write(b"%d\n" % groups)

    def end(self) -> None:
        """Kill them."""
        if self._process.returncode is None:
            self._process.kill()

    async def stop(self, patience: float) -> None:
        """Let them finish what they have begun; after `patience` seconds they are ended."""
        self._write(b"stop\n")
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(patience):
                await self._process.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        self.end()
        await self._process.wait()

    def _write(self, line: bytes) -> None:
        if self._process.stdin is not None and self._process.returncode is None:
            self._process.stdin.write(line)


# --------------------------------------------------------------------------------------------------------------- the job


class Written:
    """What agents and trainer write from now on; to be made before they start."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Tail(folder / "ledger.jsonl")
        self.batches = Tail(folder / "batches.jsonl")


class Job:
    """One start of the demo on a stack that runs."""

    def __init__(self, options: Options, session: str, stack: RunningStack, view: View, written: "Written") -> None:
        self.progress = Progress(options, session, stack.urls)
        self._options = options
        self._stack = stack
        self._view = view
        self._written = written
        self._stopped = asyncio.Event()
        self._agents: Agents | None = None
        self._counted = 0.0
        self._hurry = False
        self._moved = (0, 0, time.monotonic())

    def stop(self) -> None:
        """Wind down; a second call does not wait for games under way."""
        if self._stopped.is_set() and self._agents is not None:
            self._hurry = True
            self._agents.end()
        self._stopped.set()

    async def run(self) -> Progress:
        """Play until the batches are trained or `stop` is called, let everything settle, and say what came of it."""
        progress, loop = self.progress, asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop)
        database = Settings.read().database
        async with await ClickHouse.connect(self._stack.clickhouse, database) as clickhouse:
            agents = await Agents.start(self._options, progress.session, self._stack.urls["gateway"])
            self._agents = agents
            try:
                await ensure_recipe(self._stack.kafka, RECIPE)
                progress.stage = "running"
                while not (self._stopped.is_set() or progress.done):
                    agents.check()
                    await self._look(clickhouse)
                    if progress.first is not None:
                        agents.allow(progress.allowance())
                    await self._pause()
                progress.stage = "the agents finish their games"
                self._view.show(progress)
                await agents.stop(5.0 if self._stopped.is_set() else DRAIN_S)
                progress.stage = "the pool takes in what is left"
                await self._settle(clickhouse, 10.0 if self._stopped.is_set() else SETTLE_S)
            finally:
                await agents.kill()
        progress.stage = "the stack stops"
        self._view.show(progress)
        return progress

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._stopped.wait()

    async def _look(self, clickhouse: ClickHouse) -> None:
        """Read what was written since, ask the pool now and then, and show it."""
        progress, now = self.progress, time.monotonic()
        for line in self._written.ledger.lines():
            progress.tally.add(line)
        for line in self._written.batches.lines():
            progress.learn(line)
        if now - self._counted >= COUNT_EVERY_S:
            self._counted = now
            progress.rates.append((now, progress.tally.acknowledged))
            self._watch(now)
            with contextlib.suppress(RetryableError):  # the pool is away for a moment: the last counts stand
                progress.counts = await pool.count(clickhouse, run=RUN, session=progress.session, recipe=RECIPE.name)
        self._view.show(progress)

    def _watch(self, now: float) -> None:
        """Name processes that end again and again. Raises DemoFailed if the supervisor is gone, or if nothing moves."""
        progress, state = self.progress, self._stack.state
        logs = self._options.data / "logs"
        if not state.alive:
            raise DemoFailed(f"the stack's supervisor is gone: see {logs / 'supervisor.log'}, and start the demo again")
        progress.troubles = sorted(name for name, process in state.processes.items() if process.crash_looping)
        seen = (progress.tally.acknowledged, progress.trained)
        if seen != self._moved[:2]:
            self._moved = (*seen, now)
        elif now - self._moved[2] > STALL_S:
            named = ", ".join(progress.troubles) or "none"
            raise DemoFailed(
                f"for {STALL_S:.0f} s no model call was answered and no batch trained.\n"
                f"Last error of an agent: {progress.tally.last_error}. Ending again and again: {named}. Logs: {logs}"
            )

    async def _settle(self, clickhouse: ClickHouse, patience: float) -> None:
        """Wait until the pool has settled, or the patience is over."""
        progress, end = self.progress, time.monotonic() + patience
        while True:
            self._counted = 0.0
            await self._look(clickhouse)
            tally, counts = progress.tally, progress.counts
            if self._hurry or progress.settled:
                return
            if time.monotonic() > end:
                lacking = f"{counts.stored} of {tally.acknowledged} steps, {counts.fated} of {tally.begun} fates"
                lacking += f", {counts.ready} of {counts.ready + counts.owed} groups"
                self._view.say(f"after {patience:.0f} s the pool holds {lacking}")
                return
            await asyncio.sleep(0.2)


def run_demo(options: Options, view: View) -> Progress:
    """Start everything, run, stop everything. Raises UserError, StartFailed, DemoFailed."""
    session, written = new_id()[:16], Written(options.folder)
    if options.upstream is not None:
        check_upstream(options.upstream, options.model)
        view.say(f"{options.upstream} serves {options.model}: batches are acknowledged, nothing is learned")
    view.say(f"starting the stack on {options.data} (logs: {options.data / 'logs'})")
    with demo_stack(options, session) as stack:
        for name, url in stack.urls.items():
            view.say(f"{name:12} {without_password(url)}")
        return asyncio.run(Job(options, session, stack, view, written).run())


if __name__ == "__main__":
    sys.exit("start it with `claw demo`")
