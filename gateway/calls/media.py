"""Media that a message names are fetched once, before the engine sees the message, and stored under their hash.

Invariants:
- the engine gets the bytes that were stored, as a data: URL, so that nobody trains on another picture than was sampled with;
- nothing is fetched from this machine or a private network, by name, by number or by redirect, unless a setting allows it;
- size, number and time are bounded; what cannot be pinned is refused before an engine is asked.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import DefaultResolver
from yarl import URL

from claw_r1.blobs import Blobs, blob_url
from claw_r1.events import BlobRef
from gateway.calls.parts import (
    Content,
    Place,
    data_url,
    decode_base64,
    decode_data_url,
    may_hold_media,
    media_places,
    sniff,
)
from gateway.replies import Refusal

MAX_PARTS: Final = 256
"""Most media of one call."""
DOWNLOADS: Final = 16
"""Most media fetched at a time, by the whole process."""
MAX_REDIRECTS: Final = 3
_KINDS: Final = ("image/", "video/", "audio/")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Pinned:
    """A call's messages with their media pinned."""

    messages: tuple[bytes, ...]
    """For the engine: JSON, one value each; those without fetched media are the bytes that came."""
    recorded: tuple[bytes, ...]
    """For the step: in the place of media stands the blob's name."""
    refs: tuple[BlobRef, ...]
    """In the order of the prompt; the same picture twice is there twice."""


class Media:
    """Fetches and stores."""

    def __init__(self, blobs: Blobs, *, max_bytes: int, timeout: float, private: bool) -> None:
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._private = private
        self._slots = asyncio.Semaphore(DOWNLOADS)
        self._session: aiohttp.ClientSession | None = None

    def start(self) -> None:
        """Must run in the event loop that serves calls."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=DefaultResolver() if self._private else _PublicResolver(), force_close=True
            ),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"accept": "image/*, video/*, audio/*", "accept-encoding": "identity"},
        )

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def pin(self, messages: Sequence[bytes]) -> Pinned:
        """The messages with their media pinned; without media, what came.

        Raises Refusal (400 or 413, code media_refused, media_unavailable, media_too_large or invalid_field), or RetryableError
        if the blob store is away.
        """
        parsed = [_parse(n, message) if may_hold_media(message) else None for n, message in enumerate(messages)]
        places = [(number, place) for number, value in enumerate(parsed) for place in media_places(value)]
        if not places:
            return Pinned(tuple(messages), tuple(messages), ())
        if len(places) > MAX_PARTS:
            raise Refusal(
                413,
                f"the messages hold {len(places)} media; {MAX_PARTS} are taken",
                param="messages",
                code="media_too_large",
            )
        found = await _all(self._content(number, place) for number, place in places)
        refs = await _all(asyncio.to_thread(self._blobs.put, content.data, content.kind) for content in found)
        # Only a message with something fetched is written anew: the agent's own bytes go on wherever they can.
        fetched = {number for (number, place), _ in zip(places, found, strict=True) if _is_remote(place)}
        for (_, place), content in zip(places, found, strict=True):
            if _is_remote(place):
                place.holder[place.name] = data_url(content)
        sent = tuple(_written(parsed[n]) if n in fetched else message for n, message in enumerate(messages))
        for (_, place), ref in zip(places, refs, strict=True):
            place.holder[place.name] = blob_url(ref)
        held = {number for number, _ in places}
        recorded = tuple(_written(parsed[n]) if n in held else message for n, message in enumerate(messages))
        return Pinned(sent, recorded, tuple(refs))

    async def _content(self, number: int, place: Place) -> Content:
        where = f"messages.{number}"
        value = place.value
        if not isinstance(value, str):
            raise Refusal(400, f"{where}: a URL is a string", param=where, code="invalid_field")
        try:
            if place.form is not None:
                data, form = value, place.form
                content: Content | None = Content(await asyncio.to_thread(decode_base64, data), f"audio/{form[:20]}")
            else:
                content = await asyncio.to_thread(decode_data_url, value)
        except ValueError as error:
            raise Refusal(400, f"{where}: {error}", param=where, code="invalid_field") from error
        if content is None:
            content = await self._fetch(where, value)
        if len(content.data) > self._max_bytes:
            raise self._too_large(where)
        return content

    async def _fetch(self, where: str, text: str) -> Content:
        """The content of an http URL, over redirects that are looked at like the first."""
        url = self._allowed(where, text)
        try:
            async with self._slots, asyncio.timeout(self._timeout):
                for _ in range(MAX_REDIRECTS + 1):
                    found = await self._get(where, url)
                    if isinstance(found, Content):
                        return found
                    url = self._allowed(where, str(url.join(URL(found))))
        except TimeoutError as error:
            raise _unavailable(where, url, f"it did not come within {self._timeout:g} s") from error
        except _PrivateAddress as error:
            raise _refused(where, url, "its name means an address of this machine or a private network") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error.__cause__, _PrivateAddress):
                raise _refused(where, url, "its name means an address of this machine or a private network") from error
            raise _unavailable(where, url, str(error) or type(error).__name__) from error
        raise _unavailable(where, url, f"more than {MAX_REDIRECTS} redirects")

    async def _get(self, where: str, url: URL) -> Content | str:
        """The content, or where a redirect leads."""
        assert self._session is not None, "start() comes first"
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status in (301, 302, 303, 307, 308) and "location" in response.headers:
                return response.headers["location"]
            if response.status != 200:
                raise _unavailable(where, url, f"the answer is {response.status}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise _unavailable(where, url, "the answer is compressed, which nobody asked for")
            data = bytearray()
            async for part in response.content.iter_any():
                data += part
                if len(data) > self._max_bytes:
                    raise self._too_large(where)
            kind = response.content_type if response.content_type.startswith(_KINDS) else sniff(bytes(data[:16]))
        if kind is None:
            raise _refused(where, url, f"it is {response.content_type}: no picture, sound or film")
        return Content(bytes(data), kind)

    def _allowed(self, where: str, text: str) -> URL:
        """Raises Refusal for a URL that is not fetched, whatever its name means."""
        try:
            url = URL(text)
        except ValueError as error:
            raise Refusal(400, f"{where}: {text[:200]!r} is no URL", param=where, code="invalid_field") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise _refused(where, url, "media are data:, http: or https: URLs")
        if not self._private and is_private(url.host):
            raise _refused(where, url, "its address is of this machine or a private network")
        return url

    def _too_large(self, where: str) -> Refusal:
        return Refusal(
            413,
            f"{where} holds media of more than {self._max_bytes} bytes: send less, or raise CLAW_GATEWAY_MEDIA_BYTES",
            param=where,
            code="media_too_large",
        )


def is_private(host: str) -> bool:
    """Whether a numeric address is reached by this machine or its own network alone; a name is not known to be."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return not _is_public(address)


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Also of the IPv4 address that an IPv6 one stands for."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast


