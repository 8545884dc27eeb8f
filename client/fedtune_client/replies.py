"""What a node has done for a run, on its disk: rounds begun, and replies that can be sent again.

A coordinator that was killed asks again for a round that it never finished. A private silo must not
train, and spend, a second time for it. That holds for a node's latest runs: of older ones nothing
is left but what was charged for them.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from fedtune.atomic import append_line, flush, new_folder
from fedtune.errors import InputError
from fedtune.models.read_json import read_json
from fedtune.tensors import TensorSet
from fedtune.training.charging import CHARGED
from fedtune.training.checkpoints import finished_folders
from fedtune_client.app import Instruction
from fedtune_client.once import AGREED, DRAWN
from fedtune_client.update import LocalUpdate

_KEPT = 2
_BEGUN = "begun.jsonl"
LEFT = "left"
"""In a run's folder: what its encoder keeps between rounds."""


@dataclass(frozen=True)
class Replies:
    """The replies of one run in `folder`; those of the latest two rounds are kept."""

    folder: Path

    def begun(self) -> list[int]:
        """The rounds for which training was begun, whatever became of it, in order."""
        file = self.folder / _BEGUN
        if not file.exists():
            return []
        return [json.loads(line)["round"] for line in file.read_text().splitlines()]

    def begin(self, number: int) -> None:
        """Remember that training for the round begins; on disk when it returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        append_line(self.folder / _BEGUN, json.dumps({"round": number}))
        flush(self.folder / _BEGUN)
        flush(self.folder)

    def find(self, told: Instruction) -> LocalUpdate | None:
        """The reply to exactly this instruction, if it is still kept and whole."""
        path = self._path(told.round)
        if not path.exists():
            return None
        try:
            facts = read_json(path / "reply.json")
            delta = TensorSet.load(path / "delta.safetensors")
            whole = delta.digest() == facts["delta"] and facts["instruction"] == digest_of(told)
            examples, metrics = int(facts["examples"]), dict(facts["metrics"])
        except (InputError, KeyError, TypeError, ValueError):
            return None
        return LocalUpdate(delta, examples, metrics) if whole else None

    def keep(self, told: Instruction, update: LocalUpdate) -> None:
        """Write the reply, whole or not at all, before it is sent."""
        facts = {
            "instruction": digest_of(told),
            "delta": update.delta.digest(),
            "examples": update.examples,
            "metrics": dict(update.metrics),
        }
        with new_folder(self._path(told.round), needed=update.delta.payload_bytes) as draft:
            update.delta.save(draft / "delta.safetensors")
            (draft / "reply.json").write_text(json.dumps(facts))
        for old in finished_folders(self.folder, "round-")[:-_KEPT]:
            shutil.rmtree(old)

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:06d}"


def forget_old_runs(folder: Path, kept: int, at_work: str) -> None:
    """Delete what can be sent again of runs in `folder` before the latest `kept` and `at_work`.

    Private and secure runs are counted apart, so that no number of others pushes them out. What was
    charged, told, begun and signed for of such a run stays for good; it is small.
    """
    runs = [run for run in folder.glob("*") if run.is_dir() and run.name != at_work]
    runs.sort(key=_last_begun)
    for private in (True, False):
        alike = [run for run in runs if _stays(run) == private]
        for run in alike[:-kept]:
            large = [*(path.name for path in run.glob("round-*")), LEFT, DRAWN]
            for path in (run / name for name in large) if private else (run,):
                shutil.rmtree(path, ignore_errors=True)  # else with the next run


def _stays(run: Path) -> bool:
    """Whether some of its folder is for good: what was charged, or signed for in secure sums."""
    return (run / CHARGED).exists() or (run / AGREED).exists()


def _last_begun(run: Path) -> float:
    begun = run / _BEGUN
    return (begun if begun.exists() else run).stat().st_mtime


def digest_of(told: Instruction) -> str:
    """What tells two instructions of a run apart."""
    return f"{told.round} {told.adapter.digest()} {told.residual.digest()}"
