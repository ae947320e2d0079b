"""HTTP content codings: a request's body decoded within a bound, an answer's chunks encoded as they come."""

import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import lz4.frame

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# What a client accepts is taken in this order: the cheapest for both sides first.
PREFERRED = ("lz4", "zstd", "gzip", "deflate")


class UnknownCoding(Exception):
    """A Content-Encoding the front cannot read."""


class BodyTooLarge(Exception):
    """A body larger than the bound, before or after decoding."""


class CodingError(Exception):
    """Bytes that are not what their Content-Encoding says."""


class Encoder(Protocol):
    def encode(self, chunk: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class _Lz4Encoder:
    def __init__(self) -> None:
        self._frame = lz4.frame.LZ4FrameCompressor()
        self._head: bytes = self._frame.begin()

    def encode(self, chunk: bytes) -> bytes:
        head, self._head = self._head, b""
        encoded: bytes = self._frame.compress(chunk)
        return head + encoded

    def finish(self) -> bytes:
        tail: bytes = self._frame.flush()
        return self._head + tail


class _ObjectEncoder:
    """zlib's and zstd's compressor objects share one shape."""

    def __init__(self, compressor: Any) -> None:
        self._compressor = compressor

    def encode(self, chunk: bytes) -> bytes:
        encoded: bytes = self._compressor.compress(chunk)
        return encoded

    def finish(self) -> bytes:
        tail: bytes = self._compressor.flush()
        return tail


_ENCODERS: Mapping[str, Callable[[], Encoder]] = {
    "lz4": _Lz4Encoder,
    "zstd": lambda: _ObjectEncoder(zstd.ZstdCompressor(level=1)),
    "gzip": lambda: _ObjectEncoder(zlib.compressobj(level=1, wbits=31)),
    "deflate": lambda: _ObjectEncoder(zlib.compressobj(level=1, wbits=15)),
}


def choose_coding(accept_encoding: str) -> str | None:
    """The coding of an answer for an Accept-Encoding header, or None for none."""
    accepted = {
        part.split(";")[0].strip().lower() for part in accept_encoding.split(",") if "q=0" not in part.split(";")
    }
    return next((coding for coding in PREFERRED if coding in accepted), None)


def encoder(coding: str) -> Encoder:
    return _ENCODERS[coding]()


_DECODERS: Mapping[str, Callable[[], Any]] = {
    "lz4": lz4.frame.LZ4FrameDecompressor,
    "zstd": zstd.ZstdDecompressor,
    "gzip": lambda: zlib.decompressobj(wbits=47),  # 47: a gzip or a zlib header, whichever it is
    "deflate": lambda: zlib.decompressobj(wbits=47),
}


def decode_body(body: bytes, coding: str, limit: int) -> bytes:
    """The decoded body, at most `limit` bytes.  Raises UnknownCoding, BodyTooLarge or CodingError.

    A body may be several frames one after the other: clients compress block by block.
    """
    if coding in ("", "identity"):
        return body
    if coding not in _DECODERS:
        raise UnknownCoding(f"Unknown compression method: {coding}")
    decoded = bytearray()
    rest = body
    while rest:
        frame = _DECODERS[coding]()
        try:
            decoded += frame.decompress(rest, limit + 1 - len(decoded))
        except (zlib.error, zstd.ZstdError, RuntimeError, EOFError) as error:
            raise CodingError(f"The body is not valid {coding}: {error}") from error
        if len(decoded) > limit:
            raise BodyTooLarge(f"The body is larger than {limit} bytes after decoding")
        if not frame.eof:
            raise CodingError(f"The body is not valid {coding}: it ends in the middle")
        rest = frame.unused_data or b""
    return bytes(decoded)
