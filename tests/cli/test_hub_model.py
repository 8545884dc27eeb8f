"""A base model by hub id, where the hub can't be reached: from the cache, or refused at once."""

import json
import os
import shutil
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedtune.models.base_files import embedded_folder


@contextmanager
def hanging_up() -> Iterator[tuple[str, list[object]]]:
    """A hub that hangs up on who calls; its address, and everybody who called."""
    calls: list[object] = []

    class HangUp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            calls.append(self.client_address)

    with socketserver.TCPServer(("127.0.0.1", 0), HangUp) as hub:
        threading.Thread(target=hub.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{hub.server_address[1]}", calls
        finally:
            hub.shutdown()


def run(folder: Path, hub: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`fedtune` in a process of its own: the hub's client reads its settings once."""
    return subprocess.run(
        [sys.executable, "-m", "fedtune", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "FEDTUNE_CACHE": str(folder / "cache"),
            "HF_HUB_CACHE": str(folder / "hub"),
            "HF_ENDPOINT": hub,
        },
    )


def snapshot(folder: Path, commit: str) -> Path:
    """A model `a/tiny` in the hub's cache, whose revision `v1` is `commit`."""
    kept = folder / "hub" / "models--a--tiny"
    shutil.copytree(embedded_folder(), kept / "snapshots" / commit)
    (kept / "refs").mkdir(exist_ok=True)
    (kept / "refs" / "v1").write_text(commit)
    return kept / "snapshots" / commit


def test_a_kept_model_is_used_its_revision_named_and_a_moved_revision_noticed(
    tmp_path: Path,
) -> None:
    snapshot(tmp_path, "1" * 40)
    settings = {
        "model": {"path": "a/tiny", "revision": "v1"},
        "data": {"embedded_patients": 16},
        "training": {"max_steps": 1, "batch_size": 2},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    with hanging_up() as (hub, calls):
        done = run(tmp_path, hub, "train", "run.yaml")
        assert done.returncode == 0, done.stderr
        told = json.loads((tmp_path / "runs/run/adapter/adapter_config.json").read_text())
        assert (told["base_model_name_or_path"], told["revision"]) == ("a/tiny", "v1")
        done = run(tmp_path, hub, "generate", "runs/run", "Pain", "--max-new-tokens", "1")
        assert done.returncode == 0, done.stderr
        weights = snapshot(tmp_path, "2" * 40) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\1\0\0\0")
        done = run(tmp_path, hub, "train", "run.yaml", "--resume")
        assert done.returncode == 2
        assert "the base model `a/tiny` is not what it was when the run began" in done.stderr
    assert len(calls) == 3  # one a run, or each would wait for the hub's client to give up


def test_a_name_that_is_nowhere_is_refused_after_asking_once(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: {path: models/nope}\n")
    with hanging_up() as (hub, calls):
        done = run(tmp_path, hub, "train", "run.yaml")
    assert done.returncode == 2
    assert "model.path: there is no folder `models/nope`" in done.stderr
    assert "the hub can't be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(calls) == 1  # the hub's client alone asks again and again, for half a minute
