"""What both directions of the responses dialect share: the names of tools, reasoning that travels.

Invariants: a name that went to the engine comes back as the agent's own.
"""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final, Literal

from gateway.replies import Refusal

Kind = Literal["function", "custom"]
INPUT: Final = "input"
"""The one argument of the function that stands for a custom tool."""
_SEPARATOR: Final = "__"
_SEALED: Final = "claw1:"


def beyond(place: str, message: str) -> Refusal:
    """400 for what the API has and an engine has not."""
    return Refusal(400, message, param=place, code="unsupported")


# ---------------------------------------------------------------------------------------------------------------- tools


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as the agent knows it."""

    name: str
    namespace: str | None = None
    kind: Kind = "function"


@dataclass(slots=True)
class ToolNames:
    """Which function of the engine's request stands for which tool of the agent's."""

    _flat: dict[Tool, str] = field(default_factory=dict)
    _tools: dict[str, Tool] = field(default_factory=dict)
    _taken: dict[str, int] = field(default_factory=dict)

    def add(self, tool: Tool) -> str:
        """The function's name: the tool's own, or one with its namespace in front; another one's is never used twice."""
        if (known := self._flat.get(tool)) is not None:
            return known
        plain = flat = _flat_name(tool)
        while flat in self._tools:
            self._taken[plain] = self._taken.get(plain, 1) + 1
            flat = f"{plain}_{self._taken[plain]}"
        self._flat[tool] = flat
        self._tools[flat] = tool
        return flat

    def flat(self, tool: Tool) -> str:
        """The function's name, also of a tool that is in the history alone."""
        return self._flat.get(tool) or _flat_name(tool)

    def tool(self, flat: str) -> Tool:
        """The agent's tool; a name that the model made up is a plain function's."""
        return self._tools.get(flat) or Tool(flat)

    def __contains__(self, tool: Tool) -> bool:
        return tool in self._flat


def _flat_name(tool: Tool) -> str:
    return tool.name if tool.namespace is None else f"{tool.namespace}{_SEPARATOR}{tool.name}"


# ------------------------------------------------------------------------------------------------------------ reasoning


def seal(reasoning: str) -> str:
    """Reasoning as `encrypted_content`: some agents send back that alone.

    It hides nothing: the same text is in the item's content.
    """
    return _SEALED + base64.b64encode(reasoning.encode()).decode()


def unseal(sealed: str) -> str | None:
    """The reasoning that `seal` wrote; None for what another server wrote."""
    if not sealed.startswith(_SEALED):
        return None
    try:
        return base64.b64decode(sealed[len(_SEALED) :], validate=True).decode()
    except (binascii.Error, ValueError):
        return None
