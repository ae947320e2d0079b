"""What a page needs first stands in its head: its screen's modules and its data are asked for at once, none behind another.

Pure. The modules are those that the files import, read from the files; the screens and their data are those of `screens.js`.
"""

import html
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, quote_plus

ENTRY: Final = "app.js"
TABLE: Final = "screens.js"
_IMPORTS: Final = re.compile(r'\b(?:from|import)\s*"(\.[^"]+)"')
"""`import … from "./a.js"`, `export … from "./a.js"`, `import "./a.js"`; what `import(…)` reads comes later."""
_SCREEN: Final = re.compile(
    r'\bpath: "(?P<path>[^"]+)"(?:.*?\breads: \[(?P<reads>[^\]]*)\])?.*?\bimport\("(?P<module>[^"]+)"\)'
)
_STRING: Final = re.compile(r'"([^"]+)"')


@dataclass(frozen=True, slots=True)
class Screen:
    """A line of the table: the pattern of its address, its module, and what it reads when it opens."""

    path: str
    module: str
    reads: tuple[str, ...]


def screens_of(table: str) -> list[Screen]:
    """The screens of `screens.js`, in its order."""
    found = []
    for line in table.splitlines():
        if match := _SCREEN.search(line):
            reads = tuple(_STRING.findall(match["reads"] or ""))
            found.append(Screen(match["path"], posixpath.normpath(match["module"]), reads))
    return found


def modules_of(entries: Sequence[str], files: Mapping[str, bytes]) -> list[str]:
    """The modules behind these, each once, these first. Raises KeyError for an import of what is not there."""
    found = list(dict.fromkeys(entries))
    for name in found:  # grows beneath the loop
        for target in _IMPORTS.findall(files[name].decode()):
            module = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            if module not in found:
                found.append(module)
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

    `:name` is what the pattern names, or a word of the page's query, with `|` a default; `?a&b!` are words that are taken over
    where the page has them, and without b nothing is read.
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


def head(version: str, modules: Sequence[str], data: Sequence[str]) -> str:
    """The links of a page."""
    links = [f'<link rel="preload" as="fetch" crossorigin href="{html.escape(address)}">' for address in data]
    links += [f'<link rel="modulepreload" href="/static/{version}/{html.escape(name)}">' for name in modules]
    return "\n  ".join(links)


def _filled(part: str, named: Mapping[str, str], query: Mapping[str, str]) -> str:
    if not part.startswith(":"):
        return part
    name, dot, ending = part[1:].partition(".")
    name, _, default = name.partition("|")
    # As encodeURIComponent leaves them.
    return quote(named.get(name) or query.get(name) or default, safe="!*'()") + dot + ending


def _word(text: str) -> str:
    """As URLSearchParams writes it."""
    return quote_plus(text, safe="*").replace("~", "%7E")
