"""Memory that reading, dividing and encoding take grows far slower than the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "data_memory.py"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to measure")
def test_memory_does_not_follow_the_file(tmp_path: Path) -> None:
    code = f"""
import json, os, sys
from pathlib import Path
sys.path.insert(0, {str(BENCHMARK.parent)!r})
from data_memory import measured, write_rows
folder = Path({str(tmp_path)!r})
os.environ["FEDTUNE_CACHE"] = str(folder / "cache")
files = [folder / f"{{size}}.jsonl" for size in (3, 20)]
for file, size in zip(files, (3, 20)):
    write_rows(file, size)
measured(files[0], "embedded")  # imports and buffers, which a larger file needs no more of
print(json.dumps([files[1].stat().st_size / 1e6, measured(files[1], "embedded")["anonymous"]]))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    size, grown = json.loads(done.stdout)
    assert size > 19
    assert grown < 0.75 * size, f"{grown} MB for a file of {size} MB"
