"""A coordinator and three nodes as real processes, with TLS: a run, and what may not happen."""

import contextlib
import hashlib
import io
import json
import re
import ssl
import stat
import subprocess
import warnings
import zipfile
from pathlib import Path

import httpx
import psutil
import pytest
from fedtune_server.flower_link import Link
from fedtune_server.project import open_project
from fedtune_server.run_start import link_of
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.fab import Fab

from fedtune.bundle import bundle, bundle_digest
from fedtune.cli.main import main
from fedtune.identity import certificates
from fedtune.identity.keys import load_keys, new_tls_key, save_private_key
from tests.e2e.conftest import SILOS, Federation, command, environment, make, rows_of, until

RUN = """\
task: {max_length: 48}
training: {max_steps: 2, batch_size: 4}
federation: {rounds: 2}
"""


@pytest.mark.parametrize("method", ["lora", "fed_sb"])
def test_the_adapter_is_bit_for_bit_the_simulation_s(federation: Federation, method: str):
    run, settings = federation.folder / "run.yaml", f"{RUN}adapter: {{method: {method}}}\n"
    run.write_text(settings)
    said = federation.fedtune("server", "run", federation.server, run, "--name", method)
    assert "finished, round 2 of 2" in said
    rows = [row for silo in SILOS for row in rows_of(silo)]
    (federation.folder / "all.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (federation.folder / "test.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    simulated = {
        "source": "files",
        "train_files": [str(federation.folder / "all.jsonl")],
        "test_files": [str(federation.folder / "test.jsonl")],
    }
    run.write_text(
        settings.replace("rounds: 2", "rounds: 2, partition: {by: column, column: silo}")
        + f"data: {json.dumps(simulated)}\n"
        + f"output: {{dir: {federation.folder / 'simulated' / method}}}\n"
    )
    federation.fedtune("simulate", run, "--no-compare")
    deployed = federation.server / "runs" / method / "adapter" / "adapter_model.safetensors"
    alone = federation.folder / "simulated" / method / "adapter" / "adapter_model.safetensors"
    assert deployed.read_bytes() == alone.read_bytes()
    rounds = federation.rounds(method)
    assert [round["silos"] for round in rounds] == [list(SILOS)] * 2
    assert all(round["failures"] == [] for round in rounds)


def test_a_run_that_breaks_a_silo_s_policy_fails_with_the_reason_in_both_logs(
    federation: Federation,
):
    run = federation.folder / "long.yaml"
    run.write_text(RUN.replace("max_steps: 2", "max_steps: 5000"))
    said = federation.fedtune("server", "run", federation.server, run, "--name", "long", status=1)
    reason = "training.max_steps is 5000, this silo allows 1000"
    assert reason in said
    assert reason in federation.said("server", "logs", federation.server, "--run", "long")
    assert all(reason in federation.told(silo) for silo in SILOS)
    given_up = federation.status("long")["given_up"]
    assert [(gone["silo"], gone["reason"]) for gone in given_up["failures"]] == [
        (silo, "client_error") for silo in SILOS
    ]


def test_the_coordinator_tells_machines_and_people_how_it_is(federation: Federation):
    run = federation.folder / "watched.yaml"
    run.write_text(RUN.replace("rounds: 2", "rounds: 1"))
    federation.fedtune("server", "run", federation.server, run, "--name", "watched")
    local = f"http://127.0.0.1:{open_project(federation.server).config.local_port}"
    assert httpx.get(f"{local}/healthz").json() == {"status": "ok", "reasons": []}
    metrics = httpx.get(f"{local}/metrics").text
    assert 'fedtune_silos{state="online"} 3.0' in metrics
    assert 'fedtune_run_round{run="watched"} 1.0' in metrics
    for silo in SILOS:
        assert re.search(
            rf'fedtune_silo_bytes_total{{direction="up",silo="{silo}"}} [1-9]', metrics
        )
    shown = subprocess.Popen(
        command("server", "dashboard", federation.server, "--port", "0"),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(federation.folder),
    )
    assert shown.stdout is not None
    page = httpx.get(shown.stdout.readline().strip(), timeout=60).text
    shown.terminate()
    assert shown.wait(30) == 0
    assert "<strong>Works.</strong>" in page
    assert page.count('<span class="badge online">') == len(SILOS)
    assert "watched" in page


def test_a_frozen_and_a_dead_process_of_flower_s_are_told(federation: Federation):
    local = f"http://127.0.0.1:{open_project(federation.server).config.local_port}"

    def reasons() -> list[str]:
        return list(httpx.get(f"{local}/healthz", timeout=30).json()["reasons"])

    started = psutil.Process(federation.processes["server"].pid).children()
    superlink, superexec = (
        next(child for child in started if any(name in part for part in child.cmdline()))
        for name in ("flower-superlink", "flower-superexec")
    )
    superlink.suspend()
    try:
        assert reasons() == ["superlink does not answer"]
        assert "fedtune_superlink_up 0.0" in httpx.get(f"{local}/metrics", timeout=30).text
    finally:
        superlink.resume()
    superexec.kill()
    again = 'fedtune_child_restarts_total{process="superexec"} 1.0'
    until(lambda: again in httpx.get(f"{local}/metrics", timeout=30).text, "another superexec")
    until(lambda: reasons() == [], "a coordinator that is well")


def test_health_and_metrics_can_be_left_out(tmp_path: Path):
    quiet = make(tmp_path, silos=())
    settings = quiet.server / "server.yaml"
    settings.write_text(settings.read_text().replace("monitoring: true", "monitoring: false"))
    quiet.start("server")
    try:
        until(lambda: (quiet.server / "running.json").exists(), "the coordinator")
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{open_project(quiet.server).config.local_port}/healthz")
    finally:
        quiet.end()


@pytest.mark.parametrize("name", ["../out", "..", "a/b", "", "-x"])
def test_a_run_s_name_leads_nowhere_else(federation: Federation, name: str):
    run = federation.folder / "named.yaml"
    run.write_text(RUN)
    given = ("server", "run", federation.server, run, f"--name={name}")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert main([*map(str, given)]) == 2
    assert "can't be a run's name" in said.getvalue()


def client(federation: Federation, silo: str) -> httpx.Client:
    """What holds all of a silo's TLS credentials."""
    folder = federation.folder / silo
    context = ssl.create_default_context(cafile=str(folder / "certificates" / "authority.crt"))
    context.load_cert_chain(folder / "certificates" / "node.crt", folder / "keys" / "tls.pem")
    port = open_project(federation.server).config.port
    return httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/control/register-node",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/runtime/acquire-task",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull-messages?x=1",
        "//v1/fleet/pull-messages",
        "/",
    ],
)
def test_a_silo_reaches_nothing_but_its_own_calls(federation: Federation, path: str):
    with client(federation, "north") as ours:
        request = ours.build_request("POST", "/", content=b"")
        request.url = request.url.copy_with(raw_path=path.encode())
        assert ours.send(request).status_code == 403
        assert ours.get("/v1/fleet/pull-messages").status_code == 403


