"""What machines are told of a coordinator: whether it is well, and its numbers."""

import dataclasses
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from fedtune_server.flower_link import Link
from fedtune_server.health import Coordinator, monitoring
from fedtune_server.project import Project
from prometheus_client.parser import text_string_to_metric_families

from fedtune.identity.loopback import loopback_context, new_loopback
from fedtune.serving.kept import Kept
from fedtune.serving.served import Served
from tests.server.conftest import Runs, failure, report


@pytest.fixture
def coordinator(project: Project) -> Iterator[Coordinator]:
    """A coordinator of real processes and ports, though none of them is Flower's."""
    place = project.folder / "superlink"
    place.mkdir()
    certificate, key = new_loopback(place)
    superlink = Served(web.Application(), "127.0.0.1", 0, loopback_context(certificate, key))
    door = Served(web.Application(), "127.0.0.1")
    port = superlink.start()
    door.start()
    children = [
        Kept(name, ["sleep", "600"], {}, project.logs / name) for name in ("superlink", "superexec")
    ]
    for child in children:
        child.check()
    yield Coordinator(project, Link(f"127.0.0.1:{port}", certificate), children, door)
    for child in children:
        child.stop()
    for served in (superlink, door):
        served.stop()


@pytest.fixture
def client(coordinator: Coordinator) -> Iterator[httpx.Client]:
    served = Served(monitoring(coordinator), "127.0.0.1")
    with httpx.Client(base_url=f"http://127.0.0.1:{served.start()}", timeout=30) as ours:
        yield ours
    served.stop()


def reasons(client: httpx.Client) -> list[str]:
    answer = client.get("/healthz")
    told = answer.json()
    assert (answer.status_code, told["status"]) == (
        (503, "unwell") if told["reasons"] else (200, "ok")
    )
    return list(told["reasons"])


def numbers(client: httpx.Client) -> dict[tuple[Any, ...], float]:
    """Every sample of fedtune's, by its name and the values of its labels, the widest first."""
    order = ("run", "silo", "process", "certificate", "direction", "reason", "state")
    return {
        (
            sample.name.removeprefix("fedtune_"),
            *(sample.labels[x] for x in order if x in sample.labels),
        ): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name.startswith("fedtune_")
    }


def test_all_is_well(client: httpx.Client):
    assert reasons(client) == []


def test_a_dead_process_is_told(coordinator: Coordinator, client: httpx.Client):
    coordinator.children[1].stop()
    assert reasons(client) == ["superexec does not run"]
    assert numbers(client)["child_up", "superexec"] == 0
    coordinator.children[1].restarts = 3
    assert numbers(client)["child_restarts_total", "superexec"] == 3


def test_a_process_that_runs_and_does_not_answer_is_told(
    coordinator: Coordinator, client: httpx.Client
):
    coordinator.link = dataclasses.replace(coordinator.link, address="127.0.0.1:1")
    assert reasons(client) == ["superlink does not answer"]
    found = numbers(client)
    assert (found["superlink_up",], found["silos", "online"]) == (0, 0)


def test_a_door_that_hangs_is_told(coordinator: Coordinator, client: httpx.Client):
    free = threading.Event()
    coordinator.door._loop.call_soon_threadsafe(free.wait, 20)
    assert reasons(client) == ["the door does not answer"]
    free.set()
    assert reasons(client) == []


def test_a_full_disk_is_told(coordinator: Coordinator, client: httpx.Client):
    config = coordinator.project.config.model_copy(update={"least_free_mb": 10**9})
    coordinator.project = dataclasses.replace(coordinator.project, config=config)
    assert reasons(client) == ["less than 1000000000 MB of disk are free"]


def test_a_state_that_can_not_be_written_is_told(
    coordinator: Coordinator, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
):
    place = coordinator.project.folder / "superlink"
    place.rename(place.with_name("elsewhere"))
    found = reasons(client)
    place.with_name("elsewhere").rename(place)
    assert "the state's folder can't be written (No such file or directory)" in found


def test_an_expired_certificate_is_told(coordinator: Coordinator, client: httpx.Client):
    assert 396 * 86_400 < numbers(client)["certificate_expiry_seconds", "server"] <= 397 * 86_400
    (coordinator.project.certificates / "server.crt").write_text("nothing")
    assert reasons(client) == ["the server's certificate has expired or can't be read"]
    assert numbers(client)["certificate_expiry_seconds", "server"] == 0


