"""Text becomes token ids here and token ids become text again: the vocabulary, tokenizer and chat template of the demo model.

Invariants: `decode(encode(text)) == text` for any text that does not begin with a space; what the model may say
(the first `HEAD` ids) survives the way ids -> text -> ids unchanged, so a replayed history starts with exactly the
ids that were sampled.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_NUMBER: Final = 99

# What the model may say comes first, so that the head of the policy is the slice [0, HEAD).
END, CALL, CLOSE = 0, 1, 2
_SAID: Final = ("<|end|>", "<tool_call>", "</tool_call>")
TOOL_NAMES: Final = (" guess", " propose")
_SPOKEN: Final = (" I", " halve", " the", " range", " each", " time", " done", " thanks")
FIRST_NUMBER: Final = len(_SAID) + len(TOOL_NAMES) + len(_SPOKEN)
HEAD: Final = FIRST_NUMBER + MAX_NUMBER + 1

_ROLES: Final = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
SYSTEM, USER, ASSISTANT, TOOL = range(HEAD, HEAD + len(_ROLES))

# The words of the game's texts and of the demo's agents; every other word is spelt in bytes.
_WORDS: Final = """
    You are Player playing Guess The Number have to guess the number between and within turns As you enter your game will
    provide with hints such as higher or lower may response in any manner Only that is wrapped square brackets be considered
    For example play history of guesses appended below Use information complete before run out Enter target attempted an
    invalid move Reason Invalid format did not respond valid guessed a outside range specified has already Please resubmit
    remember follow rules avoid penalties Congratulations correct turn limit been reached Target Game over by calling tools
    advise player Propose first write short plan now Call tool helper proposes nothing Your until number Tools Calls one at
    Move integer it what happened Play First next next Say
"""


def _vocabulary() -> list[bytes]:
    said = [*_SAID, *TOOL_NAMES, *_SPOKEN, *(f" {number}" for number in range(MAX_NUMBER + 1)), *_ROLES]
    texts = dict.fromkeys(said)
    for word in [*_WORDS.split(), *(name.strip() for name in TOOL_NAMES), *(word.strip() for word in _SPOKEN)]:
        texts[f" {word}"] = None
        texts[word] = None
    texts.update(dict.fromkeys(str(number) for number in range(MAX_NUMBER + 1)))
    singles = [bytes([value]) for value in range(256)]
    return [*(text.encode() for text in texts if len(text) > 1), *singles]


VOCABULARY: Final = _vocabulary()
SIZE: Final = len(VOCABULARY)
_FIRST_BYTE: Final = SIZE - 256
_IDS: Final = {piece.decode(): index for index, piece in enumerate(VOCABULARY[:_FIRST_BYTE])}
_PIECES: Final = re.compile(r" ?[A-Za-z]+| ?\d+|[\s\S]")
_PIECES_SAID: Final = re.compile(r"</?tool_call>| ?[A-Za-z]+| ?\d+|[\s\S]")
_CALLS: Final = re.compile(r"(?P<text>(?:(?!</?tool_call>)[\s\S])*)(?P<calls>(?:<tool_call> [a-z]+ \d+</tool_call>)+)")
_ONE_CALL: Final = re.compile(r"<tool_call> ([a-z]+) (\d+)</tool_call>")


def id_of(text: str) -> int:
    """The id of a piece that is in the vocabulary as a whole; KeyError otherwise."""
    return _IDS[text]


def encode(text: str, *, said: bool = False) -> list[int]:
    """Token ids of `text`; a word at the start is encoded as if a space came before it, as `decode` takes that away.

    `said`: the text came from the model, so `<tool_call>` and its end are the special tokens. In texts of others they
    are spelt in bytes: a user cannot forge a call.
    """
    ids: list[int] = []
    spaced = f" {text}" if text[:1].isascii() and text[:1].isalnum() else text
    for piece in (_PIECES_SAID if said else _PIECES).findall(spaced):
        found = _IDS.get(piece)
        if found is None:
            ids.extend(_FIRST_BYTE + value for value in piece.encode())
        else:
            ids.append(found)
    return ids


def decode(ids: Sequence[int]) -> str:
    """The text of `ids` as a client sees it: without the end token, and without the space before the first word."""
    text = b"".join(VOCABULARY[token] for token in ids if token != END).decode(errors="replace")
    return text[1:] if text.startswith(" ") else text


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Said:
    """A model's answer as a chat message: content, calls, or both."""

    content: str | None
    calls: tuple[ToolCall, ...]


def parse_answer(text: str, *, tools: bool) -> Said:
    """Split a decoded answer into content and tool calls.

    Strict: only an answer that ends in well-formed calls has calls. Anything else stays raw content, so that replaying
    it gives the same ids.
    """
    found = _CALLS.fullmatch(text) if tools else None
    if found is None:
        return Said(text, ())
    calls = tuple(
        ToolCall(name, json.dumps({"number": int(number)})) for name, number in _ONE_CALL.findall(found["calls"])
    )
    return Said(found["text"] or None, calls)


def _encode_call(function: Mapping[str, Any]) -> list[int]:
    name, arguments = str(function.get("name", "")), function.get("arguments", "")
    try:
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        given = None  # not our own call: its arguments are spelt as they are
    number = given.get("number") if isinstance(given, dict) and len(given) == 1 else None
    if type(number) is int and number >= 0:
        body = encode(f"{name} {number}")
    else:
        body = encode(f"{name} {arguments if isinstance(arguments, str) else json.dumps(arguments)}")
    return [CALL, *body, CLOSE]


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    raise TypeError(f"content must be a string or a list of parts, got {type(content).__name__}")


def render(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None) -> list[int]:
    """The prompt's token ids: every message, then the start of the assistant's turn.

    Tools are described at the end of the system message (an empty one where the conversation has none).
    Raises ValueError for an unknown role and TypeError for content of another type.
    """
    ids: list[int] = []
    described = " ".join(
        f"{tool['function'].get('name', '')}: {tool['function'].get('description', '')}" for tool in tools or ()
    )
    rest = list(messages)
    system = _text(rest.pop(0).get("content")) if rest and rest[0].get("role") in ("system", "developer") else ""
    if system or described:
        ids += [SYSTEM, *encode(system), *(encode(f"Tools: {described}") if described else ()), END]
    roles = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT, "tool": TOOL}
    for message in rest:
        role = roles.get(str(message.get("role")))
        if role is None:
            raise ValueError(f"Unexpected message role: {message.get('role')!r}")
        ids += [role, *encode(_text(message.get("content")), said=role == ASSISTANT)]
        for call in message.get("tool_calls") or ():
            ids += _encode_call(call["function"])
        ids.append(END)
    return [*ids, ASSISTANT]


def tokenizer() -> dict[str, Any]:
    """The vocabulary as a `tokenizer.json`, byte-level: for those who show ids as text. It does not tokenise."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    letters = [chr(value) if value in own else chr(next(others)) for value in range(256)]
    spelt = ["".join(letters[value] for value in piece) for piece in VOCABULARY]
    special = {END, CALL, CLOSE, SYSTEM, USER, ASSISTANT, TOOL}
    added = [
        {"id": index, "content": VOCABULARY[index].decode(), "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for index in sorted(special)
    ]
    return {
        "version": "1.0",
        "added_tokens": added,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "vocab": {text: index for index, text in enumerate(spelt)}, "merges": []},
    }