def test_a_silo_can_not_speak_as_another(federation: Federation):
    import base64

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    theirs = load_keys(federation.folder / "south" / "keys").flower.public_key()
    pem = theirs.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    headers = {"flwr-public-key": base64.b64encode(pem).decode()}
    with client(federation, "north") as ours:
        answer = ours.post("/v1/fleet/pull-messages", headers=headers, content=b"")
    assert (answer.status_code, answer.text) == (403, "came with another node's Flower key")
    assert "silo north" in federation.told("server")


def test_who_has_no_certificate_of_the_consortium_is_not_heard(
    federation: Federation, tmp_path: Path
):
    port = open_project(federation.server).config.port
    authority = federation.server / "certificates" / "authority.crt"
    context = ssl.create_default_context(cafile=str(authority))
    with pytest.raises(httpx.HTTPError), httpx.Client(verify=context) as nobody:
        nobody.post(f"https://127.0.0.1:{port}/v1/fleet/pull-messages")
    key = new_tls_key()
    save_private_key(key, tmp_path / "own.pem")
    made = certificates.self_signed(key, ["north"])
    (tmp_path / "own.crt").write_text(certificates.pem(made))
    context.load_cert_chain(tmp_path / "own.crt", tmp_path / "own.pem")
    with pytest.raises(httpx.HTTPError), httpx.Client(verify=context) as stranger:
        stranger.post(f"https://127.0.0.1:{port}/v1/fleet/pull-messages")


