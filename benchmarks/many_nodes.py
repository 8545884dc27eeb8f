"""One coordinator, real and in its own processes, and many nodes: time and memory by their number.

    python -m benchmarks.many_nodes [--nodes 10 100] [--rounds 3]

The coordinator is what `fedtune server start` starts: door, SuperLink, SuperExec and a ServerApp
that averages the deltas. A node is a thread: the product's connector with its own TLS and Flower
keys, Flower's own connection of a SuperNode, and an answer made of random numbers, 5 MB of them,
instead of training. Each number of nodes has a federation of its own.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedtune.serving.line import PIECES

os.environ.update(PIECES)  # read when Flower is imported

import httpx
import numpy as np
import psutil
from fedtune_client.connector import Connector, outer_tls
from fedtune_client.joining import admission_of, init, join
from fedtune_client.node_config import new_config
from fedtune_server import project as projects
from fedtune_server.run_folder import RunFolder
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supernode.fleet_http_connection import http_request_response

from benchmarks.machine import machine
from fedtune.identity.keys import load_keys
from fedtune.identity.proof import prove
from fedtune.serving.served import Served

RANK = 128  # of the embedded model's adapter: 5.0 MB in float32
_LIMIT_SECONDS = 1200.0


@dataclass
class LightNode:
    """A silo's node that answers as if it had trained."""

    folder: Path
    silo: str
    _connector: Served | None = field(default=None, init=False)

    def work(self, stop: threading.Event) -> None:
        """Answer until `stop`."""
        keys = load_keys(self.folder / "keys")
        places = self.folder / "certificates"
        tls = outer_tls(
            str(places / "node.crt"),
            str(self.folder / "keys" / "tls.pem"),
            str(places / "authority.crt"),
        )
        address = f"https://{admission_of(self.folder).coordinator}"
        served = Served(Connector(address, tls, keys.flower).application(), "127.0.0.1")
        port = served.start()
        pair = keys.flower, keys.flower.public_key()
        with http_request_response(f"127.0.0.1:{port}", True, None, pair) as line:
            _, receive, send, _, _, pull, push, confirm = line
            while not stop.is_set():
                given = receive()
                if given is None:
                    stop.wait(0.2)
                    continue
                run = given[0].metadata.run_id
                message = pull_and_inflate_object_from_tree(
                    given[1],
                    lambda identifier, run=run: pull(run, identifier),
                    lambda identifier, run=run: confirm(run, identifier),
                    return_type=Message,
                )
                message.metadata.__dict__["_message_id"] = given[1].object_id
                answer = self.answer(message, keys.identity)
                answer.metadata.__dict__["_message_id"] = answer.object_id
                wanted, session = send(answer, get_object_tree(answer), 0.0)
                for identifier, thing in get_all_nested_objects(answer).items():
                    if identifier in wanted:
                        push(run, session, identifier, thing.deflate())
        served.stop()

    def answer(self, message: Message, identity: Any) -> Message:
        """Who it is, or a delta of random numbers, which no two nodes share."""
        challenge = message.content.get("challenge")
        if isinstance(challenge, ConfigRecord):
            proof = prove(identity, self.silo, str(challenge["run"]), str(challenge["nonce"]))
            told = ConfigRecord({"name": self.silo, "proof": proof})
            return Message(RecordDict({"silo": told}), reply_to=message)
        state = message.content["state"]["tensors"]
        values = np.random.default_rng().standard_normal(state.shape[0], dtype=np.float32) * 1e-4
        content = {
            "delta": ArrayRecord(
                {"tensors": Array(state.dtype, state.shape, state.stype, values.tobytes())}
            ),
            "layout": message.content["layout"],
            "numbers": MetricRecord({"examples": 1}),
        }
        return Message(RecordDict({**content}), reply_to=message)


