"""Flower's SuperLink as the coordinator speaks to it: a real one, on loopback."""

import json
from collections.abc import Iterator

import pytest
from fedtune_server.flower_link import OVER, Link, superlink_command
from fedtune_server.project import Project
from fedtune_server.run_start import begin, died, take_up

from fedtune import telemetry
from fedtune.config.schema import RunConfig
from fedtune.errors import RunFailedError
from fedtune.identity.loopback import new_loopback
from fedtune.serving.kept import Kept
from tests.e2e.conftest import free_ports, until
from tests.server.conftest import Runs, report

NEVER_HEARD_OF = 12345


@pytest.fixture
def link(project: Project) -> Iterator[Link]:
    place = project.folder / "superlink"
    certificate, _ = new_loopback(place)
    secret = place / "secret"
    secret.write_bytes(bytes(32))
    secret.chmod(0o600)
    port, _ = free_ports()
    child = Kept(
        "superlink",
        superlink_command(place, port, secret=secret, tls=place),
        {**telemetry.OFF, "FLWR_HOME": str(place / "home")},
        place / "log",
    )
    child.check()
    made = Link(f"127.0.0.1:{port}", certificate)
    until(made.answers, "the SuperLink")
    yield made
    child.stop()


def test_runs_that_flower_lost_or_ended_unseen_are_taken_up(
    link: Link, project: Project, runs: Runs
) -> None:
    ended = link.start_run("ended")
    assert link.stop_run(ended)
    assert not link.stop_run(ended)
    assert not link.stop_run(NEVER_HEARD_OF)
    assert link.run_status(ended)[0] == OVER
    assert "doesn't know of it" in (died(link, NEVER_HEARD_OF) or "")
    begun = [
        runs.run(name, "running", [report(1)], flower_run=number)
        for name, number in (("ended", ended), ("lost", NEVER_HEARD_OF))
    ]
    take_up(project, link)
    for run in begun:
        told = run.status()
        assert told["state"] == "waiting"
        assert died(link, told["flower_run"]) is None


def test_a_run_that_flower_does_not_take_has_failed(project: Project) -> None:
    new_loopback(project.folder / "superlink")
    nobody, _ = free_ports()
    (project.folder / "running.json").write_text(json.dumps({"superlink": f"127.0.0.1:{nobody}"}))
    with pytest.raises(RunFailedError, match="did not take it"):
        begin(project, RunConfig(), "first")
    told = json.loads((project.runs / "first" / "status.json").read_text())
    assert told["state"] == "failed"