def test_the_numbers_of_runs_are_those_of_their_rounds(client: httpx.Client, runs: Runs):
    gone = [failure("west", "late", ""), failure("south")]
    runs.run("one", "running", [report(1), report(2, silos=["north"], failures=gone)])
    runs.run("two", "failed", [], given_up=dataclasses.asdict(report(1, failures=gone[:1])))
    found = numbers(client)
    assert [found["runs", state] for state in ("running", "failed", "finished")] == [1, 1, 0]
    assert (found["run_round", "one"], found["run_rounds", "one"]) == (2, 6)
    assert (found["run_loss", "one"], found["run_round_seconds", "one"]) == (2.2, 3.25)
    assert found["run_bytes_total", "one", "up"] == 2 * 936_960
    assert found["run_bytes_total", "one", "down"] == 2 * 1_936_960
    assert found["round_failures_total", "west", "late"] == 2
    assert found["round_failures_total", "south", "client_error"] == 1
    assert [found["silos", state] for state in ("enrolled", "online", "revoked")] == [3, 0, 0]
    assert found["disk_free_bytes",] > 0


def test_what_a_round_may_not_tell_is_not_told(client: httpx.Client, runs: Runs):
    quiet = {"loss": None, "seconds": None, "bytes_up": None, "bytes_down": None}
    private = {"privacy": {"mode": "local", "target_epsilon": 4.0}}
    silent = report(1, **quiet, silos=None, failures=None)
    runs.run("private", "running", [silent], settings=private)
    assert {key for key in numbers(client) if "private" in key} == {
        ("run_round", "private"),
        ("run_rounds", "private"),
    }


def test_no_words_of_a_silo_are_among_the_numbers(client: httpx.Client, runs: Runs):
    runs.run("one", "running", [report(1, failures=[failure("west", detail="row 17 of 24")])])
    assert "row 17" not in client.get("/metrics").text


def test_calls_at_the_door_are_counted(coordinator: Coordinator, client: httpx.Client):
    for what, size in (("up", 5), ("up", 7), ("down", 3), ("refused", 0)):
        coordinator.calls.seen("north", what, size)
    found = numbers(client)
    assert found["silo_bytes_total", "north", "up"] == 12
    assert found["silo_bytes_total", "north", "down"] == 3
    assert found["door_refusals_total", "north"] == 1


def test_the_page_on_monitoring_names_each_number(
    coordinator: Coordinator, client: httpx.Client, runs: Runs
):
    runs.run("one", "running", [report(1, metric=0.5, failures=[failure("west")])])
    for what in ("up", "refused"):
        coordinator.calls.seen("north", what, 1)
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    rows = "".join(line for line in page.splitlines() if line.startswith("| `fedtune_"))
    named = set(re.findall(r"`fedtune_(\w+)`", rows))
    assert named == {key[0] for key in numbers(client)}


def test_old_runs_don_t_make_ever_more_series(client: httpx.Client, runs: Runs):
    runs.run("a-long-one", "running", [])
    for number in range(25):
        runs.run(f"run-{number:02}", "finished", [report(1)])
    found = numbers(client)
    assert found["runs", "finished"] == 25
    shown = {key[1] for key in found if key[0] == "run_round"}
    assert len(shown) == 20
    assert "a-long-one" in shown


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"state": 3}', '{"state": "odd"}', "\x00\xff"])
def test_a_damaged_status_hides_no_other_run(client: httpx.Client, runs: Runs, text: str):
    runs.run("good", "finished", [report(1)])
    damaged = runs.run("damaged", "running", [report(1), report(2)])
    (damaged.path / "status.json").write_text(text)
    with (damaged.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": "x"}\n[]\n{"round": 3, "lo')
    found = numbers(client)
    assert (found["runs", "finished"], found["runs", "unreadable"]) == (1, 1)
    assert found["run_round", "damaged"] == 2


def test_only_this_machine_s_own_names_are_answered(client: httpx.Client):
    for path in ("/healthz", "/metrics", "/"):
        assert client.get(path, headers={"Host": "rebound.example"}).status_code == 403
        assert client.post(path).status_code == 405
