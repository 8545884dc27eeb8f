"""A classifier's labels in files: transformers' config has them, PEFT's format has no place."""

import json
from pathlib import Path
from typing import Any

from fedtune.errors import InputError
from fedtune.models.adapter_files import adapter_spec
from fedtune.models.read_json import read_json

FILE = "labels.json"


def save_labels(model: Any, folder: Path) -> None:
    """Write the model's labels, in the order of its head's rows, beside its adapter."""
    names = model.config.id2label
    labels = {"labels": [names[number] for number in sorted(names)]}
    (folder / FILE).write_text(json.dumps(labels) + "\n", encoding="utf-8")


def labels_of_model(folder: Path) -> tuple[str, ...]:
    """The labels in a model's config.json; two are what `transformers` takes for none."""
    names = read_json(folder / "config.json").get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def labels_of_adapter(folder: Path) -> tuple[str, ...]:
    """The names in labels.json; without it, as `transformers` calls the rows of its head.

    Raises InputError if neither tells how many there are.
    """
    path = folder / FILE
    if path.is_file():
        names = read_json(path).get("labels")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError("is damaged", where=path, expected="a list of `labels`")
        return tuple(names)
    ends = ("score.weight", "classifier.weight")
    heads = [shape[0] for name, shape in adapter_spec(folder) if name.endswith(ends)]
    if not heads:
        raise InputError(
            "the number of labels can't be told",
            where=folder,
            expected=f"{FILE}, or a `score` or `classifier` among the adapter's tensors",
        )
    return tuple(f"LABEL_{number}" for number in range(heads[0]))
