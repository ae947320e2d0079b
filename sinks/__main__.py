"""`python -m sinks`: a sink, until SIGTERM. What cannot be retried ends the process; its supervisor starts it again."""

from claw_r1.process import main
from claw_r1.settings import SinksSettings
from sinks.app import run

main("sinks", SinksSettings, run)
