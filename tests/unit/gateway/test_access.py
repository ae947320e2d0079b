"""Access: which key may do what, where it belongs, and what an engine never gets."""

import asyncio
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts
from pydantic import SecretStr

from claw_r1.errors import WrongUse
from claw_r1.keys import SCOPES, Key, Secrets, mint
from claw_r1.settings import GatewaySettings
from gateway import access
from gateway.access import Access, Doubt, check_listed, check_target, place
from gateway.app import Gateway
from gateway.exchange import Message
from gateway.replies import Headers, Refusal
from gateway.routes import ENTRY_POINTS, OF_A_RUN, Route, find, match

NOW = 1_700_000_000.0
HEAD = "HEAD /openapi.json"
SECRET = f"a:{'s' * 32}"
SECRETS = Secrets.of(SecretStr(SECRET))
NONE = Secrets.of(SecretStr(""))


def a_token(secrets: Secrets = SECRETS, **over: Any) -> str:
    fields: dict[str, Any] = {"scope": "rollout", "run_id": "r", "now": NOW, "lifetime": 60.0}
    return mint(secrets, **(fields | over))


def bearer(token: str) -> Headers:
    return [(b"content-type", b"application/json"), (b"authorization", f"Bearer {token}".encode())]


def an_access(secrets: Secrets = SECRETS, *, loopback: bool = False) -> Access:
    return Access(secrets, loopback=loopback)


def believed(headers: Headers, given: Access | None = None, now: float = NOW) -> Key:
    key = (given or an_access()).identify(headers, now)
    assert isinstance(key, Key), key
    return key


def doubted(headers: Headers, given: Access | None = None, now: float = NOW) -> str | None:
    doubt = (given or an_access()).identify(headers, now)
    assert isinstance(doubt, Doubt)
    refusal = doubt.refusal()
    assert refusal.status == 401
    assert (b"www-authenticate", b'Bearer realm="claw"') in refusal.headers
    return refusal.code


# ------------------------------------------------------------------------------------------------------------- identify


def test_a_key_comes_in_either_header() -> None:
    token = a_token()
    for headers in (
        bearer(token),
        [(b"authorization", f"bearer   {token} ".encode())],
        [(b"authorization", token.encode())],
        [(b"x-api-key", token.encode())],
        [(b"authorization", f"Bearer {token}".encode()), (b"x-api-key", token.encode())],
        [(b"authorization", f"Bearer {token}".encode()), (b"x-api-key", b"sk-ant-something")],
        [(b"authorization", b"Bearer none"), (b"x-api-key", token.encode())],
    ):
        assert believed(headers).run_id == "r"


def test_what_is_no_key_says_why() -> None:
    assert doubted([]) == "no_key"
    assert doubted([(b"authorization", b"")]) == "no_key"
    assert doubted([(b"authorization", b"Basic YTpi")]) == "no_key"
    assert doubted([(b"authorization", b"Bearer")]) == "no_key"
    assert doubted(bearer("none")) == "invalid_key"
    assert doubted([(b"x-api-key", b"sk-1\xff")]) == "invalid_key"
    assert doubted(bearer(a_token(NONE))) == "invalid_key", "everybody can make that one"
    assert doubted([(b"authorization", b"Bearer a"), (b"x-api-key", b"b")]) == "invalid_key"


def test_two_keys_are_one_too_many() -> None:
    first, second = a_token(), a_token(scope="admin")
    assert doubted([(b"authorization", f"Bearer {first}".encode()), (b"x-api-key", second.encode())]) == "ambiguous_key"
    assert doubted(bearer(first) + bearer(first)) == "ambiguous_key"
    assert doubted([(b"x-api-key", first.encode())] * 2) == "ambiguous_key"


def test_a_believed_key_ends_when_it_expires() -> None:
    given, headers = an_access(), bearer(a_token())
    assert believed(headers, given) is believed(headers, given, NOW + 59), "it is verified once"
    assert doubted(headers, given, NOW + 60) == "expired_key"
    assert doubted(headers, given, NOW + 61) == "expired_key"


def test_memory_of_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MAX_BELIEVED", 4)
    given = an_access()
    for number in range(20):
        believed(bearer(a_token(run_id=f"r{number}")), given)
        doubted(bearer(f"none-{number}"), given)
    assert len(given._believed) == 4


