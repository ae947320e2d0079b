"""The API's document is valid and says of every path what comes in, what goes out, and who may call."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from openapi_spec_validator import OpenAPIV31SpecValidator

from claw_r1.settings import GatewaySettings
from gateway.app import Gateway
from gateway.rollouts.wire import BodyRoute
from gateway.routes import ENTRY_POINTS


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    folder: Path = tmp_path_factory.mktemp("documents")
    return Gateway(GatewaySettings(blobs=str(folder)))


@pytest.fixture(scope="module")
def document(gateway: Gateway) -> dict[str, Any]:
    return gateway.api.openapi()


def operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert list(OpenAPIV31SpecValidator(document).iter_errors()) == []


def test_every_path_is_described_whole(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["description"], name
        answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert answer, f"{name} answers without a model"
        for status in ("400", "401", "403", "503"):
            assert operation["responses"][status] == {"$ref": f"#/components/responses/Error{status}"}, name
            error = document["components"]["responses"][f"Error{status}"]["content"]["application/json"]["schema"]
            assert error == {"$ref": "#/components/schemas/ErrorReply"}
        assert "422" not in operation["responses"]


def test_bodies_may_be_msgpack_wherever_they_may_be_json(document: dict[str, Any]) -> None:
    found = [operation["requestBody"]["content"] for _, operation in operations(document) if "requestBody" in operation]
    assert len(found) > 10
    for content in found:
        assert content["application/msgpack"] == content["application/json"]


def test_every_path_of_the_document_is_an_entry_point_and_says_who_may_call(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        assert name in ENTRY_POINTS
        for scope in ENTRY_POINTS[name]:
            assert scope in operation["description"], name


def test_every_entry_point_that_is_not_hot_is_in_the_document(document: dict[str, Any]) -> None:
    hot = ("completions", "/responses", "/messages", "/count_tokens", "/models")
    own = ("GET /healthz", "GET /readyz", "GET /metrics", "GET /openapi.json")
    expected = {name for name in ENTRY_POINTS if not name.endswith(hot) and name not in own}
    assert expected == {name for name, _ in operations(document)}


def test_every_schema_has_a_meaning(document: dict[str, Any]) -> None:
    silent = [name for name, schema in document["components"]["schemas"].items() if not schema.get("description")]
    assert silent == []


def test_every_route_takes_both_kinds_of_bodies(gateway: Gateway) -> None:
    routes = [context.route for context in iter_route_contexts(gateway.api.routes)]
    with_body = [route for route in routes if isinstance(route, APIRoute) and route.body_field]
    assert len(with_body) > 10
    assert [route.path for route in with_body if not isinstance(route, BodyRoute)] == []
