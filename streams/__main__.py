"""`python -m streams`: a stream worker, until SIGTERM. Any failure ends the process; its supervisor starts it again."""

from claw_r1.process import main
from claw_r1.settings import StreamsSettings
from streams.app import run

main("streams", StreamsSettings, run)
