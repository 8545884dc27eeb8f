"""What a measurement was taken on: one line for the head of its table."""

import os
import platform
from importlib.metadata import version


def machine() -> str:
    """Processor, cores, Python and the versions that decide speed."""
    model = platform.processor() or platform.machine()
    cpuinfo = "/proc/cpuinfo"
    if os.path.exists(cpuinfo):  # noqa: PTH110
        with open(cpuinfo) as file:  # noqa: PTH123
            names = [line.split(":", 1)[1].strip() for line in file if "model name" in line]
        model = names[0] if names else model
    parts = [f"{name} {version(name)}" for name in ("torch", "flwr", "numpy")]
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, " + ", ".join(
        parts
    )
