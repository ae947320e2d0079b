"""The project's own source files, parsed."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("claw_r1", "gateway", "streams", "sinks", "trainer_adapter", "console")
MAX_LINES = 600
MAX_FUNCTION_LINES = 60


def source_files() -> list[Path]:
    """Every Python file that is installed."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def pure_files() -> list[Path]:
    """The files of the import contract "Pure files import no client library": the one list of what is pure."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    (pure,) = (contract for contract in contracts if contract["name"].startswith("Pure files"))
    return [path for module in pure["source_modules"] for path in _files_of(module)]


def _files_of(module: str) -> Iterator[Path]:
    place = ROOT / module.replace(".", "/")
    if place.is_dir():
        yield from sorted(place.rglob("*.py"))
    else:
        yield place.with_suffix(".py")
