"""fedtune's private training against Opacus and peft, written by hand as Opacus' tutorial has it.

    python -m benchmarks.opacus_tutorial [--seeds 0 1 2] [--epsilons 3] [--out FILE.jsonl]

Medical abstracts with MiniLM, as case `abstracts` of `benchmarks/private_utility.py`: the same
rows, held-out rows, base, start of the adapter, clipping norm, learning rate, steps, epsilon and
delta, by the same accountant (PRV). Both sample by Poisson; samples and noise are each side's own.
A pass is as many steps as Opacus' loader has batches, whose rate is one over that; fedtune's batch
is the nearest whole number. Results are lines of FILE.jsonl; what has its line isn't done again.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from opacus import PrivacyEngine
from opacus.utils.batch_memory_manager import BatchMemoryManager
from peft import LoraConfig, TaskType, get_peft_model
from sklearn.metrics import accuracy_score, f1_score
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.aggregation_rules import merged
from benchmarks.machine import machine
from benchmarks.private_utility import Run
from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet
from fedtune.data.load import load_splits
from fedtune.models.adapters import read_state, write_state
from fedtune.training.central import train
from fedtune.training.prepare import prepare
from fedtune.training.private import private_steps

BATCH = 128
Result = dict[str, Any]


def settings_of(epsilon: float, seed: int) -> RunConfig:
    """The case's settings, with one pass of steps over the rows."""
    config = Run("abstracts", "central", "record", epsilon, seed).config()
    rows = len(load_splits(config).train)
    steps = -(-rows // BATCH)
    changes = {
        "training": {
            "max_steps": steps,
            "batch_size": round(rows / steps),
            "learning_rate": 0.015,  # one pass is short
        },
        "privacy": {"accountant": "prv"},
    }
    return RunConfig.model_validate(merged(config.model_dump(), changes))


def with_fedtune(config: RunConfig) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEDTUNE_LEDGER"] = str(Path(folder) / "ledger.sqlite")
        scores = train(config, Path(folder) / "run").comparison["trained"]
    private = private_steps(config, load_splits(config).train)
    assert private is not None
    return {**scores, "noise_multiplier": private.plan.noise_multiplier}


def with_opacus(config: RunConfig) -> Result:
    splits, privacy = load_splits(config), config.privacy
    labels = splits.labels
    torch.manual_seed(config.seed)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    base = AutoModelForSequenceClassification.from_pretrained(
        config.model.path, num_labels=len(labels)
    )
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=config.adapter.lora_r,
        lora_alpha=config.adapter.lora_alpha,
        target_modules=config.adapter.target_modules,
    )
    model = get_peft_model(base, lora)
    write_state(model, read_state(prepare(config).model))
    model.train()

    def tensors(rows: ExampleSet) -> TensorDataset:
        texts = [row["text"] for row in rows]
        tokens = tokenizer(
            texts,
            truncation=True,
            max_length=config.task.max_length,
            padding="max_length",
            return_tensors="pt",
        )
        targets = torch.tensor([labels.index(row["label"]) for row in rows])
        return TensorDataset(tokens["input_ids"], tokens["attention_mask"], targets)

    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=config.training.learning_rate, weight_decay=0.0)
    engine = PrivacyEngine(accountant="prv")
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(tensors(splits.train), batch_size=BATCH),
        target_delta=privacy.delta,
        target_epsilon=privacy.target_epsilon,
        epochs=1,
        max_grad_norm=privacy.clipping_norm,
    )
    with BatchMemoryManager(
        data_loader=loader,
        max_physical_batch_size=privacy.max_physical_batch,
        optimizer=optimizer,
    ) as batches:
        for ids, mask, targets in batches:
            optimizer.zero_grad()
            model(input_ids=ids, attention_mask=mask, labels=targets).loss.backward()
            optimizer.step()
    return {
        **_scores(model, tensors(splits.test)),
        "noise_multiplier": optimizer.noise_multiplier,
    }


def _scores(model: Any, test: TensorDataset) -> Result:
    model.eval()
    logits, truth = [], test.tensors[2]
    with torch.no_grad():
        for ids, mask, _ in DataLoader(test, batch_size=32):
            logits.append(model(input_ids=ids, attention_mask=mask).logits)
    every = torch.cat(logits)
    guesses = every.argmax(-1)
    return {
        "loss": float(torch.nn.functional.cross_entropy(every, truth)),
        "accuracy": float(accuracy_score(truth, guesses)),
        "macro_f1": float(f1_score(truth, guesses, average="macro", zero_division=0.0)),
    }


SIDES: dict[str, Callable[[RunConfig], Result]] = {"fedtune": with_fedtune, "opacus": with_opacus}


def table(results: list[Result]) -> str:
    """Mean and spread over seeds of either side, and fedtune's lead seed by seed."""
    lines = [
        "| epsilon | side | noise | loss | accuracy | macro F1 | seeds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for epsilon in sorted({result["epsilon"] for result in results}):
        for side in SIDES:
            rows = [r for r in results if (r["epsilon"], r["side"]) == (epsilon, side)]
            if not rows:
                continue
            cells = [_mean_spread([row[m] for row in rows]) for m in ("loss", "accuracy")]
            cells.append(_mean_spread([row["macro_f1"] for row in rows]))
            noise = statistics.fmean(row["noise_multiplier"] for row in rows)
            shown = " | ".join(cells)
            lines.append(f"| {epsilon:g} | {side} | {noise:.3f} | {shown} | {len(rows)} |")
        by_side = {s: {r["seed"]: r for r in results if r["side"] == s} for s in SIDES}
        both = sorted(by_side["fedtune"].keys() & by_side["opacus"].keys())
        leads = [by_side["fedtune"][s]["accuracy"] - by_side["opacus"][s]["accuracy"] for s in both]
        if leads:
            each = ", ".join(f"{lead:+.3f}" for lead in leads)
            lines.append(f"\nfedtune's accuracy less Opacus', seed by seed: {each}\n")
    return "\n".join(lines)


def _mean_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[3.0])
    parser.add_argument("--out", type=Path, default=Path("runs/opacus_tutorial.jsonl"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.touch()
    results = [json.loads(line) for line in options.out.read_text().splitlines()]
    known = {(r["epsilon"], r["seed"], r["side"]) for r in results}
    for seed in options.seeds:
        for epsilon in options.epsilons:
            for side, measure in SIDES.items():
                if (epsilon, seed, side) in known:
                    continue
                began = time.process_time()
                found = measure(settings_of(epsilon, seed))
                cpu = round(time.process_time() - began)
                key = {"epsilon": epsilon, "seed": seed, "side": side}
                results.append({**key, **found, "cpu_seconds": cpu})
                with options.out.open("a") as file:
                    file.write(json.dumps(results[-1]) + "\n")
                print(json.dumps(results[-1]), flush=True)
    print(machine())
    print(table(results))


if __name__ == "__main__":
    main()
