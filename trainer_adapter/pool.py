"""What batches are made of comes from the pool, where the recipe's topic no longer has it, or where no trainer runs.

ClickHouse's HTTP interface by the standard library, so that a trainer's environment needs nothing more. Invariants: rows are
found by the tables' keys; an answer is read row by row, and the server begins it only when it has all of it, so that a
statement that fails in its middle is no short answer.
"""

import contextlib
import http.client
import io
from collections.abc import Iterator, Sequence
from typing import Any, Final
from urllib.parse import unquote, urlencode, urlsplit

from claw_r1 import wire
from claw_r1.dry_run import open_sql
from claw_r1.errors import DependencyUnreachable, RetryableError, UserError
from claw_r1.events import BatchCut, GroupReady, Sample
from claw_r1.ids import split_batch_name, split_group_id
from claw_r1.recipes import FROM_LOG, Recipe
from claw_r1.rules import sql_literal
from trainer_adapter.groups import GroupKey
from trainer_adapter.pool_rows import read_cut, read_decision, read_marker, read_sample
from trainer_adapter.remake import Parts, name_samples
from trainer_adapter.rowbinary import Truncated, read_rows
from trainer_adapter.waiting import OpenGroups

Row = dict[str, Any]

CHUNK: Final = 256
"""Groups that one statement asks for."""
_FORMAT: Final = "RowBinaryWithNamesAndTypes"
_NO_SCHEMA: Final = {"47": "column", "60": "table", "81": "database"}
"""ClickHouse's errors that say that the pool is not there, or older than this package."""
_CONNECT_S: Final = 10.0
_BUFFER: Final = 2**20


