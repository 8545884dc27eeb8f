"""Tables and plots of what `benchmarks/private_utility.py` measured.

    python -m benchmarks.private_utility_report FILE.jsonl [--figures docs/figures]

Each figure is of held-out rows: the mean over seeds, and the sample standard deviation where there
are two seeds or more. The last table says what a record-level promise is worth to a patient with
several records, by three ways to count (see `groups`).
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from dp_accounting.pld import privacy_loss_distribution as losses
from scipy.stats import binom

from fedtune.privacy.accounting import epsilon as epsilon_of
from fedtune.privacy.accounting import solve_noise
from fedtune.privacy.events import GaussianEvent

mpl.use("Agg")
import matplotlib.pyplot as plt

Result = dict[str, Any]
Line = tuple[str, str]

ORDER: tuple[float | None, ...] = (1.0, 3.0, 8.0, None)
METRICS = ("accuracy", "macro_f1", "loss")
GROUP_SIZES = (2, 5, 10)
_TITLES = {
    "medquad": "MedQuAD, Llama of 260,032 parameters",
    "abstracts": "Medical abstracts, MiniLM",
    "notes": "Embedded notes, embedded Llama",
    "silos": "MedQuAD, silos as units",
}


def lines_of(results: Sequence[Result]) -> dict[Line, dict[float | None, list[Result]]]:
    """Results by (where, unit) and epsilon; those without privacy belong to every unit."""
    units = sorted({r["unit"] for r in results} - {"none"}, reverse=True)
    found: dict[Line, dict[float | None, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for unit in units if result["unit"] == "none" else [result["unit"]]:
            found[result["where"], unit][result["epsilon"]].append(result)
    return found


def values(results: Sequence[Result], metric: str) -> list[float]:
    """The metric of each result that has it."""
    return [r["trained"][metric] for r in results if metric in r["trained"]]


def mean_spread(numbers: Sequence[float], digits: int = 3) -> str:
    """`0.512 ± 0.004`; without a spread for one number, `-` for none."""
    if not numbers:
        return "-"
    spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.{digits}f}{spread}"


def table(case: str, results: Sequence[Result]) -> str:
    """Metrics by way of training, unit and epsilon."""
    rows = [
        f"**{_TITLES[case]}**\n",
        "| Trained | Unit | Metric | epsilon 1 | 3 | 8 | none | Seeds |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for (where, unit), by_epsilon in lines_of(results).items():
        seeds = [str(len(by_epsilon[e])) for e in ORDER]
        shown = seeds[0] if len(set(seeds)) == 1 else ", ".join(seeds)
        for metric in METRICS:
            cells = [mean_spread(values(by_epsilon[e], metric)) for e in ORDER]
            if any(cell != "-" for cell in cells):
                rows.append(f"| {where} | {unit} | {metric} | {' | '.join(cells)} | {shown} |")
    bases = {r["seed"]: r["base"] for r in results if "base" in r}
    if bases:
        told = [
            f"{m} {mean_spread([b[m] for b in bases.values()])}"
            for m in METRICS
            if all(m in b for b in bases.values())
        ]
        rows.append(f"\nUntouched base: {', '.join(told)}.")
    return "\n".join(rows)


def plans_table(case: str, results: Sequence[Result]) -> str:
    """What was promised with which noise: units, rate, steps."""
    rows = [
        "| Trained | Unit | epsilon | delta | Units | Rate | Steps | Noise multiplier |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    seen = set()
    for r in results:
        key = r["where"], r["unit"], r["epsilon"]
        if not r["plans"] or key in seen:
            continue
        seen.add(key)
        first = r["plans"][0]
        noises = [plan["noise_multiplier"] for plan in r["plans"]]
        least, most = f"{min(noises):.3f}", f"{max(noises):.3f}"
        noise = least if least == most else f"{least} to {most}"
        rows.append(
            f"| {r['where']} | {r['unit']} | {r['epsilon']:g} | {r['delta']:g} | "
            f"{first['units']:,} | {first['sample_rate']:.4f} | {first['steps']} | {noise} |"
        )
    return "\n".join(rows)


def gaps(results: Sequence[Result]) -> str:
    """Patient less record, accuracy in points, at the same epsilon and seed."""
    by_key = {(r["where"], r["unit"], r["epsilon"], r["seed"]): r for r in results}
    rows = [
        "| Trained | epsilon | Patient less record, points of accuracy, by seed |",
        "|---|---|---|",
    ]
    for where in dict.fromkeys(r["where"] for r in results):
        for epsilon in ORDER[:-1]:
            seeds = sorted(
                seed
                for seed in {r["seed"] for r in results}
                if all((where, unit, epsilon, seed) in by_key for unit in ("patient", "record"))
            )
            points = [
                100
                * (
                    by_key[where, "patient", epsilon, seed]["trained"]["accuracy"]
                    - by_key[where, "record", epsilon, seed]["trained"]["accuracy"]
                )
                for seed in seeds
            ]
            if points:
                rows.append(f"| {where} | {epsilon:g} | {', '.join(f'{p:+.1f}' for p in points)} |")
    return "\n".join(rows)


def groups(epsilon: float, delta: float, rate: float, steps: int) -> str:
    """A record-level promise read for a patient with k records, without privacy by patients.

    `unsampled`: Gaussian noise without sampling, where k records move the sum k times as far: the
    figure for a mechanism that looks Gaussian as a whole. `apart`: this plan, whose records are
    sampled independently of each other; the number that a step takes is binomial (PLD of the
    mixture, Ganesh 2024). `together`: this plan, if a patient's k records were drawn as one.
    """
    plain = solve_noise(epsilon, delta, 1.0, 1, "pld")
    noise = solve_noise(epsilon, delta, rate, steps, "pld")
    rows = [
        "| Records a patient | unsampled | apart | together |",
        "|---:|---:|---:|---:|",
    ]
    for k in (1, *GROUP_SIZES):
        unsampled = epsilon_of([GaussianEvent(1.0, plain / k)], delta, "pld")
        counts = np.arange(k + 1)
        mixture = losses.from_mixture_gaussian_mechanism(
            noise, counts.tolist(), binom.pmf(counts, k, rate).tolist(),
            value_discretization_interval=1e-3,
        )  # fmt: skip
        apart = mixture.self_compose(steps).get_epsilon_for_delta(delta)
        together = epsilon_of([GaussianEvent(rate, noise / k, steps)], delta, "rdp")
        rows.append(f"| {k} | {unsampled:.1f} | {apart:.1f} | {together:.1f} |")
    return "\n".join(rows)


def draw(case: str, results: Sequence[Result], out: Path) -> None:
    """Accuracy against epsilon: a line a way of training and unit, a dot a seed."""
    figure, axes = plt.subplots(figsize=(5.6, 3.4), dpi=100)
    found = lines_of(results)
    for number, ((where, unit), by_epsilon) in enumerate(found.items()):
        there = [(i, values(by_epsilon[e], "accuracy")) for i, e in enumerate(ORDER)]
        there = [(i, numbers) for i, numbers in there if numbers]
        style = "-" if where == "central" else "--"
        shift = 0.04 * (number - (len(found) - 1) / 2)
        (line,) = axes.plot(
            [i + shift for i, _ in there],
            [statistics.fmean(numbers) for _, numbers in there],
            style,
            label=f"{where}, {unit}",
        )
        for i, numbers in there:
            axes.plot([i + shift] * len(numbers), numbers, ".", color=line.get_color(), ms=6)
    bases = [r["base"]["accuracy"] for r in results if "base" in r]
    if bases:
        axes.axhline(statistics.fmean(bases), color="gray", lw=1, ls=":", label="untouched base")
    axes.set_xticks(range(len(ORDER)), ["1", "3", "8", "none"])
    axes.set_xlabel("epsilon of the run (none: no privacy)")
    axes.set_ylabel("held-out accuracy")
    axes.set_title(_TITLES[case], fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    figure.tight_layout()
    figure.savefig(out)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    results = [json.loads(line) for line in options.file.read_text().splitlines()]
    options.figures.mkdir(parents=True, exist_ok=True)
    for case in dict.fromkeys(r["case"] for r in results):
        mine = [r for r in results if r["case"] == case]
        print(table(case, mine), plans_table(case, mine), sep="\n\n", end="\n\n")
        if any(r["unit"] == "patient" for r in mine):
            print(gaps(mine), end="\n\n")
        draw(case, mine, options.figures / f"private_{case}.png")
    for r in results:
        if (r["case"], r["where"], r["unit"], r["epsilon"]) == ("medquad", "central", "record", 3):
            plan = r["plans"][0]
            print(groups(3.0, r["delta"], plan["sample_rate"], plan["steps"]))
            break


if __name__ == "__main__":
    main()
