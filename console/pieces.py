"""A tokenizer's file becomes the bytes of each token id, and bytes become text that shows all that is in them.

Pure. Read are the vocabulary and the way in which it spells bytes; nothing is tokenised. A piece that is no whole character,
and signs that are not seen or turn text round, are shown as escapes.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, Final

from claw_r1.errors import UserError

_BYTE: Final = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE: Final = "▁"
_SHOWN: Final = "\n\t "
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""Categories of signs that nobody sees, or that change how others are drawn."""


def _byte_letters() -> dict[str, int]:
    """The letter for each byte in byte-level vocabularies: printable Latin-1 stands for itself, others from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [value for value in range(256) if value not in set(own)]
    return {chr(value): value for value in own} | {chr(0x100 + i): value for i, value in enumerate(rest)}


BYTE_LETTERS: Final = _byte_letters()


def read(tokenizer: Any) -> dict[int, bytes]:
    """The bytes of each id of a parsed `tokenizer.json`. Raises UserError for what is none."""
    model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict | list):
        raise UserError("this is no tokenizer.json: it has no model.vocab")
    kinds = set(_kinds(tokenizer.get("decoder"))) | set(_kinds(tokenizer.get("pre_tokenizer")))
    found = {token: _spell(text, kinds) for text, token in _entries(vocabulary)}
    for added in tokenizer.get("added_tokens") or ():
        found[int(added["id"])] = str(added["content"]).encode()
    return found


def _entries(vocabulary: Mapping[str, int] | list[Any]) -> Iterator[tuple[str, int]]:
    """Texts and ids: a table, or a list of (text, score) whose places are the ids."""
    if isinstance(vocabulary, Mapping):
        yield from vocabulary.items()
    else:
        yield from ((entry[0], place) for place, entry in enumerate(vocabulary))


def _kinds(part: Any) -> Iterator[str]:
    """The type of a decoder or pre-tokenizer and of all that are in it."""
    if isinstance(part, dict):
        yield str(part.get("type"))
        for inner in (*(part.get("decoders") or ()), *(part.get("pretokenizers") or ())):
            yield from _kinds(inner)


def _spell(text: str, kinds: set[str]) -> bytes:
    if "ByteLevel" in kinds and all(letter in BYTE_LETTERS for letter in text):
        return bytes(BYTE_LETTERS[letter] for letter in text)
    if "WordPiece" in kinds:
        return (text[2:] if text.startswith("##") else f" {text}").encode()
    if (byte := _BYTE.fullmatch(text)) is not None:
        return bytes([int(byte[1], 16)])
    return text.replace(_SPACE, " ").encode()


def show(piece: bytes) -> str:
    """A piece as text: bytes that are no character as `\\xe2`, signs that are not seen as `\\u202e`; line feeds, tabs and
    spaces stay."""
    text = piece.decode("utf-8", "backslashreplace")
    return "".join(
        sign if sign in _SHOWN or unicodedata.category(sign) not in _HIDDEN else _escape(sign) for sign in text
    )


def _escape(sign: str) -> str:
    return sign.encode("ascii", "backslashreplace").decode() if ord(sign) > 0x7F else f"\\x{ord(sign):02x}"
