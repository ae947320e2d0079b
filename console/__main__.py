"""Starts the console: `python -m console`, with settings from CLAW_* variables."""

from claw_r1.process import main
from claw_r1.settings import ConsoleSettings
from console.app import run

if __name__ == "__main__":
    main("console", ConsoleSettings, run)