@contextmanager
def coordinator(project: projects.Project) -> Iterator[psutil.Process]:
    """`fedtune server start`, until the end of the block."""
    code = "import sys; from fedtune.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "server", "start", str(project.folder)]
    with (project.folder / "said").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        while not (project.folder / "running.json").exists():
            assert process.poll() is None, (project.folder / "said").read_text()
            time.sleep(0.2)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


def measure(nodes: int, rounds: int, place: Path) -> dict[str, Any]:
    """Start all, run, and give seconds and peak memory in MB by process."""
    project = federation(nodes, place)
    stop = threading.Event()
    peaks: dict[str, float] = {}
    with coordinator(project) as process:
        lights = [
            threading.Thread(
                target=LightNode(place / f"silo-{i:03}", f"silo-{i:03}").work,
                args=(stop,),
                daemon=True,
            )
            for i in range(nodes)
        ]
        for light in lights:
            light.start()
        began = time.monotonic()
        start_run(project, nodes, rounds)
        folder = RunFolder(project.runs / "load")
        while (state := folder.status().get("state")) not in ("finished", "failed"):
            assert time.monotonic() - began < _LIMIT_SECONDS, folder.status()
            look(process, peaks)
            time.sleep(0.3)
        assert state == "finished", folder.status()
        stop.set()
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    return {
        "nodes": nodes,
        "silos": [len(line["silos"]) for line in told],
        "seconds": [round(line["seconds"], 1) for line in told],
        "bytes_up": told[-1]["bytes_up"],
        "peaks": peaks,
    }


def federation(nodes: int, place: Path) -> projects.Project:
    """A coordinator's folder with all nodes let in."""
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        port, local = one.getsockname()[1], two.getsockname()[1]
    config = projects.ServerConfig(
        federation="Load", hosts=["127.0.0.1"], bind="127.0.0.1", port=port, local_port=local
    )
    project = projects.init(place / "server", config)
    pinned = projects.consortium_fingerprint(project)
    rows = place / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n')
    for i in range(nodes):
        silo, folder = f"silo-{i:03}", place / f"silo-{i:03}"
        identity = init(folder, new_config(silo, pinned, [str(rows)]))
        asked = projects.read_request(folder / "request.json")
        join(folder, projects.enroll(project, asked, identity))
    return project


def start_run(project: projects.Project, nodes: int, rounds: int) -> None:
    """`fedtune server run`, as soon as all nodes are online."""
    from fedtune_server.run_start import begin, standing

    from fedtune.config.schema import RunConfig

    while True:
        online = [state for state in standing(project)["silos"].values() if state == "online"]
        if len(online) == nodes:
            break
        time.sleep(0.5)
    tree = {
        "adapter": {"lora_r": RANK},
        "federation": {"rounds": rounds, "min_silos": nodes, "round_timeout_seconds": 900},
    }
    begin(project, RunConfig.model_validate(tree), "load")


def look(process: psutil.Process, peaks: dict[str, float]) -> None:
    """Keep the largest resident size of each of the coordinator's processes."""
    for one in (process, *process.children(recursive=True)):
        try:
            name, size = one.name(), one.memory_info().rss / 1e6
        except psutil.Error:
            continue
        name = "door" if one.pid == process.pid else name
        peaks[name] = max(peaks.get(name, 0.0), size)


def main() -> None:
    """Print a line for each number of nodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print(f"{machine()}, httpx {httpx.__version__}")
    for nodes in asked.nodes:
        with tempfile.TemporaryDirectory() as place:
            told = measure(nodes, asked.rounds, Path(place))
        peaks = ", ".join(f"{name} {size:.0f}" for name, size in sorted(told["peaks"].items()))
        mb = told["bytes_up"] / nodes / 1e6
        print(
            f"{nodes:4} nodes, {mb:.1f} MB a delta, silos in each round {told['silos']}: "
            f"{told['seconds']} s; peak MB: {peaks}",
            flush=True,
        )


if __name__ == "__main__":
    main()
