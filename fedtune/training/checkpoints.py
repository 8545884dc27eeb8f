"""A training run on disk: enough to go on as if it had never stopped.

Which examples a step takes and what it draws at random are functions of seed and step, so weights,
the optimizer's memory and the count of steps are all there is to keep.
"""

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from fedtune.atomic import new_folder
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.models.adapters import read_state, write_state
from fedtune.tensors import TensorSet

if TYPE_CHECKING:  # a coordinator keeps checkpoints too, and reads no data
    from fedtune.data.load import DataFacts

_KEPT = 2


@dataclass
class Progress:
    """How far a run is. `best` is the state with the lowest validation loss, when one is asked for.

    `clipping_norm` is the next private step's, which adaptive clipping moves.

    `evaluations` are the metrics of every evaluation, each with its `step`.
    """

    step: int = 0
    loss_sum: float = 0.0
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int | None = None
    best: TensorSet | None = None
    clipping_norm: float | None = None


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of the run that `run_hash` identifies; the latest two are kept."""

    path: Path
    run_hash: str

    @property
    def latest_step(self) -> int:
        """The step after which a run would go on; 0 without a checkpoint."""
        finished = self._finished()
        return int(finished[-1].name.removeprefix("step-")) if finished else 0

    def save(self, model: Any, optimizer: Optimizer, progress: Progress) -> Path:
        """Write a checkpoint, whole or not at all; give its folder."""
        parts = {"state": read_state(model), "optimizer": optimizer_state(optimizer)}
        if progress.best is not None:
            parts["best"] = progress.best
        facts = dataclasses.asdict(dataclasses.replace(progress, best=None)) | {
            "run_hash": self.run_hash,
            "digests": {name: part.digest() for name, part in parts.items()},
        }
        folder = self.path / _name(progress.step)
        needed = sum(part.payload_bytes for part in parts.values())
        with new_folder(folder, needed=needed) as draft:
            for name, part in parts.items():
                part.save(draft / f"{name}.safetensors")
            (draft / "progress.json").write_text(json.dumps(facts))
        for old in self._finished()[:-_KEPT]:
            shutil.rmtree(old)
        return folder

    def check(self) -> None:
        """Raise InputError if the latest checkpoint is damaged or of a run with other settings."""
        if finished := self._finished():
            self._read(finished[-1])

    def restore(self, model: Any, optimizer: Optimizer) -> Progress:
        """Put the latest checkpoint into `model` and `optimizer`; without one, nothing is done.

        Raises InputError if it is damaged or of a run with other settings.
        """
        finished = self._finished()
        if not finished:
            return Progress()
        progress, parts = self._read(finished[-1])
        try:
            write_state(model, parts["state"])
            load_optimizer_state(optimizer, parts["optimizer"])
        except (ValueError, KeyError) as error:
            raise InputError(f"not of this model ({error})", where=finished[-1]) from None
        return dataclasses.replace(progress, best=parts.get("best"))

    def _read(self, folder: Path) -> tuple[Progress, dict[str, TensorSet]]:
        try:
            facts = json.loads((folder / "progress.json").read_text())
            owner, digests = facts.pop("run_hash"), dict(facts.pop("digests"))
            progress = Progress(**facts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"checkpoint is damaged ({error})", where=folder) from None
        if owner != self.run_hash:
            raise InputError(
                "checkpoint was made with other settings or other data",
                where=folder,
                mend="put the file back as it was, or set another `output.dir`",
            )
        if folder.name != _name(progress.step):
            raise InputError(f"checkpoint is damaged (of step {progress.step})", where=folder)
        parts = {name: TensorSet.load(folder / f"{name}.safetensors") for name in digests}
        if damaged := [name for name, part in parts.items() if part.digest() != digests[name]]:
            raise InputError(f"checkpoint is damaged ({damaged[0]})", where=folder)
        return progress, parts

    def _finished(self) -> list[Path]:
        return finished_folders(self.path, "step-")


def _name(step: int) -> str:
    return f"step-{step:08d}"


def finished_folders(path: Path, prefix: str) -> list[Path]:
    """The checkpoints in `path`, the latest last; drafts are left out.

    Raises InputError on one whose name has no number after `prefix`.
    """
    found = sorted(folder for folder in path.glob(f"{prefix}*") if not folder.suffix)
    for folder in found:
        if not folder.name.removeprefix(prefix).isdecimal():
            raise InputError(
                "is no checkpoint", where=folder, mend="move it out of the run's folder"
            )
    return found


def run_hash(config: RunConfig, data: "DataFacts") -> str:
    """SHA-256 of what decides a run's result: its settings and the content of its data.

    What it starts from, the base model and `adapter.init_from`, `run_folder` holds it to.
    """
    parts = [
        config.hash,
        data.train_fingerprint,
        data.validation_fingerprint,
        data.test_fingerprint,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def optimizer_state(optimizer: Optimizer) -> TensorSet:
    """The optimizer's tensors, named `parameter number.moment`."""
    state = optimizer.state_dict()["state"]
    return TensorSet(
        {
            f"{number:08d}.{name}": value.detach().float().cpu().clone()
            for number, moments in state.items()
            for name, value in moments.items()
            if value is not None
        }
    )


def load_optimizer_state(optimizer: Optimizer, saved: TensorSet) -> None:
    """Undo `optimizer_state`."""
    state: dict[int, dict[str, Any]] = {}
    for key in saved:
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = saved[key]
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
