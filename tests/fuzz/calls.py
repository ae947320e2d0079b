"""A seed and a number make a call: whose it is, where it goes, the bytes that are sent, and what may come of it.

Invariants: the same seed and number give the same bytes, whatever was called before.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from tests.fuzz.forgery import Ring, a_bad_key
from tests.fuzz.mutations import DEEP, WEIRD, damage, dump, mutate
from tests.fuzz.oddities import an_oddity
from tests.fuzz.questions import a_question
from tests.fuzz.socket_client import request
from tests.fuzz.talk import Conversation, a_request

Gate = Literal["open", "locked", "spare"]
"""open: a gateway without a secret; locked: with one; spare: one whose engines nobody needs."""
PATHS: Final = {
    "chat": "chat/completions",
    "completions": "completions",
    "responses": "responses",
    "messages": "messages",
    "count_tokens": "messages/count_tokens",
}
TALKS: Final = 6
"""Calls of one conversation, nearly."""


@dataclass(slots=True)
class Call:
    """One exchange with a gateway."""

    number: int
    talk: Conversation
    gate: Gate
    parts: Sequence[bytes]
    dialect: str
    """Of the answer's shape: chat, completions, responses, messages; any: whichever."""
    what: str
    answers: int = 1
    pause: float = 0.0
    leave_after: float | None = None
    good: bool = False
    """The engine answers well."""
    fine: bool = False
    """Nothing is wrong with it: it has to become a step."""
    plain: bool = False
    """Nothing is wrong with its body."""
    refused: bool = False
    """No engine may be asked."""
    wild: bool = False
    """It may be no HTTP: the server may close without a word, or answer in plain text."""
    document: Any = field(default=None, repr=False)
    """The schema of its answers by status, where the API's document has them."""


def a_call(number: int, ring: Ring) -> Call:
    """The call of that number."""
    rng = random.Random(f"{ring.seed}/call/{number}")
    talk = _talk(ring, number)
    gate: Gate = "locked" if talk.number % 2 else "open"
    draw = rng.random()
    if draw < 0.74:
        return _model_call(rng, number, ring)
    if draw < 0.83:
        return _forged(rng, number, talk, ring)
    if draw < 0.92:
        odd = an_oddity(rng, talk, ring, gate, number)
        return Call(number, talk, gate, odd.parts, "any", odd.name, odd.answers, odd.pause, wild=odd.wild)
    question = a_question(rng, talk, ring, gate)
    return Call(number, talk, "spare" if question.is_admin else gate, [question.data], "any", question.name)


def _talk(ring: Ring, number: int) -> Conversation:
    """Mostly the conversation of the calls before, which it may overtake; else one of long ago."""
    rng = random.Random(f"{ring.seed}/talk/{number}")
    base = rng.randrange(number + 1) if rng.random() < 0.2 else number
    return ring.talk(2 * (base // TALKS) + rng.randrange(2))


def _model_call(rng: random.Random, number: int, ring: Ring) -> Call:
    # Now and then the same words are sent once more.
    source = rng.randrange(max(0, number - 4), number) if number and rng.random() < 0.06 else number
    again = random.Random(f"{ring.seed}/body/{source}")
    talk = _talk(ring, source)
    kind = again.choice(("chat", "chat", "responses", "messages", *PATHS))
    body, is_plain = _body(again, kind, talk)
    gate, target, headers = _way(rng, kind, talk, ring)
    headers += [("content-type", "application/json"), ("x-request-id", f"fuzz-{number}")]
    retried = rng.random()
    if retried < 0.08:
        headers.append(("idempotency-key", f"key-{rng.randrange(4)}"))
    elif retried < 0.14:
        headers.append(("x-stainless-retry-count", rng.choice(("0", "1", "-1", "x", "9" * 30))))
    leave = rng.choice((0.0, 0.01, 0.05, 0.2)) if rng.random() < 0.06 else None
    dialect = "messages" if kind == "count_tokens" else kind
    call = Call(number, talk, gate, [request("POST", target, headers, body)], dialect, kind, leave_after=leave)
    call.plain = is_plain
    call.good = rng.random() < 0.3
    call.fine = (
        call.good and is_plain and retried >= 0.14 and leave is None and source == number and kind != "count_tokens"
    )
    if rng.random() < 0.03:
        call.parts = _slices(rng, call.parts[0])
        call.pause = 0.01
    return call


def _slices(rng: random.Random, data: bytes) -> list[bytes]:
    cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randint(1, 12)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def _body(rng: random.Random, kind: str, talk: Conversation) -> tuple[bytes, bool]:
    """A body, and whether nothing is wrong with it."""
    body = a_request(rng, kind, talk)
    draw = rng.random()
    if draw < 0.45:
        return json.dumps(body).encode(), True
    if draw < 0.8:
        return dump(mutate(rng, body)), False
    if draw < 0.92:
        return damage(rng, json.dumps(body).encode()), False
    if draw < 0.94:
        return dump(body | {"extra": "x" * rng.choice((10_000, 300_000, 1_500_000))}), False
    deep = b'{"messages":' + b"[" * DEEP + b"]" * DEEP + b"}"
    return rng.choice((b"", b"{}", b"[]", b"null", b"{", b"\xff", deep, rng.choice(WEIRD).encode())), False


def _way(rng: random.Random, kind: str, talk: Conversation, ring: Ring) -> tuple[Gate, str, list[tuple[str, str]]]:
    """Gateway, path and key: under the path of the trajectory, or plain with a session key."""
    named = f"/{talk.trajectory_uid}/{talk.prompt_uid}/v1/{PATHS[kind]}"
    query = rng.choice(("", "", "", "?beta=true", "?x=%ff&%00"))
    gate: Gate = "locked" if talk.number % 2 else "open"
    if rng.random() < 0.5:
        return gate, f"/v1/{PATHS[kind]}{query}", _keyed(rng, ring.session(gate, talk))
    if gate == "locked":
        return gate, named + query, _keyed(rng, ring.run_key)
    return gate, named + query, [("authorization", "Bearer sk-none")] if rng.random() < 0.5 else []


def _keyed(rng: random.Random, key: str) -> list[tuple[str, str]]:
    return [rng.choice((("authorization", f"Bearer {key}"), ("x-api-key", key), ("Authorization", f"bearer {key}")))]


def _forged(rng: random.Random, number: int, talk: Conversation, ring: Ring) -> Call:
    """A call with a key that opens nothing, or not this."""
    other = ring.talk(talk.number + 1_000_001)
    bad = a_bad_key(rng, ring, talk, other)
    kind = rng.choice(tuple(PATHS))
    path = rng.choice((f"/{talk.trajectory_uid}/{talk.prompt_uid}/v1/{PATHS[kind]}", f"/v1/{PATHS[kind]}"))
    if bad.needs_path:
        path = f"/{talk.trajectory_uid}/{talk.prompt_uid}/v1/{PATHS[kind]}"
    headers: list[tuple[bytes | str, bytes | str]] = [*bad.headers]
    headers += [("content-type", "application/json"), ("x-request-id", f"fuzz-{number}")]
    body = json.dumps(a_request(rng, kind, talk)).encode()
    dialect = "messages" if kind == "count_tokens" else kind
    parts = [request("POST", path, headers, body)]
    gate: Gate = "locked" if talk.number % 2 else "open"
    refused = bad.refused and gate == "locked"  # without a secret a key refuses nothing
    return Call(number, talk, gate, parts, dialect, f"key {bad.name}", good=True, refused=refused, wild=bad.wild)
