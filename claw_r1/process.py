"""A process's outermost frame: settings, logging, signals, exit code; the same for every stage."""

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

from claw_r1.errors import DependencyUnreachable, UserError
from claw_r1.settings import Settings

S = TypeVar("S", bound=Settings)
END_WITHIN = 10.0
"""Seconds that what is left of a process may take to end after its work did."""
_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class _Format(logging.Formatter):
    """Message and fields: text on a terminal, one JSON object a line elsewhere."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields = {k: v for k, v in record.__dict__.items() if k not in _PLAIN}
        error = self.formatException(record.exc_info) if record.exc_info else None
        if self._as_json:
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
                "level": record.levelname,
                "logger": record.name,
                "message": record.getMessage(),
                **fields,
            }
            return json.dumps(line | ({"error": error} if error else {}), default=str)
        text = " ".join([record.getMessage(), *(f"{k}={v}" for k, v in fields.items())])
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{clock} {record.levelname:7} {record.name}: {text}" + (f"\n{error}" if error else "")


def log_to_stderr(level: str) -> None:
    """Our own loggers at `level`, everyone else's from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Format(as_json=not sys.stderr.isatty()))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("claw").setLevel(level)


def main(name: str, model: type[S], run: Callable[[S, asyncio.Event], Awaitable[None]]) -> NoReturn:
    """Read the settings, run until SIGTERM or SIGINT, exit: 0 stopped, 1 failed, 2 wrong settings, 3 dependency away."""
    try:
        settings = model.read()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    log_to_stderr(settings.log_level)
    log = logging.getLogger(f"claw.{name}")

    async def watched() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        code = 1
        try:
            await run(settings, stop)
            code = 0
        except DependencyUnreachable as error:
            log.error("a dependency is away", extra={"why": str(error)})
            code = 3
        except UserError as error:
            log.error("%s cannot go on", name, extra={"why": str(error)})
            code = 2
        except BaseException:
            log.exception("%s failed", name)
        # Tasks and threads of client libraries must not keep a process alive that has ended its work.
        timer = threading.Timer(END_WITHIN, os._exit, [code])
        timer.daemon = True
        timer.start()
        return code

    try:
        code = asyncio.run(watched())
    except BaseException:
        log.exception("%s failed at its end", name)
        code = 1
    logging.shutdown()
    os._exit(code)
