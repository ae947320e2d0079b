"""Conversations are parted into what was asked and how it goes on: the shape of preference data, wherever it is made.

Pure.
"""

from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]


def part_chats(*chats: Sequence[Message]) -> int:
    """How many messages all of them begin with, up to the first reply in any."""
    common = next(
        (n for n, both in enumerate(zip(*chats, strict=False)) if any(one != both[0] for one in both)),
        min(map(len, chats)),
    )
    return min([common, *(n for chat in chats for n, message in enumerate(chat) if message["role"] == "assistant")])
