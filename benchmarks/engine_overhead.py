"""Wall time of the rounds against the sum of the silos' own training times.

    python -m benchmarks.engine_overhead

The demo's model, data and silos, in process. A silo's own time is its trainer's; on top are the
messages, the aggregation and the checkpoint. The claim: at most 5 % on top. (The coordinator's own
evaluation is work that was asked for beside, and is not counted.)
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import fedtune_simulations.setting as setting_module
from fedtune_client.app import make_client_app
from fedtune_server.rounds import RunPlan, run_rounds
from fedtune_simulations.grid import InProcessGrid
from fedtune_simulations.setting import SimulatedSilo, prepare

from benchmarks.machine import machine
from fedtune.aggregation.rules import build_rule
from fedtune.config.schema import RunConfig
from fedtune.models.adapters import read_state
from fedtune.training.trainer import Trainer, TrainingResult

ALLOWED = 0.05
CONFIG = RunConfig.model_validate(
    {
        "training": {"learning_rate": 0.004, "max_steps": 4, "batch_size": 16},
        "federation": {"rounds": 4},
    }
)
spent: list[float] = []


class Timed(Trainer):
    """A trainer that notes how long it took."""

    def fit(self, *given: Any, **named: Any) -> TrainingResult:
        began = time.perf_counter()
        result = super().fit(*given, **named)
        spent.append(time.perf_counter() - began)
        return result


def main() -> None:
    print(machine())
    setting_module.Trainer = Timed  # type: ignore[misc]
    setting = prepare(CONFIG)
    app = make_client_app(lambda c: SimulatedSilo(str(c.node_config["silo"]), setting))
    grid = InProcessGrid(app, setting.silos)
    plan = RunPlan(grid.nodes, CONFIG.federation, CONFIG.seed, setting.run_hash)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run_rounds(
            grid, build_rule(CONFIG), read_state(setting.model), plan, checkpoints=Path(folder)
        )
        wall = time.perf_counter() - began
    over = wall / sum(spent) - 1
    print("silos' own, s  rounds, s  on top, %  of the 5 % allowed")
    print(f"{sum(spent):13.2f}  {wall:9.2f}  {over * 100:9.2f}  {over / ALLOWED:18.2f}")


if __name__ == "__main__":
    main()
