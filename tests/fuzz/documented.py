"""Requests that the gateway's own OpenAPI document asks for, valid and wrong, made by schemathesis."""

import contextlib
import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Unsatisfiable

from tests.fuzz.calls import Call
from tests.fuzz.forgery import Header, Ring
from tests.fuzz.socket_client import request


def documented_calls(document: dict[str, Any], ring: Ring, *, first: int, count: int) -> Iterator[Call]:
    """So many calls, nearly, shared by all documented operations; numbered from `first` on."""
    import schemathesis  # two seconds, of the one process that needs it

    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    schema: Any = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    each = max(1, count // (len(operations) * len(modes)))
    number = first
    for place, operation in enumerate(operations):
        responses = document["paths"][operation.path][operation.method]["responses"]
        for mode in modes:
            for case in _cases(operation.as_strategy(generation_mode=mode), f"{ring.seed}/{place}", each):
                rng = random.Random(f"{ring.seed}/documented/{number}")
                call = Call(number, ring.talk(0), "spare", [_bytes(rng, case, ring)], "any", operation.label)
                call.document = responses
                yield call
                number += 1


def _cases(strategy: Any, seed: str, count: int) -> list[Any]:
    found: list[Any] = []

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: Any) -> None:
        found.append(case)

    try:
        collect()
    except Unsatisfiable:  # a path that takes nothing takes nothing wrong
        return []
    return found[:count]


def _bytes(rng: random.Random, case: Any, ring: Ring) -> bytes:
    from schemathesis.core import NotSet

    headers: list[Header] = [
        (name, str(value)) for name, value in (case.headers or {}).items() if _is_header(name, value)
    ]
    headers = [
        header for header in headers if str(header[0]).lower() not in ("authorization", "x-api-key", "content-length")
    ]
    if rng.random() < 0.95:
        headers.append(("authorization", f"Bearer {ring.admin_key}"))
    body: bytes | None = None
    if isinstance(case.body, bytes):
        body = case.body
    elif not isinstance(case.body, NotSet):
        body = json.dumps(case.body).encode()
    if body is not None:
        kind = "application/json"
        if rng.random() < 0.3 and not isinstance(case.body, bytes):
            with contextlib.suppress(OverflowError):  # a number that only JSON can write
                body, kind = msgspec.msgpack.encode(json.loads(body)), "application/msgpack"
        headers.append(("content-type", kind))
    query = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in (case.query or {}).items())
    target = case.formatted_path + (f"?{query}" if query else "")
    return request(case.method.upper(), target, headers, body)


def _is_header(name: str, value: Any) -> bool:
    return name.replace("-", "").isalnum() and name.isascii() and str(value).isprintable() and str(value).isascii()


def _quoted(value: Any) -> str:
    return "".join(f"%{byte:02x}" for byte in str(value).encode("utf-8", "surrogatepass"))
