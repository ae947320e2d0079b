"""A person or a program shows who it is: a signed key says its scope, its run, its trajectory, and until when.

Invariants:
- no clock here: `now` is given, in seconds since the epoch;
- a key is believed only if one of the secrets signed it; without secrets, a key that everybody can make names things and
  protects nothing, and a server may listen on loopback only;
- no message holds a key or a secret.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit, urlunsplit

import jwt
import msgspec
from pydantic import SecretStr

from claw_r1.errors import UserError, WrongUse
from claw_r1.ids import check_id, derived_id
from claw_r1.settings import DEVELOPMENT_ID, secret_pairs

Scope = Literal["rollout", "reward", "trainer", "analyst", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

ALGORITHM: Final = "HS256"
KIND: Final = "claw+jwt"
"""The `typ` of a key's head (RFC 8725, 3.11): tells our keys from all other tokens."""
DEVELOPMENT_SECRET: Final = "everybody knows this secret: it protects nothing"
MAX_CHARACTERS: Final = 4096
_NAMES: Final = ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")
_SIGNED: Final[Any] = {"verify_signature": True, **{f"verify_{name}": False for name in _NAMES}}
"""Only the signature is the library's work: it reads a clock for the rest."""
_UNCHECKED: Final[Any] = {**_SIGNED, "verify_signature": False}


class BadKey(UserError):
    """A key that is not believed; `code` is `invalid_key` or `expired_key`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Key:
    """What a key says. A field that is None is not bound."""

    scope: Scope
    run_id: str | None
    """None: every run, of an admin's key only."""
    expires_at: float
    """Seconds since the epoch."""
    key_id: str
    """Of the secret that signed it."""
    jti: str
    """The key's own name: limits count by it."""
    trajectory_uid: str | None = None
    prompt_uid: str | None = None
    channel: str | None = None
    admitted: bool = False
    """Of a group that was opened: its calls are never refused for want of demand."""

    @property
    def binds(self) -> bool:
        """Whether what the key does not say is refused: not so for one that everybody can make."""
        return self.key_id != DEVELOPMENT_ID

    @property
    def fields(self) -> dict[str, Any]:
        return asdict(self)


class _Claims(msgspec.Struct):
    scope: Scope
    exp: float
    jti: str
    run: str | None = None
    trajectory_uid: str | None = None
    prompt_uid: str | None = None
    channel: str | None = None
    admitted: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """Secrets by key id; the first signs, all verify."""

    by_id: Mapping[str, str]
    enforced: bool
    """False: the development secret; what a key does not say is not refused."""

    @classmethod
    def of(cls, setting: SecretStr) -> "Secrets":
        """From CLAW_SECRET; empty: the development secret. Raises WrongUse."""
        try:
            pairs = secret_pairs(setting.get_secret_value())
        except ValueError as error:
            raise WrongUse(f"CLAW_SECRET: {error}") from error
        return cls(pairs, True) if pairs else cls({DEVELOPMENT_ID: DEVELOPMENT_SECRET}, False)


def mint(
    given: Secrets,
    *,
    scope: Scope,
    now: float,
    lifetime: float,
    run_id: str | None = None,
    trajectory_uid: str | None = None,
    prompt_uid: str | None = None,
    channel: str | None = None,
    admitted: bool = False,
) -> str:
    """The key that expires `lifetime` seconds after `now`; asked the same again, the same. Raises UserError for what no key
    can say."""
    if scope not in SCOPES:
        raise UserError(f"scope {str(scope)[:40]!r} is not one of {', '.join(SCOPES)}")
    if run_id is None and scope != "admin":
        raise UserError(f"a {scope} key needs its run: only an admin's key is for every run")
    if scope != "rollout" and (trajectory_uid or prompt_uid or channel or admitted):
        raise UserError(f"only a rollout key names a trajectory, prompt or channel: leave them out of a {scope} key")
    if lifetime <= 0:
        raise UserError("a key must expire after it was made")
    named = {"trajectory_uid": trajectory_uid, "prompt_uid": prompt_uid, "channel": channel}
    for name, value in {"run": run_id, **named}.items():
        if value is not None:
            check_id(name, value)
    claims: dict[str, Any] = {"scope": scope, "run": run_id, **named, "admitted": admitted or None}
    claims |= {"iat": int(now), "exp": round(now + lifetime, 3)}
    claims["jti"] = derived_id("key", now, *claims.values())
    key_id, secret = next(iter(given.by_id.items()))
    said = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(said, secret, ALGORITHM, headers={"kid": key_id, "typ": KIND})


