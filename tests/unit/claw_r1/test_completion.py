"""The shell completes commands, sub-commands and options, as the start page says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("claw rec", {"recipes"}),
        ("claw recipes ", {"apply", "backfill", "dry-run"}),
        ("claw demo --he", {"--headless", "--help"}),
    ],
)
def test_bash_completes(typed: str, found: set[str]) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1), "_CLAW_COMPLETE": "complete_bash"}
    claw = str(Path(sys.executable).with_name("claw"))
    done = subprocess.run([claw], env=os.environ | words, capture_output=True, text=True, timeout=60, check=False)
    assert found <= set(done.stdout.split()), done.stdout + done.stderr
