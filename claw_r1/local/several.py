"""Several processes of one stage: what they are called, and which settings each has of its own; pure.

The first is called as its stage, the second `STAGE-2`, and so on: so a stack of one of each looks as it always did.
"""

from collections.abc import Iterable, Mapping
from typing import Final

SEVERAL: Final = ("streams", "sinks", "gateway")
"""Stages of which a stack may run several: each shares its work with its like."""


def process_names(stage: str, number: int) -> list[str]:
    return [stage, *(f"{stage}-{place}" for place in range(2, number + 1))]


def stage_of(process: str) -> str:
    """Of a process, or of a port: `gateway-2` is a gateway."""
    return process.partition("-")[0]


def place_of(process: str) -> int:
    """From 1 on."""
    return int(process.partition("-")[2] or 1)


def count(processes: Iterable[str], stage: str) -> int:
    """How many of the processes are of a stage."""
    return sum(stage_of(process) == stage for process in processes)


def own_settings(process: str, port: int, shared: Mapping[str, str]) -> dict[str, str]:
    """What a process has for itself beside the settings that all share: its port; where it is not the first of its stage also
    its name in the group, and the folder of its spool.
    """
    stage, place = stage_of(process), place_of(process)
    own = {f"CLAW_{stage.upper()}_PORT": str(port)}
    if place == 1:
        return own
    if stage == "streams":
        own["CLAW_STREAMS_WORKER"] = f"local-{place - 1}"
    if stage == "gateway" and (spool := shared.get("CLAW_GATEWAY_SPOOL")):
        own["CLAW_GATEWAY_SPOOL"] = f"{spool}-{place}"
    return own
