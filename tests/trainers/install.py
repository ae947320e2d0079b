"""Real trainers, verl and TRL, for this machine's CPU, in an environment of their own.

`python -m tests.trainers.install` makes it unless it is there; where the machine cannot run them, it says so and ends well.
"""

from tests.environments import REQUIREMENTS, Wheels

TRAINERS = Wheels("verl and TRL", "trainers", REQUIREMENTS / "trainers.txt", 12.0, "import torch, trl, verl")

place, cannot = TRAINERS.place, TRAINERS.cannot

if __name__ == "__main__":
    TRAINERS.main()
