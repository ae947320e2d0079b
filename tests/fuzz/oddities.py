"""Requests that are odd before their body is: lines, headers, lengths, paths, methods, and how they come."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.fuzz.forgery import Header, Ring
from tests.fuzz.socket_client import request
from tests.fuzz.talk import Conversation, a_request

METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "FOO", "post")
PATHS = (
    "/",
    "//",
    "/%",
    "/%zz",
    "/%00",
    "/%ff%fe",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/a/b/v1/chat%2fcompletions",
    "/a%2fb/p/v1/chat/completions",
    "/../v1/chat/completions",
    "/t/p/v1/v1/v1/chat/completions",
    "/t/p/v1/chat/completions/",
    "/t/p/v1/chat/completions#x",
    "/t/p/v1/chat/completions;x=1",
    "/t\r/p/v1/models",
    "/ü/p/v1/chat/completions",
    "/" + "a" * 9000,
    "/" + "a/" * 3000,
    "/t/p/v1/messages/count_tokens?" + "x=1&" * 2000,
    "*",
    "http://127.0.0.1:1/v1/chat/completions",
    "http://[::1/v1/models",
    "https://user:pass@elsewhere/t/p/v1/models",
    "/openapi.json",
    "/healthz?x",
    "/metrics",
    "/rewards/",
    "/v1/embeddings",
    "/engines/%20",
    "/runs/..",
    "/groups/a%20b/cancel",
    "/complete_trajectory/" + "x" * 200,
)


@dataclass(slots=True)
class Oddity:
    """Bytes, and how they are sent."""

    name: str
    parts: Sequence[bytes]
    answers: int = 1
    pause: float = 0.0
    wild: bool = True


def an_oddity(rng: random.Random, talk: Conversation, ring: Ring, gate: str, number: int) -> Oddity:
    """One of them."""
    key = ring.session(gate, talk)
    kind, path = rng.choice((("chat", "chat/completions"), ("messages", "messages"), ("responses", "responses")))
    target = f"/{talk.trajectory_uid}/{talk.prompt_uid}/v1/{path}"
    body = json.dumps(a_request(rng, kind, talk)).encode()
    base: list[Header] = [("authorization", f"Bearer {key}"), ("content-type", "application/json")]
    base.append(("x-request-id", f"fuzz-{number}"))
    good = request("POST", target, base, body)
    one = rng.randrange(17)
    match one:
        case 0:
            data = request(rng.choice(METHODS), target, base, rng.choice((None, body)))
        case 1 | 2:
            data = request(
                rng.choice(("GET", "POST", "POST", "HEAD")), rng.choice(PATHS), base, rng.choice((b"{}", body))
            )
        case 3:
            extra: list[Header] = rng.choice(_HEADERS)
            data = request("POST", target, [*base, *extra], body)
        case 4:
            data = request("POST", target, base, body, version=rng.choice(("1.0", "1.0", "0.9", "2.0", "1.2", "11")))
        case 5:
            times = rng.randint(2, 5)
            return Oddity("pipelined", [good * times], times, wild=False)
        case 6:
            return Oddity(
                "body on GET", [request("GET", rng.choice((f"{target}", "/v1/models", "/policy")), base, body)]
            )
        case 7:
            headers: list[Header] = [*base, ("expect", rng.choice(("100-continue", "100-Continue", "200-ok")))]
            whole = request("POST", target, headers, body)
            at = whole.index(b"\r\n\r\n") + 4
            return Oddity("expects leave", [whole[:at], whole[at:]], 1, 0.02, wild=False)
        case 8:
            lie = rng.choice((0, 1, len(body) - 1, len(body) + 1))
            data = request("POST", target, [*base, ("content-length", str(lie))], body) + b"\r\n"
            return Oddity("a length that lies", [data], 1, wild=True)
        case 9:
            odd = rng.choice((b"-1", b"1e3", b"0x10", b"99999999999999999999999", b"+5", b"5, 5", b" ", b"\xff"))
            data = request("POST", target, [*base, ("content-length", odd)], body)
        case 10:
            both: list[Header] = [("content-length", "5"), ("transfer-encoding", "chunked")]
            data = request("POST", target, [*base, *both], b"5\r\nhello\r\n0\r\n\r\n")
        case 11:
            slices = [body[at : at + 50] for at in range(0, len(body), 50)]
            chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in slices)
            end = rng.choice(
                (b"0\r\n\r\n", b"0\r\ntrailer: x\r\n\r\n", b"zz\r\n", b"-1\r\n\r\n", b"ffffffffffffffffff\r\n")
            )
            data = request("POST", target, [*base, ("transfer-encoding", "chunked")], chunked + end)
        case 12:
            return Oddity("bytes", [rng.randbytes(rng.randint(1, 400)) + b"\r\n\r\n"])
        case 13:
            absolute = f"http://{rng.choice(('claw', 'elsewhere:99', '127.0.0.1'))}{target}"
            return Oddity("absolute form", [request("POST", absolute, base, body)], wild=False)
        case 14:
            at = rng.randrange(len(good))
            byte = rng.choice((b"\x00", b"\r", b"\n", b"\xff", b" "))
            return Oddity("damaged head", [good[:at] + byte + good[at:]])
        case 15:
            types = ("text/plain", "", "application/json; charset=utf-16", "application/msgpack", "multipart/form-data")
            plain = [header for header in base if header[0] != "content-type"]
            data = request("POST", target, [*plain, ("content-type", rng.choice(types))], body)
        case _:
            slow = [good[at : at + max(1, len(good) // 20)] for at in range(0, len(good), max(1, len(good) // 20))]
            return Oddity("slow agent", slow, 1, 0.01, wild=False)
    return Oddity(f"oddity {one}", [data])


_HEADERS: tuple[list[Header], ...] = (
    [("content-type", "text/plain")],
    [("content-type", "application/json")] * 50,
    [("x-request-id", b"\xff\xfe\x80")],
    [("traceparent", b"00-\xff-zz")],
    [("accept", "x" * 30000)],
    [("user-agent", b"\x01\x02\x7f")],
    [("x" * 9000, "y")],
    [(f"x-{number}", "y" * 10) for number in range(500)],
    [("host", "a"), ("host", "b")],
    [("connection", "close, keep-alive, upgrade")],
    [
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-key", "x" * 24),
        ("sec-websocket-version", "13"),
    ],
    [("upgrade", "h2c"), ("connection", "upgrade, http2-settings"), ("http2-settings", "AAA")],
    [("transfer-encoding", "gzip")],
    [("transfer-encoding", "chunked, identity")],
    [("content-encoding", "gzip")],
    [("idempotency-key", b"\xff" * 1000)],
    [("idempotency-key", "a"), ("idempotency-key", "b")],
    [("x-stainless-retry-count", b"\xb2")],
    [("anthropic-version", "2023-06-01"), ("anthropic-beta", "x" * 5000)],
    [("cookie", "a=" + "b" * 20000)],
    [(" leading", "x")],
    [("folded", "a\r\n b")],
    [("colonless\r\nx", "y")],
    [("x-api-key", "")],
)
