"""Keys: what they say, who believes them, and that no secret is ever shown."""

import json
import subprocess
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from claw_r1 import keys
from claw_r1.cli.config import config
from claw_r1.errors import UserError, WrongUse
from claw_r1.keys import BadKey, Key, Secrets, check_listening, is_key, is_loopback, mint, read, verify
from claw_r1.settings import GatewaySettings, secret_pairs
from tests import warm

OLD, NEW = "o" * 32, "n" * 40
NOW = 1_700_000_000.0


def secrets(text: str = f"new:{NEW},old:{OLD}") -> Secrets:
    return Secrets.of(SecretStr(text))


def a_key(over: dict[str, Any] | None = None, given: Secrets | None = None) -> str:
    fields: dict[str, Any] = {"scope": "rollout", "run_id": "r", "now": NOW, "lifetime": 60.0}
    fields |= over or {}
    return mint(given or secrets(), **fields)


def why(token: str, given: Secrets, now: float = NOW) -> BadKey:
    with pytest.raises(BadKey) as caught:
        verify(token, given, now)
    return caught.value


def test_a_key_says_what_it_was_made_for() -> None:
    bound = {"trajectory_uid": "t", "prompt_uid": "p", "channel": "val", "admitted": True}
    key = verify(a_key(bound), secrets(), NOW)
    assert key == Key("rollout", "r", NOW + 60, "new", key.jti, "t", "p", "val", True)
    assert key.binds
    assert a_key(bound) == a_key(bound)
    others = [a_key(bound | over) for over in ({}, {"now": NOW + 0.001}, {"run_id": "s"}, {"prompt_uid": "q"})]
    assert len({verify(token, secrets(), NOW).jti for token in others}) == 4, "each key has a name of its own"


@given(st.sampled_from(keys.SCOPES), st.floats(0.001, 1e9))
def test_every_scope_comes_back_and_ends_when_it_said(scope: keys.Scope, lifetime: float) -> None:
    token = a_key({"scope": scope, "lifetime": lifetime})
    key = verify(token, secrets(), NOW)
    assert key.scope == scope
    assert key.expires_at == pytest.approx(NOW + lifetime, abs=0.001)
    assert why(token, secrets(), key.expires_at).code == "expired_key"


def test_a_secret_is_changed_without_a_moment_in_which_keys_fail() -> None:
    before, after = secrets(f"old:{OLD}"), secrets(f"new:{NEW}")
    old, new = a_key(given=before), a_key()
    assert verify(old, secrets(), NOW).key_id == "old"
    assert verify(new, secrets(), NOW).key_id == "new"
    assert verify(new, after, NOW).key_id == "new"
    message = str(why(old, after))
    assert "'old'" in message
    assert "claw keys mint" in message


def test_what_was_not_signed_here_is_not_believed() -> None:
    token = a_key()
    head, body, signature = token.split(".")
    forged = jwt.encode(
        {"scope": "admin", "exp": NOW + 60, "jti": "x"}, "f" * 32, headers={"kid": "new", "typ": keys.KIND}
    )
    unsigned = jwt.encode({"scope": "admin", "exp": NOW + 60, "jti": "x"}, "", "none", {"kid": "new", "typ": keys.KIND})
    other = jwt.encode({"scope": "admin", "exp": NOW + 60, "jti": "x"}, NEW, headers={"kid": "new"})
    for bad in (
        forged,
        unsigned,
        other,
        f"{head}.{body}.",
        f"{head}.{forged.split('.')[1]}.{signature}",
        "sk-1",
        "",
        ".",
    ):
        assert why(bad, secrets()).code == "invalid_key"
    assert why(a_key(given=Secrets.of(SecretStr(""))), secrets()).code == "invalid_key", "everybody can make that one"


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"scope": "root", "exp": NOW + 60, "jti": "x"},
        {"scope": "admin", "jti": "x"},
        {"scope": "admin", "exp": "never", "jti": "x"},
        {"scope": "reward", "exp": NOW + 60, "jti": "x"},
        {"scope": "rollout", "exp": NOW + 60, "jti": "x", "run": 3},
        {"scope": "rollout", "exp": NOW + 60, "jti": "x", "run": "a/b"},
        {"scope": "rollout", "exp": NOW + 60, "jti": "x", "run": "r", "trajectory_uid": "../.."},
        {"scope": "rollout", "exp": NOW + 60, "jti": "x", "run": "r", "prompt_uid": ""},
    ],
)
def test_a_signed_key_that_lacks_something_is_refused(claims: dict[str, Any]) -> None:
    token = jwt.encode(claims, NEW, headers={"kid": "new", "typ": keys.KIND})
    assert why(token, secrets()).code == "invalid_key"


@given(st.text(max_size=40))
def test_any_text_is_no_key(text: str) -> None:
    assert not is_key(text)
    with pytest.raises(BadKey):
        read(text)


def test_tokens_of_others_are_told_apart_from_ours() -> None:
    assert is_key(a_key())
    assert is_key(a_key(given=secrets(f"x:{OLD}"))), "also those that are not believed"
    assert not is_key(jwt.encode({"scope": "admin"}, NEW))
    assert not is_key(a_key() * 20)


