"""Lines of files become facts on the log, by the way of the rollout API's own facts: the events topic, keyed by group.

Invariants: what the pool has already is not written again; every line gives facts, is passed over and counted, or is in the
rejects with its number; what is held is a batch of facts, and the names of trajectories that go on over lines.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from claw_r1 import bus
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import Record, encode
from claw_r1.datasets.export import FACTS, MANIFEST
from claw_r1.datasets.lines import read_line
from claw_r1.datasets.logs import Fault, Json, Naming, Parsed
from claw_r1.datasets.openai_logs import read_openai
from claw_r1.datasets.otel_logs import read_otel
from claw_r1.datasets.pool import Places, Told, event_partitions
from claw_r1.errors import InvalidRecord, RetryableError, UserError
from claw_r1.events import GroupFact, Step, TrajectoryEnd
from claw_r1.topics import EVENTS
from streams.backfill.rows import READERS
from streams.backfill.run import await_pool

Kind = Literal["claw", "openai", "otel"]
KINDS: Final = ("claw", "openai", "otel")
MAX_LINE_BYTES: Final = 64 * 2**20
MAX_OPEN: Final = 2_000_000
"""Trajectories that are held until the end of the files, since later lines may go on with them."""
BATCH_FACTS: Final = 2_000
BATCH_BYTES: Final = 16 * 2**20
SEND_DEADLINE: Final = 60.0
QUERY_TIMEOUT: Final = 300.0
_SOURCE: Final = "claw/import"
_KNOWN: Final = " UNION ALL ".join(
    f"SELECT prompt_uid, fact_id FROM {table} WHERE run_id = {{run:String}} AND prompt_uid IN {{prompts:Array(String)}}"
    for table in READERS
)


FactName = tuple[str, str, str]
"""run_id, prompt_uid and fact_id."""


@dataclass
class Report:
    """What became of the lines."""

    lines: int = 0
    facts: int = 0
    """That lines gave, without those that a line before had given."""
    written: int = 0
    already: int = 0
    """That the pool had."""
    steps: int = 0
    repeated: int = 0
    """Facts that another line of the same batch gives too."""
    skipped: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    def document(self) -> dict[str, Any]:
        return {
            "lines": self.lines,
            "facts": self.facts,
            "steps": self.steps,
            "written": self.written,
            "already": self.already,
            "repeated": self.repeated,
            "skipped": self.skipped,
            "rejected": dict(sorted(self.rejected.items())),
        }


@dataclass(frozen=True)
class Line:
    """A line where it stands."""

    path: Path
    number: int
    text: bytes


# ---------------------------------------------------------------------------------------------------------------- lines


def list_files(path: Path) -> list[Path]:
    """The file, or the parts of an export's folder. Raises UserError if there is nothing to read."""
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return _list_parts(path)
        found = sorted(path.glob("*.jsonl"))
        if not found:
            raise UserError(f"{path} holds no .jsonl file: an export of the form `facts` does")
        return found
    if not path.is_file():
        raise UserError(f"{path} is no file: say which to import")
    return [path]


