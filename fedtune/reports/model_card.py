"""The model card: a README.md beside the adapter, with nothing of the data but counts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from fedtune.atomic import write_text
from fedtune.config.schema import RunConfig
from fedtune.data.load import DataFacts
from fedtune.privacy.told import rounded_up
from fedtune.reports.privacy_prose import whose
from fedtune.training.private import scores_shown

_SECTIONS = ("task", "adapter", "training", "seed")


def write_model_card(
    adapter: Path,
    config: RunConfig,
    data: DataFacts,
    scores: Mapping[str, Mapping[str, float]],
    promised: Mapping[str, Any],
    *,
    silos: Mapping[str, int | None] | None = None,
) -> None:
    """Write the card of the adapter (or full model) in `adapter`.

    `scores` are metrics on the test set, by what was scored; `silos` the examples of each silo
    of a federation, whose names stay out of the card (None: their number is not told); `promised`
    the privacy statement.
    """
    write_text(adapter / "README.md", model_card(config, data, scores, promised, silos=silos))


def model_card(
    config: RunConfig,
    data: DataFacts,
    scores: Mapping[str, Mapping[str, float]],
    promised: Mapping[str, Any],
    *,
    silos: Mapping[str, int | None] | None = None,
) -> str:
    """The card's text: Markdown with the hub's metadata in front."""
    full = config.adapter.method == "full"
    kind = "Model" if full else "Adapter"
    way = "federated" if silos else "central"
    facts = ModelCardData(
        base_model=config.model.path if config.model.path != "embedded" else None,
        library_name="transformers" if full else "peft",
        tags=["fedtune", way, config.task.name, config.adapter.method],
    )
    parts = [
        f"---\n{facts.to_yaml()}\n---",
        f"# {kind} from {way} fine-tuning",
        f"Base model: `{config.model.path}`. Settings: `{config.hash}`.",
        "## Privacy",
        _promise(promised) + _secure(config, federated=bool(silos)),
        "## Data",
        _data(config, data, silos) if promised["promise"] is None else _little(config, data, silos),
        "## Held-out test metrics",
        _table(scores) if scores else _no_scores(config),
        "## Settings",
        _settings(config, federated=bool(silos)),
    ]
    return "\n\n".join(parts) + "\n"


def _secure(config: RunConfig, *, federated: bool) -> str:
    if not federated:
        return "- **No secure aggregation**: there was one place of training."
    if config.secure_aggregation.enabled:
        return (
            "- **Secure aggregation**: the coordinator saw sums of silos' deltas, no single one. "
            "On its own this is no differential privacy."
        )
    return "- **No secure aggregation**: the coordinator saw each silo's delta."


def _promise(promised: Mapping[str, Any]) -> str:
    """The promise with its conditions, whole: who reads the card may not have the run's folder."""
    promise = promised["promise"]
    if promise is None:
        told = "No differential privacy**: what was trained may reveal single training examples."
        return f"- **{told}\n"
    first, second = promise["accountant"], promise["second_accountant"]
    return (
        f"- **Differential privacy** (mode `{promised['mode']}`): epsilon "
        f"{rounded_up(promise['epsilon'])} at delta {promise['delta']:g} for the presence of "
        f"{whose(promised)} ({promise['relation'].replace('_', '/')}), by "
        f"{first['name']} ({first['library']}); by {second['name']}: "
        f"{rounded_up(second['epsilon'])}. Against {promise['adversary']}. "
        "Not covered: " + "; ".join(promised["not_covered"]) + ".\n"
    )


def _format(config: RunConfig, data: DataFacts) -> str:
    """The rows' own format: a label prompt makes prompts and completions of text and label."""
    if config.data.label_prompt is None:
        return f"format `{data.format}`"
    return "format `text_label`, each text learned after a prompt of its label"


def _little(config: RunConfig, data: DataFacts, silos: Mapping[str, int | None] | None) -> str:
    """What may be told of private data: no exact count, no fingerprint."""
    lines = [f"- examples of {_format(config, data)}; how many is not told"]
    return "\n".join([*lines, *([f"- {len(silos)} silos"] if silos else [])])


def _data(config: RunConfig, data: DataFacts, silos: Mapping[str, int | None] | None) -> str:
    counts = f"{data.train_examples:,} training"
    prints = f"training `{data.train_fingerprint[:16]}`"
    if data.validation_examples:
        counts += f", {data.validation_examples:,} validation"
        prints += f", validation `{data.validation_fingerprint[:16]}`"
    lines = [
        f"- {counts} and {data.test_examples:,} held-out test examples of "
        f"{_format(config, data)}; {data.bad_rows:,} bad rows left out",
        f"- fingerprints: {prints}, test `{data.test_fingerprint[:16]}`",
    ]
    if silos:
        sizes = sorted(size for size in silos.values() if size is not None)
        of = f" of {sizes[0]:,} to {sizes[-1]:,} examples" if sizes else ""
        lines.append(f"- {len(silos)} silos{of}")
    return "\n".join(lines)


def _table(scores: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for metrics in scores.values() for name in metrics))
    rows = [f"| | {' | '.join(names)} |", f"|---{'|---:' * len(names)}|"]
    for who, metrics in scores.items():
        cells = [f"{metrics[name]:.4f}" if name in metrics else "" for name in names]
        rows.append(f"| {who} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _no_scores(config: RunConfig) -> str:
    if scores_shown(config):
        return "None: the run was not compared."
    return "None: exact scores would tell of the people in the held-out rows."


def _settings(config: RunConfig, *, federated: bool) -> str:
    sections = (*_SECTIONS, "federation") if federated else _SECTIONS
    tree = config.model_dump(mode="json", include=set(sections))
    # a silo's or a label's name is content
    tree["task"].pop("labels", None)
    tree.get("federation", {}).pop("silo_ranks", None)
    tree["adapter"].pop("init_from", None)
    return f"```json\n{json.dumps(tree, indent=2)}\n```"
