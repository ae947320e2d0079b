"""An undecodable record becomes a dead letter: its original bytes and headers, and where and why it failed."""

from typing import Any

from claw_r1.codec import MAX_RECORD_BYTES, Record
from claw_r1.errors import InvalidRecord


def dead_letter(record: Any, error: InvalidRecord, *, stage: str) -> Record:
    """The record for `<topic>.dlq` of a consumed one (aiokafka's): same key, value and headers, plus `claw-dlq-*`.

    What would be over the limit with these goes without its value: the headers say where the record is.
    """
    where: dict[str, str] = {
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp),
        "reason": error.reason,
        "error": str(error)[:1000],
        "stage": stage,
    }
    headers = list(record.headers) + [(f"claw-dlq-{name}", value.encode()) for name, value in where.items()]
    value = record.value or b""
    around = len(record.key or b"") + sum(len(name) + len(item or b"") + 16 for name, item in headers) + 256
    return Record(record.key, value if len(value) + around <= MAX_RECORD_BYTES else b"", headers)
