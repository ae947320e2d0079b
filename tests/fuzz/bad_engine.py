"""An engine that misbehaves by instruction: what it sends for a call follows from the call's number alone.

Invariants: what it sent is noted as an independent reader sees it, so that no step can claim to hold anything else.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import re
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.fuzz.mutations import DEEP, damage, dump, mutate
from tests.fuzz.talk import (
    Conversation,
    a_chat,
    a_completion,
    chat_chunks,
    completion_chunks,
    recorded_replies,
    recorded_streams,
)

NUMBER: Final = re.compile(rb"x-request-id: fuzz-(\d+)\r", re.IGNORECASE)
LENGTH: Final = re.compile(rb"content-length: (\d+)\r", re.IGNORECASE)
HUGE: Final = 17 * 2**20
"""Above the largest event that is read."""
STATUSES: Final = (
    204,
    206,
    301,
    302,
    304,
    400,
    401,
    403,
    404,
    405,
    409,
    413,
    422,
    429,
    499,
    500,
    501,
    502,
    503,
    504,
    599,
)
ODD_STATUSES: Final = (100, 101, 102, 150, 199, 299, 399, 600, 799, 999)


@dataclass(slots=True)
class Script:
    """What goes over the connection."""

    head: bytes
    body: bytes
    """As a client reads it that believes the head."""
    wire: bytes
    """As it is sent."""
    cuts: int = 1
    pause: float = 0.0
    end: str = "keep"
    """keep, close, reset or hang."""
    status: int = 200
    streamed: bool = False


@dataclass(slots=True)
class Book:
    """Which call is whose, and what was sent to it."""

    seed: str
    conversations: dict[int, Conversation] = field(default_factory=dict)
    """Of the calls that have begun."""
    asked: dict[int, int] = field(default_factory=dict)
    """Call → requests that reached the engine."""
    statuses: dict[str, set[int]] = field(default_factory=dict)
    """Trajectory → what it was answered: a retry gets what its first try was answered."""
    sent: dict[str, set[bytes]] = field(default_factory=dict)
    """Trajectory → digests of (prompt, response, log-probs) that were sent to it."""
    good: set[int] = field(default_factory=set)
    """Calls that get a good answer, whatever else."""
    owners: dict[str, bytes] = field(default_factory=dict)
    """Trajectory → its marker."""
    markers: set[bytes] = field(default_factory=set)

    def begin(self, number: int, talk: Conversation, *, good: bool) -> None:
        """A call of the conversation is about to be made."""
        self.conversations[number] = talk
        self.owners[talk.trajectory_uid] = talk.marker.encode()
        self.markers.add(talk.marker.encode())
        if good:
            self.good.add(number)

    def end(self, number: int) -> None:
        """Its answers were judged."""
        self.good.discard(number)


def digest(prompt: list[int], ids: list[int], log_probs: list[float]) -> bytes:
    """Of what one choice holds, in the precision of a record."""
    text = f"{prompt}/{ids}".encode() + struct.pack(f"<{len(log_probs)}f", *log_probs)
    return hashlib.blake2b(text, digest_size=12).digest()


@contextlib.asynccontextmanager
async def a_bad_engine(book: Book) -> AsyncIterator[str]:
    """The engine's URL."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while await _answer(book, reader, writer):
                pass
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=2**26)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close_clients() if hasattr(server, "close_clients") else None


