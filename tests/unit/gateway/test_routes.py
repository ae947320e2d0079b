"""Paths: each of them is one thing, for the methods that it takes, in the words of its dialect."""

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.replies import Refusal
from gateway.routes import ENTRY_POINTS, Kind, find, match, spoken

CALLS: list[tuple[str, Kind, str]] = [
    ("chat/completions", "chat", "POST"),
    ("completions", "completions", "POST"),
    ("responses", "responses", "POST"),
    ("messages", "messages", "POST"),
    ("messages/count_tokens", "count_tokens", "POST"),
    ("models", "models", "GET"),
]


@pytest.mark.parametrize(("last", "kind", "method"), CALLS)
@pytest.mark.parametrize("base", ["/t/p/v1", "/t/p", "/t/p/v1/v1"])
def test_a_trajectorys_base_url_serves_clients_that_add_v1_and_those_that_do_not(
    base: str, last: str, kind: Kind, method: str
) -> None:
    for path in (f"{base}/{last}", f"{base}/{last}/"):
        route = match(method, path)
        assert route is not None
        assert (route.kind, route.trajectory_uid, route.prompt_uid) == (kind, "t", "p")
        assert route.entry == f"{method} /{{trajectory_uid}}/{{prompt_uid}}/v1/{last}"
        assert route.entry in ENTRY_POINTS


@pytest.mark.parametrize(("last", "kind", "method"), CALLS)
@pytest.mark.parametrize("base", ["/v1", "/v1/v1"])
def test_the_plain_base_url_names_no_trajectory(base: str, last: str, kind: Kind, method: str) -> None:
    route = match(method, f"{base}/{last}")
    assert route is not None
    assert (route.kind, route.trajectory_uid, route.prompt_uid, route.run_id) == (kind, None, None, None)
    assert route.entry == f"{method} /v1/{last}"
    assert route.entry in ENTRY_POINTS


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/embeddings",
        "/t/p/v1/embeddings",
        "/t/p/v1/chat",
        "/t/p/v1/v1/v1/chat/completions",
        "/a/t/p/v1/chat/completions",
        "/t//v1/chat/completions",
        "//t/p/v1/chat/completions",
        "/t/p/v1/chat/completions/x",
        "/t/p/v1/../v1/chat/completions",
        "/t/p/V1/chat/completions",
        "/chat/completions",
        "/rewards/",
        "/docs",
    ],
)
def test_no_other_path_exists(path: str) -> None:
    assert match("POST", path) is None
    with pytest.raises(Refusal) as refused:
        find("POST", path)
    assert (refused.value.status, refused.value.code) == (404, "unknown_route")
    assert "POST /init_trajectory" in refused.value.message


@pytest.mark.parametrize("path", ["/-t/p/v1/messages", "/t/p q/responses", f"/{'t' * 129}/p/messages", "/t/\n/models"])
def test_ids_have_a_form(path: str) -> None:
    with pytest.raises(Refusal) as refused:
        match("POST", path)
    assert (refused.value.status, refused.value.code) == (400, "invalid_id")
    assert refused.value.param in ("trajectory_uid", "prompt_uid")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/t/p/v1/chat/completions", b"POST"),
        ("DELETE", "/v1/messages", b"POST"),
        ("POST", "/v1/models", b"GET"),
    ],
)
def test_another_method_is_told_the_right_one(method: str, path: str, allowed: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        match(method, path)
    assert (refused.value.status, refused.value.headers[-1]) == (405, (b"allow", allowed))


def test_paths_that_are_not_hot_say_what_they_name() -> None:
    assert find("POST", "/rewards").entry == "POST /rewards"
    named = find("POST", "/t/p/v1/complete_trajectory")
    assert named.entry == "POST /{trajectory_uid}/{prompt_uid}/v1/complete_trajectory"
    assert (named.trajectory_uid, named.prompt_uid, named.run_id) == ("t", "p", None)
    with pytest.raises(Refusal) as refused:
        find("GET", "/rewards")
    assert (refused.value.status, refused.value.headers[-1]) == (405, (b"allow", b"POST"))


@given(st.text(max_size=60), st.sampled_from(["GET", "POST", "PUT", "HEAD"]))
def test_any_path_is_a_route_or_a_refusal(path: str, method: str) -> None:
    found = [entry for entry in _entries(method, f"/{path}") if entry is not None]
    assert set(found) <= set(ENTRY_POINTS)


def _entries(method: str, path: str) -> Iterator[str | None]:
    with contextlib.suppress(Refusal):
        route = match(method, path)
        yield route.entry if route else None
    with contextlib.suppress(Refusal):
        yield find(method, path).entry


@pytest.mark.parametrize(
    ("path", "headers", "name"),
    [
        ("/t/p/v1/chat/completions", [], "chat"),
        ("/v1/completions", [], "completions"),
        ("/v1/responses", [], "responses"),
        ("/v1/messages", [], "messages"),
        ("/t/p/v1/messages/count_tokens", [], "messages"),
        ("/v1/models", [], "chat"),
        ("/v1/models", [(b"anthropic-version", b"2023-06-01")], "messages"),
        ("/nowhere", [], "chat"),
        ("/nowhere", [(b"anthropic-version", b"2023-06-01")], "messages"),
    ],
)
def test_a_refusal_speaks_as_its_caller_does(path: str, headers: list[tuple[bytes, bytes]], name: str) -> None:
    assert spoken(path, headers) == name