class Pool:
    """Questions to the pool at `url` (http[s]://[user:password@]host[:port]); `timeout` seconds bound each wait for bytes.

    Raises UserError for a URL that is none, WrongUse if CLAW_CLICKHOUSE_CA cannot be loaded. Not safe to use from several
    threads at once.
    """

    def __init__(self, url: str, database: str = "claw", *, timeout: float = 300.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("the pool's address is not a ClickHouse URL: write http://host:8123")
        self._tls = wire.tls_of_clickhouse() if parts.scheme == "https" else None
        self._host = parts.hostname
        self._port = parts.port or (8443 if parts.scheme == "https" else 8123)
        self._headers = {"X-ClickHouse-Database": database, "Content-Type": "text/plain; charset=UTF-8"}
        if parts.username:
            self._headers["X-ClickHouse-User"] = unquote(parts.username)
            self._headers["X-ClickHouse-Key"] = unquote(parts.password or "")
        self._timeout = timeout

    def ask(self, sql: str) -> Iterator[Row]:
        """The rows of a reading statement, as they come; NULL is None.

        Raises DependencyUnreachable if nothing answers, RetryableError if the answer breaks off, UserError if the statement
        is refused.
        """
        settings = {"default_format": _FORMAT, "wait_end_of_query": "1", "readonly": "2"}
        connection = self._connection()
        with contextlib.closing(connection):
            try:
                connection.connect()
                connection.sock.settimeout(self._timeout)
            except OSError as error:
                raise DependencyUnreachable(
                    f"no ClickHouse answers at {self._host}:{self._port} ({error}): start one with `claw up`, or say "
                    "which with clickhouse=URL"
                ) from error
            try:
                connection.request("POST", f"/?{urlencode(settings)}", sql.encode(), self._headers)
                answer = connection.getresponse()
                if answer.status != 200:
                    raise _refused(answer)
                yield from read_rows(io.BufferedReader(answer, _BUFFER))
                if answer.length:
                    raise Truncated(f"{answer.length} bytes of the answer did not come")
            except (OSError, http.client.HTTPException, Truncated) as error:
                raise RetryableError(f"ClickHouse at {self._host}:{self._port} went away: {error!r}") from error

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_S)
        return http.client.HTTPSConnection(self._host, self._port, timeout=_CONNECT_S, context=self._tls)

    def find_cut(self, name: str) -> BatchCut:
        """The cut of a batch that is named by its id, or as RECIPE/SEQUENCE. Raises UserError if the pool has none."""
        place = split_batch_name(name)
        named = (
            _equals("batch_id", name) if place is None else f"{_equals('recipe', place[0])} AND sequence = {place[1]}"
        )
        row = next(self.ask(f"SELECT * FROM cuts FINAL WHERE {named} ORDER BY offset LIMIT 1"), None)
        if row is None:
            raise UserError(f"the pool has no batch {name}: `claw batches list` shows those there are")
        groups = self.ask(
            f"SELECT * FROM cut_members FINAL WHERE {_equals('recipe', row['recipe'])} AND {_equals('run_id', row['run_id'])} "
            f"AND sequence = {row['sequence']} AND {_equals('batch_id', row['batch_id'])} ORDER BY taken, position"
        )
        cut = read_cut(row, groups)
        if (len(cut.members), len(cut.excluded)) != (row["groups"], row["excluded"]):
            raise UserError(
                f"the pool has {len(cut.members)} of the {row['groups']} groups of batch {name}, and {len(cut.excluded)} of "
                f"the {row['excluded']} that it left out: is the sink storing them now? Try again; `claw status` tells"
            )
        return cut

    def load(self, cut: BatchCut) -> Parts:
        """What the cut's batch is made of, as far as the pool has it."""
        keys = [(member.run_id, member.group_id) for member in cut.members]
        offsets = {(member.run_id, member.group_id): member.offset for member in cut.members}
        wanted = name_samples(cut)
        named = {decision.fact_id for member in cut.members for decision in member.decisions}
        decided = [(member.run_id, member.group_id) for member in cut.members if member.decisions]
        older: set[str] = set()
        samples: dict[str, Sample] = {}
        for row in self.rows_of("samples", cut.recipe, keys):
            if row["sample_id"] in wanted:
                samples[row["sample_id"]] = read_sample(row)
                if not row["is_whole"]:
                    older.add(f"sample {row['sample_id']}")
        markers: dict[GroupKey, GroupReady] = {}
        for row in self.rows_of("groups", cut.recipe, keys):
            key = (row["run_id"], row["group_id"])
            if row["offset"] == offsets[key]:
                markers[key] = read_marker(row)
                if not row["curation"]:
                    older.add(f"group {row['group_id']}")
        rows = (row for row in self.decision_rows(decided) if row["fact_id"] in named)
        decisions = {row["fact_id"]: read_decision(row) for row in rows}
        return Parts(samples, markers, decisions, frozenset(older))

    def rows_of(self, table: str, recipe: str, groups: Sequence[GroupKey], further: str = "1") -> Iterator[Row]:
        """The rows of `samples` or `groups` of these groups under a recipe."""
        for first in range(0, len(groups), CHUNK):
            keys = ", ".join(
                f"({sql_literal(run)}, {sql_literal(split_group_id(name)[0])}, {sql_literal(name)})"
                for run, name in groups[first : first + CHUNK]
            )
            yield from self.ask(
                f"SELECT * FROM {table} FINAL WHERE (run_id, prompt_uid, group_id) IN ({keys}) AND {_equals('recipe', recipe)} "
                f"AND {further}"
            )

    def decision_rows(self, groups: Sequence[GroupKey], further: str = "1") -> Iterator[Row]:
        """The rows of all decisions on the prompts of these groups."""
        prompts = list(dict.fromkeys((run, split_group_id(name)[0]) for run, name in groups))
        for first in range(0, len(prompts), CHUNK):
            keys = ", ".join(
                f"({sql_literal(run)}, {sql_literal(name)})" for run, name in prompts[first : first + CHUNK]
            )
            yield from self.ask(f"SELECT * FROM decisions FINAL WHERE (run_id, prompt_uid) IN ({keys}) AND {further}")

    def open_groups(self, recipe: Recipe, now: float) -> OpenGroups:
        """The groups that have begun and wait for their fate at `now`, seconds since the epoch, as far as the pool knows."""
        (row,) = self.ask(open_sql(recipe, now))
        sources, numbers = row["short"]
        short_of = dict(zip(sources, numbers, strict=True))
        return OpenGroups(row["groups"], row["unfinished"], short_of, row["held"], row["began"])

    def recipes(self, name: str, further: str = "1") -> dict[int, Recipe]:
        """The recipe's versions; those that end it are left out."""
        rows = self.ask(
            "SELECT DISTINCT recipe_version, recipe FROM recipes FINAL "
            f"WHERE {_equals('name', name)} AND recipe != '' AND {further} ORDER BY recipe_version"
        )
        return {row["recipe_version"]: Recipe.model_validate_json(row["recipe"], context=FROM_LOG) for row in rows}


def _equals(column: str, value: str) -> str:
    return f"{column} = {sql_literal(value)}"


def _refused(answer: http.client.HTTPResponse) -> UserError | RetryableError:
    said = answer.read(2000).decode(errors="replace").strip()
    if lacking := _NO_SCHEMA.get(answer.headers.get("X-ClickHouse-Exception-Code", "")):
        return UserError(f"the pool lacks a {lacking}: bring it up to date with `claw migrate` ({said})")
    if answer.status >= 500 and answer.status != 501:
        return RetryableError(f"ClickHouse cannot now: {said}")
    return UserError(f"ClickHouse refused the statement: {said}")
