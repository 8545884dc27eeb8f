"""metrics.jsonl after a kill: no line twice, none beyond the checkpoint, none cut in half."""

import json
from pathlib import Path

from fedtune.training.loggers import JsonlLogger


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    first = JsonlLogger(path)
    for step in (1, 2, 3):
        first.write(step, {"loss": step / 10})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    again = JsonlLogger(path, keep_until=2)
    again.write(3, {"loss": 0.5})
    again.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.1), (2, 0.2), (3, 0.5)]
