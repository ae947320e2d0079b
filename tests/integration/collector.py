"""A collector that listens where the OTEL_* variables of this process, and of those that it starts, say."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from claw_r1.local.ports import find_port


@dataclass
class Collector:
    """What a collector was told."""

    url: str
    bodies: list[bytes] = field(default_factory=list)

    @property
    def spans(self) -> list[Span]:
        return [span for _, span in self.told()]

    def told(self) -> list[tuple[str, Span]]:
        """Each span with the name of the process that told it."""
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                (service,) = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                found += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        return found


@contextlib.asynccontextmanager
async def a_collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """A listening collector that the OTEL_* variables name."""
    port = find_port()
    collector = Collector(f"http://127.0.0.1:{port}")

    async def take(request: web.Request) -> web.Response:
        collector.bodies.append(await request.read())
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    try:
        yield collector
    finally:
        await runner.cleanup()


def values(span: Span) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        assert kind is not None
        value = getattr(attribute.value, kind)
        found[attribute.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found
