"""Coordinators' folders with runs in them, as runs leave them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from fedtune_server.collect import Failure
from fedtune_server.project import Project, open_project
from fedtune_server.reports import RoundReport
from fedtune_server.run_folder import RunFolder

from fedtune.config.load import save_config
from fedtune.config.schema import RunConfig
from tests.e2e.conftest import make

HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
LOSSES = (2.91, 2.2, 1.74, 1.52, 1.41, 1.36)


@dataclasses.dataclass(frozen=True)
class Runs:
    """Writes runs into a project."""

    project: Project

    def run(self, name: str, state: str, rounds: list[RoundReport], **facts: Any) -> RunFolder:
        """A run that has done these rounds; `settings` are those of its config."""
        settings = {"federation": {"rounds": 6}, **facts.pop("settings", {})}
        folder = RunFolder(self.project.runs / name)
        save_config(RunConfig.model_validate(settings), folder.path / "config.yaml")
        lines = [json.dumps(dataclasses.asdict(report)) for report in rounds]
        (folder.path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
        folder.tell(state, rounds=6, **{"reason": "", **facts})
        return folder


def report(number: int, **facts: Any) -> RoundReport:
    """A round in which all three silos answered."""
    whole = RoundReport(
        number, LOSSES[number - 1], None, 936_960, 1_936_960, 3.25, ["north", "south", "west"], []
    )
    return dataclasses.replace(whole, **facts)


def failure(silo: str, reason: Any = "client_error", detail: str = HOSTILE) -> Failure:
    return Failure(silo, reason, detail)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A coordinator with three silos and no run."""
    return open_project(make(tmp_path).server)


@pytest.fixture
def runs(project: Project) -> Runs:
    return Runs(project)