# ---------------------------------------------------------------------------------------------------------------- allow


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_every_path_takes_the_scopes_of_its_line_and_no_others(entry: str) -> None:
    given = an_access()
    for scope in SCOPES:
        found = given.identify(bearer(a_token(scope=scope)), NOW)
        if not ENTRY_POINTS[entry] or scope in ENTRY_POINTS[entry]:
            key = given.allow(entry, found)
            assert key is not None
            assert key.scope == scope
        else:
            with pytest.raises(Refusal) as refused:
                given.allow(entry, found)
            assert (refused.value.status, refused.value.code) == (403, "wrong_scope")
    nobody = given.identify([], NOW)
    if ENTRY_POINTS[entry]:
        with pytest.raises(Refusal) as refused:
            given.allow(entry, nobody)
        assert (refused.value.status, refused.value.code) == (401, "no_key")
    else:
        assert given.allow(entry, nobody) is None


def test_what_each_scope_may_do() -> None:
    may = {scope: {entry for entry, scopes in ENTRY_POINTS.items() if scope in scopes} for scope in SCOPES}
    assert may["admin"] == {entry for entry, scopes in ENTRY_POINTS.items() if scopes}
    scoring = {"POST /rewards", "POST /feedback", "POST /annotations"} & set(ENTRY_POINTS)
    assert may["reward"] == scoring | {"GET /openapi.json"}
    assert [entry for entry in may["analyst"] if not entry.startswith("GET ")] == ["POST /decisions"]
    assert not [entry for entry in may["rollout"] if "/engines" in entry and not entry.startswith("GET ")]


def test_without_a_secret_everything_is_open() -> None:
    given = an_access(NONE, loopback=True)
    for entry in ENTRY_POINTS:
        assert given.allow(entry, given.identify([], NOW)) is None
        assert given.allow(entry, given.identify(bearer("none"), NOW)) is None
        key = given.allow(entry, given.identify(bearer(a_token(NONE, scope="reward")), NOW))
        assert key is not None


def test_numbers_are_open_on_loopback() -> None:
    given = an_access(loopback=True)
    assert given.allow("GET /metrics", given.identify([], NOW)) is None


def test_every_route_of_the_rollout_api_is_listed() -> None:
    api = Gateway(GatewaySettings()).api
    served = {
        f"{method} {route.path}" for route in iter_route_contexts(api.routes) for method in route.methods or ()
    } - {HEAD}
    assert served - set(ENTRY_POINTS) == set(), "give it its scopes in gateway/routes.py"
    hot = {entry for entry in ENTRY_POINTS if (route := _hot(entry)) is not None and route.entry == entry}
    probes = {"GET /healthz", "GET /readyz", "GET /metrics", "GET /openapi.json"}
    assert set(ENTRY_POINTS) - served - hot - probes == set(), "nothing serves it"


def _hot(entry: str) -> Route | None:
    method, path = entry.replace("{trajectory_uid}", "t").replace("{prompt_uid}", "p").split(" ")
    try:
        return match(method, path)
    except Refusal:
        return None


# ---------------------------------------------------------------------------------------------------------------- place


def placed(path: str, headers: Headers, secrets: Secrets = SECRETS) -> tuple[str | None, ...]:
    route = match("POST", path)
    assert route is not None
    found = place(route, an_access(secrets).identify(headers, NOW))
    return found.run_id, found.trajectory_uid, found.prompt_uid, found.channel


def misplaced(path: str, headers: Headers, secrets: Secrets = SECRETS) -> tuple[int, str | None]:
    with pytest.raises(Refusal) as refused:
        placed(path, headers, secrets)
    return refused.value.status, refused.value.code


PLAIN, HERE = "/v1/messages", "/t/p/v1/messages"


@pytest.mark.parametrize("secrets", [SECRETS, NONE])
def test_a_session_key_names_the_place_of_a_plain_path(secrets: Secrets) -> None:
    key = a_token(secrets, trajectory_uid="t", prompt_uid="p", channel="val")
    assert placed(PLAIN, bearer(key), secrets) == ("r", "t", "p", "val")
    assert placed(HERE, bearer(key), secrets) == ("r", "t", "p", "val")
    assert placed(PLAIN, bearer(a_token(secrets, trajectory_uid="t")), secrets) == ("r", "t", None, None)
    assert misplaced(PLAIN, bearer(a_token(secrets)), secrets) == (404, "no_trajectory")
    assert placed("/v1/messages/count_tokens", [], secrets) == (None, None, None, None), "it makes no step"
    assert misplaced(PLAIN, [], secrets) == (401, "no_key")
    assert misplaced(PLAIN, bearer("none"), secrets) == (401, "invalid_key")


def test_a_runs_key_puts_a_path_into_its_run() -> None:
    assert placed(HERE, bearer(a_token())) == ("r", "t", "p", None)
    assert placed(HERE, bearer(a_token(scope="admin", run_id=None))) == (None, "t", "p", None)


