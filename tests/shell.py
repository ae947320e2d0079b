"""Shell lines of the documents: which of this project's commands they name, and what is wrong with these."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from claw_r1.cli.entry import COMMANDS, load_command

ROOT = Path(__file__).parents[1]
HERE_DOCUMENT = re.compile(r"(<<-?'?(\w+)'?[^\n]*\n).*?^\2$", re.DOTALL | re.MULTILINE)
SUBSTITUTION = re.compile(r"\$\(([^()]+)\)")
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
ENDS = {"|", "||", "&&", ";", "&", "(", ")", "<", ">", ">>", "<<"}
PASSED_OVER = {"export", "exec", "time", "sudo"}


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a piece of shell, as words; those inside `$(…)` too, redirections and assignments not."""
    text = HERE_DOCUMENT.sub(r"\1", text.replace("\\\n", " "))
    begun = ""
    for line in text.splitlines():
        begun = f"{begun}{line}\n"
        try:
            words = _words(SUBSTITUTION.sub("value", begun))
        except ValueError:  # a quotation that goes on in the next line
            continue
        for inner in SUBSTITUTION.findall(begun):
            yield from commands(inner)
        yield from _split(words)
        begun = ""
    assert not begun, f"a quotation is not closed: {begun}"


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    return list(lexer)


def _split(found: list[str]) -> Iterator[list[str]]:
    words: list[str] = []
    for word in [*found, ";"]:
        if word in ENDS:
            if words:
                yield words
            words = []
        elif words or not (ASSIGNMENT.match(word) or word in PASSED_OVER):
            words.append(word)


def fault(words: list[str], *, whole: bool) -> str | None:
    """What is wrong with a command if it is `claw`, `make` or a Python program of ours, else None.

    `whole`: it has its arguments too; in a sentence a command is often named without them.
    """
    program, rest = words[0].removeprefix("$PWD/"), words[1:]
    if program in ("claw", ".venv/bin/claw"):
        return _fault_of_claw(rest, whole)
    if program == "make":
        return next(
            (f"no target {one}" for one in rest if one[0] != "-" and "=" not in one and one not in targets()), None
        )
    if program.rpartition("/")[2] in ("python", "python3", "python3.11") and rest:
        return _fault_of_python(rest)
    return None


@cache
def targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def _fault_of_python(rest: list[str]) -> str | None:
    if rest[0] == "-m" and len(rest) > 1:
        name = rest[1]
        ours = name.split(".")[0] in (
            "claw_r1",
            "gateway",
            "streams",
            "sinks",
            "console",
            "tests",
            "examples",
            "benchmarks",
        )
        return f"no module {name}" if ours and find_spec(name) is None else None
    return f"no file {rest[0]}" if rest[0].endswith(".py") and not (ROOT / rest[0]).is_file() else None


def _fault_of_claw(words: list[str], whole: bool) -> str | None:
    if not words or words[0].startswith("-"):
        known = {"--help", "--install-completion", "--show-completion"}
        return None if {*words} <= known else f"no option {words}"
    if words[0] not in COMMANDS:
        return f"no command {words[0]}"
    command: Any = load_command(words[0])
    while hasattr(command, "commands") and len(words) > 1:
        words = words[1:]
        if words[0] not in command.commands:
            return f"no command {words[0]}"
        command = command.commands[words[0]]
    if hasattr(command, "commands"):
        return "no sub-command is given" if whole else None
    return _fault_of_arguments(command, words[1:], whole)


def _fault_of_arguments(command: Any, given: list[str], whole: bool) -> str | None:
    context = command.context_class(command, info_name=command.name)
    try:
        values, more, _ = command.make_parser(context).parse_args(list(given))
    except Exception as error:  # noqa: BLE001 whatever the parser calls wrong is what is looked for
        message = str(getattr(error, "message", error))
        return None if not whole and "requires" in message else message
    if more:
        return f"too many arguments: {more}"
    missing = [p.name for p in command.params if p.required and not values.get(p.name)]
    return f"{missing} are missing" if whole and missing else None
