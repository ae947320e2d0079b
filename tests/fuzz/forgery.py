"""Keys that open the gateways under test, and keys that must not."""

import base64
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from pydantic import SecretStr

from claw_r1.keys import DEVELOPMENT_SECRET, KIND, Secrets, mint
from claw_r1.settings import DEVELOPMENT_ID
from tests.fuzz.talk import Conversation, a_conversation

SECRET: Final = "s" * 64
SETTING: Final = f"a:{SECRET}"
OTHER: Final = "o" * 64

Header = tuple[bytes | str, bytes | str]


@dataclass(slots=True)
class Ring:
    """The keys of a run of the fuzzer."""

    seed: str
    name: str
    """Of this run of the fuzzer: the same seed can be played twice on one broker."""
    now: float = field(default_factory=lambda: float(int(time.time())))

    @property
    def open_run(self) -> str:
        return f"{self.name}-open"

    @property
    def locked_run(self) -> str:
        return f"{self.name}-locked"

    @property
    def spare_run(self) -> str:
        return f"{self.name}-spare"

    def talk(self, number: int) -> Conversation:
        """The conversation of that number: with the locked gateway if it is odd, else with the open one."""
        return a_conversation(self.seed, self.name, number)

    @property
    def run_key(self) -> str:
        """For every trajectory of the locked run."""
        return self.mint("rollout", self.locked_run)

    @property
    def admin_key(self) -> str:
        return self.mint("admin", None)

    def session(self, gate: str, talk: Conversation) -> str:
        """The key that init_trajectory would answer."""
        names: dict[str, Any] = {"trajectory_uid": talk.trajectory_uid, "prompt_uid": talk.prompt_uid}
        if gate == "open":
            return mint(
                Secrets.of(SecretStr("")), scope="rollout", now=self.now, lifetime=3600, run_id=self.open_run, **names
            )
        return self.mint("rollout", self.locked_run, **names)

    def mint(
        self, scope: Any, run: str | None, *, secret: str = SETTING, now: float | None = None, **names: Any
    ) -> str:
        given = Secrets.of(SecretStr(secret))
        return mint(given, scope=scope, now=self.now if now is None else now, lifetime=3600, run_id=run, **names)


@dataclass(slots=True)
class Bad:
    """Headers with a key that is wrong."""

    name: str
    headers: list[Header]
    refused: bool = True
    """By a gateway with a secret, on every path of a model call."""
    needs_path: bool = False
    wild: bool = False


def a_bad_key(rng: random.Random, ring: Ring, talk: Conversation, other: Conversation) -> Bad:
    """One of the ways in which a key is wrong for a call of `talk`."""
    good = ring.session("locked", talk)
    head, payload, signature = good.split(".")
    others = ring.session("locked", other)
    claims = {"scope": "rollout", "run": ring.locked_run, "exp": ring.now + 3600, "jti": "x"}
    claims |= {"trajectory_uid": talk.trajectory_uid, "prompt_uid": talk.prompt_uid}
    tokens: dict[str, str | bytes] = {
        "truncated": good[: rng.randrange(1, len(good) - 1)],
        "no signature": f"{head}.{payload}.",
        "none": jwt.encode(claims, "", "none", headers={"kid": "a", "typ": KIND}),
        "none, signed": f"{_part({'alg': 'none', 'kid': 'a', 'typ': KIND})}.{payload}.{signature}",
        "another algorithm": jwt.encode(claims, SECRET, "HS512", headers={"kid": "a", "typ": KIND}),
        "said to be RS256": f"{_part({'alg': 'RS256', 'kid': 'a', 'typ': KIND})}.{payload}.{signature}",
        "another secret": ring.mint("rollout", ring.locked_run, secret=f"a:{OTHER}"),
        "another kid": ring.mint("rollout", ring.locked_run, secret=f"b:{SECRET}"),
        "the development key": ring.session("open", talk),
        "the development secret": jwt.encode(claims, DEVELOPMENT_SECRET, headers={"kid": "a", "typ": KIND}),
        "swapped payload": f"{head}.{others.split('.')[1]}.{signature}",
        "swapped signature": f"{head}.{payload}.{others.split('.')[2]}",
        "expired": ring.mint("rollout", ring.locked_run, now=ring.now - 7200),
        "another scope": ring.mint(rng.choice(("reward", "trainer", "analyst")), ring.locked_run),
        "deep head": f"{_raw(b'[' * 2900)}.{payload}.{signature}",
        "list head": f"{_part([1])}.{payload}.{signature}",
        "odd kid": f"{_part({'alg': 'HS256', 'kid': rng.choice((7, None, [], 'a' * 500)), 'typ': KIND})}.{payload}.{signature}",
        "odd typ": f"{_part({'alg': 'HS256', 'kid': 'a', 'typ': rng.choice((7, None, []))})}.{payload}.{signature}",
        "bytes": b"\xff\xfe.\xc3.\x80",
        "dots": "." * rng.choice((1, 2, 3, 4000)),
        "huge": good + "a" * 60000,
        "empty": "",
        "another part": f"{good}.{signature}",
        "odd claims": jwt.encode(
            claims | {rng.choice(tuple(claims)): rng.choice((7, None, [], {}, "../..", "x" * 300))},
            OTHER,
            headers={"kid": "a", "typ": KIND},
        ),
    }
    name = rng.choice(
        (*tokens, "of another trajectory", "of another run", "two keys", "two headers", "claims of everybody")
    )
    if name == "of another trajectory":
        return Bad(name, _bearer(others), needs_path=True)
    if name == "of another run":
        return Bad(
            name, _bearer(ring.mint("rollout", ring.open_run, trajectory_uid=other.trajectory_uid)), needs_path=True
        )
    if name == "two keys":
        return Bad(name, [*_bearer(good), ("x-api-key", others)])
    if name == "two headers":
        return Bad(name, [*_bearer(good), *_bearer(rng.choice((good, others)))])
    if name == "claims of everybody":
        odd: Any = rng.choice((7, None, [], {}, "../..", "x" * 300, "", "a b", "\x00", "ü", 1e308))
        made = (
            claims
            | {"run": ring.open_run}
            | {rng.choice(("trajectory_uid", "prompt_uid", "run", "channel", "exp")): odd}
        )
        token = jwt.encode(made, DEVELOPMENT_SECRET, headers={"kid": DEVELOPMENT_ID, "typ": KIND})
        return Bad(name, _bearer(token))
    return Bad(name, _bearer(tokens[name]), wild=name in ("huge", "bytes"))


def _bearer(token: str | bytes) -> list[Header]:
    return [("authorization", b"Bearer " + (token if isinstance(token, bytes) else token.encode()))]


def _part(value: Any) -> str:
    return _raw(json.dumps(value).encode())


def _raw(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
