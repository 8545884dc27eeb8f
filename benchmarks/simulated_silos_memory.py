"""Peak memory of a simulation of 100 silos over that of 2.

    python -m benchmarks.simulated_silos_memory

The same embedded data, divided at random into more or fewer silos; a fresh process each. The claim:
at most 1.3 times.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine

ALLOWED = 1.3


def measure(silos: int) -> int:
    """Bytes resident at the peak."""
    from fedtune_simulations.simulate import simulate

    from fedtune.config.schema import RunConfig

    config = RunConfig.model_validate(
        {
            "data": {"embedded_patients": 400},
            "training": {"max_steps": 1, "batch_size": 4},
            "federation": {"rounds": 2, "partition": {"by": "iid", "silos": silos}},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        simulate(config, Path(folder) / "run", compare=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    if len(sys.argv) > 1:
        print(measure(int(sys.argv[1])))
        return
    print(machine())
    peaks = {}
    for silos in (2, 2, 100):  # the first fills the cache of encoded examples
        command = [sys.executable, "-m", "benchmarks.simulated_silos_memory", str(silos)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[silos] = int(done.stdout.splitlines()[-1])
    ratio = peaks[100] / peaks[2]
    print("2 silos, MB  100 silos, MB  ratio  of the 1.3 allowed")
    print(
        f"{peaks[2] / 1e6:11.0f}  {peaks[100] / 1e6:13.0f}  {ratio:5.3f}  {ratio / ALLOWED:18.2f}"
    )


if __name__ == "__main__":
    main()