def _list_parts(folder: Path) -> list[Path]:
    """The parts that an export's manifest names. Raises UserError if it is none of facts, or a part is not there whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        form, parts = manifest["identity"]["form"], [(part["name"], part["bytes"]) for part in manifest["parts"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / MANIFEST} is no manifest of an export: import its files one by one") from error
    if form != FACTS:
        raise UserError(
            f"{folder} is an export of the form {form}, which does not say all: import one that `--form {FACTS}` made"
        )
    if folder.suffix == ".partial":
        raise UserError(f"{folder} is an export that was not finished: finish it with the same command")
    for name, size in parts:
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise UserError(f"{folder / name} is not there whole, as the manifest says: copy the export again")
    return [folder / name for name, _ in parts]


def read_lines(paths: Sequence[Path]) -> Iterator[Line]:
    """Every line that is not empty; of one that is too long, its beginning."""
    for path in paths:
        with path.open("rb") as file:
            number = 0
            while text := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                while (
                    not text.endswith(b"\n") and len(text) > MAX_LINE_BYTES and (rest := file.readline(MAX_LINE_BYTES))
                ):
                    if rest.endswith(b"\n"):
                        break
                if text.strip():
                    yield Line(path, number, text)


def whole_file(path: Path) -> Json | None:
    """The file as one JSON document over several lines; None if it is none, or too large to be held."""
    if path.stat().st_size > MAX_LINE_BYTES:
        return None
    try:
        value = msgspec.json.decode(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def find_kind(paths: Sequence[Path]) -> Kind:
    """What the first line that is JSON looks like. Raises UserError if that is nothing known."""
    for line in read_lines(paths):
        try:
            document = msgspec.json.decode(line.text)
        except (ValueError, RecursionError):
            document = whole_file(line.path) if line.number == 1 else None
        if not isinstance(document, dict):
            continue
        if "specversion" in document:
            return "claw"
        if "messages" in document or {"request", "response"} <= document.keys():
            return "openai"
        if "resourceSpans" in document or "traceId" in document or isinstance(document.get("context"), dict):
            return "otel"
    raise UserError(f"{paths[0]} looks like nothing that is known: say --kind {', '.join(KINDS)}")


def parse(line: Line, kind: Kind, naming: Naming, now: float) -> Parsed:
    """What a line gives; its faults are among it."""
    try:
        if len(line.text) > MAX_LINE_BYTES:
            raise InvalidRecord("line_too_long", f"the line is above {MAX_LINE_BYTES} bytes")
        try:
            document = msgspec.json.decode(line.text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidRecord("not_json", f"the line is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise InvalidRecord("not_json", "the line is JSON, but not an object")
        match kind:
            case "claw":
                return Parsed([read_line(document)])
            case "openai":
                return read_openai(document, naming, now)
            case "otel":
                return read_otel(document, naming, now)
    except InvalidRecord as error:
        return Parsed(faults=[Fault(error.reason, str(error))])
    # A form that no reader thought of.
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        return Parsed(faults=[Fault("unreadable", f"{type(error).__name__}: {error}")])


# ----------------------------------------------------------------------------------------------------------------- work


class Rejects:
    """The file of what gave no facts; made with its first line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def add(self, line: Line, fault: Fault) -> None:
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8")
        told = {"file": line.path.name, "line": line.number, "reason": fault.reason, "error": fault.message[:1000]}
        text = line.text.rstrip(b"\n").decode("utf-8", "backslashreplace")
        self._file.write(json.dumps({**told, "text": text}) + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@dataclass
class Import:
    """One import, from its first line to its last acknowledgement."""

    clickhouse: ClickHouse
    producer: AIOKafkaProducer | None
    """None: nothing is written."""
    rejects: Rejects
    purged: frozenset[str] = frozenset()
    """Runs of which the pool takes nothing any more."""
    report: Report = field(default_factory=Report)
    ends: dict[str, TrajectoryEnd] = field(default_factory=dict)
    _batch: dict[FactName, tuple[GroupFact, Record]] = field(default_factory=dict)
    _bytes: int = 0

    async def take(self, line: Line, parsed: Parsed) -> None:
        self.report.lines += 1
        self.report.skipped += parsed.skipped
        for fault in parsed.faults:
            self._reject(line, fault)
        for fact in parsed.facts:
            self._add(line, fact)
        for end in parsed.ends:
            self.ends.setdefault(end.fact_id, end)
        if len(self.ends) > MAX_OPEN:
            raise UserError(
                f"the files hold more than {MAX_OPEN} trajectories that go on over lines: import them one by one"
            )
        if len(self._batch) >= BATCH_FACTS or self._bytes >= BATCH_BYTES:
            await self.flush()

    async def finish(self, last: Line | None) -> None:
        """Say the ends that had to wait, and write what is left."""
        for end in self.ends.values():
            if last is not None:
                self._add(last, end)
            if len(self._batch) >= BATCH_FACTS:
                await self.flush()
        await self.flush()

    def _reject(self, line: Line, fault: Fault) -> None:
        self.report.rejected[fault.reason] += 1
        self.rejects.add(line, fault)

    def _add(self, line: Line, fact: GroupFact) -> None:
        name = (fact.run_id, fact.prompt_uid, fact.fact_id)
        if name in self._batch:
            self.report.repeated += 1
            return
        if fact.run_id in self.purged:
            self._reject(
                line, Fault("run_purged", f"run {fact.run_id} was purged: the pool takes nothing of it any more")
            )
            return
        try:
            record = encode(fact, source=_SOURCE)
        except (InvalidRecord, ValueError, OverflowError, OSError) as error:
            self._reject(line, Fault(getattr(error, "reason", "unencodable"), str(error)))
            return
        self._batch[name] = (fact, record)
        self._bytes += len(record.value)
        self.report.facts += 1

    async def flush(self) -> None:
        """Write what the pool has not. Raises RetryableError: then another import goes on from here."""
        batch, self._batch, self._bytes = self._batch, {}, 0
        known = await self._known(batch)
        fresh = [one for name, one in batch.items() if name not in known]
        self.report.already += len(batch) - len(fresh)
        self.report.steps += sum(isinstance(fact, Step) for fact, _ in fresh)
        if self.producer is not None:
            await _send(self.producer, [record for _, record in fresh])
        self.report.written += len(fresh) if self.producer is not None else 0

    async def _known(self, names: Iterable[FactName]) -> set[FactName]:
        """What the pool has of the facts' groups."""
        prompts: dict[str, set[str]] = {}
        for run, prompt, _ in names:
            prompts.setdefault(run, set()).add(prompt)
        found: set[FactName] = set()
        for run, some in prompts.items():
            rows = (await self.clickhouse.query(_KNOWN, {"run": run, "prompts": sorted(some)})).rows
            found |= {(run, prompt, fact_id) for prompt, fact_id in rows}
        return found


async def _send(producer: AIOKafkaProducer, records: Sequence[Record]) -> None:
    """In order, and wait for all of them."""
    try:
        async with asyncio.timeout(SEND_DEADLINE):
            futures = [await bus.send(producer, EVENTS, r.key, r.value, r.headers) for r in records]
            await asyncio.gather(*futures)
    except (KafkaError, TimeoutError) as error:
        raise RetryableError(
            f"the broker did not acknowledge what was imported ({error!r}): import again, what is there is not written twice"
        ) from error


async def import_files(
    places: Places,
    paths: Sequence[Path],
    kind: Kind,
    naming: Naming,
    *,
    rejects: Path,
    dry_run: bool,
    wait: float,
    now: float,
    told: Told,
) -> Report:
    """Put the files' facts on the log; with `dry_run`, only say what would be written.

    Raises UserError if the pool stays behind the log for `wait` seconds, since only then what is there is known.
    """
    total, read = sum(path.stat().st_size for path in paths), 0
    await await_pool(places, (EVENTS,), await event_partitions(places.kafka), wait)
    producer = None if dry_run else await bus.start_producer(places.kafka, client_id="claw-import")
    written = Rejects(rejects)
    try:
        async with await ClickHouse.connect(places.clickhouse, places.database, timeout=QUERY_TIMEOUT) as clickhouse:
            purges = await clickhouse.query("SELECT DISTINCT run_id FROM purges")
            work = Import(clickhouse, producer, written, frozenset(str(run) for (run,) in purges.rows))
            last: Line | None = None
            for last in _documents(paths, kind):
                await work.take(last, parse(last, kind, naming, now))
                read += len(last.text)
                told(read, total)
            await work.finish(last)
            return work.report
    finally:
        written.close()
        if producer is not None:
            await bus.stop_producer(producer)


def _documents(paths: Sequence[Path], kind: Kind) -> Iterator[Line]:
    """The lines; of OpenTelemetry's files also those that are one document over several lines."""
    for path in paths:
        whole = _spread(path, next(read_lines([path]), None)) if kind == "otel" else None
        if whole is not None:
            yield Line(path, 1, msgspec.json.encode(whole))
        else:
            yield from read_lines([path])


def _spread(path: Path, first: Line | None) -> Json | None:
    """The document of a file whose first line is not one by itself."""
    if first is None:
        return None
    try:
        msgspec.json.decode(first.text)
    except (ValueError, RecursionError):
        return whole_file(path)
    return None
