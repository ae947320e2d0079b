"""The errors that cross a process: each name says what the one who catches it does next.

RetryableError: pause, then try again.  InvalidRecord: dead-letter the record.  Overloaded: tell the caller to come back
(429 or 503 with Retry-After).  UserError: show it to the person, with the next step.  Anything else ends the process; the
supervisor starts it again and replay is the one recovery path.
"""

import contextlib
from collections.abc import Iterator


class ClawError(Exception):
    """Base of the errors that this project raises on purpose."""


class RetryableError(ClawError):
    """A dependency is away or slow; the same call may succeed later."""


class InvalidRecord(ClawError):
    """A record that can never be processed; `reason` is a bounded label, the message says what is wrong with it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Overloaded(ClawError):
    """A bound was reached; the caller may come back after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UserError(ClawError):
    """A request or a setting is wrong; the message says what happened, why, and what to do next."""


class WrongUse(UserError):
    """A setting or an option has a wrong form (exit code 2)."""


class DependencyUnreachable(UserError):
    """A broker, an engine or a database that the command needs does not answer (exit code 3)."""


@contextlib.contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Imports of what only an extra of the package brings. Raises WrongUse where it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise WrongUse(
            f"{what} needs packages that are not installed ({error}): pip install 'claw-r1[{extra}]'"
        ) from error


def exit_code(error: ClawError) -> int:
    """Of a command that ended with it: 1 failure, 2 wrong use, 3 a dependency does not answer."""
    if isinstance(error, DependencyUnreachable | RetryableError):
        return 3
    return 2 if isinstance(error, WrongUse) else 1
