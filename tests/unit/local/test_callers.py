"""Who calls the local ClickHouse."""

import base64

import pytest
from pydantic import SecretStr

from claw_r1.errors import WrongUse
from claw_r1.keys import Scope, Secrets, mint
from claw_r1.local.callers import Analyst, Door, read_login
from claw_r1.local.clickhouse import read_door
from claw_r1.local.statement import StatementRefused
from claw_r1.settings import PASSWORD_VARIABLE

NOW = 1000.0
SECRETS = Secrets.of(SecretStr("a:" + "s" * 32))
OPEN = Door(Secrets.of(SecretStr("")))
CLOSED = Door(SECRETS, "word")


def a_key(scope: Scope = "analyst", run: str | None = "r", given: Secrets = SECRETS) -> str:
    return mint(given, scope=scope, now=NOW, lifetime=60, run_id=run)


def basic(user: str, password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_the_user_comes_in_each_of_the_three_ways() -> None:
    assert read_login({}, basic("analyst", "a:b")) == ("analyst", "a:b")
    assert read_login({}, {"x-clickhouse-user": "analyst", "x-clickhouse-key": "k"}) == ("analyst", "k")
    assert read_login({"user": "analyst", "password": "k"}, {}) == ("analyst", "k")
    assert read_login({}, {}) == ("", "")


@pytest.mark.parametrize(
    ("parameters", "headers"),
    [
        ({"user": "analyst"}, basic("default", "word")),
        ({"password": "word"}, {"x-clickhouse-user": "analyst"}),
        ({}, {"authorization": "Bearer x"}),
        ({}, {"authorization": "Basic ?"}),
        ({}, {"authorization": "Basic /w=="}),
    ],
)
def test_a_login_that_could_mean_two_users_or_none_is_refused(
    parameters: dict[str, str], headers: dict[str, str]
) -> None:
    with pytest.raises(StatementRefused, match="516"):
        read_login(parameters, headers)


def test_without_secrets_operators_and_analysts_need_no_password() -> None:
    assert OPEN.identify({}, {}, NOW) is None
    assert OPEN.identify({"user": "default", "password": "any"}, {}, NOW) is None
    assert OPEN.identify({"user": "analyst"}, {}, NOW) == Analyst()
    key = a_key(given=OPEN.secrets)
    assert OPEN.identify({"user": "analyst", "password": key}, {}, NOW) == Analyst(frozenset({"r"}))


def test_with_secrets_a_key_says_the_runs() -> None:
    assert CLOSED.identify({"password": "word"}, {}, NOW) is None
    assert CLOSED.identify({"user": "analyst", "password": a_key()}, {}, NOW) == Analyst(frozenset({"r"}))
    assert CLOSED.identify({"user": "analyst", "password": a_key("admin", None)}, {}, NOW) == Analyst()


@pytest.mark.parametrize(
    ("user", "password"),
    [
        ("", ""),
        ("default", "wörd"),
        ("other", ""),
        ("analyst", ""),
        ("analyst", "word"),
        ("analyst", a_key("rollout")),
        ("analyst", a_key(given=OPEN.secrets)),
        ("analyst", mint(SECRETS, scope="analyst", now=0, lifetime=1, run_id="r")),
    ],
)
def test_with_secrets_everybody_shows_one(user: str, password: str) -> None:
    with pytest.raises(StatementRefused, match="AUTHENTICATION_FAILED"):
        CLOSED.identify({"user": user, "password": password}, {}, NOW)


def test_off_loopback_a_password_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    assert read_door("127.0.0.1")[1] == "claw"
    with pytest.raises(WrongUse, match=PASSWORD_VARIABLE):
        read_door("0.0.0.0")
    monkeypatch.setenv(PASSWORD_VARIABLE, "word")
    assert read_door("0.0.0.0")[0].password == "word"
