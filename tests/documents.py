"""The code blocks of README and docs, as tests read and run them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def all_blocks(page: Path | str) -> list[tuple[str, str]]:
    """(language, text) of each of a page's blocks, in order; the page as a path from the root."""
    return BLOCK.findall((ROOT / page).read_text("utf-8"))


def blocks(page: Path | str, language: str) -> list[str]:
    """Those of one language."""
    return [text for found, text in all_blocks(page) if found == language]


def section(page: Path | str, title: str) -> str:
    """What stands below a heading of the second level."""
    text = (ROOT / page).read_text("utf-8")
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return str(found)
