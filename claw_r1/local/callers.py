"""Who sends a request to the local ClickHouse: an operator, who may do everything, or an analyst, who may read the pool. Pure.

The user `analyst` is an analyst, every other user an operator. Without CLAW_CLICKHOUSE_PASSWORD an operator needs no
password, as on a new ClickHouse server. An analyst's password is a key (`claw keys mint --scope analyst --run RUN`), which
binds the analyst to its run; an admin's key sees every run. Without CLAW_SECRET an analyst may leave it out.
"""

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from claw_r1.keys import BadKey, Secrets, verify
from claw_r1.local.statement import StatementRefused

ANALYST = "analyst"


@dataclass(frozen=True)
class Analyst:
    """Someone who may read: `runs` None is every run."""

    runs: frozenset[str] | None = None


@dataclass(frozen=True, repr=False)
class Door:
    """What callers are asked for. An empty `password`: operators need none."""

    secrets: Secrets
    password: str = ""

    def identify(self, parameters: Mapping[str, str], headers: Mapping[str, str], now: float) -> Analyst | None:
        """The analyst who calls, None for an operator; `headers` by lower-case name, `now` in seconds since the epoch.

        Raises StatementRefused (516) for a password or key that is wrong, or where two ways name a user.
        """
        user, password = read_login(parameters, headers)
        if user != ANALYST:
            if self.password and not hmac.compare_digest(password.encode(), self.password.encode()):
                raise unauthenticated(f"{user or 'default'}: the password is not the one in CLAW_CLICKHOUSE_PASSWORD")
            return None
        if not password:
            if self.secrets.enforced:
                raise unauthenticated(
                    f"{ANALYST}: the password is a key: `claw keys mint --scope analyst --run RUN` makes one"
                )
            return Analyst()
        try:
            key = verify(password, self.secrets, now)
        except BadKey as error:
            raise unauthenticated(
                f"{ANALYST}: the password is no key that holds: `claw keys mint --scope analyst` makes one ({error})"
            ) from error
        if key.scope not in ("analyst", "admin"):
            raise unauthenticated(f"{ANALYST}: the key's scope is {key.scope}: it must be analyst or admin")
        return Analyst(None if key.run_id is None else frozenset({key.run_id}))


def read_login(parameters: Mapping[str, str], headers: Mapping[str, str]) -> tuple[str, str]:
    """User and password, empty if not given: of X-ClickHouse-User and -Key, of basic auth, or of the URL or form.

    Raises StatementRefused where two of the ways are used.
    """
    ways = []
    if headers.get("x-clickhouse-user") or headers.get("x-clickhouse-key"):
        ways.append((headers.get("x-clickhouse-user", ""), headers.get("x-clickhouse-key", "")))
    if "authorization" in headers:
        ways.append(_read_basic(headers["authorization"]))
    if parameters.get("user") or parameters.get("password"):
        ways.append((parameters.get("user", ""), parameters.get("password", "")))
    if len(ways) > 1:
        raise unauthenticated("say the user in one way: X-ClickHouse-User, basic auth, or ?user=")
    return ways[0] if ways else ("", "")


def _read_basic(value: str) -> tuple[str, str]:
    scheme, _, coded = value.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError(scheme)
        user, _, password = base64.b64decode(coded.strip(), validate=True).decode().partition(":")
    except (ValueError, binascii.Error) as error:
        raise unauthenticated("the Authorization header is no basic auth") from error
    return user, password


def unauthenticated(why: str) -> StatementRefused:
    return StatementRefused(516, "AUTHENTICATION_FAILED", why)
