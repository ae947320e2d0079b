"""A name becomes a reward function: of an entry point that a package offers, or of a module's attribute.

Invariant: what cannot be loaded stops the start, with the name of what was asked for.
"""

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Final

from claw_r1.errors import WrongUse
from claw_r1.rewards.function import RewardFunction

GROUP: Final = "claw_r1.rewards"
"""Entry points by which packages offer reward functions."""


def offered() -> dict[str, str]:
    """Names of entry points → module:attribute."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def load(name: str, *, setting: str) -> Any:
    """What the name stands for, a callable. Raises WrongUse, which names the setting."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name in points:
        try:
            found = points[name].load()
        except (ImportError, AttributeError) as error:
            raise WrongUse(f"the reward function {name} ({points[name].value}) cannot be loaded: {error}") from error
        return _callable(name, found)
    if ":" not in name:
        known = ", ".join(sorted(points)) or "none is installed"
        raise WrongUse(
            f"{setting}={name}: no package offers a reward function of this name ({known}); name one of them, or "
            "write module:function"
        )
    try:
        return _callable(name, resolve(name))
    except (ImportError, AttributeError) as error:
        raise WrongUse(f"{setting}={name} cannot be loaded: {error}") from error


def resolve(reference: str) -> Any:
    """What `module:attribute` names. Raises ImportError or AttributeError."""
    module, _, attribute = reference.partition(":")
    found: Any = import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def load_function(name: str, *, setting: str) -> RewardFunction:
    """A function that was made by `reward`, or an engine's. Raises WrongUse."""
    found = load(name, setting=setting)
    if not isinstance(found, RewardFunction):
        raise WrongUse(f"{setting}={name} is not a reward function of trajectories: decorate it with @reward('name')")
    return found


def load_functions(names: tuple[str, ...], *, setting: str) -> list[RewardFunction]:
    """All of them, each with a source of its own. Raises WrongUse."""
    found = [load_function(name, setting=setting) for name in names]
    sources = [function.name for function in found]
    if twice := sorted({source for source in sources if sources.count(source) > 1}):
        raise WrongUse(
            f"{setting}: several functions are called {', '.join(twice)}; each source needs a name of its own"
        )
    return found


def _callable(name: str, found: Any) -> Any:
    if not callable(found):
        raise WrongUse(f"the reward function {name} is a {type(found).__name__}: it must be a function")
    return found
