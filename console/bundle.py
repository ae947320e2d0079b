"""The modules of the pages become one file, so that a browser that has nothing asks once for a script and not for each.

Pure. Each module is a function of its own in the file, run when it is first needed; its lines stay as they were written but for
imports and exports. A library that is asked for by `import(…)` alone stays a file of its own, which is read when a page needs
it. Taken are the forms that the files use; any other is refused, as are a name that nobody exports, and a circle.
"""

import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

LIBRARIES: Final = "vendor/"
_BEGIN: Final = r"(?m)(?:^|(?<=[;}]))"
"""Where a statement may begin: a line, or behind another statement where a file has one line."""
_FROM: Final = re.compile(
    _BEGIN + r"(?P<word>import|export)\b(?P<clause>[^\"'`;()=]*?)\bfrom\s*\"(?P<path>\.[^\"]+)\";?"
)
_LISTED: Final = re.compile(_BEGIN + r"export\s*(?P<clause>\{[^{}]*\});?")
_DECLARED: Final = re.compile(_BEGIN + r"export (?P<kind>const|function|async function|class) (?P<name>[\w$]+)")
_DEFAULT: Final = re.compile(_BEGIN + r"export default function\b ?(?P<name>[\w$]*)")
_LATER: Final = re.compile(r"\bimport\(\"(?P<path>\.[^\"]+)\"\)")
_LEFT: Final = re.compile(rf"(?m)(?:^\s*|[;}}]\s*)(?:import|export)\b(?!\()|\bimport\s*\((?!\"\./{LIBRARIES})")
"""A form that none of these has taken."""
_CLAUSE: Final = re.compile(r"\s*(?:(?P<default>[\w$]+)|\{(?P<names>[^{}]*)\})\s*")
_NAME: Final = re.compile(r"(?P<name>[\w$]+)(?:\s+as\s+(?P<other>[\w$]+))?")
_HEAD: Final = """\
// The modules of the pages in one file, made of the files beside it when the server started (console/bundle.py).
const $made = new Map();
function $need(name) {
  if (!$made.has(name)) $made.set(name, $modules[name]());
  return $made.get(name);
}
const $later = async (name) => $need(name);
const $modules = {
"""


class Untaken(ValueError):
    """A form of import or export that is not taken here, or one that leads nowhere."""


@dataclass
class Module:
    """A module as the body of a function."""

    name: str
    body: str = ""
    exports: dict[str, str] = field(default_factory=dict)
    """Names that others see, with the expressions that give them."""
    imports: dict[str, set[str]] = field(default_factory=dict)
    """Modules, with the names that are taken from them."""
    later: list[str] = field(default_factory=list)
    """Modules that are asked for when they are needed."""


def bundle(entry: str, files: Mapping[str, bytes]) -> bytes:
    """The script of an entry with all modules behind it. Raises Untaken."""
    modules: dict[str, Module] = {}
    wanted = [entry]
    for name in wanted:  # grows beneath the loop
        if name not in modules:
            if name not in files:
                raise Untaken(f"{name} is imported, and there is no such file")
            modules[name] = read(name, files[name].decode())
            wanted += [*modules[name].imports, *modules[name].later]
    _check(modules)
    return "".join((_HEAD, *map(_written, modules.values()), f"}};\n$need({json.dumps(entry)});\n")).encode()


def read(name: str, text: str) -> Module:
    """A module of its text. Raises Untaken for a form that is not taken here."""
    module = Module(name)

    def link(match: re.Match[str]) -> str:
        needed = f"$need({json.dumps(_target(name, match['path']))})"
        pairs = list(_pairs(name, match["clause"]))
        module.imports.setdefault(_target(name, match["path"]), set()).update(of for of, _ in pairs)
        if match["word"] == "export":
            module.exports |= {given: f"{needed}.{of}" for of, given in pairs}
            return ""
        return f"const {{ {_listed(pairs)} }} = {needed};"

    def give(match: re.Match[str]) -> str:
        module.exports |= {given: own for own, given in _pairs(name, match["clause"])}
        return ""

    def declare(match: re.Match[str]) -> str:
        module.exports[match["name"]] = match["name"]
        return f"{match['kind']} {match['name']}"

    def give_default(match: re.Match[str]) -> str:
        module.exports["default"] = match["name"] or "$default"
        return f"function {match['name']}" if match["name"] else "const $default = function"

    def ask_later(match: re.Match[str]) -> str:
        target = _target(name, match["path"])
        if target.startswith(LIBRARIES):
            return f"import({json.dumps(f'./{target}')})"
        module.later.append(target)
        return f"$later({json.dumps(target)})"

    for form, made in (
        (_FROM, link),
        (_LISTED, give),
        (_DECLARED, declare),
        (_DEFAULT, give_default),
        (_LATER, ask_later),
    ):
        text = form.sub(made, text)
    if (left := _LEFT.search(text)) is not None:
        line = text.count("\n", 0, left.end()) + 1
        raise Untaken(f"{name}:{line}: not a form of import or export that is taken: {text[left.start() :][:60]!r}")
    if "import.meta" in text and "/" in name:
        raise Untaken(f"{name}: import.meta is the one file's address, so only a file beside it may ask for it")
    module.body = text
    return module


def _target(name: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), path))


def _pairs(name: str, clause: str) -> Iterator[tuple[str, str]]:
    """`a` → (default, a); `{ a, b as c }` → (a, a), (b, c)."""
    match = _CLAUSE.fullmatch(clause)
    if match is None:
        raise Untaken(f"{name}: not a list of names that is taken: {clause.strip()[:60]!r}")
    if match["default"]:
        yield "default", match["default"]
        return
    for part in filter(None, map(str.strip, match["names"].split(","))):
        found = _NAME.fullmatch(part)
        if found is None:
            raise Untaken(f"{name}: not a name that is taken: {part[:60]!r}")
        yield found["name"], found["other"] or found["name"]


def _check(modules: Mapping[str, Module]) -> None:
    """Raise Untaken if a name is taken that is not given, or modules need each other in a circle."""
    done: set[str] = set()

    def visit(name: str, behind: tuple[str, ...]) -> None:
        if name in behind:
            raise Untaken(f"modules need each other: {' → '.join((*behind, name))}")
        if name in done:
            return
        for target, names in modules[name].imports.items():
            if lacking := names - modules[target].exports.keys():
                raise Untaken(f"{name} takes {', '.join(sorted(lacking))} of {target}, which does not give it")
            visit(target, (*behind, name))
        done.add(name)

    for name in modules:
        visit(name, ())


def _written(module: Module) -> str:
    return f"{json.dumps(module.name)}: () => {{\n{module.body}\nreturn {{ {_listed(module.exports.items())} }};\n}},\n"


def _listed(pairs: Iterable[tuple[str, str]]) -> str:
    return ", ".join(name if name == value else f"{name}: {value}" for name, value in pairs)
