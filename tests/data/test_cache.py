"""Entries of the cache: whole or not there, whoever writes at the same time."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from fedtune.data.cache import cache_folder, entry


def write_slowly(name: str, root: str, results: "multiprocessing.Queue[str]") -> None:
    os.environ["FEDTUNE_CACHE"] = root

    def write(draft: Path) -> None:
        (draft / "a").write_text(name)
        time.sleep(0.5)  # both are at it before either is done
        (draft / "b").write_text(name)

    folder = entry("data", "key", write)
    results.put((folder / "a").read_text() + (folder / "b").read_text())


def test_two_processes_writing_one_entry_read_the_same_whole_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=write_slowly, args=(name, str(tmp_path), results)) for name in "xy"
    ]
    for worker in workers:
        worker.start()
    read = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert read in ({"xx"}, {"yy"})
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["key"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path))

    def write(draft: Path) -> None:
        (draft / "a").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        entry("data", "key", write)
    assert list((cache_folder() / "data").iterdir()) == []
