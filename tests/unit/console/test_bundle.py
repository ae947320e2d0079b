"""The one script of the pages says what its modules say, in the forms of import and export that are taken; others are refused.

That it runs as the modules would is seen in a browser: every test in `tests/browser` opens pages that are drawn by it.
"""

import re

import pytest

from console.app import STATIC
from console.bundle import Untaken, bundle, read

FILES = {str(p.relative_to(STATIC).as_posix()): p.read_bytes() for p in STATIC.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ('import { a, b as c } from "./x.js";\na(c);', 'const { a, b: c } = $need("lib/x.js");\na(c);'),
        ('import{a as n}from"../y.js";n()', 'const { a: n } = $need("y.js");n()'),
        ('import d from "./x.js";', 'const { default: d } = $need("lib/x.js");'),
        ("export const a = 1;\nexport async function f() {}", "const a = 1;\nasync function f() {}"),
        ('var t="import a";t();export{t as u};', 'var t="import a";t();'),
        ("export default function A({ b }) {}", "function A({ b }) {}"),
        ("var n=1;export default function(s){}", "var n=1;const $default = function(s){}"),
        ('const f = () => import("../s.js");', 'const f = () => $later("s.js");'),
        ('const f = () => import("../vendor/l.js");', 'const f = () => import("./vendor/l.js");'),
        ("f(`from a import b`); // import { a } from x", "f(`from a import b`); // import { a } from x"),
    ],
)
def test_the_lines_of_a_module_stay_but_for_imports_and_exports(text: str, body: str) -> None:
    assert read("lib/m.js", text).body == body


def test_a_module_says_what_it_takes_and_gives() -> None:
    module = read(
        "lib/m.js",
        'import{a as n,b}from"./x.js";export{c,d as e}from"./x.js";export const f = n;\nexport { b as g };\n'
        'export default function H() {}\nconst later = () => import("./y.js");',
    )
    assert module.imports == {"lib/x.js": {"a", "b", "c", "d"}}
    assert module.exports == {
        "c": '$need("lib/x.js").c',
        "e": '$need("lib/x.js").d',
        "f": "f",
        "g": "b",
        "default": "H",
    }
    assert module.later == ["lib/y.js"]


@pytest.mark.parametrize(
    "text",
    [
        'import * as all from "./x.js";',
        'import d, { a } from "./x.js";',
        'import "./x.js";',
        "import { a } from './x.js';",
        'import { a } from "https://elsewhere.test/x.js";',
        'import { "a b" as c } from "./x.js";',
        'export * from "./x.js";',
        "export let a = 1;",
        "export default 1;",
        "export default class {}",
        "let a; export { a };",
        "const f = (name) => import(name);",
        "const f = () => import('./x.js');",
        "const here = import.meta.url;",
    ],
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(Untaken, match=r"^lib/m\.js"):
        read("lib/m.js", text)


def test_a_fault_is_told_with_its_line() -> None:
    with pytest.raises(Untaken, match=r"^lib/m\.js:3: .*export let"):
        read("lib/m.js", "const a = 1;\n\nexport let b = 2;\n")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"app.js": 'import { a } from "./none.js";'}, "no such file"),
        ({"app.js": 'import { b } from "./x.js";', "x.js": "export const a = 1;"}, "takes b of x.js"),
        (
            {
                "app.js": 'import { a } from "./x.js";\nexport const b = a;',
                "x.js": 'export { b as a } from "./app.js";',
            },
            "app.js → x.js → app.js",
        ),
    ],
)
def test_what_leads_nowhere_is_refused(files: dict[str, str], said: str) -> None:
    with pytest.raises(Untaken, match=re.escape(said)):
        bundle("app.js", {name: text.encode() for name, text in files.items()})


def test_what_is_asked_for_later_may_need_who_asks() -> None:
    files = {"app.js": b'export const a = 1;\nimport("./x.js");', "x.js": b'import { a } from "./app.js";'}
    assert bundle("app.js", files).count(b'$need("app.js")') == 2


def test_the_script_has_every_module_of_the_pages_once_and_not_the_library_of_charts() -> None:
    script = bundle("app.js", FILES).decode()
    ours = sorted(n for n in FILES if n.endswith(".js") and n != "vendor/uplot.js")
    assert sorted(re.findall(r'^"([^"]+)": \(\) => \{$', script, re.MULTILINE)) == ours
    assert 'import("./vendor/uplot.js")' in script
    lines = set(script.splitlines())
    for name in (n for n in ours if not n.startswith("vendor/")):
        code = [
            line for line in FILES[name].decode().splitlines() if not re.search(r"^(import|export)\b|\bimport\(", line)
        ]
        assert [line for line in code if line not in lines] == [], name
