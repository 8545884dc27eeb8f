"""Distributed noise against a trusted place for it, and against noise in each silo alone.

    python -m benchmarks.distributed_privacy [--seeds 0 1 2] [--kinds silo] [--out FILE.jsonl]

The demo's eight departments, epsilon 8 at delta 1e-5, held-out accuracy of the next token. By
patient: all patients in one place (DP-SGD there), noise in shares, and each silo with all of its
own. By silo: a trusted coordinator, and noise in shares. Rules, rounds, units and noise multipliers
are the same within a kind; noise is drawn anew in each run. A run that has its line in FILE is not
done again.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedtune_simulations.simulate import simulate

from benchmarks.aggregation_rules import merged
from benchmarks.machine import machine
from fedtune.config.schema import RunConfig

DEMO: dict[str, Any] = {
    "data": {"embedded_patients": 320},
    "privacy": {"target_epsilon": 8.0, "held_out": "public"},
}
SECURE = {"secure_aggregation": {"enabled": True, "max_dropouts": 0}}

BY_PATIENT = merged(
    DEMO,
    {
        "training": {"max_steps": 1, "optimizer": "sgd", "learning_rate": 1.0},
        "federation": {
            "rounds": 10,
            "min_silos": 8,
            "server_optimizer": {"name": "fedadam", "learning_rate": 0.01},
        },
        "privacy": {"clipping_norm": 0.5, "unit": "patient"},
    },
)
BY_SILO = merged(
    DEMO,
    {
        "training": {"max_steps": 4, "learning_rate": 0.004},
        "federation": {"rounds": 8, "min_silos": 8},
        "privacy": {"clipping_norm": 0.01},
    },
)
_RATE = 0.4

KINDS: dict[str, dict[str, Any]] = {
    "patient, one place": merged(
        BY_PATIENT,
        {
            "federation": {"min_silos": 1, "partition": {"by": "iid", "silos": 1}},
            "privacy": {"mode": "local"},
        },
    ),
    "patient, noise in shares": merged(
        BY_PATIENT, {**SECURE, "privacy": {"mode": "distributed", "sample_rate": _RATE}}
    ),
    "patient, each silo alone": merged(
        BY_PATIENT,
        {"privacy": {"mode": "local"}, "training": {"batch_size": 7}},  # of 17 to 74 patients
    ),
    "silo, trusted coordinator": merged(BY_SILO, {"privacy": {"mode": "central"}}),
    "silo, noise in shares": merged(
        BY_SILO, {**SECURE, "privacy": {"mode": "distributed", "unit": "silo"}}
    ),
}


def result(kind: str, seed: int) -> dict[str, Any]:
    """One run's line."""
    tree = {**KINDS[kind], "seed": seed}
    if kind == "patient, one place":
        tree = merged(tree, {"training": {"batch_size": _units(tree)}})
    config = RunConfig.model_validate(tree)
    with tempfile.TemporaryDirectory() as folder:
        found = simulate(config, Path(folder) / "run")
    plans = [done.plan for done in found.done.values()]
    return {
        "kind": kind,
        "seed": seed,
        "base": found.comparison["base"],
        "federated": found.comparison["federated"],
        "noise_multiplier": max(plan.noise_multiplier for plan in plans),
        "epsilon": max(plan.epsilon() for plan in plans),
        "units": [plan.units for plan in plans],
        "rates": sorted({plan.sample_rate for plan in plans}),
        "machine": machine(),
    }


def _units(tree: dict[str, Any]) -> int:
    """The batch that takes each patient by the one rate."""
    from fedtune.data.load import load_splits

    rows = load_splits(RunConfig.model_validate(tree)).train
    return round(_RATE * len(set(rows.codes("unit_id")[0])))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: means over seeds, and what noise in shares differs by, seed by seed."""
    yield "| Kind | Accuracy | Loss | Noise multiplier | Seeds |"
    yield "|---|---:|---:|---:|---:|"
    for kind in KINDS:
        mine = [line for line in lines if line["kind"] == kind]
        if mine:
            shown = [
                _mean([one["federated"][name] for one in mine]) for name in ("accuracy", "loss")
            ]
            noise = mine[0]["noise_multiplier"]
            yield f"| {kind} | {shown[0]} | {shown[1]} | {noise:.3f} | {len(mine)} |"
    base = {line["seed"]: line["base"]["accuracy"] for line in lines}
    yield f"| untouched base | {_mean([*base.values()])} | | | {len(base)} |"
    for one, other in (
        ("patient, noise in shares", "patient, one place"),
        ("patient, each silo alone", "patient, one place"),
        ("silo, noise in shares", "silo, trusted coordinator"),
    ):
        found = {(line["kind"], line["seed"]): line["federated"]["accuracy"] for line in lines}
        seeds = sorted(seed for kind, seed in found if kind == one and (other, seed) in found)
        off = [100 * (found[one, seed] - found[other, seed]) for seed in seeds]
        if off:
            yield f"\n{one} less {other}, points: {_mean(off)}"


def _mean(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.4f} ± {spread:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", default="", help="only those that begin so")
    parser.add_argument("--out", type=Path, default=Path("runs/distributed_privacy.jsonl"))
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for kind in (name for name in KINDS if name.startswith(given.kinds)):
            known = {(line["kind"], line["seed"]) for line in _lines(given.out)}
            if (kind, seed) not in known:
                line = result(kind, seed)
                with given.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(kind, seed, line["federated"], flush=True)
    print("\n".join(table(_lines(given.out))))


if __name__ == "__main__":
    main()