class _PrivateAddress(OSError):
    """A name means an address that is not to be reached."""


class _PublicResolver(AbstractResolver):
    """Resolves to public addresses only: the connection goes to the address that was looked at, not to a second answer."""

    def __init__(self) -> None:
        self._inner = DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        public = [result for result in found if not is_private(result["host"])]
        if not public:
            raise _PrivateAddress(f"{host} has no public address")
        return public

    async def close(self) -> None:
        await self._inner.close()


def _parse(number: int, message: bytes) -> Any:
    """What we cannot read an engine might, and fetch what it names."""
    try:
        return msgspec.json.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f"messages.{number}"
        raise Refusal(400, f"{where} is not JSON: {error}", param=where, code="invalid_field") from error


def _written(message: Any) -> bytes:
    return msgspec.json.encode(message)


def _is_remote(place: Place) -> bool:
    return place.form is None and str(place.value)[:5].lower() != "data:"


async def _all(waits: Any) -> list[Any]:
    """Results in order; the first error ends the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _refused(where: str, url: URL, why: str) -> Refusal:
    return Refusal(
        400,
        f"{where}: {_shown(url)} is not fetched: {why}. Send the bytes as a data: URL.",
        param=where,
        code="media_refused",
    )


def _unavailable(where: str, url: URL, why: str) -> Refusal:
    return Refusal(
        400,
        f"{where}: {_shown(url)} cannot be fetched: {why}. Send the bytes as a data: URL.",
        param=where,
        code="media_unavailable",
    )


def _shown(url: URL) -> str:
    """Without its query, which may hold a signature."""
    return str((url.with_user(None) if url.host else url).with_query(None).with_fragment(None))[:200]
