"""The part of a run's privacy statement that stays with its model, wherever that is moved.

A run's settings lie beside its adapter, not in it. Whoever has just the adapter, or a model that it
was merged into, has this file: the mode, the promise and whether held-out rows were public; not
the silos' names, nor what the ledger told. It is a note to honest people: who deletes it, or adds
it, changes nothing of the weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedtune.atomic import write_text
from fedtune.errors import InputError
from fedtune.models.read_json import read_json

STATEMENT = "privacy.json"
_TRAVELS = ("version", "mode", "promise", "statement", "held_out", "not_covered")
_Mode = Literal["local", "distributed", "central"]
_PRIVATE: tuple[_Mode, ...] = ("local", "distributed", "central")


@dataclass(frozen=True)
class Promised:
    """In which mode the model was trained, and whether exact scores on held-out rows are told."""

    mode: _Mode
    held_out: Literal["refuse", "public"]


def write_promise(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what travels of a run's statement into the folder of its adapter or model."""
    travels = {name: facts[name] for name in _TRAVELS if name in facts}
    write_text(folder / STATEMENT, json.dumps(travels, indent=2) + "\n")


def carry_promise(source: Path, to: Path) -> None:
    """Copy what `source` says to the folder of a model that was made from it."""
    if (source / STATEMENT).is_file():
        write_promise(to, read_json(source / STATEMENT))


def read_promise(folder: Path) -> Promised | None:
    """What the folder says of a private run; None if it says of none.

    Raises InputError when the file can't be read as a statement.
    """
    path = folder / STATEMENT
    if not path.is_file():
        return None
    said = read_json(path)
    mode = said.get("mode")
    if mode == "none":
        return None
    if mode not in _PRIVATE:
        raise InputError("is no privacy statement", where=path, expected="`mode`")
    return Promised(mode, "public" if said.get("held_out") == "public" else "refuse")
