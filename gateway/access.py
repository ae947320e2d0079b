"""A call's key is found, believed or not, and held against the path: who may do what.

Invariants:
- no clock here: `now` is given, in seconds since the epoch;
- with a secret, a path is served to the scopes of its line in `routes.ENTRY_POINTS` and to no other, and a key acts in its own
  run, and a trajectory's key on its trajectory alone;
- without one, calls need no key, and a key that comes names the place and refuses nothing;
- an engine never gets a key of ours; memory of believed keys is bounded.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from claw_r1.keys import BadKey, Key, Secrets, is_key, verify
from gateway.replies import Headers, Refusal
from gateway.routes import ENTRY_POINTS, OF_A_RUN, OPEN, Listed, Route

METRICS: Final = "GET /metrics"
MAX_BELIEVED: Final = 65536
AUTHENTICATION: Final = "authentication_error"
PERMISSION: Final = "permission_error"
_CREDENTIALS: Final = frozenset({b"authorization", b"x-api-key"})
_HOW: Final = (
    "send a session key as `Authorization: Bearer KEY` or `x-api-key: KEY`. POST /init_trajectory answers one for each "
    "trajectory, and `claw keys mint --scope SCOPE --run RUN` makes them"
)


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why no key of a call is believed."""

    code: str
    message: str

    def refusal(self) -> Refusal:
        """401, for where a key is needed."""
        # RFC 9110, 15.5.2: a 401 says how to authenticate.
        headers = [(b"www-authenticate", b'Bearer realm="claw"')]
        return Refusal(401, self.message, kind=AUTHENTICATION, code=self.code, headers=headers)


_NO_KEY: Final = Doubt("no_key", f"this call carries no key: {_HOW}")
_FOREIGN: Final = Doubt("invalid_key", f"what this call carries is not a key of Claw-R1: {_HOW}")


class Access:
    """What this gateway believes and allows."""

    def __init__(self, secrets: Secrets, *, loopback: bool) -> None:
        self._secrets = secrets
        self._loopback = loopback
        self._believed: OrderedDict[bytes, Key] = OrderedDict()

    def identify(self, headers: Iterable[tuple[bytes, bytes]], now: float) -> Key | Doubt:
        """The key that a call carries, or why none is believed."""
        bearer = api_key = None
        for name, value in headers:
            if name == b"authorization":
                if bearer is not None:
                    return _ambiguous("two Authorization headers")
                bearer = value
            elif name == b"x-api-key":
                if api_key is not None:
                    return _ambiguous("two x-api-key headers")
                api_key = value
        if bearer is None or api_key is None:
            carried = bearer or api_key
            return self._of(carried, now) if carried else _NO_KEY
        ours = {token for token in (_token(bearer), _token(api_key)) if is_key(token)}
        if len(ours) > 1:
            return _ambiguous("one key in Authorization and another in x-api-key")
        return self._of(bearer if _token(bearer) in ours else api_key, now)

    def allow(self, entry: str, found: Key | Doubt) -> Key | None:
        """The key with which a path may be used. Raises Refusal(401 or 403)."""
        key = None if isinstance(found, Doubt) else found
        scopes = ENTRY_POINTS[entry]
        if not self._secrets.enforced or scopes is OPEN or (entry == METRICS and self._loopback):
            return key
        if isinstance(found, Doubt):
            raise found.refusal()
        if found.scope not in scopes:
            raise Refusal(
                403,
                f"a {found.scope} key may not use {entry}: it takes keys of the scope {' or '.join(sorted(scopes))} "
                "(`claw keys mint --scope …`)",
                kind=PERMISSION,
                code="wrong_scope",
            )
        return found

    def strip(self, headers: Headers) -> Headers:
        """The headers that an engine may get: without any key where a secret is set, else without those that are ours."""
        enforced = self._secrets.enforced
        return [
            (name, value)
            for name, value in headers
            if name not in _CREDENTIALS or not (enforced or is_key(_token(value)))
        ]

    def _of(self, carried: bytes, now: float) -> Key | Doubt:
        key = self._believed.get(carried)
        if key is not None:
            if now < key.expires_at:
                self._believed.move_to_end(carried)
                return key
            del self._believed[carried]
        token = _token(carried)
        if not token:
            return _NO_KEY
        if not is_key(token):
            return _FOREIGN
        try:
            key = verify(token, self._secrets, now)
        except BadKey as error:
            return Doubt(error.code, str(error))
        self._believed[carried] = key
        if len(self._believed) > MAX_BELIEVED:
            self._believed.popitem(last=False)
        return key


