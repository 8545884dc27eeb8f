"""The kits of coordinator and node: confined as they say, and in step with the program."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from ruamel.yaml import YAML

from fedtune import __version__
from fedtune.cli.main import app, main

ROOT = Path(__file__).parents[1]
KITS = {"coordinator": ROOT / "server" / "kit", "node": ROOT / "client" / "kit"}
RUNBOOKS = [ROOT / "docs" / f"runbook-{name}.md" for name in ("coordinator", "hospital")]
FILES = sorted(file for kit in KITS.values() for file in kit.iterdir())
USER = "10001"
STARTS = {
    "coordinator": ["server", "start", "/data/coordinator"],
    "node": ["client", "start", "/data/node"],
}
BOTH = pytest.mark.parametrize("kit", KITS)


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def documents(kit: str, file: str) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all((KITS[kit] / file).read_text()))


def instructions(kit: str) -> list[tuple[str, str]]:
    """A Dockerfile's, comments left out and continued lines joined."""
    text = (KITS[kit] / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n", " ", "\n".join(lines))
    split = [line.partition(" ") for line in whole.splitlines() if line]
    return [(word, " ".join(rest.split())) for word, _, rest in split]


def unit(kit: str) -> dict[str, list[str]]:
    """The settings in a unit's section `Service`, each with all its values."""
    text = (KITS[kit] / f"fedtune-{kit}.service").read_text()
    found: dict[str, list[str]] = {}
    for line in text.partition("[Service]")[2].partition("[Install]")[0].splitlines():
        if line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


# images


@BOTH
def test_an_image_runs_as_a_user_without_rights_from_a_pinned_base(kit: str) -> None:
    made = instructions(kit)
    assert [rest for word, rest in made if word == "USER"] == [f"{USER}:{USER}"]
    base = next(rest for word, rest in made if word == "ARG" and rest.startswith("BASE="))
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-[a-z]+", base)
    assert {rest.split()[0] for word, rest in made if word == "FROM"} == {"${BASE}"}
    assert [rest for word, rest in made if word == "VOLUME"] == ["/data"]
    assert json.loads(dict(made)["CMD"]) == STARTS[kit]
    assert dict(made)["ENTRYPOINT"] == '["fedtune"]'
    installs = [call for word, rest in made if word == "RUN" for call in rest.split("&&")]
    installs = [call for call in installs if "pip install" in call]
    assert len(installs) == 2
    assert all(" -c constraints.txt " in call for call in installs)


def test_both_images_are_built_alike() -> None:
    node, coordinator = (
        [step for step in instructions(kit) if step[0] in ("ARG", "FROM", "RUN", "COPY")]
        for kit in ("node", "coordinator")
    )
    assert node == coordinator


def test_an_image_is_given_all_packages_and_nothing_else_of_a_checkout() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    packages = {str(p.parent.relative_to(ROOT)) for p in ROOT.glob("*/fedtune_*/__init__.py")}
    needed = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert let_in == {"fedtune", *packages, *needed}
    assert all((ROOT / path).exists() for path in let_in)


# compose


@BOTH
def test_a_composed_container_is_confined(kit: str) -> None:
    (document,) = documents(kit, "compose.yaml")
    (service,) = document["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == f"{USER}:{USER}"
    assert [mount.split(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert {"mem_limit", "cpus", "pids_limit", "stop_grace_period"} <= service.keys()
    assert service["restart"] == "unless-stopped"
    assert service["command"] == STARTS[kit]
    writable = [volume for volume in service["volumes"] if not volume.endswith(":ro")]
    assert writable == ["data:/data"]
    assert service.get("ports", []) == (["9092:9092"] if kit == "coordinator" else [])


# systemd


@BOTH
def test_a_unit_is_confined_to_its_folder(kit: str) -> None:
    service = unit(kit)
    folder = f"/var/lib/fedtune-{kit}"
    assert service["User"] == [f"fedtune-{kit}"]
    assert service["ReadWritePaths"] == [folder]
    assert service["ProtectSystem"] == ["strict"]
    assert service["CapabilityBoundingSet"] == [""]
    assert service["SystemCallFilter"] == ["@system-service", "~@privileged"]
    for setting in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "RestrictNamespaces"):
        assert service[setting] == ["yes"]
    places = dict(word.split("=") for word in service["Environment"][0].split())
    assert all(place.startswith(folder) for place in places.values())
    # torch's kernels are made at run time where a model is trained, not where deltas are added
    assert ("MemoryDenyWriteExecute" in service) is (kit == "coordinator")


def test_a_node_s_unit_speaks_to_one_address() -> None:
    service = unit("node")
    assert service["IPAddressDeny"] == ["any"]
    assert service["IPAddressAllow"] == ["localhost 192.0.2.10"]


@BOTH
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_finds_nothing_wrong_with_a_unit(kit: str, tmp_path: Path) -> None:
    text = (KITS[kit] / f"fedtune-{kit}.service").read_text()
    copy = tmp_path / f"fedtune-{kit}.service"
    copy.write_text(text.replace("/opt/fedtune/bin/fedtune", sys.executable))
    verified = subprocess.run(
        ["systemd-analyze", "verify", copy], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stdout + verified.stderr) == (0, "")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", copy],
        capture_output=True,
        text=True,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout.splitlines()[-1]


# Kubernetes


def of_kind(kit: str, kind: str) -> dict[str, Any]:
    (found,) = [one for one in documents(kit, "kubernetes.yaml") if one["kind"] == kind]
    return found


@BOTH
def test_a_pod_is_confined(kit: str) -> None:
    stateful = of_kind(kit, "StatefulSet")["spec"]
    pod = stateful["template"]["spec"]
    assert stateful["replicas"] == 1
    assert pod["automountServiceAccountToken"] is False
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["fsGroup"] == int(USER)
    # `Always` opens the keys to the group at each mount, and they are then refused
    assert context["fsGroupChangePolicy"] == "OnRootMismatch"
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} == container["resources"]["limits"].keys()
        writable = [m["name"] for m in container["volumeMounts"] if not m.get("readOnly")]
        assert writable == ["data", "tmp"]
    assert pod["containers"][0]["args"] == STARTS[kit]
    claims = {
        one["metadata"]["name"]
        for one in documents(kit, "kubernetes.yaml")
        if one["kind"] == "PersistentVolumeClaim"
    }
    volumes = [v["persistentVolumeClaim"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    mounted = [volume["claimName"] for volume in volumes]
    assert {*mounted} == claims


@BOTH
def test_what_belongs_together_in_a_cluster_is_of_one_name(kit: str) -> None:
    space = of_kind(kit, "Namespace")["metadata"]["name"]
    others = [one for one in documents(kit, "kubernetes.yaml") if one["kind"] != "Namespace"]
    assert {one["metadata"]["namespace"] for one in others} == {space}
    stateful = of_kind(kit, "StatefulSet")["spec"]
    assert stateful["selector"]["matchLabels"] == stateful["template"]["metadata"]["labels"]


def test_a_node_reaches_the_coordinator_alone_and_nobody_reaches_it() -> None:
    policy = of_kind("node", "NetworkPolicy")["spec"]
    assert policy["podSelector"] == {}
    assert {*policy["policyTypes"]} == {"Ingress", "Egress"}
    assert policy["ingress"] == []
    (egress,) = policy["egress"]
    (alias,) = of_kind("node", "StatefulSet")["spec"]["template"]["spec"]["hostAliases"]
    assert egress == {
        "to": [{"ipBlock": {"cidr": f"{alias['ip']}/32"}}],
        "ports": [{"protocol": "TCP", "port": 9092}],
    }


def test_a_coordinator_is_reached_at_one_port_and_reaches_nobody() -> None:
    policy = of_kind("coordinator", "NetworkPolicy")["spec"]
    assert {*policy["policyTypes"]} == {"Ingress", "Egress"}
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": 9092}]}]
    assert policy["egress"] == []
    service = of_kind("coordinator", "Service")["spec"]
    labels = of_kind("coordinator", "StatefulSet")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"] == labels
    assert [port["port"] for port in service["ports"]] == [9092]


# in step with the program


def settings(kit: str, file: str) -> str:
    text = (KITS[kit] / file).read_text()
    return "".join(line for line in text.splitlines(True) if not line.startswith("#"))


def test_the_examples_are_what_the_program_writes(tmp_path: Path) -> None:
    server, node = tmp_path / "server", tmp_path / "node"
    given = ["--federation", "Trial", "--host", "coordinator.example"]
    assert main(["server", "init", str(server), *given]) == 0
    assert settings("coordinator", "server.yaml") == (server / "server.yaml").read_text()
    given = ["--silo", "north", "--consortium", " ".join(["0000"] * 16)]
    assert main(["client", "init", str(node), *given, "--data", "/rows/notes.jsonl"]) == 0
    assert settings("node", "node.yaml") == (node / "node.yaml").read_text()


def test_images_are_named_by_the_release() -> None:
    named = {
        tag
        for file in FILES
        for tag in re.findall(r"fedtune-(?:coordinator|node):([\w.]+)", file.read_text())
    }
    assert named == {__version__}


def quoted() -> Iterator[tuple[str, list[str], bool]]:
    """Each `fedtune` command of kits and runbooks, as place, words, and whether it is whole."""
    for page in RUNBOOKS:
        text = page.read_text()
        for line in re.findall(r"^\$ (.*\bfedtune .*)", text, flags=re.MULTILINE):
            yield name(page), shlex.split(line.partition("fedtune ")[2]), True
        for words in re.findall(
            r"`[^`\n]*\bfedtune ([^`]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        ):
            yield name(page), words.split(), False
    for file in FILES:
        text = file.read_text()
        for array in re.findall(r"\[\"(?:fedtune|server|client)\"[^\]]*\]", text):
            words = json.loads(array)
            if words != ["fedtune"]:
                yield name(file), words[words[0] == "fedtune" :], True
        for line in re.findall(r"^ExecStart=\S*/fedtune (.*)", text, flags=re.MULTILINE):
            yield name(file), line.split(), True
        for line in re.findall(r"^# .*\b((?:server|client) init) \S+ \.\.\.", text, re.MULTILINE):
            yield name(file), line.split(), False


QUOTED = list(quoted())


def test_commands_are_found_in_all_that_should_have_some() -> None:
    places = {place for place, _, _ in QUOTED}
    assert places >= {name(page) for page in RUNBOOKS}
    for kit, folder in KITS.items():
        for file in ("Dockerfile", "compose.yaml", f"fedtune-{kit}.service", "kubernetes.yaml"):
            assert name(folder / file) in places
    assert len(QUOTED) > 40


@pytest.mark.parametrize(
    ("place", "words", "whole"), QUOTED, ids=[f"{place}: {' '.join(w)}" for place, w, _ in QUOTED]
)
def test_every_command_is_one_of_the_program_s(place: str, words: list[str], whole: bool) -> None:
    command: click.Command = typer.main.get_command(app)
    if words[0] in ("...", "--version"):
        return
    while isinstance(command, click.Group):
        assert words, f"{place} names no command"
        assert words[0] in command.commands, f"{place}: there is no `{words[0]}`"
        command, words = command.commands[words[0]], words[1:]
    options = {option for given in command.params for option in given.opts}
    assert {word for word in words if word.startswith("-")} <= options
    if whole:
        command.make_context(str(command.name), [*words])


def test_every_file_that_a_kit_names_is_there() -> None:
    for file in FILES:
        paths = re.findall(r"\b(?:(?:server|client)/kit|docs)/[\w./-]*\w", file.read_text())
        assert [path for path in paths if not (ROOT / path).exists()] == [], name(file)
