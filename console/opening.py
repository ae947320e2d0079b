"""What a page reads first stands in its head: its screen's data are asked for at once, beside the script that draws them.

Pure. The screens and their data are those of `screens.js`.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, quote_plus

TABLE: Final = "screens.js"
_SCREEN: Final = re.compile(r'\bpath: "(?P<path>[^"]+)"(?:.*?\breads: \[(?P<reads>[^\]]*)\])?.*?\bimport\("[^"]+"\)')
_STRING: Final = re.compile(r'"([^"]+)"')


@dataclass(frozen=True, slots=True)
class Screen:
    """A line of the table: the pattern of its address, and what it reads when it opens."""

    path: str
    reads: tuple[str, ...]


def screens_of(table: str) -> list[Screen]:
    """The screens of `screens.js`, in its order."""
    found = []
    for line in table.splitlines():
        if match := _SCREEN.search(line):
            reads = tuple(_STRING.findall(match["reads"] or ""))
            found.append(Screen(match["path"], reads))
    return found


def find_screen(parts: Sequence[str], screens: Sequence[Screen]) -> tuple[Screen, dict[str, str]] | None:
    """The screen of an address, which is given by its parts, and what its pattern names."""
    for screen in screens:
        pattern = screen.path.strip("/").split("/")
        if len(pattern) == len(parts) and all(
            p.startswith(":") or p == part for p, part in zip(pattern, parts, strict=True)
        ):
            return screen, {p[1:]: part for p, part in zip(pattern, parts, strict=True) if p.startswith(":")}
    return None


def addresses(screen: Screen, named: Mapping[str, str], query: Mapping[str, str]) -> list[str]:
    """What a screen reads when it opens, as the page itself writes it.

    `:name` is what the pattern names, or a word of the page's query, with `|` a default, which also stands for any word but the
    one behind `=`; `?a&b!` are words that are taken over where the page has them, and without b nothing is read.
    """
    found = []
    for template in screen.reads:
        path, _, wanted = template.partition("?")
        names = wanted.split("&") if wanted else []
        if any(name.endswith("!") and not query.get(name[:-1]) for name in names):
            continue
        words = "&".join(f"{name}={_word(query[name])}" for name in (n.rstrip("!") for n in names) if query.get(name))
        filled = "/".join(_filled(part, named, query) for part in path.split("/"))
        found.append(f"{filled}?{words}" if words else filled)
    return found


def head(data: Sequence[str]) -> str:
    """The links of a page to its data."""
    return "\n  ".join(f'<link rel="preload" as="fetch" crossorigin href="{html.escape(address)}">' for address in data)


def _filled(part: str, named: Mapping[str, str], query: Mapping[str, str]) -> str:
    if not part.startswith(":"):
        return part
    name, dot, ending = part[1:].partition(".")
    name, _, default = name.partition("|")
    name, _, only = name.partition("=")
    word = named.get(name) or query.get(name)
    if only and word != only:
        word = None
    # As encodeURIComponent leaves them.
    return quote(word or default, safe="!*'()") + dot + ending


def _word(text: str) -> str:
    """As URLSearchParams writes it."""
    return quote_plus(text, safe="*").replace("~", "%7E")
