"""Peak memory of reading, dividing and encoding a large JSONL, in a process of its own.

    python benchmarks/data_memory.py --megabytes 2000

`anonymous` is what the process allocated; `mapped` are pages of files that it read, which the
kernel takes back when something else needs the room. Both are sampled every 20 ms.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def write_rows(path: Path, megabytes: int) -> int:
    """Prompt/completion rows of about 1 kB from a few words; give their number."""
    rng = random.Random(0)
    words = ["fever", "cough", "since", "two", "days", "pain", "in", "the", "chest", "and", "left"]
    count, left = 0, megabytes * 1_000_000
    with path.open("w") as file:
        while left > 0:
            text = " ".join(rng.choices(words, k=160))
            row = {"prompt": text, "completion": " " + text[:100], "site": f"s{count % 20}"}
            left -= file.write(json.dumps(row) + "\n")
            count += 1
    return count


def measured(file: Path, model: str) -> dict[str, float]:
    """Load, divide and encode `file`; give seconds and peaks in MB, imports taken off."""
    from fedtune.config.schema import RunConfig
    from fedtune.data.load import load_splits
    from fedtune.data.partition import partition
    from fedtune.models.base import load_tokenizer
    from fedtune.tasks import build_task
    from fedtune.tasks.encoding import encode_examples

    config = RunConfig.model_validate(
        {
            "model": {"path": model},
            "data": {"source": "files", "train_files": [str(file)]},
            "federation": {"partition": {"column": "site"}},
        }
    )
    task = build_task(config.task, load_tokenizer(config.model))
    peaks = Peaks()
    start = time.perf_counter()
    splits = load_splits(config)
    loaded = time.perf_counter()
    silos = partition(splits.train, config.federation.partition, config.seed)
    train = encode_examples(task, splits.train)
    last = [train.select(rows)[-1] for rows in silos.values()]
    assert all(example.input_ids for example in last)
    done = time.perf_counter()
    return {
        **peaks.stop(),
        "rows": len(splits.train) + len(splits.test),
        "load seconds": loaded - start,
        "encode seconds": done - loaded,
    }


class Peaks:
    """The largest growth of anonymous, mapped and total resident memory from now on, in MB."""

    def __init__(self) -> None:
        self._start, self._peak = resident(), {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.02):
            for name, value in resident().items():
                self._peak[name] = max(self._peak.get(name, 0.0), value - self._start[name])

    def stop(self) -> dict[str, float]:
        """The peaks so far."""
        self._stopped.set()
        self._thread.join()
        return self._peak


def resident() -> dict[str, float]:
    """Resident memory of this process in MB, by kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {
        line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("Rss", "VmRSS"))
    }
    names = {"anonymous": "RssAnon", "mapped": "RssFile", "total": "VmRSS"}
    return {name: int(sizes[key]) / 1000 for name, key in names.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=int, default=200)
    options.add_argument("--model", default="embedded", help="whose tokenizer encodes")
    options.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.file:
        print(json.dumps(measured(chosen.file, chosen.model)))
        return
    with tempfile.TemporaryDirectory(prefix="fedtune-benchmark-") as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, chosen.megabytes)
        command = [sys.executable, __file__, "--file", str(file), "--model", chosen.model]
        environment = {"FEDTUNE_CACHE": f"{folder}/cache"}
        done = subprocess.run(
            command, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE
        )
        figures = json.loads(done.stdout)
        figures["file"] = file.stat().st_size / 1e6
        cache = Path(folder, "cache").rglob("*.arrow")
        figures["cache"] = sum(path.stat().st_size for path in cache) / 1e6
    for name, value in figures.items():
        print(f"{name:>15} {value:,.0f}" + ("" if "seconds" in name or name == "rows" else " MB"))
    print(f"{'ratio':>15} {figures['anonymous'] / figures['file']:.3f} of the file allocated")


if __name__ == "__main__":
    main()
