"""Milliseconds a silo and round that the in-process grid and the round loop cost by themselves.

    python -m benchmarks.grid_overhead

The silo here trains nothing and answers with the same delta each time. The overhead is a round's
time less one copy of the delta a silo, and is told twice: less the copy that a reply is made by, as
long as it took there (`in place`: the delta comes from memory, since other silos' have pushed it
out of the cache), and less a copy timed by itself, over and over in the cache (`apart`). Told are
the median round and the quietest, in wall time. The claim: at most 2 ms beyond a copy, also at
16 MB.
"""

import time
from typing import Any, ClassVar

import numpy as np
import torch
from fedtune_client.app import Instruction, make_client_app
from fedtune_client.update import LocalUpdate
from fedtune_server.rounds import RunPlan, run_rounds
from fedtune_simulations.grid import InProcessGrid

from benchmarks.machine import machine
from fedtune.aggregation.rules import FedAvg
from fedtune.config.federation import FederationConfig, ServerOptimizerConfig
from fedtune.tensors import TensorSet

ROUNDS = 24
SIZES = {"2 KB": (8, (8, 8)), "16 MB": (64, (256, 256))}


class Timed(TensorSet):
    """A set that notes how long each of its copies to bytes took."""

    seconds: ClassVar[list[float]] = []

    def to_wire(self) -> Any:
        began = time.perf_counter()
        wire = super().to_wire()
        self.seconds.append(time.perf_counter() - began)
        return wire


class Ready:
    """A silo that answers with the same delta each time."""

    run_hash = "run"

    def __init__(self, delta: TensorSet) -> None:
        self.delta, self.spec = delta, delta.spec

    def train(self, told: Instruction) -> LocalUpdate:
        return LocalUpdate(self.delta, 10, {"loss": 1.0})


def copy_ms(delta: TensorSet) -> float:
    """Median milliseconds of one copy of `delta` to bytes."""
    times = []
    for _ in range(50):
        began = time.perf_counter()
        delta.to_wire()
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e3


def rounds_ms(delta: TensorSet, silos: int) -> np.ndarray:
    """Milliseconds a silo of each round."""
    silo = Ready(delta)
    app = make_client_app(lambda context: silo)
    grid = InProcessGrid(app, [f"silo-{i:03}" for i in range(silos)])
    plan = RunPlan(grid.nodes, FederationConfig(rounds=ROUNDS), seed=0, run_hash="run")
    start = TensorSet({name: torch.zeros(shape) for name, shape in delta.spec})
    ends = [time.perf_counter()]
    rule = FedAvg(ServerOptimizerConfig())
    run_rounds(grid, rule, start, plan, on_round=lambda report: ends.append(time.perf_counter()))
    return np.diff(ends) / silos * 1e3


def main() -> None:
    print(machine(), f"{torch.get_num_threads()} threads", sep=", ")
    print("               copy, ms         in place, ms      apart, ms")
    print("adapter  silos  place  apart    median  quietest  median  quietest")
    for name, (count, shape) in SIZES.items():
        delta = Timed({f"t{i:03}": torch.randn(shape) * 1e-3 for i in range(count)})
        for silos in (10, 100):
            apart = copy_ms(delta)
            Timed.seconds.clear()
            rounds = rounds_ms(delta, silos)
            copies = np.array(Timed.seconds).reshape(ROUNDS, silos).mean(axis=1) * 1e3
            here, there = rounds - copies, rounds - apart
            print(
                f"{name:7}  {silos:5}  {np.median(copies):5.2f}  {apart:5.2f}  "
                f"{np.median(here):8.2f}  {here.min():8.2f}  "
                f"{np.median(there):6.2f}  {there.min():8.2f}"
            )


if __name__ == "__main__":
    main()
