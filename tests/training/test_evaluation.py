"""Evaluation by several processes is that of one, to the bit, and each does its share of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# what each process prints to its file: metrics, and how many examples it predicted
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from fedtune.config.model import ModelConfig
from fedtune.config.task import TaskConfig
from fedtune.models.base import load_base
from fedtune.tasks import build_task
from fedtune.training import processes
from fedtune.training.evaluation import evaluate_together

torch.set_num_threads(1)
base = load_base(ModelConfig(), "causal_lm")
task = build_task(TaskConfig(), base.tokenizer)
done = []
predict = task.predict

def counted(model, batch):
    done[-1] += len(batch["input_ids"])
    return predict(model, batch)

object.__setattr__(task, "predict", counted)
told = []
for count in (9, 2):
    rows = [
        {"prompt": f"Case {n}: {'cough ' * n}", "completion": f" asthma {n}.", "where": f"x:{n}"}
        for n in range(count)
    ]
    done.append(0)
    data = [task.encode(row) for row in rows]
    told.append([evaluate_together(task, base.model, data, 2), done[-1]])
number = processes._state().process_index
Path(sys.argv[1], f"{number}.json").write_text(json.dumps(told))
"""


def run(folder: Path, *launcher: str) -> list[Any]:
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    command = [sys.executable, *launcher, str(folder / "program.py"), str(folder)]
    subprocess.run(command, check=True, timeout=120, env=environment)
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("alone") / "run")[0]


def test_two_processes_score_as_one_and_share_the_work(alone: Any, tmp_path: Path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    first, second = run(tmp_path / "two", *launch)
    # five batches of 9 examples: 2 + 2 + 1 and 2 + 2; then one batch, which leaves one idle
    assert [count for _, count in alone] == [9, 2]
    assert [[count for _, count in one] for one in (first, second)] == [[5, 2], [4, 0]]
    expected = [metrics for metrics, _ in alone]
    assert [metrics for metrics, _ in first] == expected
    assert [metrics for metrics, _ in second] == expected
