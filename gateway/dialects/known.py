"""The dialects that agents may speak."""

from gateway.dialects import chat, completions, messages, responses
from gateway.dialects.base import Dialect, Name


def dialects(*, strip: bool, merge_system: bool) -> dict[Name, Dialect]:
    """Every dialect by its name.

    `strip` leaves out of replies what only capture needs; `merge_system` puts all system messages at the head.
    """
    return {
        "chat": chat.dialect(strip=strip),
        "completions": completions.dialect(strip=strip),
        "responses": responses.dialect(merge_system=merge_system),
        "messages": messages.dialect(merge_system=merge_system),
    }
