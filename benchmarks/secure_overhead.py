"""What secure aggregation adds to a round of the demo: both ways in turn, in one process each.

    python -m benchmarks.secure_overhead [--times 5]

The demo's settings (eight silos, 78,080 trained parameters), three rounds a run, in one process as
`fedtune simulate` does it. The first round, in which everything is loaded, counts in neither.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine

_SCENARIO = Path(__file__).parents[1] / "simulations" / "scenarios" / "demo.yaml"
_ROUNDS = 4


def seconds(*, secure: bool) -> list[float]:
    """Of each round but the first, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        given = [
            *("simulate", str(_SCENARIO), f"output.dir={folder}/run", "--no-compare", "--json"),
            f"federation.rounds={_ROUNDS}",
            f"secure_aggregation.enabled={str(secure).lower()}",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "fedtune", *given], capture_output=True, text=True, check=True
        )
    return [float(line["seconds"]) for line in json.loads(done.stdout)["rounds"][1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    times = parser.parse_args().times
    print(machine())
    ratios, plain, secure = [], [], []
    for _ in range(times):
        pair = [statistics.median(seconds(secure=which)) for which in (False, True)]
        plain.append(pair[0])
        secure.append(pair[1])
        ratios.append(pair[1] / pair[0])
        print(f"plain {pair[0]:.3f} s, secure {pair[1]:.3f} s, ratio {ratios[-1]:.3f}", flush=True)
    print(
        f"a round: plain {statistics.median(plain):.3f} s, secure {statistics.median(secure):.3f}, "
        f"ratio {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    main()