def place(route: Route, found: Key | Doubt) -> Route:
    """Where a call belongs: what its path names, else what its key does. Raises Refusal(401, 403 or 404)."""
    key = None if isinstance(found, Doubt) else found
    if route.trajectory_uid is not None:
        if key is None:
            return route
        check_target(key, trajectory_uid=route.trajectory_uid, prompt_uid=route.prompt_uid)
        if key.trajectory_uid not in (None, route.trajectory_uid):
            return route  # without a secret the path wins, and the key is another trajectory's
        return _placed(route, route.trajectory_uid, route.prompt_uid, key)
    if route.kind in ("models", "count_tokens"):
        return route  # no step comes of it, so it needs no place
    if isinstance(found, Doubt):
        raise found.refusal()
    if found.trajectory_uid is None:
        raise Refusal(
            404,
            "neither the path nor the key names a trajectory: use the base URL or the session key that POST "
            "/init_trajectory answers, or the base URL http://…/{trajectory_uid}/{prompt_uid}/v1 with ids of your choice",
            code="no_trajectory",
        )
    return _placed(route, found.trajectory_uid, found.prompt_uid, found)


def _placed(route: Route, trajectory_uid: str, prompt_uid: str | None, key: Key) -> Route:
    return Route(
        route.kind, route.method, route.entry, trajectory_uid, prompt_uid, key.run_id, key.channel, key.admitted
    )


def check_target(
    key: Key | None,
    *,
    run_id: str | None = None,
    trajectory_uid: str | None = None,
    prompt_uid: str | None = None,
) -> None:
    """Raise Refusal(403) if a key is for another run, trajectory or prompt than what it is used on; None: not known (yet)."""
    if key is None or not key.binds:
        return
    if run_id is not None and key.run_id not in (None, run_id):
        raise _forbidden("other_run", f"this key is for run {key.run_id}, and the call is about another run")
    if trajectory_uid is not None and key.trajectory_uid not in (None, trajectory_uid):
        raise _forbidden("other_trajectory", f"this key is for trajectory {key.trajectory_uid}, not {trajectory_uid}")
    if prompt_uid is not None and key.prompt_uid not in (None, prompt_uid):
        raise _forbidden("other_prompt", f"this key is for prompt {key.prompt_uid}, not {prompt_uid}")


def check_listed(key: Key | None, listed: Listed) -> None:
    """Raise Refusal(403) if a key is not for what a path of the rollout API names; of its body, `check_target` is asked."""
    check_target(key, run_id=listed.run_id, trajectory_uid=listed.trajectory_uid, prompt_uid=listed.prompt_uid)
    if key is not None and key.binds and key.trajectory_uid is not None and listed.entry in OF_A_RUN:
        raise _forbidden(
            "other_trajectory",
            f"this key is for trajectory {key.trajectory_uid} alone, and {listed.entry} is for its run",
        )


def _forbidden(code: str, message: str) -> Refusal:
    return Refusal(403, f"{message}: use the key that is made for it", kind=PERMISSION, code=code)


def _ambiguous(what: str) -> Doubt:
    return Doubt("ambiguous_key", f"the call carries {what}: leave one out")


def _token(value: bytes) -> str:
    """The key in a header's value: `Bearer KEY`, or KEY alone; empty for another scheme."""
    scheme, space, rest = value.decode("latin-1").strip().partition(" ")
    if not space:
        return scheme if scheme.lower() != "bearer" else ""
    return rest.strip() if scheme.lower() == "bearer" else ""
