"""What goes wrong in the life of a federation, each with the run ending right."""

import contextlib
import json
import re
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import SILOS, Federation, until
from tests.e2e.runs import adapter, begin, end

pytestmark = pytest.mark.no_cover


def test_a_coordinator_killed_in_a_round_goes_on_where_it_was(federation: Federation):
    begin(federation, "whole")
    end(federation, "whole")
    begin(federation, "killed")
    until(lambda: federation.rounds("killed"), "the first round")
    federation.kill("server")
    (federation.server / "running.json").unlink()
    federation.start("server")
    assert end(federation, "killed")["round"] == 3
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
        end(federation, run)
        assert adapter(federation, run) == adapter(federation, "whole")


_OFF = re.compile(r"clock is ([+-]\d+) s off")


@contextlib.contextmanager
def full_disk(federation: Federation, name: str) -> Iterator[None]:
    """Inside, a process and all that it starts or has started can't let a file grow over 16 KiB
    more than what it has said so far: it may still say what is wrong.
    """
    process = federation.processes[name].pid

    def limit(size: int) -> None:
        one = psutil.Process(process)
        for each in (one, *one.children(recursive=True)):
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(each.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    limit((federation.folder / f"{name}.out").stat().st_size + 2**14)
    try:
        yield
    finally:
        limit(resource.RLIM_INFINITY)


def test_a_full_disk_costs_a_node_its_rounds_until_there_is_space(federation: Federation):
    with full_disk(federation, "south"):
        begin(federation, "crowded", training__max_steps="4", federation__rounds="4")
        until(lambda: federation.rounds("crowded"), "the first round")
    end(federation, "crowded")
    first, *_, last = federation.rounds("crowded")
    (failure,) = first["failures"]
    assert failure["silo"] == "south"
    assert "can't be written" in federation.told("south")
    assert last["silos"] == [*SILOS]


def test_a_coordinator_whose_disk_is_full_loses_no_finished_round(federation: Federation):
    begin(federation, "brimful")
    until(lambda: federation.rounds("brimful"), "the first round")
    with full_disk(federation, "server"):
        time.sleep(10)
    until(
        lambda: federation.status("brimful")["state"] in ("failed", "finished"),
        "the run to have met the full disk",
    )
    if federation.status("brimful")["state"] == "failed":
        federation.said("server", "resume", federation.server, "brimful")
    assert end(federation, "brimful")["round"] == 3
    assert adapter(federation, "brimful") == adapter(federation, "whole")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_killed_in_a_round_is_missed_and_comes_back(federation: Federation):
    begin(federation, "node")
    until(lambda: federation.rounds("node"), "the first round")
    federation.kill("south")
    federation.start("south")
    end(federation, "node")
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
        end(federation, "silent")
    finally:
        process.send_signal(signal.SIGCONT)
    (line,) = federation.rounds("silent")
    assert "west" not in line["silos"]
    assert time.monotonic() - began < 120


def test_a_run_whose_server_app_dies_at_its_start_is_told_to_have_failed(federation: Federation):
    begin(federation, "dead", model__path=str(Path("/nowhere/model")))
    told = end(federation, "dead", "failed")
    assert "/nowhere/model" in str(told["reason"])
    standing = json.loads(federation.said("server", "status", federation.server, "--json"))
    assert standing["runs"]["dead"]["state"] == "failed"


def at_work(federation: Federation) -> list[psutil.Process]:
    """The processes of runs; Flower leaves those that have ended as zombies."""
    server = psutil.Process(federation.processes["server"].pid)
    return [
        one
        for one in server.children(recursive=True)
        if "serverapp" in one.name() and one.status() != psutil.STATUS_ZOMBIE
    ]


def test_a_process_that_ends_without_a_word_does_not_look_alive(federation: Federation):
    begin(federation, "mute", training__max_steps="20")
    until(lambda: federation.status("mute").get("state") == "running", "the run")
    (process,) = at_work(federation)
    process.kill()
    began = time.monotonic()
    assert "its process ended" in str(end(federation, "mute", "failed")["reason"])
    assert time.monotonic() - began < 5
    federation.said("server", "resume", federation.server, "mute")
    assert end(federation, "mute")["round"] == 3


def test_a_process_that_is_killed_at_its_start_is_told_at_once(federation: Federation):
    begin(federation, "early")
    number = until(lambda: federation.status("early").get("process"), "the run's process")
    began = time.monotonic()
    psutil.Process(number).kill()
    assert "its process ended" in str(end(federation, "early", "failed")["reason"])
    assert time.monotonic() - began < 5


def test_a_revoked_silo_is_turned_away_and_the_rest_go_on(federation: Federation):
    federation.said("server", "revoke", federation.server, "west")
    until(lambda: "refuses this node" in federation.told("west"), "west to be refused")
    begin(federation, "without", federation__rounds="1")
    end(federation, "without")
    (line,) = federation.rounds("without")
    assert line["silos"] == ["north", "south"]


@pytest.mark.parametrize("minutes", [-5, 5])
def test_a_node_whose_clock_is_minutes_off_takes_part(federation: Federation, minutes: int):
    federation.stop("south")
    federation.start("south", FEDTUNE_TEST_CLOCK=str(60 * minutes))
    federation.online("north", "south")
    name = f"clock{minutes}"
    begin(federation, name, federation__rounds="1", training__max_steps="1")
    end(federation, name)
    (line,) = federation.rounds(name)
    assert "south" in line["silos"]
    (off,) = {round(int(found) / 60) for found in _OFF.findall(federation.told("south"))} - {
        -minutes
    }
    assert off == minutes
