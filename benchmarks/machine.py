"""What a measurement was taken on: one line for the head of its table."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

_DECIDE_SPEED = ("torch", "transformers", "peft", "flwr", "numpy")


def machine() -> str:
    """Processor, cores, Python and the versions that decide speed."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        model = names[0] if names else model
    versions = ", ".join(f"{name} {version(name)}" for name in _DECIDE_SPEED)
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
