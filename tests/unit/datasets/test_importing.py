"""Files become lines, and lines facts or faults; nothing is lost on the way."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from claw_r1.cli.entry import app
from claw_r1.datasets import importing
from claw_r1.datasets.importing import Line, Rejects, find_kind, list_files, parse, read_lines
from claw_r1.datasets.lines import write_line
from claw_r1.datasets.logs import Fault, Naming
from claw_r1.errors import UserError
from tests.factories import a_step

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
SPAN = {"traceId": "a" * 32, "spanId": "b" * 16, "attributes": {}}


def a_file(folder: Path, *lines: bytes) -> Path:
    path = folder / "log.jsonl"
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ([write_line(a_step())], "claw"),
        ([json.dumps(CHAT).encode()], "openai"),
        ([b"broken", json.dumps({"request": {}, "response": {}}).encode()], "openai"),
        ([json.dumps(SPAN).encode()], "otel"),
        ([json.dumps({"resourceSpans": []}, indent=1).encode()], "otel"),
    ],
)
def test_the_kind_is_seen(tmp_path: Path, lines: list[bytes], kind: str) -> None:
    assert find_kind([a_file(tmp_path, *lines)]) == kind


def test_what_looks_like_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="say --kind"):
        find_kind([a_file(tmp_path, b'{"a": 1}')])
    with pytest.raises(UserError, match="is no file"):
        list_files(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.jsonl file"):
        list_files(tmp_path / "empty")


def test_lines_have_their_numbers_and_long_ones_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MAX_LINE_BYTES", 100)
    path = a_file(tmp_path, b"{}", b"", b"x" * 100 + b"y" * 350, b"x" * 99, b"last")
    lines = list(read_lines([path]))
    assert [(line.number, line.text.rstrip(b"\n")[-1:]) for line in lines] == [
        (1, b"}"),
        (3, b"y"),
        (4, b"x"),
        (5, b"t"),
    ]
    reasons = [[fault.reason for fault in parse(line, "openai", Naming("r"), 1.0).faults] for line in lines]
    assert reasons == [["unknown_form"], ["line_too_long"], ["not_json"], ["not_json"]]


@pytest.mark.parametrize(
    ("kind", "document", "reason"),
    [
        ("openai", [1], "not_json"),
        ("openai", {"request": {"messages": 1}, "response": {}}, "bad_messages"),
        ("claw", {"type": "x"}, "unknown_type"),
        ("otel", {"resourceSpans": [{"scopeSpans": [{"spans": [3]}]}]}, "bad_span"),
        ("otel", {"resourceSpans": [{"scopeSpans": 3}]}, "unreadable"),
    ],
)
def test_faults_have_reasons(kind: Any, document: Any, reason: str) -> None:
    parsed = parse(Line(Path("f"), 1, json.dumps(document).encode()), kind, Naming("r"), 1.0)
    assert ([fault.reason for fault in parsed.faults], parsed.facts) == ([reason], [])


def test_rejects_are_written_with_what_they_were(tmp_path: Path) -> None:
    rejects = Rejects(tmp_path / "rejects.jsonl")
    rejects.close()
    assert not rejects.path.exists()
    rejects.add(Line(Path("/a/log.jsonl"), 7, b"\xff broken\n"), Fault("not_json", "why"))
    rejects.close()
    assert json.loads(rejects.path.read_text("utf-8")) == {
        "file": "log.jsonl",
        "line": 7,
        "reason": "not_json",
        "error": "why",
        "text": "\\xff broken",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "--to", "x", "--form", "poem"], "not one of facts"),
        (["export", "--to", "x", "--format", "csv"], "not one of jsonl"),
        (["export", "--to", "x", "--format", "parquet"], "facts are lines"),
        (["export", "--to", "x", "--as-of", "yesterday"], "is not a time"),
        (["snapshots", "create", "x", "--where", "reward ge 1", "--recipe", "r"], "not by several"),
        (["snapshots", "create", "x", "--where", "drift eq 0"], "does not tell drift"),
        (["snapshots", "create", "x", "--where", "nonsense eq 0"], "no field"),
        (["import", __file__, "--kind", "csv"], "not one of claw"),
        (["import", __file__, "--kind", "claw", "--run", "r"], "says its runs"),
    ],
)
def test_wrong_options_are_told(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, arguments, terminal_width=200)
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())
