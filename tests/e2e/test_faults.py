"""What goes wrong in the life of a federation, each with the run ending right."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import SILOS, Federation, until

RUN = """\
task: {max_length: 48}
training: {max_steps: 20, batch_size: 8}
federation: {rounds: 3, round_timeout_seconds: 40}
"""


def begin(federation: Federation, name: str, **changes: str) -> None:
    """Start a run of three rounds of some seconds and don't wait."""
    file = federation.folder / f"{name}.yaml"
    file.write_text(RUN)
    given = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    federation.said("server", "run", federation.server, file, *given, "--name", name, "--detach")


def end(federation: Federation, name: str, *states: str) -> dict[str, object]:
    """Wait until a run has ended in one of `states`."""
    return dict(
        until(
            lambda: (told := federation.status(name)).get("state") in states and told,
            f"{name} to be {states}",
        )
    )


def adapter(federation: Federation, name: str) -> bytes:
    return (
        federation.server / "runs" / name / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


def test_a_coordinator_killed_in_a_round_goes_on_where_it_was(federation: Federation):
    begin(federation, "whole")
    end(federation, "whole", "finished")
    begin(federation, "killed")
    until(lambda: federation.rounds("killed"), "the first round")
    federation.kill("server")
    (federation.server / "running.json").unlink()
    federation.start("server")
    assert end(federation, "killed", "finished")["round"] == 3
    assert adapter(federation, "killed") == adapter(federation, "whole")
    assert [line["round"] for line in federation.rounds("killed")] == [1, 2, 3]


def test_a_stopped_run_is_resumed_and_a_stopped_coordinator_takes_its_runs_up(
    federation: Federation,
):
    begin(federation, "stopped")
    until(lambda: federation.rounds("stopped"), "the first round")
    federation.said("server", "stop", federation.server, "stopped")
    assert federation.status("stopped")["state"] == "stopped"
    federation.said("server", "resume", federation.server, "stopped")
    begin(federation, "other")
    until(lambda: federation.rounds("other"), "the first round")
    federation.stop("server")
    assert federation.status("other")["state"] == "running"
    federation.start("server")
    for run in ("stopped", "other"):
        assert end(federation, run, "finished", "failed")["state"] == "finished"
        assert adapter(federation, run) == adapter(federation, "whole")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_killed_in_a_round_is_missed_and_comes_back(federation: Federation):
    begin(federation, "node")
    until(lambda: federation.rounds("node"), "the first round")
    federation.kill("south")
    federation.start("south")
    told = end(federation, "node", "finished", "failed")
    assert told["state"] == "finished", told
    rounds = federation.rounds("node")
    assert [line["round"] for line in rounds] == [1, 2, 3]
    assert all({"north", "west"} <= set(line["silos"]) for line in rounds)
    missing = [failure["silo"] for line in rounds for failure in line["failures"]]
    assert set(missing) <= {"south"}
    federation.online(*SILOS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_silent_node_costs_a_deadline_and_no_more(federation: Federation):
    process = federation.processes["west"]
    began = time.monotonic()
    process.send_signal(signal.SIGSTOP)
    try:
        begin(federation, "silent", federation__rounds="1", federation__round_timeout_seconds="15")
        told = end(federation, "silent", "finished", "failed")
    finally:
        process.send_signal(signal.SIGCONT)
    assert told["state"] == "finished", told
    (line,) = federation.rounds("silent")
    assert "west" not in line["silos"]
    assert time.monotonic() - began < 120


def test_a_run_whose_server_app_dies_at_its_start_is_told_to_have_failed(federation: Federation):
    begin(federation, "dead", model__path=str(Path("/nowhere/model")))
    told = end(federation, "dead", "failed")
    assert "/nowhere/model" in str(told["reason"])
    standing = json.loads(federation.said("server", "status", federation.server, "--json"))
    assert standing["runs"]["dead"]["state"] == "failed"


def test_a_revoked_silo_is_turned_away_and_the_rest_go_on(federation: Federation):
    federation.said("server", "revoke", federation.server, "west")
    until(lambda: "refuses this node" in federation.told("west"), "west to be refused")
    begin(federation, "without", federation__rounds="1")
    end(federation, "without", "finished")
    (line,) = federation.rounds("without")
    assert line["silos"] == ["north", "south"]
