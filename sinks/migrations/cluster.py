"""A statement of the schema as a cluster of replicas runs it: on every node, with replicated tables. Pure.

One shard: every replica has the whole pool, so that FINAL, subqueries and views mean what they mean on one server.
"""

import re
from typing import Final

from claw_r1.errors import WrongUse

_HEAD: Final = re.compile(
    r"(?P<verb>CREATE DATABASE IF NOT EXISTS|CREATE TABLE IF NOT EXISTS|CREATE OR REPLACE VIEW|ALTER TABLE)"
    r"\s+(?P<name>[\w.]+)"
)
_ROLE_HEAD: Final = re.compile(
    r"(?P<head>GRANT|REVOKE|CREATE (?:ROLE|SETTINGS PROFILE|ROW POLICY) IF NOT EXISTS (?:\w+|`[^`]+`))"
)
_ENGINE: Final = re.compile(r"\bENGINE = (?P<engine>(?:Replacing)?MergeTree)(?:\((?P<version>\w+)\))?")
_WINDOW: Final = re.compile(r"\bnon_replicated_deduplication_window = (?P<inserts>\d+)")
_DAY: Final = 24 * 60 * 60
_PATH: Final = "'/clickhouse/tables/{shard}/{database}/{table}', '{replica}'"
"""In Keeper; the server fills in its own macros."""


def check_cluster(name: str) -> str:
    """Raises WrongUse if it is no name of a cluster."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name):
        raise WrongUse(f"{name!r} is no name of a cluster: SELECT cluster FROM system.clusters lists those there are")
    return name


def on_cluster(statement: str, cluster: str) -> str:
    """The statement for all nodes of `cluster`. Raises ValueError for one that is not of the schema."""
    head = _HEAD.match(statement.strip())
    if head is None:
        raise ValueError(f"not a statement of the schema: {statement[:80]}")
    rest = statement.strip()[head.end() :]
    rest = _ENGINE.sub(
        lambda m: f"ENGINE = Replicated{m['engine']}({', '.join(filter(None, (_PATH, m['version'])))})", rest
    )
    # A retry may come a week later: the time limit of replicated tables is an hour where none is said.
    rest = _WINDOW.sub(
        lambda m: (
            f"replicated_deduplication_window = {m['inserts']}, replicated_deduplication_window_seconds = {7 * _DAY}"
        ),
        rest,
    )
    return f"{head['verb']} {head['name']} ON CLUSTER '{cluster}'{rest}"


def role_on_cluster(statement: str, cluster: str) -> str:
    """A statement about roles for all nodes of `cluster`. Raises ValueError for one of another kind."""
    head = _ROLE_HEAD.match(statement)
    if head is None:
        raise ValueError(f"not a statement about roles: {statement[:80]}")
    return f"{head['head']} ON CLUSTER '{cluster}'{statement[head.end() :]}"
