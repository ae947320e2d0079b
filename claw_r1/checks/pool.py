"""The pool is looked at: whether it answers, has every migration, and agrees with this machine about the time."""

from collections.abc import Callable

from claw_r1.checks.finding import Finding, ok
from claw_r1.clickhouse import ClickHouse
from claw_r1.errors import ClawError, DependencyUnreachable, UserError

SKEW_WARN, SKEW_BAD = 1.0, 30.0
"""Seconds. Ages, deadlines and policies are told by the brokers' clock; a machine that is further off tells other ages."""


async def check_pool(url: str, database: str, now: Callable[[], float]) -> list[Finding]:
    """Findings; `now` is this machine's clock, seconds since 1970."""
    try:
        async with await ClickHouse.connect(url, timeout=10.0) as client:
            version = await client.scalar("SELECT version()")
            found = [ok("pool", f"ClickHouse {version} answers at {client.url}"), await _skew(client, now)]
        async with await ClickHouse.connect(url, database, timeout=10.0) as client:
            found.append(await _schema(client))
        return found
    except DependencyUnreachable as error:
        return [Finding("pool", "bad", str(error), "start it, or check CLAW_CLICKHOUSE and CLAW_CLICKHOUSE_CA")]
    except ClawError as error:
        return [
            Finding("pool", "bad", str(error), "check the user and the password in CLAW_CLICKHOUSE, and what it may do")
        ]


async def _schema(client: ClickHouse) -> Finding:
    try:
        await client.check_schema()
    except UserError as error:
        return Finding("migrations", "bad", str(error), "claw migrate")
    return ok("migrations", f"the database {client.database} has every migration that this version reads")


async def _skew(client: ClickHouse, now: Callable[[], float]) -> Finding:
    """The middle of the question against the server's word."""
    before = now()
    there = int(await client.scalar("SELECT toUnixTimestamp64Milli(now64(3))")) / 1000
    after = now()
    return judge_skew("ClickHouse", there, before, after)


def judge_skew(who: str, there: float, before: float, after: float) -> Finding:
    """What a server's clock shows beside ours, asked between `before` and `after`, seconds since 1970."""
    off = max(before - there, there - after, 0.0)
    says = f"the clock of {who} and this machine's are {off:.1f} s apart"
    if off < SKEW_WARN:
        return ok("clock", says)
    return Finding(
        "clock", "warn" if off < SKEW_BAD else "bad", says, "let both follow a time server (chrony, systemd-timesyncd)"
    )
