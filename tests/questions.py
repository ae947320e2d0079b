"""The questions of docs/questions.md, with the answers that stand there."""

import re
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[1] / "docs/questions.md"
_QUESTION = re.compile(r"^## (\d+)\. (.+?)\n(.*?)```sql\n(.+?)```\n\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)


class Question(NamedTuple):
    """One heading of the page."""

    number: int
    title: str
    sql: str
    columns: tuple[str, ...]
    rows: int
    """Of the answer; 0 where the page says that there is none."""


def read_questions() -> list[Question]:
    """All of the page, in order."""
    found = []
    for number, title, _, sql, answer in _QUESTION.findall(PAGE.read_text("utf-8")):
        table = [line.strip("| ").split(" | ") for line in answer.splitlines() if line.startswith("|")]
        assert len(table) >= 2, f"question {number} has no answer"
        columns = tuple(cell.strip().replace("\\_", "_") for cell in table[0])
        found.append(Question(int(number), title, sql, columns, len(table) - 2))
    return found
