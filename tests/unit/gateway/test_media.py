"""What a message shows the model is what is stored, and a message cannot make the gateway fetch what is not public."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from claw_r1.blobs import LocalBlobs, blob_ref, blob_url
from claw_r1.local.ports import find_port
from gateway.calls.media import Media, is_private
from gateway.replies import Refusal

PNG = b"\x89PNG\r\n\x1a\n" + b"picture" * 10


def a_message(*urls: Any, name: str = "image_url") -> bytes:
    parts: list[Any] = [{"type": "text", "text": "look: \u00e9"}]
    parts += [{"type": name, name: {"url": url} if name == "image_url" else url} for url in urls]
    return json.dumps({"role": "user", "content": parts}).encode()


def data(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@asynccontextmanager
async def a_site() -> AsyncIterator[tuple[str, list[str]]]:
    """A web site, and what it was asked."""
    asked: list[str] = []
    never = asyncio.Event()

    async def serve(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        match request.path:
            case "/a.png":
                return web.Response(body=PNG, content_type="image/png")
            case "/unnamed":
                return web.Response(body=PNG, content_type="application/octet-stream")
            case "/page":
                return web.Response(text="hello")
            case "/big":
                return web.Response(body=b"x" * 5000, content_type="image/png")
            case "/moved":
                raise web.HTTPFound("/a.png")
            case "/round":
                raise web.HTTPFound("/round")
            case "/inside":
                raise web.HTTPFound("file:///etc/passwd")
            case "/slow":
                await never.wait()
        raise web.HTTPNotFound

    app = web.Application()
    app.router.add_get("/{tail:.*}", serve)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    port = find_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}", asked
    finally:
        await runner.cleanup()


def with_media(
    folder: Path, body: Callable[[Media, str, list[str]], Awaitable[None]], *, private: bool = True, timeout: float = 5
) -> None:
    async def run() -> None:
        async with a_site() as (site, asked):
            media = Media(LocalBlobs(folder), max_bytes=4096, timeout=timeout, private=private)
            media.start()
            try:
                await body(media, site, asked)
            finally:
                await media.stop()

    asyncio.run(run())


def test_a_message_without_media_passes_untouched(tmp_path: Path) -> None:
    async def body(media: Media, site: str, asked: list[str]) -> None:
        messages = [b'{"role": "user",  "content": "http://127.0.0.1/a.png"}', b'{"content": "\\u00e9"}', b"{}"]
        pinned = await media.pin(messages)
        assert pinned.messages == pinned.recorded == tuple(messages)
        assert pinned.refs == ()

    with_media(tmp_path, body)


def test_inline_media_go_on_byte_for_byte_and_are_recorded_by_their_hash(tmp_path: Path) -> None:
    async def body(media: Media, site: str, asked: list[str]) -> None:
        sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"beep").decode(), "format": "mp3"}}
        spoken = json.dumps({"role": "user", "content": [sound]}).encode()
        message = a_message(data(PNG), data(b"two", "image/webp"))
        pinned = await media.pin([message, b"{}", spoken])
        assert pinned.messages == (message, b"{}", spoken)
        refs = (blob_ref(PNG, "image/png"), blob_ref(b"two", "image/webp"), blob_ref(b"beep", "audio/mp3"))
        assert pinned.refs == refs
        parts = json.loads(pinned.recorded[0])["content"]
        assert [part["image_url"]["url"] for part in parts[1:]] == [blob_url(refs[0]), blob_url(refs[1])]
        assert parts[0] == {"type": "text", "text": "look: \u00e9"}
        assert LocalBlobs(tmp_path).get(refs[0].sha256) == PNG

    with_media(tmp_path, body)


def test_the_engine_gets_the_bytes_that_were_fetched(tmp_path: Path) -> None:
    async def body(media: Media, site: str, asked: list[str]) -> None:
        for path in ("/a.png", "/unnamed", "/moved"):
            for name in ("image_url", "video_url"):
                pinned = await media.pin([a_message(site + path, name=name)])
                part = json.loads(pinned.messages[0])["content"][1][name]
                assert (part["url"] if name == "image_url" else part) == data(PNG)
                assert pinned.refs == (blob_ref(PNG, "image/png"),)
                assert blob_url(pinned.refs[0]) in pinned.recorded[0].decode()

    with_media(tmp_path, body)


def test_a_name_written_with_escapes_is_seen(tmp_path: Path) -> None:
    async def body(media: Media, site: str, asked: list[str]) -> None:
        message = a_message(site + "/a.png").replace(b'"image_url"', b'"image\\u005furl"')
        assert b"data:image/png" in (await media.pin([message])).messages[0]

    with_media(tmp_path, body)


@pytest.mark.parametrize(
    ("url", "code", "word"),
    [
        ("/none", "media_unavailable", "404"),
        ("/page", "media_refused", "text/plain"),
        ("/big", "media_too_large", "4096"),
        ("/round", "media_unavailable", "redirects"),
        ("/inside", "media_refused", "data:, http: or https:"),
        ("/slow", "media_unavailable", "0.3 s"),
        ("file:///etc/passwd", "media_refused", "data:, http: or https:"),
        ("ftp://example.com/x.png", "media_refused", "data:, http: or https:"),
        ("http://", "media_refused", "URLs"),
        ("http://[", "invalid_field", "URL"),
        ("http://127.0.0.1:9/x", "media_unavailable", "cannot be fetched"),
        ("data:image/png;base64,!!", "invalid_field", "base64"),
        ("data:nothing", "invalid_field", "data:"),
        (data(b"x" * 5000), "media_too_large", "4096"),
        (7, "invalid_field", "string"),
        ({"a": 1}, "invalid_field", "string"),
    ],
)
def test_what_cannot_be_pinned_is_refused_with_its_place(tmp_path: Path, url: Any, code: str, word: str) -> None:
    async def body(media: Media, site: str, asked: list[str]) -> None:
        with pytest.raises(Refusal, match=word) as refused:
            await media.pin([b"{}", a_message(site + url if str(url).startswith("/") else url)])
        assert (refused.value.code, refused.value.param) == (code, "messages.1")

    with_media(tmp_path, body, timeout=0.3 if url == "/slow" else 30)


def test_a_message_that_another_parser_might_read_is_refused(tmp_path: Path) -> None:
    async def body(media: Media, site: str, asked: list[str]) -> None:
        message = a_message(site + "/a.png").replace(b"look", b"look \\ud800")
        with pytest.raises(Refusal, match="not JSON"):
            await media.pin([message])

    with_media(tmp_path, body)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]"])
def test_this_machine_is_not_asked(tmp_path: Path, host: str) -> None:
    async def body(media: Media, site: str, asked: list[str]) -> None:
        with pytest.raises(Refusal, match="fetched") as refused:
            await media.pin([a_message(f"http://{host}:{site.rsplit(':', 1)[1]}/a.png")])
        unclear = host == "2130706433"  # a form that the HTTP client does not take for an address
        assert refused.value.code == ("media_unavailable" if unclear else "media_refused")
        assert asked == []

    with_media(tmp_path, body, private=False)


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("10.0.0.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("224.0.0.1", True),
        ("0.0.0.0", True),
        ("8.8.8.8", False),
        ("fd00::1", True),
        ("fe80::1%eth0", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("64:ff9b::808:808", False),
        ("2002:7f00:1::", True),
        ("2606:4700::1111", False),
        ("example.com", False),
    ],
)
def test_private_addresses_in_all_their_forms(host: str, private: bool) -> None:
    assert is_private(host) == private


def test_too_many_media_are_refused(tmp_path: Path) -> None:
    async def body(media: Media, site: str, asked: list[str]) -> None:
        with pytest.raises(Refusal, match="257 media"):
            await media.pin([a_message(*[data(b"x")] * 257)])

    with_media(tmp_path, body)