@pytest.mark.parametrize(
    ("over", "word"),
    [
        ({"scope": "root"}, "rollout, reward, trainer, analyst, admin"),
        ({"run_id": None}, "run"),
        ({"scope": "reward", "trajectory_uid": "t"}, "rollout key"),
        ({"run_id": "a/b"}, "run"),
        ({"trajectory_uid": "-t"}, "trajectory_uid"),
        ({"lifetime": 0.0}, "expire"),
    ],
)
def test_what_no_key_can_say_is_refused(over: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        a_key(over)


def test_an_admins_key_is_for_every_run() -> None:
    assert verify(a_key({"scope": "admin", "run_id": None}), secrets(), NOW).run_id is None
    assert verify(a_key({"scope": "admin"}), secrets(), NOW).run_id == "r"


def test_without_a_secret_keys_name_and_do_not_bind() -> None:
    none = Secrets.of(SecretStr(""))
    key = verify(a_key({"trajectory_uid": "t"}, none), none, NOW)
    assert (none.enforced, key.binds, key.trajectory_uid) == (False, False, "t")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (NEW, "colon"),
        (f"a:{'x' * 31}", "32 bytes"),
        (f"{NEW}:a", "32 bytes"),
        (f"a b:{NEW}", "id of part 1"),
        (f"a:{NEW},a:{OLD}", "part 2"),
        (f"a:{NEW},", "part 2"),
        (f"development:{NEW}", "everybody knows"),
    ],
)
def test_a_wrong_secret_is_an_error_that_does_not_show_it(text: str, word: str) -> None:
    with pytest.raises(WrongUse, match=word) as caught:
        GatewaySettings.read({"CLAW_SECRET": text})
    assert NEW not in str(caught.value)
    assert "x" * 31 not in str(caught.value)
    with pytest.raises(WrongUse, match="CLAW_SECRET"):
        Secrets.of(SecretStr(text))


def test_a_secret_may_hold_colons_and_is_never_printed() -> None:
    assert secret_pairs(f" a:{NEW}:b , c:{OLD} ") == {"a": f"{NEW}:b", "c": OLD}
    settings = GatewaySettings.read({"CLAW_SECRET": f"a:{NEW}"})
    shown = [repr(settings), str(settings.model_dump(mode="json")), settings.model_dump_json(), repr(secrets())]
    assert not any(NEW in text for text in shown)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_secret(host: str) -> None:
    assert is_loopback(host)
    check_listening("the gateway", host, Secrets.of(SecretStr("")))


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "10.0.0.1", "gateway.example", "localhost.example"])
def test_elsewhere_nothing_listens_without_a_secret(host: str) -> None:
    with pytest.raises(WrongUse, match="CLAW_SECRET"):
        check_listening("the gateway", host, Secrets.of(SecretStr("")))
    check_listening("the gateway", host, secrets())


# --------------------------------------------------------------------------------------------------------------- command


def claw(
    *arguments: str, secret: str | None = f"new:{NEW},old:{OLD}", stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return warm.claw(*arguments, env={"CLAW_SECRET": secret} if secret else {}, input=stdin)


def test_a_key_is_made_and_read_on_the_command_line() -> None:
    made = claw(
        "keys", "mint", "--scope", "rollout", "--run", "r", "--trajectory", "t", "--prompt", "p", "--expires", "2d"
    )
    assert (made.returncode, made.stderr) == (0, "")
    said = claw("keys", "inspect", "-", "--json", stdin=made.stdout)
    assert said.returncode == 0
    document = json.loads(said.stdout)
    assert (document["scope"], document["run_id"], document["trajectory_uid"], document["prompt_uid"]) == (
        "rollout",
        "r",
        "t",
        "p",
    )
    assert (document["valid"], document["key_id"]) == (True, "new")
    elsewhere = claw("keys", "inspect", made.stdout.strip(), secret=f"other:{OLD}")
    assert elsewhere.returncode == 1
    assert "scope: rollout" in elsewhere.stdout
    assert "valid: no: the key was signed with the secret 'new'" in elsewhere.stdout


def test_without_a_secret_the_command_says_what_its_key_is_worth() -> None:
    made = claw("keys", "mint", "--scope", "reward", "--run", "r", secret=None)
    assert made.returncode == 0
    assert "protects nothing" in made.stderr
    assert read(made.stdout.strip()).key_id == "development"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("mint", "--scope", "root"), 2),
        (("mint", "--scope", "reward"), 1),
        (("mint", "--scope", "admin", "--expires", "soon"), 2),
        (("inspect", "sk-123"), 1),
    ],
)
def test_a_wrong_command_fails_and_prints_no_key(arguments: tuple[str, ...], code: int) -> None:
    done = claw("keys", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr


def test_config_shows_that_a_secret_is_set_and_not_which() -> None:
    done = claw("config", "gateway")
    assert "CLAW_SECRET=***" in done.stdout
    assert NEW not in done.stdout


def test_config_hides_the_password_of_the_pool(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLAW_CLICKHOUSE_PASSWORD", "a word")
    config("sinks")
    assert "CLAW_CLICKHOUSE_PASSWORD=***" in (said := capsys.readouterr().out)
    assert "a word" not in said
