"""Flower's SuperLink as the coordinator speaks to it: a real one, on loopback."""

import json
import subprocess
from collections.abc import Callable, Iterator

import pytest
from aiohttp import web
from fedtune_server.flower_link import OVER, Link, superlink_command
from fedtune_server.project import Project
from fedtune_server.run_start import begin, died, go_on, take_up, watch
from flwr.proto.control_pb2 import StartRunResponse

from fedtune import telemetry
from fedtune.cli.main import main
from fedtune.config.schema import RunConfig
from fedtune.errors import RunFailedError
from fedtune.identity.loopback import loopback_context, new_loopback
from fedtune.serving.kept import Kept
from fedtune.serving.served import Served
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


@pytest.fixture
def ailing(project: Project) -> Iterator[Callable[[web.Response], Link]]:
    """A SuperLink, for commands too, that gives this answer to everything but the start of runs."""
    place = project.folder / "superlink"
    certificate, key = new_loopback(place)
    answer: list[web.Response] = []

    async def take(request: web.Request) -> web.Response:
        if request.path.endswith("start-run"):
            return web.Response(body=StartRunResponse(run_id=21).SerializeToString())
        return web.Response(status=answer[0].status, body=answer[0].body)

    behind = web.Application()
    behind.router.add_post("/{path:.*}", take)
    served = Served(behind, "127.0.0.1", 0, loopback_context(certificate, key))
    address = f"127.0.0.1:{served.start()}"
    (project.folder / "running.json").write_text(json.dumps({"superlink": address}))

    def answering(given: web.Response) -> Link:
        answer[:] = [given]
        return Link(address, certificate)

    yield answering
    served.stop()


BROKEN = web.Response(status=500), web.Response(body=b"\xff\xff")


@pytest.mark.parametrize("answer", BROKEN)
def test_a_run_that_can_not_be_taken_up_has_failed_and_the_others_go_on(
    ailing: Callable[[web.Response], Link],
    project: Project,
    runs: Runs,
    answer: web.Response,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = runs.run("a-lost", "running", [report(1)], flower_run=7)
    odd = runs.run("b-odd", "running", [report(1)], flower_run="seven")
    (runs.run("c-damaged", "running", []).path / "status.json").write_text("[1]")
    well = runs.run("d-well", "waiting", [report(1)], flower_run=None)
    take_up(project, ailing(answer))
    for run in (lost, odd):
        assert run.status()["state"] == "failed"
        assert run.status()["reason"].startswith("could not be taken up: ")
    told = well.status()
    assert (told["state"], told["flower_run"], told["reason"]) == ("waiting", 21, "")
    assert "run a-lost: could not be taken up" in caplog.text
    assert go_on(project, "a-lost").status()["state"] == "waiting"


@pytest.mark.parametrize("answer", BROKEN)
@pytest.mark.parametrize("command", [["status"], ["stop", "first"]])
def test_a_superlink_that_gives_no_answer_is_one_message(
    ailing: Callable[[web.Response], Link],
    project: Project,
    runs: Runs,
    answer: web.Response,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs.run("first", "running", [report(1)], flower_run=7)
    ailing(answer)
    assert main(["server", command[0], str(project.folder), *command[1:]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the SuperLink at 127.0.0.1:" in line
    assert "logs/superlink.log" in line


def test_a_superlink_that_is_not_there_is_one_message(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    new_loopback(project.folder / "superlink")
    nobody, _ = free_ports()
    (project.folder / "running.json").write_text(json.dumps({"superlink": f"127.0.0.1:{nobody}"}))
    assert main(["server", "status", str(project.folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "doesn't answer" in line


def test_a_run_that_flower_does_not_take_has_failed(project: Project) -> None:
    new_loopback(project.folder / "superlink")
    nobody, _ = free_ports()
    (project.folder / "running.json").write_text(json.dumps({"superlink": f"127.0.0.1:{nobody}"}))
    with pytest.raises(RunFailedError, match="did not take it"):
        begin(project, RunConfig(), "first")
    told = json.loads((project.runs / "first" / "status.json").read_text())
    assert told["state"] == "failed"


def test_a_process_that_is_gone_is_told_before_flower_misses_it(
    link: Link, project: Project, runs: Runs
) -> None:
    here, gone = subprocess.Popen(["sleep", "60"]), subprocess.Popen(["true"])
    gone.wait()
    try:
        lives, dead = (
            runs.run(name, "running", [], flower_run=link.start_run(name), process=one.pid)
            for name, one in (("lives", here), ("dead", gone))
        )
        number = dead.status()["flower_run"]
        assert died(link, number) is None  # Flower hasn't noticed
        watch(project, link)
        assert lives.status()["state"] == "running"
        assert dead.status()["state"] == "failed"
        assert "out of memory" in dead.status()["reason"]
        assert died(link, number) is not None
    finally:
        here.kill()
        here.wait()
