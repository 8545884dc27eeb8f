"""The log of a child process stays bounded while the child has it open."""

import re
import sys
import time
from pathlib import Path

import pytest

from fedtune.serving import kept
from fedtune.serving.kept import Kept

LINES = "import time\nfor n in range(400): print(n, 90 * 'x', flush=True); time.sleep(0.005)"
MOST = 10_000


def test_a_child_s_log_is_turned_over_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_LOG_BYTES", MOST)
    log, old = tmp_path / "child.log", tmp_path / "child.log.1"
    child = Kept("child", [sys.executable, "-c", LINES], {}, log)
    over = time.monotonic() + 30
    try:
        while not (log.exists() and re.search(r"^399 x", log.read_text(), re.MULTILINE)):
            assert time.monotonic() < over
            child.check()
            time.sleep(0.01)
    finally:
        child.stop()
    assert old.stat().st_size >= MOST
    assert log.stat().st_size < 3 * MOST
    text = log.read_text()
    assert re.match(r"\d+ x", text), "the child wrote on at its old place, and left a hole"
    assert int(text.split()[0]) > int(old.read_text().splitlines()[-1].split()[0])
