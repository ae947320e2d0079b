"""What `make docs` does beside mkdocs: headings are named as the repository's host names them, and a link to a file that is
not a page leads to that file in the repository.

Invariants: a link to a file that does not exist stays as it is, so that the strict build fails on it.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from claw_r1.errors import WrongUse

LINK: Final = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
CODE: Final = re.compile(r"(`[^`]*`)")
FENCE: Final = "```"
BRANCH: Final = "main"


def slug(heading: str, separator: str) -> str:
    """The anchor of a heading: `Steps, and – rewards` is `steps-and--rewards`."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", separator)


def rewrite(text: str, page: str, root: Path, repository: str, pages: str = "docs") -> str:
    """The page's text, in which links to files of the repository outside the folder of pages are addresses there.

    `page` is relative to the folder of pages, `pages` to `root`.
    """
    here = posixpath.join(pages, posixpath.dirname(page))

    def lead(match: re.Match[str]) -> str:
        head, path, tail = match.groups()
        target = posixpath.normpath(posixpath.join(here, path))
        place = root / target
        inside = target.startswith(f"{pages}/") and place.is_file()
        if ":" in path or inside or target.startswith("..") or not place.exists():
            return match[0]
        return f"{head}{repository}/{'tree' if place.is_dir() else 'blob'}/{BRANCH}/{target}{tail}"

    return "\n".join(_outside_code(text, lead))


def _outside_code(text: str, lead: Any) -> Iterator[str]:
    fenced = False
    for line in text.split("\n"):
        if line.startswith(FENCE):
            fenced = not fenced
        if fenced:
            yield line
            continue
        parts = CODE.split(line)
        parts[::2] = [LINK.sub(lead, part) for part in parts[::2]]
        yield "".join(parts)


def on_config(config: Any) -> Any:
    """Called by mkdocs when it has read mkdocs.yml."""
    config.mdx_configs["toc"]["slugify"] = slug
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Called by mkdocs for the text of each page."""
    if not config.repo_url:
        raise WrongUse("mkdocs.yml has no repo_url")
    root = Path(config.config_file_path).parent
    return rewrite(markdown, page.file.src_uri, root, config.repo_url.rstrip("/"))
