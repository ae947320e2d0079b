"""A place in a list becomes a short text and comes back: pages go on behind the last row, however many rows there are.

Pure. A cursor is the sort key of a row, so a page costs the same everywhere and no row is seen twice or missed when others
come in.
"""

import base64
import binascii
import json
from typing import Final

from claw_r1.errors import UserError

PAGE: Final = 100
LARGEST: Final = 500


def encode(key: tuple[str | int, ...]) -> str:
    """The cursor of a row's sort key."""
    return base64.urlsafe_b64encode(json.dumps(key, separators=(",", ":")).encode()).decode().rstrip("=")


def decode(cursor: str, kinds: tuple[type, ...]) -> tuple[str | int, ...]:
    """The sort key of a cursor, with values of these kinds. Raises UserError."""
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError) as error:
        raise UserError("this is not the cursor of a page: leave `after` out to begin at the first") from error
    if not isinstance(key, list) or [type(part) for part in key] != list(kinds):
        raise UserError("this cursor is of another list: leave `after` out to begin at the first")
    return tuple(key)


def limit(wanted: int) -> int:
    """Rows of a page, within bounds."""
    return max(1, min(wanted, LARGEST))
