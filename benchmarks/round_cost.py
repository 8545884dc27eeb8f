"""Seconds that a round between processes costs beside the silos' training.

    python -m benchmarks.round_cost

A federation as `fedtune federation up` makes it: a coordinator and nodes as processes on loopback,
with TLS, each node with its SuperNode. Every round is one step of one example in each silo, on the
embedded model. The cost is the round's time, as the coordinator tells it, less the training of the
slowest silo, as the nodes' logs tell it. The first round is told apart: in it each node loads model
and rows. Told too are the seconds of processor that all processes took for a
round, which other work on the machine changes little.
The claim: at most 3 s a round for three silos on 2 cores.
"""

import argparse
import contextlib
import os
import re
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.machine import machine
from fedtune.cli.trial import Standing, Trial, set_up
from fedtune.config.schema import RunConfig

_TRAINED = re.compile(r"round (\d+): trained in ([\d.]+) s")


def config(silos: int, rounds: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "task": {"max_length": 48},
            "training": {"max_steps": 1, "batch_size": 1},
            "federation": {"rounds": rounds, "min_silos": silos, "round_timeout_seconds": 120},
        }
    )


def training(trial: Trial) -> dict[int, float]:
    """The slowest silo's seconds of training, by round."""
    slowest: dict[int, float] = {}
    for silo in trial.silos:
        log = (trial.home(silo) / "logs" / "node.log").read_text()
        for number, seconds in _TRAINED.findall(log):
            slowest[int(number)] = max(slowest.get(int(number), 0.0), float(seconds))
    return slowest


class Processors:
    """Hears of a trial, and notes what its processes have used as each round ends."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}

    def __call__(self, now: Standing) -> None:
        if (number := len(now.rounds)) and number not in self.seconds:
            self.seconds[number] = sum(self._used())

    def _used(self) -> Iterator[float]:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                yield times.user + times.system

    def a_round(self) -> float:
        """Seconds a round after the first, while all processes were there."""
        first, last = min(self.seconds), max(self.seconds) - 1
        return (self.seconds[last] - self.seconds[first]) / (last - first)


def main() -> None:
    given = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    given.add_argument("--silos", type=int, default=3)
    given.add_argument("--rounds", type=int, default=10)
    asked = given.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trial = set_up(Path(folder), asked.silos)
        used = Processors()
        rounds = trial.take_place(config(asked.silos, asked.rounds), used)
        trained = training(trial)
    print(machine(), f"load {os.getloadavg()[0]:.1f}", sep=", ")
    print("round  seconds  training  cost")
    costs = []
    for told in rounds:
        number, seconds = told["round"], told["seconds"]
        costs.append(seconds - trained[number])
        print(f"{number:5}  {seconds:7.2f}  {trained[number]:8.2f}  {costs[-1]:4.2f}")
    later = costs[1:]
    print(
        f"{asked.silos} silos: first round {costs[0]:.2f} s, then median "
        f"{statistics.median(later):.2f} s, worst {max(later):.2f} s; processor "
        f"{used.a_round():.2f} s a round"
    )


if __name__ == "__main__":
    main()
