"""A silo with a delta of 50 MB behind a line of 1 Mbit/s, and one with a good line."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.e2e.conftest import Federation, free_ports, make, until
from tests.e2e.line import Line
from tests.e2e.runs import begin, end

pytestmark = pytest.mark.no_cover

SILOS = ("north", "south")
_MBIT = 1e6 / 8
_LOST = 0.02  # of what is sent: TCP sends it again, which takes its share of the line


def edit(file: Path, **changes: object) -> None:
    yaml = YAML(typ="safe")
    tree = yaml.load(file.read_text())
    with file.open("w") as out:
        yaml.dump(tree | changes, out)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """North reaches the coordinator by a line that is slow towards it, south directly."""
    made = make(tmp_path_factory.mktemp("federation"), ("north",))
    settings = made.server / "server.yaml"
    slow, direct = YAML(typ="safe").load(settings.read_text())["port"], free_ports()[0]
    edit(settings, port=direct)
    made.enrol("south")
    for silo in SILOS:
        policy = YAML(typ="safe").load((made.folder / silo / "node.yaml").read_text())["policy"]
        edit(made.folder / silo / "node.yaml", policy=policy | {"max_lora_r": 2000})
    made.line = Line(slow, direct)
    made.line.start()
    try:
        for name in ("server", *SILOS):
            made.start(name)
        made.online(*SILOS)
        yield made
    finally:
        made.end()
        made.line.stop()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_megabytes_come_through_a_line_of_one_megabit(federation: Federation):
    line = federation.line
    assert line is not None
    begin(
        federation,
        "large",
        adapter__lora_r="1280",
        federation__rounds="1",
        federation__round_timeout_seconds="1500",
        training__max_steps="1",
    )
    until(lambda: "run large, round 1: trained" in federation.told("north"), "training")
    line.up_bytes_per_second = (1 - _LOST) * _MBIT
    began, before = time.monotonic(), line.up
    size = int(federation.status("large")["reply_bytes"])
    assert size > 49e6
    begin(
        federation,
        "beside",
        federation__rounds="2",
        federation__min_silos="1",
        federation__round_timeout_seconds="60",
        training__max_steps="1",
    )
    end(federation, "beside")
    assert all("south" in told["silos"] for told in federation.rounds("beside"))
    assert federation.status("large")["state"] == "running"
    until(lambda: line.up - before > size / 2, "half of the delta", 600)
    line.break_once()
    until(lambda: federation.status("large")["state"] != "running", "the end", 900)
    end(federation, "large")
    (told,) = federation.rounds("large")
    assert told["failures"] == []
    sent, seconds = line.up - before, time.monotonic() - began
    assert sent < size + 6 * 2**20  # not much more than once
    print(
        f"{size / 1e6:.0f} MB at 0.98 Mbit/s with a break: {seconds:.0f} s, "
        f"{sent / 1e6:.1f} MB sent; a run of two rounds beside it was not held up"
    )
