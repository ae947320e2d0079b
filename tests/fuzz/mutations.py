"""A good value becomes a bad one: members of JSON get other types, bytes flip, texts hold what no record can.

Invariants: the same generator state gives the same mutation.
"""

import copy
import json
import random
from typing import Any, Final

DEEP: Final = 5000
"""Deeper than any parser of Python goes."""
SURROGATE: Final = '"\\ud800"'
"""Written JSON of a text that is not Unicode."""

WEIRD: Final[tuple[str, ...]] = (
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1.5",
    "-0.0",
    "1e308",
    "1e400",
    "NaN",
    "-Infinity",
    "9223372036854775808",
    "-9223372036854775809",
    "4294967296",
    "1" + "0" * 400,
    '""',
    '"x"',
    '"\\u0000"',
    SURROGATE,
    '"\\ud83d\\ude00"',
    '"' + "ü" * 300 + '"',
    '"../../etc/passwd"',
    '"data:image/png;base64,AAAA"',
    '"data:,%zz"',
    '"http://127.0.0.1:1/x.png"',
    '"file:///etc/passwd"',
    "[]",
    "{}",
    "[null]",
    "[[]]",
    "[{}]",
    '[1,"a",null]',
    '{"type":"text"}',
    '{"type":"image_url","image_url":{"url":7}}',
    '{"a":{"b":{"c":[]}}}',
    '{"":0}',
    '{"\\ud800":1}',
    "[" * 60 + "]" * 60,
)
"""Written JSON values, or what looks like one, that stand in the place of another."""


class Written(str):
    """JSON that is written as it is, whatever it is."""


def dump(value: Any) -> bytes:
    """JSON with what is `Written` as it is."""
    holes: list[str] = []
    text = json.dumps(_with_holes(value, holes), ensure_ascii=False)
    for number, hole in enumerate(holes):
        text = text.replace(f'"\x7fhole{number}\x7f"', hole, 1)
    return text.encode("utf-8", "surrogatepass")


def _with_holes(value: Any, holes: list[str]) -> Any:
    if isinstance(value, Written):
        holes.append(str(value))
        return f"\x7fhole{len(holes) - 1}\x7f"
    if isinstance(value, dict):
        return {name: _with_holes(item, holes) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_holes(item, holes) for item in value]
    return value


def mutate(rng: random.Random, value: Any, times: int | None = None) -> Any:
    """A copy with one to three changes at random places."""
    made = copy.deepcopy(value)
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        made = _change(rng, made)
    return made


def _change(rng: random.Random, value: Any) -> Any:
    places = list(_places(value)) if isinstance(value, dict | list) else []
    if not places:
        return Written(rng.choice(WEIRD))
    holder, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        case 2 if isinstance(holder, list):
            rng.shuffle(holder)
        case 3:
            holder[key] = _other_type(rng, holder[key])
        case 4 if isinstance(holder, dict):
            holder[rng.choice(("extra", "type", "index", "id", "n", "content", "error", "stream"))] = Written(
                rng.choice(WEIRD)
            )
        case 5 if rng.random() < 0.15:
            depth = rng.choice((DEEP, rng.randint(800, 1000)))  # beyond what parsers read, and where some still do
            holder[key] = Written("[" * depth + "]" * depth)
        case _:
            holder[key] = Written(rng.choice(WEIRD))
    return value


def _other_type(rng: random.Random, value: Any) -> Any:
    if isinstance(value, str):
        return rng.choice(
            (
                [value],
                {"text": value},
                len(value),
                value.encode("utf-8", "replace").hex(),
                value * 3,
                value[: len(value) // 2],
            )
        )
    if isinstance(value, bool):
        return rng.choice((str(value).lower(), int(value), not value))
    if isinstance(value, int | float):
        return rng.choice((str(value), -value, value + 1, value * 2**40, [value], value + 0.5))
    if isinstance(value, list):
        return rng.choice(
            (dict(enumerate(map(str, value))), value * 2, value[1:], value[:1], json.dumps(value, default=str))
        )
    if isinstance(value, dict):
        return rng.choice((list(value), list(value.values()), json.dumps(value, default=str)))
    return rng.choice((0, "", [], {}))


def _places(value: Any) -> Any:
    """Every (holder, key) of a JSON value."""
    todo = [value]
    while todo:
        holder = todo.pop()
        items = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
        for key, item in items:
            yield holder, key
            if isinstance(item, dict | list):
                todo.append(item)


def damage(rng: random.Random, data: bytes) -> bytes:
    """Bytes with one to four faults: cut, flipped, doubled, foreign."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(7):
            case 0:
                del made[at:]
            case 1:
                del made[at : at + rng.randint(1, 20)]
            case 2 if made:
                made[at % len(made)] ^= 1 << rng.randrange(8)
            case 3:
                made[at:at] = made[at : at + rng.randint(1, 60)]
            case 4:
                made[at:at] = rng.randbytes(rng.randint(1, 8))
            case 5:
                made[at:at] = rng.choice(
                    (b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\x00", b'"', b"}", b"\\", b"\r", b"\n\n")
                )
            case _:
                made[at:at] = rng.choice(WEIRD).encode()
    return bytes(made)
