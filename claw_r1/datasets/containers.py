"""Rows become files: JSON lines, Parquet, or the Arrow files of a Hugging Face dataset.

A part is one file, written to its end before the next begins. Arrow columns have one type whatever the rows hold: what is an
object or an array of a sender's is its JSON text.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from claw_r1.datasets.forms import Column, Kind, Row, jsonable

FORMATS: Final = ("jsonl", "parquet", "hf")
ENDING: Final = {"jsonl": "jsonl", "parquet": "parquet", "hf": "arrow"}

_TEXT: Final = pa.string()
_CALL: Final = pa.struct(
    [("id", _TEXT), ("type", _TEXT), ("function", pa.struct([("name", _TEXT), ("arguments", _TEXT)]))]
)
_MESSAGE: Final = pa.struct(
    [
        ("role", _TEXT),
        ("content", _TEXT),
        ("reasoning_content", _TEXT),
        ("name", _TEXT),
        ("tool_call_id", _TEXT),
        ("tool_calls", pa.list_(_CALL)),
    ]
)
TYPES: Final[Mapping[Kind, Any]] = {
    "text": _TEXT,
    "int": pa.int64(),
    "float": pa.float64(),
    "json": _TEXT,
    "ids": pa.list_(pa.uint32()),
    "ints": pa.list_(pa.int64()),
    "floats": pa.list_(pa.float32()),
    "mask": pa.list_(pa.uint8()),
    "texts": pa.list_(_TEXT),
    "messages": pa.list_(_MESSAGE),
}


def schema(columns: Sequence[Column]) -> Any:
    """The Arrow schema of a form."""
    return pa.schema([pa.field(column.name, TYPES[column.kind]) for column in columns])


def _batch(columns: Sequence[Column], rows: Sequence[Row]) -> Any:
    arrays = [
        pa.array([_cell(column.kind, row[column.name]) for row in rows], type=TYPES[column.kind]) for column in columns
    ]
    return pa.record_batch(arrays, schema=schema(columns))


def _cell(kind: Kind, value: Any) -> Any:
    if kind == "json" and value is not None:
        return msgspec.json.encode(value).decode()
    return value


class Part(Protocol):
    """A file that rows go to."""

    def write(self, rows: Sequence[Row]) -> None: ...

    def lines(self, lines: bytes) -> None: ...

    def size(self) -> int:
        """Bytes so far, about."""

    def close(self) -> None:
        """Write the end; what was written is on the disk."""


class JsonLines:
    """A line a row."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._file = path.open("wb")

    def write(self, rows: Sequence[Row]) -> None:
        self.lines(b"".join(msgspec.json.encode(jsonable(row)) + b"\n" for row in rows))

    def lines(self, lines: bytes) -> None:
        self._file.write(lines)

    def size(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class ArrowPart:
    """A Parquet file (zstd), or an Arrow stream file as `datasets` maps it into memory."""

    def __init__(self, path: Path, columns: Sequence[Column], *, parquet: bool) -> None:
        self._columns = columns
        self._file = path.open("wb")
        shape = schema(columns)
        self._writer = (
            pq.ParquetWriter(self._file, shape, compression="zstd") if parquet else pa.ipc.new_stream(self._file, shape)
        )

    def write(self, rows: Sequence[Row]) -> None:
        if rows:
            self._writer.write_batch(_batch(self._columns, rows))

    def lines(self, lines: bytes) -> None:
        raise AssertionError("facts are lines")

    def size(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def open_part(path: Path, container: str, columns: Sequence[Column]) -> Part:
    """A new file."""
    if container == "jsonl":
        return JsonLines(path, columns)
    return ArrowPart(path, columns, parquet=container == "parquet")


def hf_files(columns: Sequence[Column], parts: Sequence[str], fingerprint: str, told: str) -> dict[str, bytes]:
    """dataset_info.json and state.json, by name, which make Arrow files a folder that `datasets.load_from_disk` reads."""
    info = {
        "citation": "",
        "description": told,
        "features": {column.name: _feature(TYPES[column.kind]) for column in columns},
        "homepage": "",
        "license": "",
    }
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in parts],
        "_fingerprint": fingerprint[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    return {
        name: msgspec.json.format(msgspec.json.encode(value))
        for name, value in (("dataset_info.json", info), ("state.json", state))
    }


_DTYPES: Final = {
    pa.string(): "string",
    pa.int64(): "int64",
    pa.float64(): "float64",
    pa.float32(): "float32",
    pa.uint32(): "uint32",
    pa.uint8(): "uint8",
}


def _feature(kind: Any) -> Any:
    """An Arrow type as dataset_info.json says it, in the words that versions before and after 4 of `datasets` read."""
    if pa.types.is_struct(kind):
        return {field.name: _feature(field.type) for field in kind}
    if pa.types.is_list(kind):
        item = _feature(kind.value_type)
        return [item] if pa.types.is_struct(kind.value_type) else {"feature": item, "_type": "Sequence"}
    return {"dtype": _DTYPES[kind], "_type": "Value"}
