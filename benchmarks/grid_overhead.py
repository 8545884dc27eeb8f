"""Milliseconds a silo and round that the in-process grid and the round loop cost by themselves.

    PYTHONPATH=.:server:client:simulations python benchmarks/grid_overhead.py

Beyond the silo's training and one copy of its delta. The silo here trains nothing: it makes one
copy of its delta and times it, a moment before the reply's copy is made, so that a machine's page
faults and neighbours weigh on both alike. What is left of a round after twice that is the overhead.
The claim: at most 2 ms, also at 16 MB.
"""

import statistics
import time

import torch
from fedtune_client.app import Instruction, LocalUpdate, make_client_app
from fedtune_server.rounds import RunPlan, run_rounds
from fedtune_simulations.grid import InProcessGrid

from benchmarks.machine import machine
from fedtune.aggregation.rules import FedAvg
from fedtune.config.schema import FederationConfig, ServerOptimizerConfig
from fedtune.tensors import TensorSet

ROUNDS = 12
SIZES = {"2 KB": (8, (8, 8)), "16 MB": (64, (256, 256))}
ALLOWED_MS = 2.0


class Ready:
    """A silo that answers with the same delta each time, after one timed copy of it."""

    run_hash = "run"

    def __init__(self, delta: TensorSet) -> None:
        self.delta, self.spec = delta, delta.spec
        self.copies: list[float] = []

    def train(self, told: Instruction) -> LocalUpdate:
        began = time.perf_counter()
        self.delta.to_wire()
        self.copies.append(time.perf_counter() - began)
        return LocalUpdate(self.delta, 10, {"loss": 1.0})


def spent(delta: TensorSet, silos: int) -> tuple[float, float]:
    """Medians over rounds, in milliseconds a silo: of the whole round, and of one copy."""
    silo = Ready(delta)
    app = make_client_app(lambda context: silo)
    grid = InProcessGrid(app, [f"silo-{i:03}" for i in range(silos)])
    plan = RunPlan(grid.nodes, FederationConfig(rounds=ROUNDS), seed=0, run_hash="run")
    start = TensorSet({name: torch.zeros(shape) for name, shape in delta.spec})
    _, reports = run_rounds(grid, FedAvg(ServerOptimizerConfig()), start, plan)
    copies = [sum(silo.copies[i * silos : (i + 1) * silos]) for i in range(ROUNDS)]
    rounds = [report.seconds for report in reports]
    over = [whole - 2 * copy for whole, copy in zip(rounds, copies, strict=True)]
    middle = statistics.median(over[1:])  # the first round warms up
    return middle / silos * 1e3, statistics.median(copies[1:]) / silos * 1e3


def main() -> None:
    print(machine(), f"{torch.get_num_threads()} threads", sep=", ")
    print(f"adapter  silos  one copy, ms  overhead, ms  of the {ALLOWED_MS} ms allowed")
    for name, (count, shape) in SIZES.items():
        delta = TensorSet({f"t{i:03}": torch.randn(shape) * 1e-3 for i in range(count)})
        for silos in (10, 100):
            over, copy = spent(delta, silos)
            share = over / ALLOWED_MS
            print(f"{name:7}  {silos:5}  {copy:12.3f}  {over:12.3f}  {share:19.2f}")


if __name__ == "__main__":
    main()
