"""Peak memory of the server's round loop, in adapters beyond the one that is being trained.

    python -m benchmarks.server_memory

A fresh process for each number of silos; the peak resident size of three rounds, over what it was
with the first adapter loaded. Silos make their reply's bytes and keep nothing. The claim: at most
2 adapters however many silos (FedAvg without server moments).
"""

import resource
import subprocess
import sys

import torch
from fedtune_server.rounds import RunPlan, run_rounds
from fedtune_simulations.grid import InProcessGrid
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from benchmarks.machine import machine
from fedtune.aggregation.rules import FedAvg
from fedtune.config.federation import FederationConfig, ServerOptimizerConfig
from fedtune.tensors import WIRE_STYPE, TensorSet

SCALARS = 16 * 2**20  # 64 MB in float32
ALLOWED = 2.0


def peak_bytes() -> int:
    """The most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def answer(message: Message, context: Context) -> Message:
    """A reply whose bytes have no other copy."""
    shape = message.content["state"]["tensors"].shape
    ones = Array("float32", shape, WIRE_STYPE, b"\x00\x00\x80\x3f" * shape[0])
    content = {
        "delta": ArrayRecord({"tensors": ones}),
        "layout": ConfigRecord({"names": ["w"], "shapes": [str(shape[0])]}),
        "numbers": MetricRecord({"examples": 1}),
    }
    return Message(RecordDict({**content}), reply_to=message)


def measure(silos: int, scalars: int) -> float:
    """Adapters of `scalars` at the peak, beyond the first."""
    grid = InProcessGrid(answer, [f"silo-{i:03}" for i in range(silos)])
    plan = RunPlan(grid.nodes, FederationConfig(rounds=3), seed=0, run_hash="run")
    rule = FedAvg(ServerOptimizerConfig())
    before = 0

    def start() -> TensorSet:
        nonlocal before
        state = TensorSet({"w": torch.ones(scalars)})
        before = peak_bytes()
        return state

    run_rounds(grid, rule, start(), plan)
    return (peak_bytes() - before) / (4 * scalars)


def main() -> None:
    if len(sys.argv) > 1:
        measure(2, 10)  # what is loaded at first use is not the round loop's
        print(measure(int(sys.argv[1]), SCALARS))
        return
    print(machine())
    print(f"silos  adapters beyond the model's  of the {ALLOWED:.0f} allowed")
    for silos in (2, 10, 50):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.server_memory", str(silos)],
            check=True,
            capture_output=True,
            text=True,
        )
        adapters = float(done.stdout)
        print(f"{silos:5}  {adapters:27.2f}  {adapters / ALLOWED:16.2f}")


if __name__ == "__main__":
    main()
