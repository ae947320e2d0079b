"""This machine is looked at: room on the disks that processes write to, and ports that somebody else holds."""

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from claw_r1.checks.finding import Finding, ok
from claw_r1.local.ports import is_free
from claw_r1.local.several import stage_of
from claw_r1.local.supervisor import why_not_ready

LEAST_FREE: Final = 2 * 2**30
"""Bytes below which a disk is as good as full."""
LEAST_SHARE: Final = 0.1


def check_disks(folders: Mapping[str, Path], spool_bytes: int) -> list[Finding]:
    """Findings on folders by name; that of `spool` must have room for all that a spool may hold."""
    return [_disk(name, folder, spool_bytes if name == "spool" else LEAST_FREE) for name, folder in folders.items()]


def _disk(name: str, folder: Path, needed: int) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    check = f"disk of {name}"
    if not os.access(there, os.W_OK):
        return Finding(
            check, "bad", f"{there} cannot be written", "give its folder to the process's user, or choose another"
        )
    usage = shutil.disk_usage(there)
    says = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB are free at {folder}"
    if usage.free < needed:
        return Finding(
            check,
            "bad",
            f"{says}, and {needed / 2**30:.1f} are needed",
            "make room, or choose a folder on a larger disk",
        )
    if usage.free < LEAST_SHARE * usage.total:
        return Finding(check, "warn", says, "make room before it is full")
    return ok(check, says)


def check_ports(ports: Mapping[str, int]) -> list[Finding]:
    """Findings on the ports of processes by name: each is free, or held by a process of ours, which answers as one."""
    if not ports:
        return []
    taken = {name: port for name, port in ports.items() if port and not is_free(port)}
    strange = {name: port for name, port in taken.items() if why_not_ready(f"http://127.0.0.1:{port}/healthz")}
    found = [
        Finding(
            "ports",
            "bad",
            f"{name}: port {port} is held by a program that is not ours",
            f"end it, or choose another with CLAW_{stage_of(name).upper()}_PORT",
        )
        for name, port in strange.items()
    ]
    return found or [ok("ports", _told(ports, taken))]


def _told(ports: Iterable[str], taken: Iterable[str]) -> str:
    return ", ".join(f"{name} {'answers' if name in set(taken) else 'free'}" for name in ports)