def analyst_url(url: str, given: Secrets, *, run_id: str | None, now: float, lifetime: float) -> str:
    """The URL of the local stack's ClickHouse with the user `analyst` and a key: of the run, or of every run.

    Raises UserError if the run is no id, or for a server on another machine.
    """
    key = mint(given, scope="admin" if run_id is None else "analyst", now=now, lifetime=lifetime, run_id=run_id)
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    if not is_loopback(parts.hostname or ""):  # a real server has users of its own, and must not get a key of ours
        raise UserError(
            f"{host} is not on this machine: keys are of the local stack only. Name a user of that server in the URL; "
            "`claw migrate --roles` makes the roles"
        )
    return urlunsplit(parts._replace(netloc=f"analyst:{key}@{host}"))


def is_key(token: str) -> bool:
    """Whether a token says that it is one of our keys, believed or not."""
    return _head(token) is not None


def verify(token: str, given: Secrets, now: float) -> Key:
    """What a key says. Raises BadKey, which says what to do."""
    key_id = _key_id(token)
    secret = given.by_id.get(key_id)
    if secret is None:
        raise BadKey(
            "invalid_key",
            f"the key was signed with the secret {key_id[:40]!r}, which is not in CLAW_SECRET here (any more): "
            f"{HOW_TO_GET_ONE}",
        )
    key = _decode(token, key_id, secret, _SIGNED)
    if key.expires_at <= now:
        raise BadKey("expired_key", f"the key expired {now - key.expires_at:.0f} s ago: {HOW_TO_GET_ONE}")
    return key


def read(token: str) -> Key:
    """What a key says, believed or not. Raises BadKey if it is none."""
    return _decode(token, _key_id(token), "", _UNCHECKED)


def _decode(token: str, key_id: str, secret: str, options: Any) -> Key:
    try:
        claims = msgspec.convert(jwt.decode(token, secret, [ALGORITHM], options=options), _Claims)
        for name in ("run", "trajectory_uid", "prompt_uid", "channel"):
            if (value := getattr(claims, name)) is not None:
                check_id(name, value)
    except jwt.InvalidSignatureError as error:
        raise BadKey(
            "invalid_key", f"the key's signature is not that of the secret {key_id[:40]!r}: {HOW_TO_GET_ONE}"
        ) from error
    except (jwt.InvalidTokenError, msgspec.ValidationError, UserError) as error:
        raise BadKey("invalid_key", f"the key is damaged or of another version: {HOW_TO_GET_ONE}") from error
    if claims.run is None and claims.scope != "admin":
        raise BadKey("invalid_key", f"the key names no run, and only an admin's key may: {HOW_TO_GET_ONE}")
    return Key(
        scope=claims.scope,
        run_id=claims.run,
        expires_at=claims.exp,
        key_id=key_id,
        jti=claims.jti,
        trajectory_uid=claims.trajectory_uid,
        prompt_uid=claims.prompt_uid,
        channel=claims.channel,
        admitted=claims.admitted,
    )


def _key_id(token: str) -> str:
    head = _head(token)
    if head is None:
        raise BadKey("invalid_key", f"this is not a key of Claw-R1: {HOW_TO_GET_ONE}")
    return str(head.get("kid", ""))


def _head(token: str) -> dict[str, Any] | None:
    """The head of one of our keys; None: it is none."""
    if len(token) > MAX_CHARACTERS or token.count(".") != 2:
        return None
    try:
        head = jwt.get_unverified_header(token)
    except jwt.InvalidTokenError:
        return None
    return head if head.get("typ") == KIND else None


HOW_TO_GET_ONE: Final = "`claw keys mint` makes keys, and POST /init_trajectory answers one for its trajectory"


def is_loopback(host: str) -> bool:
    """Whether a server that listens there is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # every other name may come to mean another address


def check_listening(process: str, host: str, given: Secrets) -> None:
    """Raise WrongUse where a server without secrets would listen off loopback."""
    if not given.enforced and not is_loopback(host):
        raise WrongUse(
            f"{process} does not listen on {host or 'every address'} without a secret, because everybody who reaches it could "
            "read and write everything: set CLAW_SECRET=ID:SECRET to the same value for every process (a secret has 32 "
            "bytes or more; `openssl rand -hex 32` makes one), or listen on 127.0.0.1"
        )
