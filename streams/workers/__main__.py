"""`python -m streams.workers`: a reward and annotation worker, until SIGTERM. Any failure ends the process; its supervisor
starts it again."""

from claw_r1.process import main
from claw_r1.settings import WorkersSettings
from streams.workers.app import run

main("workers", WorkersSettings, run)
