"""A value of a request's body is what its place asks for, or the call is refused with the name of the place.

Invariants: null counts as absent; a boolean is no number; what a name says is a path such as `messages[2].content[0].type`.
"""

from typing import Any

from gateway.replies import Refusal


def wrong(where: str, needs: str) -> Refusal:
    """400: the value at `where` is not what it must be."""
    return invalid(where, f"must be {needs}")


def invalid(where: str, why: str) -> Refusal:
    """400: what is wrong with the value at `where`, as a sentence about it."""
    return Refusal(400, f"{where} {why}", param=where, code="invalid_field")


def missing(where: str) -> Refusal:
    """400: there is no value at `where`."""
    return Refusal(400, f"{where} is missing", param=where, code="missing_field")


def unsupported(where: str, why: str) -> Refusal:
    """400: what is asked for at `where` cannot be done."""
    return Refusal(400, f"{where}: {why}", param=where, code="unsupported")


def need(holder: dict[str, Any], key: str, where: str) -> Any:
    """The member, which must be there and not null; `where` names the holder, "" is the body."""
    value = holder.get(key)
    if value is None:
        raise missing(below(where, key))
    return value


def member(holder: dict[str, Any], key: str, default: Any) -> Any:
    """The member, or `default` if it is not there or null."""
    value = holder.get(key)
    return default if value is None else value


def below(where: str, key: str) -> str:
    """The name of a member."""
    return f"{where}.{key}" if where else key


def as_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise wrong(where, "a string")
    return value


def as_object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(where, "an object")
    return value


def as_list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong(where, "a list")
    return value


def as_flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise wrong(where, "true or false")
    return value


def as_integer(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong(where, "an integer")
    return value


def as_number(value: object, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise wrong(where, "a number")
    return value


def text_of(holder: dict[str, Any], key: str, where: str) -> str:
    """The member, a string that must be there."""
    return as_text(need(holder, key, where), below(where, key))


def optional_text(value: object, where: str) -> str | None:
    return None if value is None else as_text(value, where)


def optional_flag(value: object, where: str) -> bool | None:
    return None if value is None else as_flag(value, where)


def optional_number(value: object, where: str) -> float | None:
    return None if value is None else as_number(value, where)


def optional_integer(value: object, where: str, least: int) -> int | None:
    """An integer of 63 bits from `least` on."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise wrong(where, f"an integer from {least} on")
    return value
