"""Aggregation rules on skewed silos: held-out loss and bytes, three seeds each.

    python -m benchmarks.aggregation_rules [notes] [private] [medquad]

`notes`: the embedded clinical notes by specialty, embedded Llama. `private`: more of them, with
DP-SGD in each silo. `medquad`: questions and answers
by institute; needs the data and model that `simulations/scenarios/medquad.yaml` names, from the
repository's root. Every rule has the same silos, steps, learning rate and seeds; rules with a knob
of their own have one setting, named in the table.
"""

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from fedtune_simulations.simulate import simulate

from benchmarks.machine import machine
from fedtune.config.schema import RunConfig

SEEDS = (0, 1, 2)
RULES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "ffa (freeze_a)": {"adapter": {"freeze_a": True}},
    "fed_sb, rank 8": {"adapter": {"method": "fed_sb"}},
    "fed_sb, rank 32": {"adapter": {"method": "fed_sb", "lora_r": 32, "lora_alpha": 64.0}},
    "fedex": {"federation": {"aggregation": "fedex"}},
    "svd": {"federation": {"aggregation": "svd"}},
    "fedavgm 0.5": {
        "federation": {"server_optimizer": {"name": "fedavgm", "momentum": 0.5}},
    },
    "fedadam 0.01": {
        "federation": {"server_optimizer": {"name": "fedadam", "learning_rate": 0.01}},
    },
    "fedprox 0.1": {"federation": {"proximal_mu": 0.1}},
}
CASES: dict[str, dict[str, Any]] = {
    "notes": {
        "data": {"embedded_patients": 120},
        "task": {"max_length": 160},
        "training": {"learning_rate": 0.004, "max_steps": 4, "batch_size": 8},
        "federation": {"rounds": 6},
    },
    "private": {
        "data": {"embedded_patients": 400},
        "task": {"max_length": 160},
        "training": {"learning_rate": 0.004, "max_steps": 4, "batch_size": 8},
        "federation": {"rounds": 6},
        "privacy": {
            "mode": "local",
            "target_epsilon": 8.0,
            "delta": 1e-3,
            "held_out": "public",
        },
    },
    "medquad": {
        "model": {"path": "../shared/models/stories260K-hf"},
        "data": {
            "source": "files",
            "train_files": ["../shared/data/medquad/medquad.jsonl"],
            "columns": {"prompt": "question", "completion": "answer"},
            "test_fraction": 0.03,
        },
        "task": {"max_length": 128},
        "training": {"learning_rate": 0.005, "max_steps": 5, "batch_size": 8},
        "federation": {"rounds": 4, "partition": {"by": "column", "column": "source"}},
    },
}


def merged(*trees: dict[str, Any]) -> dict[str, Any]:
    """One tree of settings; later ones win."""
    whole: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            both = isinstance(value, dict) and isinstance(whole.get(key), dict)
            whole[key] = merged(whole[key], value) if both else value
    return whole


def measure(case: dict[str, Any], rule: dict[str, Any]) -> tuple[list[float], float, float]:
    """Final losses by seed; megabytes up and down of a run."""
    losses, up, down = [], 0.0, 0.0
    for seed in SEEDS:
        config = RunConfig.model_validate(merged(case, rule, {"seed": seed}))
        with tempfile.TemporaryDirectory() as folder:
            rounds = simulate(config, Path(folder) / "run", compare=False).rounds
        losses.append(float(rounds[-1].loss or "nan"))
        up = sum(report.bytes_up or 0 for report in rounds) / 1e6
        down = sum(report.bytes_down or 0 for report in rounds) / 1e6
    return losses, up, down


def main() -> None:
    print(machine())
    for name in sys.argv[1:] or CASES:
        print(f"\n{name}, {CASES[name]['federation']['rounds']} rounds, seeds {SEEDS}")
        print("| rule | held-out loss | of each seed | MB up | MB down |\n|---|---|---|---|---|")
        for rule, settings in RULES.items():
            losses, up, down = measure(CASES[name], settings)
            each = ", ".join(f"{loss:.4f}" for loss in losses)
            mean = statistics.fmean(losses)
            print(f"| {rule} | {mean:.4f} | {each} | {up:.1f} | {down:.1f} |", flush=True)


if __name__ == "__main__":
    main()
