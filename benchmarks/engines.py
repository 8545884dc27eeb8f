"""The same apps in process and on Ray: 10 silos, 3 rounds; wall time and peak memory.

    python -m benchmarks.engines

A process each, started as a user does; memory is the resident size of it and all its descendants,
sampled 20 times a second (pages that processes share count in each).
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.machine import machine

CONFIG = {
    "data": {"embedded_patients": 80},
    "training": {"max_steps": 2, "batch_size": 8},
    "federation": {"rounds": 3, "partition": {"by": "iid", "silos": 10}},
}
CODE = "import sys; from fedtune.cli.main import main; sys.exit(main())"


def measure(engine: str, folder: Path) -> tuple[float, float, int]:
    """Seconds in all, seconds of the rounds, bytes at the peak."""
    file = folder / "run.yaml"
    file.write_text(json.dumps({**CONFIG, "output": {"dir": str(folder / engine)}}))
    given = ["simulate", str(file), "--no-compare", f"federation.engine={engine}"]
    began, peak = time.monotonic(), 0
    process = psutil.Popen([sys.executable, "-c", CODE, *given], stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, _resident(process))
        time.sleep(0.05)
    assert process.returncode == 0, f"{engine} ended with {process.returncode}"
    lines = (folder / engine / "metrics.jsonl").read_text().splitlines()
    return time.monotonic() - began, sum(json.loads(line)["seconds"] for line in lines), peak


def _resident(process: psutil.Process) -> int:
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            total += one.memory_info().rss
    except psutil.Error:
        pass  # one has ended meanwhile
    return total


def main() -> None:
    print(machine())
    print("engine     wall, s  rounds, s  peak, MB")
    with tempfile.TemporaryDirectory() as folder:
        rows = {engine: measure(engine, Path(folder)) for engine in ("inprocess", "ray")}
    for engine, (wall, rounds, peak) in rows.items():
        print(f"{engine:9}  {wall:7.1f}  {rounds:9.1f}  {peak / 1e6:8.0f}")
    here, ray = rows["inprocess"], rows["ray"]
    ratios = [ray[i] / here[i] for i in range(3)]
    print(f"ray / here {ratios[0]:7.2f}  {ratios[1]:9.2f}  {ratios[2]:8.2f}")


if __name__ == "__main__":
    main()
