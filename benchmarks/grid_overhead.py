"""Milliseconds a silo and round that the in-process grid and the round loop cost by themselves.

    python -m benchmarks.grid_overhead

Beyond the silo's training and one copy of its delta. The silo here trains nothing: it makes one
copy of its delta and times it, a moment before the reply's copy is made, so that a machine's page
faults and neighbours weigh on both alike. What is left of a round after twice that is the overhead.
Told of the quietest round, in wall time and in processor time, which other work on the machine
disturbs less. The claim: at most 2 ms, also at 16 MB.
"""

import time

import numpy as np
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
Times = np.ndarray


def now() -> Times:
    """Wall and processor seconds."""
    return np.array([time.perf_counter(), time.process_time()])


class Ready:
    """A silo that answers with the same delta each time, after one timed copy of it."""

    run_hash = "run"

    def __init__(self, delta: TensorSet) -> None:
        self.delta, self.spec = delta, delta.spec
        self.copies: list[Times] = []

    def train(self, told: Instruction) -> LocalUpdate:
        began = now()
        self.delta.to_wire()
        self.copies.append(now() - began)
        return LocalUpdate(self.delta, 10, {"loss": 1.0})


def spent(delta: TensorSet, silos: int) -> tuple[Times, Times]:
    """Of the quietest round, in milliseconds a silo: the overhead, and one copy."""
    silo = Ready(delta)
    app = make_client_app(lambda context: silo)
    grid = InProcessGrid(app, [f"silo-{i:03}" for i in range(silos)])
    plan = RunPlan(grid.nodes, FederationConfig(rounds=ROUNDS), seed=0, run_hash="run")
    start = TensorSet({name: torch.zeros(shape) for name, shape in delta.spec})
    ends = [now()]
    rule = FedAvg(ServerOptimizerConfig())
    run_rounds(grid, rule, start, plan, on_round=lambda report: ends.append(now()))
    copies = np.array(silo.copies).reshape(ROUNDS, silos, 2).sum(axis=1)
    over = np.diff(ends, axis=0) - 2 * copies
    quietest = int(np.argmin(np.diff(ends, axis=0)[:, 1]))
    return over[quietest] / silos * 1e3, copies[quietest] / silos * 1e3


def main() -> None:
    print(machine(), f"{torch.get_num_threads()} threads", sep=", ")
    print("              one copy, ms      overhead, ms   of the 2 ms allowed")
    print("adapter  silos  wall    cpu      wall    cpu    wall   cpu")
    for name, (count, shape) in SIZES.items():
        delta = TensorSet({f"t{i:03}": torch.randn(shape) * 1e-3 for i in range(count)})
        for silos in (10, 100):
            over, copy = spent(delta, silos)
            share = over / ALLOWED_MS
            print(
                f"{name:7}  {silos:5}  {copy[0]:5.2f}  {copy[1]:5.2f}  {over[0]:7.2f}  "
                f"{over[1]:5.2f}  {share[0]:6.2f}  {share[1]:4.2f}"
            )


if __name__ == "__main__":
    main()
