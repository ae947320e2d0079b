"""Token ids become text: every way in which vocabularies spell bytes, and all signs visible."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from claw_r1.demo import tokens
from claw_r1.errors import UserError
from console import pieces
from console.texts import Texts


def a_tokenizer(vocabulary: Any, **parts: Any) -> dict[str, Any]:
    return {"model": {"vocab": vocabulary}, **parts}


BYTE_LEVEL = {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (
            a_tokenizer({"Ġhi": 0, "Ċ": 1, "âĤ¬": 2, "âĤ": 3}, decoder=BYTE_LEVEL),
            [b" hi", b"\n", "€".encode(), b"\xe2\x82"],
        ),
        (a_tokenizer({"Ġhi": 0}), ["Ġhi".encode()]),
        (a_tokenizer({"▁hi": 0, "<0xE2>": 1, "x▁": 2}, decoder={"type": "ByteFallback"}), [b" hi", b"\xe2", b"x "]),
        (a_tokenizer([["<unk>", 0.0], ["▁hi", -1.5]]), [b"<unk>", b" hi"]),
        (a_tokenizer({"hi": 0, "##ing": 1}, decoder={"type": "WordPiece"}), [b" hi", b"ing"]),
        (
            a_tokenizer({"Ġhi": 0}, decoder=BYTE_LEVEL, added_tokens=[{"id": 1, "content": "<｜end｜>"}]),
            [b" hi", "<｜end｜>".encode()],
        ),
    ],
    ids=["byte level", "no decoder", "byte fallback", "unigram", "word piece", "added"],
)
def test_each_way_to_spell_bytes(tokenizer: dict[str, Any], expected: list[bytes]) -> None:
    assert pieces.read(tokenizer) == dict(enumerate(expected))


def test_what_is_no_tokenizer_is_refused() -> None:
    wrongs: tuple[Any, ...] = ({}, [], {"model": {"vocab": 3}})
    for wrong in wrongs:
        with pytest.raises(UserError, match="no tokenizer"):
            pieces.read(wrong)


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        (b" hi\n\t", " hi\n\t"),
        (b"\xe2\x82", "\\xe2\\x82"),
        (b"a\x80b", "a\\x80b"),
        ("\u202egnp.exe".encode(), "\\u202egnp.exe"),
        (b"\x00\x1b[31m", "\\x00\\x1b[31m"),
        ("<b>é€</b>".encode(), "<b>é€</b>"),
    ],
)
def test_nothing_in_a_piece_is_hidden(piece: bytes, shown: str) -> None:
    assert pieces.show(piece) == shown


def test_the_demos_vocabulary_comes_back_from_its_file() -> None:
    assert pieces.read(tokens.tokenizer()) == dict(enumerate(tokens.VOCABULARY))


def test_texts_are_of_the_model_and_say_why_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(a_tokenizer({"hi": 7})))
    (tmp_path / "broken.json").write_text("{")
    texts = Texts([f"a={tmp_path}", f"b={tmp_path}/broken.json", f"c={tmp_path}/none.json"])

    async def scenario() -> None:
        assert await texts.of("a", [7, 7, 8]) == {"texts": {7: "hi"}, "missing": None}
        for model, why in (("b", "cannot be read"), ("c", "cannot be read"), ("other", "CLAW_CONSOLE_TOKENIZERS")):
            found = await texts.of(model, [7])
            assert found["texts"] is None
            assert why in found["missing"]
        (tmp_path / "none.json").write_text(json.dumps(a_tokenizer({"ho": 7})))
        assert (await texts.of("c", [7]))["texts"] == {7: "ho"}

    asyncio.run(scenario())
    everything = Texts([f"*={tmp_path}"])
    assert asyncio.run(everything.of(None, [7]))["texts"] == {7: "hi"}