def test_a_trajectorys_key_acts_on_its_trajectory_alone() -> None:
    assert misplaced("/u/p/v1/messages", bearer(a_token(trajectory_uid="t"))) == (403, "other_trajectory")
    assert misplaced("/t/q/v1/messages", bearer(a_token(trajectory_uid="t", prompt_uid="p"))) == (403, "other_prompt")
    assert placed("/t/q/v1/messages", bearer(a_token(trajectory_uid="t"))) == ("r", "t", "q", None)


def test_without_a_secret_the_path_wins() -> None:
    key = bearer(a_token(NONE, trajectory_uid="t", prompt_uid="p", channel="val"))
    assert placed("/t/q/v1/messages", key, NONE) == ("r", "t", "q", "val")
    assert placed("/u/p/v1/messages", key, NONE) == (None, "u", "p", None)
    assert placed(HERE, bearer("none"), NONE) == (None, "t", "p", None)


def test_targets() -> None:
    key = believed(bearer(a_token(trajectory_uid="t")))
    check_target(None, run_id="x", trajectory_uid="y")
    check_target(key)
    check_target(key, run_id="r", trajectory_uid="t", prompt_uid="any")
    for target, code in (({"run_id": "x"}, "other_run"), ({"run_id": "r", "trajectory_uid": "y"}, "other_trajectory")):
        with pytest.raises(Refusal) as refused:
            check_target(key, **target)
        assert (refused.value.status, refused.value.code) == (403, code)
    loose = believed(bearer(a_token(NONE, trajectory_uid="t")), an_access(NONE))
    check_target(loose, run_id="x", trajectory_uid="y")


@pytest.mark.parametrize("entry", sorted(OF_A_RUN))
def test_a_trajectorys_key_does_nothing_to_its_run_or_group(entry: str) -> None:
    listed = find(*entry.replace("{prompt_uid}", "p").split(" "))
    with pytest.raises(Refusal, match="for its run") as refused:
        check_listed(believed(bearer(a_token(trajectory_uid="t"))), listed)
    assert refused.value.status == 403
    check_listed(believed(bearer(a_token())), listed)
    check_listed(None, listed)
    check_listed(believed(bearer(a_token(NONE, trajectory_uid="t")), an_access(NONE)), listed)


def test_paths_of_the_rollout_api_are_held_against_the_key() -> None:
    key = believed(bearer(a_token(trajectory_uid="t", prompt_uid="p")))
    check_listed(key, find("POST", "/t/p/v1/complete_trajectory"))
    for path in ("/u/p/v1/complete_trajectory", "/t/q/v1/complete_trajectory", "/complete_trajectory/u"):
        with pytest.raises(Refusal) as refused:
            check_listed(key, find("POST", path))
        assert refused.value.status == 403


# ---------------------------------------------------------------------------------------------------------------- strip


def test_an_engine_gets_no_key_of_ours() -> None:
    foreign: Headers = [(b"authorization", b"Bearer engine"), (b"x-api-key", b"engine"), (b"accept", b"*/*")]
    ours = [(b"accept", b"*/*"), *bearer(a_token(NONE)), (b"x-api-key", a_token().encode())]
    assert an_access().strip(foreign) == [(b"accept", b"*/*")], "with a secret, none at all"
    assert an_access(NONE).strip(foreign) == foreign
    assert an_access(NONE).strip(ours) == [(b"accept", b"*/*"), (b"content-type", b"application/json")]


# ------------------------------------------------------------------------------------------------------------------ app


def asked(gateway: Gateway, method: str, path: str, headers: Headers) -> tuple[int, dict[bytes, bytes]]:
    """An answer of a gateway that is not started: for what is refused before anything is asked."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    asyncio.run(gateway(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_off_loopback_no_gateway_is_made_without_a_secret() -> None:
    with pytest.raises(WrongUse, match="CLAW_SECRET"):
        Gateway(GatewaySettings(host="0.0.0.0"))
    closed = Gateway(GatewaySettings(host="0.0.0.0", secret=SecretStr(SECRET)))
    assert asked(closed, "GET", "/healthz", [])[0] == 200
    assert asked(closed, "GET", "/metrics", [])[0] == 401


def test_a_host_header_changes_nothing() -> None:
    gateway = Gateway(GatewaySettings(secret=SecretStr(SECRET)))
    for host in (b"x/healthz?", b"127.0.0.1/rewards", b"", b"\xff"):
        assert asked(gateway, "POST", "/rewards", [(b"host", host)])[0] == 401
        assert asked(gateway, "POST", "/nowhere", [(b"host", host)])[0] == 404


def test_answers_of_the_gateway_are_not_kept_or_guessed_at() -> None:
    status, headers = asked(Gateway(GatewaySettings(secret=SecretStr(SECRET))), "POST", "/rewards", [])
    assert (status, headers[b"x-content-type-options"], headers[b"cache-control"]) == (401, b"nosniff", b"no-store")
