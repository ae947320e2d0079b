"""Rows become Arrow columns and one insert a table; packed arrays never become Python lists on the way."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, Final

import pyarrow as pa

from claw_r1 import metrics
from claw_r1.clickhouse import ClickHouse
from claw_r1.codec import unpack_floats
from sinks.plan import Partition
from sinks.rows import TABLES, Kind, Table

CONCURRENT_INSERTS: Final = 4

_INT = pa.int64()
_TEXT = pa.string()


def _named(**fields: pa.DataType) -> pa.DataType:
    return pa.list_(pa.struct(list(fields.items())))


_TYPES: Final[dict[Kind, pa.DataType]] = {
    "text": _TEXT,
    "bytes": pa.binary(),
    "bool": pa.bool_(),
    "u32": pa.uint32(),
    "u64": pa.uint64(),
    "i64": _INT,
    "f64": pa.float64(),
    "micros": pa.timestamp("us", tz="UTC"),
    "millis": pa.timestamp("ms", tz="UTC"),
    "texts": pa.list_(_TEXT),
    "versions": _named(version=_INT, start=_INT, end=_INT),
    "blobs": _named(sha256=_TEXT, bytes=_INT, kind=_TEXT),
    "rewards": _named(source=_TEXT, value=pa.float64(), revision=_INT, self_reported=pa.bool_()),
    "members": _named(trajectory_uid=_TEXT, outcome=_TEXT, reason=_TEXT, reward=pa.float64(), samples=pa.list_(_TEXT)),
    "spans": _named(step_id=_TEXT, step_index=_INT, start=_INT, end=_INT, reward=pa.float64()),
    "links": _named(kind=_TEXT, step_id=_TEXT, differs_at=_INT),
    "floats_by_name": pa.map_(_TEXT, pa.float64()),
    "counts_by_name": pa.map_(_TEXT, _INT),
    "u64s": pa.list_(pa.uint64()),
    "optional_floats": pa.list_(pa.float64()),
    "experts": _named(step_id=_TEXT, sha256=_TEXT, bytes=_INT, kind=_TEXT, start=_INT, end=_INT),
    "arrays_by_name": pa.map_(_TEXT, pa.list_(pa.float32())),
}
_PACKED: Final[dict[Kind, pa.DataType]] = {"ids": pa.uint32(), "floats": pa.float32(), "mask": pa.uint8()}


def build_stream(table: Table, rows: Sequence[tuple[Any, ...]]) -> bytes:
    """The rows as one Arrow IPC stream of one batch, columns in the table's order."""
    arrays = [_array(kind, values) for kind, values in zip(table.kinds, zip(*rows, strict=True), strict=True)]
    batch = pa.record_batch(arrays, names=list(table.names))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


def _array(kind: Kind, values: Sequence[Any]) -> Any:
    item = _PACKED.get(kind)
    if item is not None:
        return _packed_lists(values, item)
    if kind in ("floats_by_name", "counts_by_name"):
        values = [list(value.items()) for value in values]
    if kind == "arrays_by_name":
        values = [[(name, unpack_floats(packed)) for name, packed in arrays.items()] for arrays in values]
    return pa.array(values, type=_TYPES[kind])


def _packed_lists(values: Sequence[bytes], item: pa.DataType) -> Any:
    """A list array whose items are the packed little-endian bytes laid end to end."""
    size = item.bit_width // 8
    items = b"".join(values)
    offsets = pa.array(accumulate((len(value) // size for value in values), initial=0), type=pa.int32())
    flat = pa.Array.from_buffers(item, len(items) // size, [None, pa.py_buffer(items)])
    return pa.ListArray.from_arrays(offsets, flat)


async def insert_promised(clickhouse: ClickHouse, partitions: Iterable[Partition], at: Callable[[str], None]) -> None:
    """Insert every partition's promised range, one insert a table; done when all are durable.

    `at` is told "inserted" after each. Raises RetryableError: then all may be tried again, since tokens drop what is there.
    """
    gate = asyncio.Semaphore(CONCURRENT_INSERTS)

    async def insert(partition: Partition, name: str, rows: list[tuple[Any, ...]]) -> None:
        table = TABLES[name]
        async with gate:
            started = time.perf_counter()
            await clickhouse.insert_arrow(name, table.names, build_stream(table, rows), token=partition.token(name))
            metrics.SINKS_INSERT_SECONDS.labels(name).observe(time.perf_counter() - started)
            metrics.SINKS_ROWS.labels(name).inc(len(rows))
            at("inserted")

    inserts = [insert(partition, name, rows) for partition in partitions for name, rows in partition.range.rows.items()]
    # All of them are waited for, so that none is still on its way when the range is tried again or given up.
    for result in await asyncio.gather(*inserts, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