def test_old_tls_is_refused(federation: Federation):
    folder = federation.folder / "north"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / "certificates" / "authority.crt")
    context.load_cert_chain(folder / "certificates" / "node.crt", folder / "keys" / "tls.pem")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python, about old versions
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    port = open_project(federation.server).config.port
    with pytest.raises(httpx.HTTPError), httpx.Client(verify=context) as old:
        old.post(f"https://127.0.0.1:{port}/v1/fleet/pull-messages")


HOSTILE_SERVER = """\
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    sent = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
    open({told!r}, "w").write(repr([str(r.error) for r in grid.send_and_receive(sent, timeout=60)]))
"""
HOSTILE_NODE = (
    "open({mark!r}, 'w').write('ran')\nfrom flwr.clientapp import ClientApp\napp = ClientApp()\n"
)


@pytest.mark.parametrize("package", ["hostile", "fedtune_client"])
def test_no_code_of_a_bundle_runs_in_a_silo(federation: Federation, tmp_path: Path, package: str):
    mark, told = str(tmp_path / "ran"), str(tmp_path / "told")
    with zipfile.ZipFile(io.BytesIO(bundle())) as ours:
        project = ours.read("pyproject.toml").decode()
    project = project.replace("fedtune_server.serverapp:app", "evil_server:app")
    project = project.replace("fedtune_client.nothing:app", f"{package}.nothing:app")
    files = {
        "pyproject.toml": project,
        "evil_server.py": HOSTILE_SERVER.format(told=told),
        f"{package}/__init__.py": HOSTILE_NODE.format(mark=mark),
        f"{package}/nothing.py": HOSTILE_NODE.format(mark=mark),
        f"{package}/node.py": HOSTILE_NODE.format(mark=mark),
    }
    listed = [
        f"{name},{hashlib.sha256(text.encode()).hexdigest()},{len(text.encode()) * 8}"
        for name, text in files.items()
    ]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, text in {**files, ".info/CONTENT": "\n".join(listed)}.items():
            file.writestr(name, text)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    assert digest != bundle_digest()
    link: Link = link_of(open_project(federation.server))
    with link._client() as control:
        fab = fab_to_proto(Fab(digest, content.getvalue(), {}))
        asked = StartRunRequest(fab=fab, override_config=user_config_to_proto({}))
        assert control.StartRun(asked).run_id
    until(lambda: Path(told).exists() and Path(told).read_text(), "the hostile run's end")
    assert Path(told).read_text().count("nothing of it ran") == len(SILOS)
    assert not Path(mark).exists()


def test_no_secret_is_in_a_log_or_readable_by_others(federation: Federation):
    logs = [*federation.folder.glob("*.out"), *federation.folder.rglob("*.log")]
    said = "".join(log.read_text(errors="replace") for log in logs)
    assert len(said) > 1000
    for key in federation.folder.rglob("*.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        inside = "".join(key.read_text().splitlines()[1:-1])
        assert inside[:24] not in said
    for silo in SILOS:
        assert not any(row["completion"] in said for row in rows_of(silo))