async def _answer(book: Book, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request; whether another may come."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = LENGTH.search(head)
    body = await reader.readexactly(int(length[1])) if length else b""
    path = head.split(b" ", 2)[1].decode("latin-1")
    found = NUMBER.search(head)
    if found is None or path not in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        said = b'{"error":{"message":"who?","type":"x","param":null,"code":"unknown_route"}}'
        if path == "/v1/models":
            said = b'{"object":"list","data":[{"id":"tiny","object":"model"}]}'
        status = 200 if path in ("/v1/models", "/health", "/v1/completions") else 404
        writer.write(_head(status, {"content-type": "application/json", "content-length": str(len(said))}) + said)
        await writer.drain()
        return True
    number = int(found[1])
    attempt = book.asked[number] = book.asked.get(number, 0) + 1
    rng = random.Random(f"{book.seed}/engine/{number}/{attempt}")
    script = make_script(rng, path, body, book.conversations[number], good=number in book.good)
    _note(book, number, path, script)
    await _send(writer, script)
    if script.end == "hang":
        await reader.read(1)  # until the caller gives up
    return script.end == "keep"


async def _send(writer: asyncio.StreamWriter, script: Script) -> None:
    data = script.head + script.wire
    size = max(1, -(-len(data) // script.cuts))
    for start in range(0, len(data), size):
        writer.write(data[start : start + size])
        await writer.drain()
        if script.pause:
            await asyncio.sleep(script.pause)
    if script.end == "reset":
        writer.transport.abort()


def _head(status: int, headers: dict[str, str], reason: str = "Whatever") -> bytes:
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


# --------------------------------------------------------------------------------------------------------------- scripts


def make_script(rng: random.Random, path: str, asked: bytes, talk: Conversation, *, good: bool) -> Script:
    """What the engine does with a request."""
    wanted = _read(asked)
    streams = wanted.get("stream") is True
    if not good and rng.random() < 0.03:
        streams = not streams
    if path == "/tokenize":
        body = _tokens(rng, good=good)
        kind = "application/json"
    elif streams:
        body = _stream(rng, path, wanted, talk, good=good)
        kind = "text/event-stream; charset=utf-8"
    else:
        body = _whole(rng, path, wanted, talk, good=good)
        kind = "application/json"
    if good:
        return _framed(rng, 200, kind, body, rng.choice(("length", "chunked")))
    if rng.random() < 0.15:
        return _error(rng, talk)
    if rng.random() < 0.02:
        return Script(b"", b"", b"", end=rng.choice(("close", "reset", "hang")))
    if rng.random() < 0.04:
        kind = rng.choice(("text/html", "application/octet-stream", "text/event-stream", "application/json", ""))
    framing = rng.choice(("length", "chunked", "chunked", "close", *_LIES)) if rng.random() < 0.5 else "chunked"
    return _framed(rng, 200, kind, body, framing)


_LIES: Final = (
    "long",
    "short",
    "cut",
    "bad_chunk",
    "no_last_chunk",
    "twice",
    "gzip",
    "huge_header",
    "half_head",
    "junk",
)


_CLOSING: Final = ("no_last_chunk", "bad_chunk", "long", "close")


def _framed(rng: random.Random, status: int, kind: str, body: bytes, framing: str) -> Script:
    headers = {"content-type": kind, "x-engine": "tïny"}
    streamed = kind.startswith("text/event-stream")
    cuts = rng.choice((1, 2, 3, 7, 40)) if streamed else rng.choice((1, 1, 2, 5))
    pause = 0.0 if rng.random() < 0.9 else 0.4 / cuts
    end = "reset" if framing == "cut" else "close" if framing in _CLOSING else "keep"
    wire, seen = body, body
    match framing:
        case "chunked" | "bad_chunk" | "no_last_chunk":
            headers["transfer-encoding"] = "chunked"
            wire = _chunked(rng, body)
            if framing == "bad_chunk":
                at = rng.randrange(len(wire))
                wire = wire[:at] + b"\r\nZZ\r\n" + wire[at:]
            elif framing == "no_last_chunk":
                wire = wire[: -rng.choice((5, 3, 2))]
        case "close":
            pass
        case "long":
            headers["content-length"] = str(len(body) + rng.randint(1, 1000))
        case "short" if body:
            headers["content-length"] = str(rng.randrange(len(body)))
            seen = body[: int(headers["content-length"])]
            end = "close"
        case "cut":
            headers["content-length"] = str(len(body))
            wire = body[: rng.randrange(len(body) + 1)]
        case "twice":
            headers |= {"content-length": str(len(body)), "Content-Length": str(len(body) + 1)}
            end = "close"
        case "gzip":
            headers |= {"content-length": str(len(body)), "content-encoding": "gzip"}
        case "huge_header":
            headers |= {"content-length": str(len(body)), "x-huge": "x" * rng.choice((9000, 70000))}
        case _:
            headers["content-length"] = str(len(body))
    head = _head(status, headers)
    if framing == "half_head":
        head, wire, end = head[: rng.randrange(len(head) - 3)], b"", rng.choice(("close", "reset"))
    if framing == "junk":
        head, wire, end = rng.randbytes(40), b"\r\n\r\n", "close"
    return Script(head, seen, wire, cuts, pause, end, status, streamed)


def _chunked(rng: random.Random, body: bytes) -> bytes:
    parts, at = [], 0
    while at < len(body):
        size = min(len(body) - at, max(rng.choice((1, 10, 100, 1000, 10000)), len(body) // 50))
        parts.append(b"%x\r\n%s\r\n" % (size, body[at : at + size]))
        at += size
    return b"".join(parts) + b"0\r\n\r\n"


def _error(rng: random.Random, talk: Conversation) -> Script:
    """An HTTP error, or what is none, with any body."""
    status = rng.choice(STATUSES if rng.random() < 0.8 else ODD_STATUSES)
    error = {"message": f"{talk.marker} failed", "type": "BadRequestError", "param": None, "code": status}
    shape = rng.choice(({"error": error}, error, {"detail": [error]}, {"error": error["message"]}, [error], "no"))
    body = rng.choice((dump(shape), dump(mutate(rng, {"error": error})), b"", b"<html>no</html>", rng.randbytes(50)))
    if rng.random() < 0.05:
        body = b"[" * DEEP + b"]" * DEEP
    kind = rng.choice(("application/json", "text/html", "text/event-stream", ""))
    if status in (204, 304) or status < 200:
        body = b""
    return _framed(rng, status, kind, body, rng.choice(("length", "length", "chunked", "close", "long")))


def _read(asked: bytes) -> dict[str, Any]:
    try:
        wanted = json.loads(asked.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return wanted if isinstance(wanted, dict) else {}


def _reply(rng: random.Random, path: str, wanted: dict[str, Any], talk: Conversation) -> dict[str, Any]:
    """A good one."""
    n = wanted.get("n")
    n = n if isinstance(n, int) and not isinstance(n, bool) and 0 < n <= 8 else 1
    if path == "/v1/chat/completions":
        return a_chat(rng, talk, n)
    prompt = wanted.get("prompt")
    batch = isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)
    return a_completion(rng, talk, n, min(len(prompt), 16) if isinstance(prompt, list) and batch else 1)


def _whole(rng: random.Random, path: str, wanted: dict[str, Any], talk: Conversation, *, good: bool) -> bytes:
    reply: Any = _reply(rng, path, wanted, talk)
    if good:
        return json.dumps(reply).encode()
    if rng.random() < 0.3 and (recorded := recorded_replies(path)):
        reply = rng.choice(recorded)
    match rng.randrange(8):
        case 0 | 1:
            return json.dumps(reply).encode()
        case 2 | 3 | 4 | 5:
            return dump(mutate(rng, reply))
        case 6:
            return damage(rng, json.dumps(reply).encode())
        case _:
            return rng.choice(
                (b"", b"null", b"[]", b"{}", b"[" * DEEP, b"\xff\xfe", b'{"choices":[]}', rng.randbytes(100))
            )


def _tokens(rng: random.Random, *, good: bool) -> bytes:
    reply = {"count": 7, "max_model_len": 100, "tokens": list(range(7))}
    if good or rng.random() < 0.3:
        return json.dumps(reply).encode()
    return dump(mutate(rng, reply)) if rng.random() < 0.6 else damage(rng, json.dumps(reply).encode())


# --------------------------------------------------------------------------------------------------------------- streams


def _stream(rng: random.Random, path: str, wanted: dict[str, Any], talk: Conversation, *, good: bool) -> bytes:
    reply = _reply(rng, path, wanted, talk)
    if not good and rng.random() < 0.03:
        reply["choices"][0]["finish_reason"] = "abort"
    chunks = (chat_chunks if path == "/v1/chat/completions" else completion_chunks)(rng, reply)
    events = [b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks]
    if not good and rng.random() < 0.3 and (recorded := recorded_streams(path)):
        events = [event + b"\n\n" for event in rng.choice(recorded).split(b"\n\n") if event and b"[DONE]" not in event]
    events.append(b"data: [DONE]\n\n")
    if good:
        return b"".join(events)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
        events = _bad_events(rng, events, talk)
    data = b"".join(events)
    match rng.randrange(12):
        case 0:
            data = data.replace(b"\n", b"\r\n")
        case 1:
            data = data.replace(b"\n", b"\r")
        case 2:
            data = data[: rng.randrange(len(data) + 1)]
        case 3:
            data = damage(rng, data)
        case 4:
            data = b"\xef\xbb\xbf" + data
        case 5:
            data = data.replace(b"\n\n", b"\n\r\n\n")
    return data


_ODD_EVENTS: Final = (
    b": ping\n\n",
    b"event: x\ndata: y\n\n",
    b"data\n\n",
    b"data:\n\n",
    b"id: 1\nretry: 5\n\n",
    b"\n\n",
    b"data: {}\n\n",
)


def _bad_events(rng: random.Random, events: list[bytes], talk: Conversation) -> list[bytes]:
    if not events:
        return events
    at = rng.randrange(len(events))
    error = {
        "error": {"message": f"{talk.marker} is out of memory", "type": "X", "code": rng.choice((500, 400, "x", None))}
    }
    match rng.randrange(14):
        case 0:
            return events[:at] + events[at + 1 :]
        case 1:
            return [*events[: at + 1], events[at], *events[at + 1 :]]
        case 2:
            other = rng.randrange(len(events))
            events[at], events[other] = events[other], events[at]
        case 3:
            return events[:at]
        case 4:
            return [*events, *events[-3:], b"data: [DONE]\n\n", events[0]]
        case 5:
            return [*events[:at], b"data: " + json.dumps(error).encode() + b"\n\n", *events[at:]]
        case 6:
            return [*events[:at], rng.choice(_ODD_EVENTS), *events[at:]]
        case 7:
            events[at] = b"".join(b"data: " + line + b"\n" for line in events[at][6:].strip().split(b", ")) + b"\n"
        case 8:
            events[at] = damage(rng, events[at])
        case 9 if rng.random() < 0.05:
            events[at] = b"data: " + b"x" * HUGE + b"\n\n"
        case 10:
            return [event for event in events if b"[DONE]" not in event]
        case _:
            return _mutated(rng, events, at)
    return events


def _mutated(rng: random.Random, events: list[bytes], at: int) -> list[bytes]:
    """One chunk is another than it was, and still JSON, mostly."""
    try:
        chunk = json.loads(events[at][5:])
    except (ValueError, RecursionError):
        return events
    return [*events[:at], b"data: " + dump(mutate(rng, chunk)).replace(b"\n", b"") + b"\n\n", *events[at + 1 :]]


# ---------------------------------------------------------------------------------------------------------------- oracle


def _note(book: Book, number: int, path: str, script: Script) -> None:
    uid = book.conversations[number].trajectory_uid
    book.statuses.setdefault(uid, set()).add(script.status)
    found = sent_choices(script.body, streamed=script.streamed) if script.status == 200 else []
    held = book.sent.setdefault(uid, set())
    held.update(digest(*choice) for choice in found)


def sent_choices(body: bytes, *, streamed: bool) -> list[tuple[list[int], list[int], list[float]]]:
    """(prompt ids, response ids, log-probs) of each choice that a body holds whole, as a plain reader finds them."""
    chunks = _events(body) if streamed else [body]
    prompt: Any = None
    held: dict[Any, list[Any]] = {}
    for data in chunks:
        try:
            chunk = json.loads(data.decode("utf-8", "surrogateescape"))
            choices = chunk.get("choices") or []
            prompt = prompt or chunk.get("prompt_token_ids")
            for choice in choices:
                own = held.setdefault(choice.get("index", 0), [None, [], []])
                prompt = prompt or (choice.get("prompt_token_ids") if "text" not in choice else None)
                own[0] = choice.get("prompt_token_ids") or own[0]
                ids = choice.get("token_ids")
                own[1] += ids or []
                log_probs = choice.get("logprobs") or {}
                values = [entry.get("logprob", -9999.0) for entry in log_probs.get("content") or ()]
                values += log_probs.get("token_logprobs") or ()
                own[2] += values if ids is None or len(values) <= len(ids) else values[len(values) - len(ids) :]
        except (ValueError, RecursionError, AttributeError, TypeError):
            continue
    found = []
    for own_prompt, ids, log_probs in held.values():
        with contextlib.suppress(TypeError, ValueError, OverflowError, struct.error):
            whole = [int(number) for number in own_prompt or prompt or ()], [int(number) for number in ids]
            digest(*whole, [float(value) for value in log_probs])
            found.append((*whole, [float(value) for value in log_probs]))
    return found


def _events(stream: bytes) -> list[bytes]:
    """The data of each event up to the terminal one."""
    text = stream.removeprefix(b"\xef\xbb\xbf").decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
    found = []
    for event in text.split("\n\n"):
        lines = [line[5:].removeprefix(" ") for line in event.split("\n") if line.startswith("data:")]
        if lines == ["[DONE]"]:
            break
        found.append("\n".join(lines).encode("latin-1"))
    return found
