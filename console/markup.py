"""Text becomes HTML here: every child and attribute is escaped unless it is markup already."""

import html
from collections.abc import Iterable

VOID = frozenset({"meta", "link", "br", "rect", "path", "line", "circle"})


class Markup(str):
    """Text that is HTML; only `element` and `raw` make it."""

    __slots__ = ()


Child = str | Iterable["Child"] | None


def _text(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return html.escape(child)
    return "".join(_text(one) for one in child)


def element(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """An element; `class_` is class, `aria_label` is aria-label, None and False leave an attribute out."""
    parts = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        label = key.rstrip("_").replace("_", "-")
        parts.append(f" {label}" if value is True else f' {label}="{html.escape(str(value))}"')
    opened = f"<{name}{''.join(parts)}"
    if name in VOID and not children:
        return Markup(f"{opened}>" if name in ("meta", "link", "br") else f"{opened}/>")
    return Markup(f"{opened}>{''.join(_text(child) for child in children)}</{name}>")


def raw(text: str) -> Markup:
    """Text of the program's own that is HTML; never of data."""
    return Markup(text)
