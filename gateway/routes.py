"""A path names what is asked of the gateway: a model call of a trajectory, the engines' models, or the rollout API.

Invariants:
- only listed paths exist, each with the keys that may use it; what is not listed is refused before anything looks at it;
- only the path is read, never the Host header or a URL made of it;
- what follows `/v1/` is never handed to an engine unseen.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from claw_r1.errors import UserError
from claw_r1.ids import check_id
from claw_r1.keys import SCOPES, Scope
from gateway.dialects.base import Name
from gateway.replies import Refusal

Kind = Literal["chat", "completions", "responses", "messages", "count_tokens", "models"]
Scopes = frozenset[Scope]

OPEN: Final[Scopes] = frozenset()
"""No key is asked for."""
ANY: Final[Scopes] = frozenset(SCOPES)
ROLLOUT: Final[Scopes] = frozenset({"rollout", "admin"})
SCORES: Final[Scopes] = frozenset({"rollout", "reward", "admin"})
"""A reward that comes with a rollout key is marked as self-reported."""
ANNOTATIONS: Final[Scopes] = frozenset({"reward", "admin"})
ENGINES: Final[Scopes] = frozenset({"rollout", "trainer", "admin"})
WEIGHTS: Final[Scopes] = frozenset({"trainer", "admin"})
NUMBERS: Final[Scopes] = frozenset({"analyst", "admin"})
CURATION: Final[Scopes] = frozenset({"analyst", "admin"})
DEMAND: Final[Scopes] = frozenset({"rollout", "trainer", "analyst", "admin"})
WATCHERS: Final[Scopes] = frozenset({"trainer", "analyst", "admin"})
ADMIN: Final[Scopes] = frozenset({"admin"})

ENTRY_POINTS: Final[Mapping[str, Scopes]] = {
    "POST /{trajectory_uid}/{prompt_uid}/v1/chat/completions": ROLLOUT,
    "POST /{trajectory_uid}/{prompt_uid}/v1/completions": ROLLOUT,
    "POST /{trajectory_uid}/{prompt_uid}/v1/responses": ROLLOUT,
    "POST /{trajectory_uid}/{prompt_uid}/v1/messages": ROLLOUT,
    "POST /{trajectory_uid}/{prompt_uid}/v1/messages/count_tokens": ROLLOUT,
    "GET /{trajectory_uid}/{prompt_uid}/v1/models": ENGINES,
    "POST /v1/chat/completions": ROLLOUT,
    "POST /v1/completions": ROLLOUT,
    "POST /v1/responses": ROLLOUT,
    "POST /v1/messages": ROLLOUT,
    "POST /v1/messages/count_tokens": ROLLOUT,
    "GET /v1/models": ENGINES,
    "POST /init_trajectory": ROLLOUT,
    "POST /{trajectory_uid}/{prompt_uid}/v1/register_trajectory": ROLLOUT,
    "POST /{trajectory_uid}/{prompt_uid}/v1/complete_trajectory": ROLLOUT,
    "POST /v1/register_trajectory": ROLLOUT,
    "POST /v1/complete_trajectory": ROLLOUT,
    "POST /complete_trajectory/{trajectory_uid}": ROLLOUT,
    "POST /rewards": SCORES,
    "POST /annotations": ANNOTATIONS,
    "POST /feedback": SCORES,
    "POST /decisions": CURATION,
    "POST /submit_steps": ROLLOUT,
    "POST /groups": ROLLOUT,
    "POST /groups/{prompt_uid}/cancel": ROLLOUT,
    "POST /generate": ROLLOUT,
    "POST /compute_reward": ROLLOUT,
    "GET /demand": DEMAND,
    "GET /engines": WATCHERS,
    "POST /engines": ADMIN,
    "PATCH /engines/{engine_id}": ADMIN,
    "DELETE /engines/{engine_id}": ADMIN,
    "POST /engines/pause": WEIGHTS,
    "POST /engines/resume": WEIGHTS,
    "GET /policy": WATCHERS,
    "POST /policy": WEIGHTS,
    "GET /runs/{run_id}": WATCHERS,
    "POST /runs/{run_id}": WEIGHTS,
    "GET /openapi.json": ANY,
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /metrics": NUMBERS,
}
"""Every path with the scopes of the keys that may use it: the only list. `GET /metrics` is open on loopback."""

OF_A_RUN: Final = frozenset({"POST /init_trajectory", "POST /groups", "POST /groups/{prompt_uid}/cancel"})
"""What is no trajectory's own: its key may not begin another one (or itself anew, with a later expiry), nor open or cancel a
group."""

_CALLS: Final[Mapping[str, tuple[Kind, str]]] = {
    "chat/completions": ("chat", "POST"),
    "completions": ("completions", "POST"),
    "responses": ("responses", "POST"),
    "messages": ("messages", "POST"),
    "messages/count_tokens": ("count_tokens", "POST"),
    "models": ("models", "GET"),
}
"""The hot paths, by what follows `/v1/`."""
_CALL: Final = "|".join(sorted(_CALLS, key=len, reverse=True))
# A client adds `v1/` to its base URL, or takes it as given: either form of the base URL serves either kind of client.
_PLAIN: Final = re.compile(rf"/v1(?:/v1)?/({_CALL})/?")
_SESSION: Final = re.compile(rf"/([^/]+)/([^/]+)(?:/v1){{0,2}}/({_CALL})/?")
_LAST: Final = re.compile(rf"/({_CALL})/?$")


@dataclass(frozen=True, slots=True)
class Route:
    """A hot path, and the place that it and its key name; the rollout API has its own router."""

    kind: Kind
    method: str
    entry: str
    """Its line in ENTRY_POINTS."""
    trajectory_uid: str | None = None
    prompt_uid: str | None = None
    run_id: str | None = None
    """Of the key; None: the trajectory's, else the default."""
    channel: str | None = None
    admitted: bool = False
    """The key is of a group that was let in."""


