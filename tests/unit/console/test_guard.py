"""Who is answered: known names, our own page, and off loopback who shows a key."""

import dataclasses

import pytest

from claw_r1 import keys
from console.guard import LOOPBACK, Asked, Refusal, Rules, judge

SECRETS = keys.Secrets({"one": "s" * 32}, True)
OPEN = Rules(LOOPBACK, None)
CLOSED = Rules(LOOPBACK | {"pool.example"}, SECRETS)
READ = Asked("GET", "/flow.json", "127.0.0.1:8103", None, "", None)
NOW = 1000.0


def code(asked: Asked, rules: Rules) -> str | None:
    found = judge(asked, rules, NOW)
    return found.code if isinstance(found, Refusal) else None


def a_key(scope: keys.Scope, lifetime: float = 60) -> str:
    return keys.mint(SECRETS, scope=scope, now=NOW - 10, lifetime=lifetime, run_id=None if scope == "admin" else "r")


@pytest.mark.parametrize("host", ["127.0.0.1:8103", "localhost", "[::1]:8103"])
def test_loopback_names_are_answered(host: str) -> None:
    assert code(dataclasses.replace(READ, host=host), OPEN) is None


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "localhost@evil.example:1"])
def test_other_names_are_not(host: str) -> None:
    assert code(dataclasses.replace(READ, host=host), OPEN) == "wrong_host"


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:9999", "null"])
def test_another_sites_page_changes_and_reads_nothing(origin: str) -> None:
    for method in ("GET", "POST"):
        asked = dataclasses.replace(READ, method=method, origin=origin, content_type="application/json")
        assert code(asked, OPEN) == "wrong_origin"


def test_a_form_changes_nothing() -> None:
    sent = dataclasses.replace(READ, method="POST", origin="http://127.0.0.1:8103")
    assert code(dataclasses.replace(sent, content_type="text/plain"), OPEN) == "not_json"
    assert code(dataclasses.replace(sent, content_type="application/json; charset=utf-8"), OPEN) is None


def test_off_loopback_data_need_a_key() -> None:
    assert code(READ, CLOSED) == "no_key"
    assert code(dataclasses.replace(READ, key="nonsense"), CLOSED) == "invalid_key"
    assert code(dataclasses.replace(READ, key=a_key("admin", 5)), CLOSED) == "expired_key"
    others: tuple[keys.Scope, ...] = ("rollout", "reward", "trainer")
    for scope in others:
        assert code(dataclasses.replace(READ, key=a_key(scope)), CLOSED) == "wrong_scope"


@pytest.mark.parametrize(("scope", "run"), [("admin", None), ("analyst", "r")])
def test_a_key_says_which_run_is_shown(scope: keys.Scope, run: str | None) -> None:
    found = judge(dataclasses.replace(READ, key=a_key(scope)), CLOSED, NOW)
    assert isinstance(found, keys.Key)
    assert found.run_id == run


@pytest.mark.parametrize("path", ["/static/app.js", "/healthz", "/session"])
def test_what_holds_no_data_needs_no_key(path: str) -> None:
    assert code(dataclasses.replace(READ, path=path), CLOSED) is None
