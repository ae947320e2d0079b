"""A trainer's environment is crowded: the adapter brings along only what the package's plain install has."""

import subprocess
import sys

HEAVY = (
    "fastapi",
    "faust",
    "clickhouse_connect",
    "prometheus_client",
    "typer",
    "uvicorn",
    "aiohttp",
    "chdb",
    "pyarrow",
    "torch",
)


def test_importing_the_adapter_imports_only_base_dependencies() -> None:
    program = f"import sys, trainer_adapter; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