def match(method: str, path: str) -> Route | None:
    """The hot route of a path; None: not hot. Raises Refusal for a wrong method or a wrong id."""
    found = _PLAIN.fullmatch(path)
    if found is not None:
        kind, wanted = _CALLS[found[1]]
        return _allow(Route(kind, wanted, f"{wanted} /v1/{found[1]}"), method)
    found = _SESSION.fullmatch(path)
    if found is None:
        return None
    try:
        trajectory_uid = check_id("trajectory_uid", found[1])
        prompt_uid = check_id("prompt_uid", found[2])
    except UserError as error:
        raise Refusal(400, str(error), param=str(error).split(" ")[0], code="invalid_id") from error
    kind, wanted = _CALLS[found[3]]
    entry = f"{wanted} /{{trajectory_uid}}/{{prompt_uid}}/v1/{found[3]}"
    return _allow(Route(kind, wanted, entry, trajectory_uid, prompt_uid), method)


def spoken(path: str, headers: Iterable[tuple[bytes, bytes]]) -> Name:
    """The dialect in which a caller can read a refusal, whatever it asked for."""
    found = _LAST.search(path)
    if found is not None:
        kind = _CALLS[found[1]][0]
        if kind == "count_tokens":
            return "messages"
        if kind != "models":
            return kind
    return "messages" if any(name == b"anthropic-version" for name, _ in headers) else "chat"


def _allow(route: Route, method: str) -> Route:
    if method != route.method:
        raise _wrong_method(method, [route.method])
    return route


@dataclass(frozen=True, slots=True)
class Listed:
    """A path that is not hot, and what its parts name."""

    entry: str
    """Its line in ENTRY_POINTS."""
    trajectory_uid: str | None = None
    prompt_uid: str | None = None
    run_id: str | None = None


def find(method: str, path: str) -> Listed:
    """The line of ENTRY_POINTS that a path is. Raises Refusal: 404 if there is none, 405 if it takes another method."""
    allowed = []
    for entry, pattern in _LISTED.items():
        found = pattern.fullmatch(path)
        if found is None:
            continue
        wanted = entry.split(" ")[0]
        if wanted == method:
            parts = found.groupdict()
            return Listed(entry, *(parts.get(name) for name in ("trajectory_uid", "prompt_uid", "run_id")))
        allowed.append(wanted)
    if allowed:
        raise _wrong_method(method, allowed)
    raise unknown(path)


def _pattern(entry: str) -> re.Pattern[str]:
    """As the router of the rollout API reads it."""
    parts = (f"(?P<{part[1:-1]}>[^/]+)" if part.startswith("{") else re.escape(part) for part in entry.split("/")[1:])
    return re.compile("/" + "/".join(parts))


_LISTED: Final[Mapping[str, re.Pattern[str]]] = {entry: _pattern(entry) for entry in ENTRY_POINTS}


def _wrong_method(method: str, allowed: list[str]) -> Refusal:
    allow = [(b"allow", ", ".join(allowed).encode())]
    return Refusal(
        405, f"this path takes {' or '.join(allowed)}, not {method[:20]}", code="method_not_allowed", headers=allow
    )


def unknown(path: str) -> Refusal:
    """404 that lists what there is."""
    return Refusal(
        404, f"there is no {path[:200]} here; the entry points are: {'; '.join(ENTRY_POINTS)}", code="unknown_route"
    )
