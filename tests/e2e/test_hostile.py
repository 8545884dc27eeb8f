"""Hostile and unlucky parties, over the real wire: a silo that sends what it shouldn't, a copy of a
node, a coordinator that says everything twice, and lines that are slow, break or are cut.
"""

import shutil
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fedtune_server.project import open_project
from ruamel.yaml import YAML

from fedtune.identity.certificates import client_certificate, pem, signing_request
from fedtune.identity.keys import load_keys
from fedtune.serving.line import PIECES
from tests.e2e.conftest import SILOS, Federation, free_ports, make, until
from tests.e2e.line import Line
from tests.e2e.runs import adapter, begin, end

pytestmark = pytest.mark.no_cover

REFUSED = (
    "NaN or infinite values were sent",
    "NaN or infinite values were sent",
    "other tensors were sent",
    "other tensors were sent",
    "sent float64",
    "bytes of",
    "bytes of",
    "sent float32 as numpy.ndarray",
    "examples is -5",
    "reply has no delta, layout and numbers",
)
"""What is said of west's reply in each round of the run `hostile`."""


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trap") / "sprung"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, trap: Path) -> Iterator[Federation]:
    """Nodes reach the coordinator by a line that can break; west is hostile."""
    made = make(tmp_path_factory.mktemp("federation"))
    made.line = behind_a_line(made)
    made.line.start()
    try:
        made.start("server", FEDTUNE_TEST_TWICE="1")
        # it loads Flower before `client start` can say how large pieces are
        made.start("west", FEDTUNE_TEST_TRAP=str(trap), **PIECES)
        for name in ("north", "south"):
            made.start(name)
        made.online(*SILOS)
        yield made
    finally:
        made.end()
        made.line.stop()


def behind_a_line(federation: Federation) -> Line:
    """Have the coordinator listen elsewhere, and a line where its nodes look for it."""
    yaml = YAML(typ="safe")
    file = federation.server / "server.yaml"
    tree = yaml.load(file.read_text())
    outside, inside = tree["port"], free_ports()[0]
    with file.open("w") as out:
        yaml.dump(tree | {"port": inside}, out)
    return Line(outside, inside)


def test_what_a_hostile_silo_sends_is_refused_by_name_and_the_rest_go_on(
    federation: Federation, trap: Path
):
    begin(federation, "hostile", federation__rounds=str(len(REFUSED)), training__max_steps="1")
    end(federation, "hostile")
    rounds = federation.rounds("hostile")
    assert [line["silos"] for line in rounds] == [["north", "south"]] * len(REFUSED)
    for line, words in zip(rounds, REFUSED, strict=True):
        (failure,) = line["failures"]
        assert (failure["silo"], failure["reason"]) == ("west", "bad_reply")
        assert words in failure["detail"]
    logged = federation.said("server", "logs", federation.server, "--run", "hostile").splitlines()
    missing = [line for line in logged if "west is missing (bad_reply: " in line]
    assert all(words in line for line, words in zip(missing, REFUSED, strict=True))
    assert not trap.exists()


def test_a_reply_far_too_large_is_turned_away_at_the_door(federation: Federation):
    begin(
        federation,
        "large",
        adapter__lora_r="1",
        federation__rounds="1",
        federation__round_timeout_seconds="15",
        training__max_steps="1",
    )
    end(federation, "large")
    (line,) = federation.rounds("large")
    assert [failure["silo"] for failure in line["failures"]] == ["west"]
    assert "silo west" in federation.told("server")
    assert "its reply is larger than" in federation.told("server")


def test_an_instruction_that_comes_twice_is_trained_on_once(federation: Federation):
    begin(federation, "plain", training__max_steps="1")
    end(federation, "plain")
    assert all(line["failures"] == [] for line in federation.rounds("plain"))
    said = federation.told("north")
    for number in (1, 2):
        assert said.count(f"run plain, round {number}: trained") == 1
        assert said.count(f"run plain, round {number}: sent again as it was") == 1


def test_a_line_cut_for_thirty_seconds_costs_no_silo_its_round(federation: Federation):
    begin(federation, "uncut")
    end(federation, "uncut")
    begin(federation, "cut", federation__round_timeout_seconds="120")
    until(lambda: federation.rounds("cut"), "the first round")
    federation.line.cut()
    time.sleep(30)
    federation.line.mend()
    end(federation, "cut")
    assert all(line["failures"] == [] for line in federation.rounds("cut"))
    assert adapter(federation, "cut") == adapter(federation, "uncut")


def test_a_large_delta_goes_on_where_a_slow_line_broke(federation: Federation):
    line = federation.line
    begin(
        federation,
        "slow",
        adapter__lora_r="64",
        federation__rounds="1",
        federation__round_timeout_seconds="120",
        training__max_steps="1",
    )
    until(lambda: "run slow, round 1: trained" in federation.told("north"), "training")
    line.up_bytes_per_second = 400_000
    before = line.up
    payload = int(federation.status("slow")["reply_bytes"])
    until(lambda: line.up - before > payload, "some of the deltas")
    line.break_once()
    try:
        end(federation, "slow")
    finally:
        line.up_bytes_per_second = None
    (told,) = federation.rounds("slow")
    assert told["failures"] == []
    # three deltas, and again at most what was on its way when the line broke
    assert line.up - before < 3 * payload + 6 * 2**20


def test_a_copy_of_a_node_is_not_heard_beside_it(federation: Federation):
    folder = federation.folder / "copy"
    shutil.copytree(federation.folder / "north", folder)
    federation.start("copy")
    try:
        until(lambda: "another process with this silo's keys" in federation.told("server"), "it")
        until(lambda: "another process with this node's keys" in federation.told("copy"), "it too")
        begin(federation, "copied", federation__rounds="1", training__max_steps="1")
        end(federation, "copied")
        (line,) = federation.rounds("copied")
        assert (line["silos"], line["failures"]) == ([*SILOS], [])
        assert "run copied" in federation.told("north")
        assert "run copied" not in federation.told("copy")
    finally:
        federation.stop("copy")


def test_an_expired_certificate_is_not_let_in(federation: Federation, tmp_path: Path):
    project = open_project(federation.server)
    keys = load_keys(federation.folder / "north" / "keys")
    expired = client_certificate(
        signing_request(keys.tls, "north"), "north", *project.authority(), days=0
    )
    (tmp_path / "node.crt").write_text(pem(expired))
    context = ssl.create_default_context(cafile=str(project.certificates / "authority.crt"))
    context.load_cert_chain(tmp_path / "node.crt", federation.folder / "north" / "keys" / "tls.pem")
    with httpx.Client(verify=context) as late:
        answer = late.post(f"https://127.0.0.1:{project.config.port}/v1/fleet/pull-messages")
    assert (answer.status_code, answer.text.split(" (")[0]) == (403, "its certificate has expired")
    assert "silo north at 127.0.0.1: its certificate has expired" in federation.told("server")
