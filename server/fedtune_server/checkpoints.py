"""One folder a finished round, made whole under another name and then renamed."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtune.aggregation.rule import GlobalState
from fedtune.atomic import new_folder
from fedtune.errors import InputError
from fedtune.tensors import TensorSet
from fedtune.training.checkpoints import finished_folders

_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state after `round`, and the reports of all rounds so far as JSON values."""

    round: int
    state: GlobalState
    reports: list[dict[str, Any]]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, run_hash: str) -> None:
    """Write atomically and durably; the two latest are kept."""
    parts = {"adapter": checkpoint.state.adapter}
    parts |= {f"memory-{key}": part for key, part in checkpoint.state.memory.items()}
    facts = {
        "round": checkpoint.round,
        "run_hash": run_hash,
        "digests": {key: part.digest() for key, part in parts.items()},
        "reports": checkpoint.reports,
    }
    needed = sum(part.payload_bytes for part in parts.values())
    with new_folder(folder / _name(checkpoint.round), needed=needed) as draft:
        for key, part in parts.items():
            part.save(draft / f"{key}.safetensors")
        (draft / "round.json").write_text(json.dumps(facts))
    for old in _finished(folder)[:-_KEPT]:
        shutil.rmtree(old)


def latest_round(folder: Path) -> int:
    """The last finished round; 0 if there is none."""
    finished = _finished(folder)
    return int(finished[-1].name.removeprefix("round-")) if finished else 0


def load_latest(folder: Path, run_hash: str) -> Checkpoint | None:
    """The last finished round, or None. Raises InputError if it is damaged or another run's."""
    folders = _finished(folder)
    if not folders:
        return None
    path = folders[-1]
    try:
        facts = json.loads((path / "round.json").read_text())
        digests: dict[str, str] = facts["digests"]
        owner, number, reports = facts["run_hash"], int(facts["round"]), list(facts["reports"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"checkpoint is damaged ({error})", where=path) from None
    if path.name != _name(number) or len(reports) != number:
        raise InputError(
            f"checkpoint is damaged (round {number}, {len(reports)} reports)", where=path
        )
    if owner != run_hash:
        raise InputError(
            "checkpoint was made with other settings or other data",
            where=path,
            mend="put the file back as it was, or set another `output.dir`",
        )
    parts = {key: TensorSet.load(path / f"{key}.safetensors") for key in digests}
    for key, part in parts.items():
        if part.digest() != digests[key]:
            raise InputError("checkpoint is damaged (its digest differs)", where=path)
    memory = {k.removeprefix("memory-"): part for k, part in parts.items() if k != "adapter"}
    return Checkpoint(number, GlobalState(parts["adapter"], memory), reports)


def _name(number: int) -> str:
    return f"round-{number:06d}"


def _finished(folder: Path) -> list[Path]:
    return finished_folders(folder, "round-")
