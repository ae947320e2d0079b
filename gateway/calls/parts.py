"""Where a message or a submitted step holds media or routed experts, and what bytes they are.

Invariants: pure; nothing is guessed of what is no media: it passes as it is; an array is whole or refused.
"""

import base64
import binascii
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec
import numpy as np
from msgspec import Raw, Struct
from numpy.typing import NDArray

from claw_r1.blobs import NPY, blob_ref
from claw_r1.events import BlobRef

JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"
_URL_PARTS: Final = ("image_url", "video_url", "audio_url")
_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.IGNORECASE)
_MAGIC: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)


class Content(NamedTuple):
    """Bytes for the blob store and their media type."""

    data: bytes
    kind: str


class _Message(Struct, gc=False):
    content: Raw = Raw(b"null")


_content = msgspec.json.Decoder(_Message).decode  # reading past a string is ten times as fast as searching it
_contents = msgspec.json.Decoder(list[_Message]).decode
_LIST: Final = b"["[0]


class Place(NamedTuple):
    """`holder[name]` is a URL, or with `form` base64 of audio in that form."""

    holder: dict[str, Any]
    name: str
    form: str | None = None

    @property
    def value(self) -> Any:
        return self.holder[self.name]


def may_hold_media(message: bytes) -> bool:
    """False: a message that surely holds none, so that it need not be parsed: its content is no list of parts."""
    try:
        content = _content(message).content
    except msgspec.ValidationError:  # no object
        return False
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True  # another parser might read it
    return bytes(memoryview(content)[:1]) == b"["


def hold_media(messages: Sequence[bytes]) -> bool:
    """False: none of them holds media, as one look at all of them tells."""
    try:
        found = _contents(b"[" + b",".join(messages) + b"]")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # one by one, to tell them apart
        return any(may_hold_media(message) for message in messages)
    return _LIST in [memoryview(message.content)[0] for message in found]


def media_places(message: Any) -> Iterator[Place]:
    """Where a chat message names media, in the order of its parts."""
    content = message.get("content") if isinstance(message, dict) else None
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        for name in _URL_PARTS:
            if name in part:
                held = part[name]
                yield Place(held, "url") if isinstance(held, dict) and "url" in held else Place(part, name)
        audio = part.get("input_audio")
        if isinstance(audio, dict) and isinstance(audio.get("data"), str):
            yield Place(audio, "data", str(audio.get("format", "wav")))


def decode_data_url(url: str) -> Content | None:
    """The content of a data: URL (RFC 2397), None if it is another kind of URL. Raises ValueError if it is broken."""
    if url[:5].lower() != "data:":
        return None
    head = _DATA_URL.match(url, 0, 512)
    if head is None:
        raise ValueError("a data: URL looks like data:image/png;base64,…")
    rest = url[head.end() :]
    if head[3] is None:
        return Content(unquote_to_bytes(rest), head[1] or "text/plain")
    return Content(decode_base64(unquote_to_bytes(rest) if "%" in rest else rest), (head[1] or "text/plain").lower())


def decode_base64(text: str | bytes) -> bytes:
    """Raises ValueError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"not base64: {error}") from error


def data_url(content: Content) -> str:
    """The same bytes as a URL that needs no network."""
    return f"data:{content.kind};base64,{base64.b64encode(content.data).decode()}"


def sniff(data: bytes) -> str | None:
    """The media type that a picture's first bytes say."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)


def submitted_media(data: dict[str, Any]) -> list[Content]:
    """What a white-box agent says it showed the model: `modality → item or list of items`, each one blob.

    Bytes and data: URLs are the media themselves; what is neither is kept as JSON `{modality: item}`. Raises ValueError.
    """
    found = []
    for modality, items in data.items():
        for item in items if isinstance(items, list) else [items]:
            if item is None:
                continue
            content = decode_data_url(item) if isinstance(item, str) else None
            if isinstance(item, bytes):
                content = Content(item, sniff(item) or BYTES)
            if isinstance(item, str) and item[:7].lower() in ("http://", "https:/"):
                raise ValueError(f"{modality} is a URL, which may show another picture tomorrow: send a data: URL")
            found.append(content or Content(_json({modality: item}), JSON))
    return found


def _json(value: Any) -> bytes:
    try:
        return msgspec.json.encode(value, order="deterministic")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"this cannot be stored: {error}") from error


def experts_content(value: Any) -> Content:
    """Routed experts as a .npy file of integers, tokens × layers × experts: base64 of one, its bytes, or nested lists.

    The file that came is kept byte for byte. Raises ValueError.
    """
    if isinstance(value, list):
        return Content(_npy(value), NPY)
    data = decode_base64(value) if isinstance(value, str) else value
    if not isinstance(data, bytes):
        raise ValueError("routed experts are nested lists, or a .npy file: base64 in JSON, bytes in msgpack")
    _check_npy(data)
    return Content(data, NPY)


def experts_ref(value: str | bytes) -> tuple[bytes, BlobRef]:
    """What the engine's reply holds as routed experts (base64 of .npy): the bytes to store, and their reference.

    Raises ValueError if it is no such array.
    """
    data, kind = experts_content(value)
    return data, blob_ref(data, kind)


def flat_experts_ref(value: Any, tokens: int, layers: int | None) -> tuple[bytes, BlobRef]:
    """The same of SGLang's: base64 of int32 numbers, little-endian, by token, layer and expert, without a shape.

    It does not always say how many layers there are: then the array has one, and a row holds all of a token's experts.
    Raises ValueError if the numbers are not of so many tokens.
    """
    if not isinstance(value, str):
        raise ValueError("routed experts are base64")
    numbers = np.frombuffer(decode_base64(value), "<i4")
    layers = 1 if layers is None else layers
    if tokens < 1 or layers < 1 or not numbers.size or numbers.size % (tokens * layers):
        raise ValueError(f"{numbers.size} numbers are no experts of {tokens} tokens in {layers} layers")
    data = _write(numbers.reshape(tokens, layers, -1))
    return data, blob_ref(data, NPY)


def _npy(value: list[Any]) -> bytes:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError("the lists of routed experts are of unequal lengths") from error
    if array.ndim != 3 or array.dtype.kind not in "iu" or (array.size and array.min() < 0):
        raise ValueError("routed experts are a list of tokens of lists of layers of lists of expert numbers")
    return _write(array)


def _write(array: NDArray[np.integer[Any]]) -> bytes:
    """A .npy file of the smallest type that holds the numbers."""
    file = io.BytesIO()
    np.save(file, array.astype(np.min_scalar_type(array.max())) if array.size and array.min() >= 0 else array)
    return file.getvalue()


def _check_npy(data: bytes) -> None:
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"routed experts are no .npy file: {error}") from error
    if len(shape) != 3 or dtype.kind not in "iu":
        raise ValueError(f"routed experts are tokens × layers × experts of integers, not {dtype} of shape {shape}")
    size = dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(data) - file.tell() != size:
        raise ValueError("the .npy file of routed experts is cut off, or longer than it says")
