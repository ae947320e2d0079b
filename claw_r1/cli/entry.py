"""`claw`: the one command.  A sub-command is one line of COMMANDS; its module is imported only when it is run."""

import importlib
import logging
import sys
from dataclasses import dataclass
from typing import Any

try:
    import typer
    from typer.core import TyperGroup
except ModuleNotFoundError:
    sys.exit("error: the command line is not installed.\nInstall it with: pip install 'claw-r1[local]'")

from claw_r1.errors import ClawError, exit_code


@dataclass(frozen=True)
class Command:
    """Where a sub-command lives, as module:attribute (a Typer app with its own sub-commands, or one function)."""

    target: str
    help: str


COMMANDS = {
    "up": Command("claw_r1.cli.stack:up", "Start the local stack, or say where it is."),
    "down": Command("claw_r1.cli.stack:down", "Stop the local stack; its data stay."),
    "status": Command("claw_r1.cli.stack:status", "Show what runs and whether it is ready."),
    "doctor": Command("claw_r1.cli.doctor:doctor", "Look at everything, and say what mends it."),
    "demo": Command("claw_r1.cli.demo:demo", "Agents play, the pool fills, a policy learns."),
    "console": Command("claw_r1.cli.console:console", "Look at the pool, or at a recorded run, in a browser."),
    "topics": Command("claw_r1.cli.topics:app", "Create and compare the project's topics."),
    "grants": Command("claw_r1.cli.grants:app", "What each process may do on the brokers."),
    "migrate": Command("claw_r1.cli.migrate:migrate", "Bring the pool's tables up to date."),
    "trajectories": Command("claw_r1.cli.trajectories:trajectories", "List the trajectories that ended last."),
    "show": Command("claw_r1.cli.trajectories:show", "Show one trajectory, from its first call to its batch."),
    "batches": Command("claw_r1.cli.batches:app", "List, show and compare batches, make one again, look at the next."),
    "bench": Command("claw_r1.cli.bench:app", "Measure how fast a part of a running stack is."),
    "tail": Command("claw_r1.cli.tail:tail", "Follow what happens, a line a fact."),
    "recipes": Command("claw_r1.cli.recipes:app", "Apply, try, list, delete and backfill recipes."),
    "snapshots": Command("claw_r1.cli.snapshots:app", "Make, list, compare, export and delete snapshots."),
    "export": Command("claw_r1.cli.snapshots:export_selected", "Write trajectories into files of a dataset."),
    "import": Command("claw_r1.cli.imports:import_logs", "Put logs of other programs, or exports, on the log."),
    "decide": Command("claw_r1.cli.decide:decide", "Veto, keep, tag, or override rewards of groups and trajectories."),
    "purge": Command("claw_r1.cli.purge:purge", "Forget a run."),
    "expire": Command("claw_r1.cli.expire:expire", "Remove groups from the pool that closed long ago."),
    "backup": Command("claw_r1.cli.backup:backup", "Copy the whole system into a folder."),
    "restore": Command("claw_r1.cli.backup:restore", "Put a backup into empty brokers and an empty pool."),
    "rewards": Command("claw_r1.cli.rewards:app", "List reward functions, and try one."),
    "dlq": Command("claw_r1.cli.dlq:app", "List, show and replay dead letters."),
    "keys": Command("claw_r1.cli.keys:app", "Make and read the keys that the gateway asks for."),
    "sql": Command("claw_r1.cli.sql:sql", "Ask the pool in SQL."),
    "config": Command("claw_r1.cli.config:config", "Show the settings of every process."),
}


class LazyGroup(TyperGroup):
    """Help and completion read the table; running a command imports it."""

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if command is not None and name is not None else command, rest


def load_command(name: str) -> Any:
    """Import the module of a sub-command and make the command."""
    module, attribute = COMMANDS[name].target.split(":")
    target = getattr(importlib.import_module(module), attribute)
    parent = typer.Typer(add_completion=False)
    parent.callback()(lambda: None)
    if isinstance(target, typer.Typer):
        parent.add_typer(target, name=name)
    else:
        parent.command(name)(target)
    group: Any = typer.main.get_command(parent)
    return group.commands[name]


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def claw() -> None:
    """The data middleware of agentic reinforcement learning: every model call a durable step, every batch
    training-ready."""


def _register(name: str, command: Command) -> None:
    @app.command(name, help=command.help)
    def listed() -> None:
        raise AssertionError(f"{name} is listed here and loaded on use")


for _name, _command in COMMANDS.items():
    _register(_name, _command)


def main() -> None:
    """Exit codes: 0 ok, 1 failure, 2 usage, 3 a dependency does not answer."""
    # The library's own lines on a broker that does not answer: the error says it.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        app(prog_name="claw")
    except ClawError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(exit_code(error))
    except OSError as error:  # a disk that is full, a file that may not be read: the system's words name the cause
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
