"""The two runbooks, followed to the letter: a coordinator and three hospitals on one machine.

Only names, ports and the fingerprints that people would say are filled in.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.conftest import SILOS, command, environment, free_ports, until

DOCS = Path(__file__).parents[2] / "docs"
_ENDING_SECONDS = 40.0


def part(page: str, heading: str, step: int | None = None) -> str:
    """A runbook's section, or a numbered step of it."""
    text = (DOCS / f"runbook-{page}.md").read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    if step is not None:
        section = section.partition(f"\n**{step}. ")[2].partition(f"\n**{step + 1}. ")[0]
    assert section, f"{page}: {heading}, {step}"
    return section


def calls(page: str, heading: str, step: int | None = None) -> list[str]:
    found = re.findall(r"^\$ (.*)", part(page, heading, step), flags=re.MULTILINE)
    assert found, f"{page}: {heading}, {step} has no command"
    return found


@dataclass
class Shells:
    """One folder, with a shell for the coordinator and for each hospital."""

    folder: Path
    ports: tuple[int, int] = field(default_factory=free_ports)
    said: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """A new user's, for whom `fedtune` is installed."""
        programs = self.folder / "bin"
        if not programs.exists():
            programs.mkdir()
            (programs / "fedtune").write_text(f'#!/bin/sh\nexec {shlex.join(command())} "$@"\n')
            (programs / "fedtune").chmod(0o755)
        own = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(self.folder / "home")}
        own["FEDTUNE_LEDGER"] = str(self.folder / "ledger" / "budget.sqlite")
        return environment(self.folder) | own

    def filled(self, call: str, silo: str) -> str:
        """The call with what this machine and this hospital's people put in."""
        outer, local = self.ports
        call = call.replace("127.0.0.1:9092", f"127.0.0.1:{outer}")
        call = call.replace("--host coordinator.example", "--host 127.0.0.1 --bind 127.0.0.1")
        if "server init" in call:
            call += f" --port {outer} --local-port {local}"
        call = call.replace("FINGERPRINT OF THE CONSORTIUM", self.said.get("consortium", ""))
        call = call.replace("FINGERPRINT OF NORTH", self.said.get(silo, ""))
        return call.replace('\\"n$((', f'\\"{silo[0]}$((').replace("north", silo)

    def run(self, page: str, heading: str, step: int | None = None, *, silo: str = "north") -> str:
        """Type a part's commands, each to its end; give what they printed."""
        said = ""
        for call in calls(page, heading, step):
            ran = subprocess.run(
                ["bash", "-c", self.filled(call, silo)],
                cwd=self.folder,
                env=self.environment(),
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, f"{call}\n{ran.stdout}{ran.stderr}"
            said += ran.stdout
        return said

    def type(self, call: str) -> None:
        subprocess.run(["bash", "-c", call], cwd=self.folder, env=self.environment(), check=True)

    def start(self, page: str, step: int, silo: str = "north") -> None:
        """Leave a part's one command running."""
        (call,) = calls(page, "First start", step)
        with (self.folder / f"{page}-{silo}.out").open("ab") as out:
            self.processes.append(
                subprocess.Popen(
                    ["bash", "-c", "exec " + self.filled(call, silo)],
                    cwd=self.folder,
                    env=self.environment(),
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )

    def end(self) -> None:
        """Ctrl-C in every shell."""
        for process in self.processes:
            process.send_signal(signal.SIGINT)
        for process in self.processes:
            try:
                process.wait(_ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        self.processes.clear()


@pytest.fixture
def shells(tmp_path: Path) -> Iterator[Shells]:
    made = Shells(tmp_path)
    try:
        yield made
    finally:
        made.end()


def told(shells: Shells, *lines: str) -> bool:
    """Whether the coordinator, if it is there yet, says all of this."""
    with contextlib.suppress(AssertionError):
        said = shells.run("coordinator", "First start", 5)
        return all(f"{line}\n" in said for line in lines)
    return False


def test_who_follows_the_runbooks_gets_a_finished_run(shells: Shells) -> None:
    said = shells.run("coordinator", "First start", 1)
    shells.said["consortium"] = said.split("consortium: ")[1].splitlines()[0]
    for silo in SILOS:
        shells.run("hospital", "First start", 1, silo=silo)
        said = shells.run("hospital", "First start", 2, silo=silo)
        shells.said[silo] = said.split("another way: ")[1].splitlines()[0]
        shells.run("coordinator", "First start", 2, silo=silo)
        shells.run("hospital", "First start", 3, silo=silo)
        shells.run("hospital", "First start", 4, silo=silo)
    shells.run("coordinator", "First start", 3)
    shells.start("coordinator", 4)
    for silo in SILOS:
        shells.start("hospital", 5, silo)

    until(lambda: told(shells, *(f"silo {silo}: online" for silo in SILOS)), "three nodes")
    (settings,) = re.findall(
        r"```yaml\n(.*?)```", part("coordinator", "First start", 6), flags=re.DOTALL
    )
    (shells.folder / "run.yaml").write_text(settings)
    said = shells.run("coordinator", "First start", 6)
    assert "finished, round 2 of 2" in said
    assert "run first: finished, round 2 of 2" in said  # of the log
    assert (shells.folder / "trial" / "runs" / "first" / "adapter").is_dir()

    for page in ("coordinator", "hospital"):
        assert "Verify return code: 0 (ok)" in shells.run(page, "Firewall")
        shells.run(page, "Backup")

    shells.run("coordinator", "Certificates and keys")
    *before, join = calls("hospital", "Certificates and keys")
    for call in before:
        shells.type(shells.filled(call, "north"))
    shells.type("mv safe/*.pem trial/")
    shells.run("coordinator", "First start", 2)
    shells.type("mv trial/consortium.pem trial/authority.pem safe/")
    shells.type(shells.filled(join, "north"))
    assert not (shells.folder / "north" / "keys.new").exists()

    shells.run("coordinator", "Removal of a silo")
    shells.end()  # certificates and keys are new: a restart
    shells.start("coordinator", 4)
    shells.start("hospital", 5, "north")
    until(lambda: told(shells, "silo north: online", "silo west: revoked"), "north's return")
