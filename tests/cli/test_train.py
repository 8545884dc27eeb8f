"""`fedtune train` through the command line, on the embedded model and notes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from fedtune.cli.main import main
from fedtune.config.model import ModelConfig
from fedtune.config.schema import RunConfig
from fedtune.models.base import load_base
from fedtune.training.prepare import prepare

COMMAND = [sys.executable, "-m", "fedtune"]
SMALL: dict[str, Any] = {
    "data": {"embedded_patients": 32, "validation_fraction": 0.2},
    "task": {"max_length": 160},
    "training": {"max_steps": 12, "batch_size": 4, "eval_steps": 6},
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def arguments(folder: Path, *extra: str) -> list[str]:
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps({**SMALL, "output": {"dir": str(folder)}}))
    return ["train", str(file), *extra]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_beats_the_base_logs_everywhere_and_loads_with_plain_peft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    assert main(arguments(folder, "--json", "output.loggers=[tensorboard, mlflow]")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["comparison"]["trained"]["loss"] < told["comparison"]["base"]["loss"]
    assert (told["steps"], told["kept_step"]) == (12, 12)
    assert [line["step"] for line in lines(folder) if "loss" in line] == list(range(1, 13))
    assert [line["step"] for line in lines(folder) if "eval_loss" in line] == [6, 12]
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "mlflow.db").exists()
    model = PeftModel.from_pretrained(
        load_base(ModelConfig(), "causal_lm").model, folder / "adapter"
    )
    assert any(p.abs().max() > 0 for n, p in model.named_parameters() if "lora_B" in n)
    assert main(arguments(folder)) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_to_the_same_adapter(number: signal.Signals, tmp_path: Path):
    folder = tmp_path / "cut"
    process = subprocess.Popen([*COMMAND, *arguments(folder)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(folder.glob("checkpoints/step-*[0-9]")):
        assert process.poll() is None, "ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(30) != 0
    assert not (folder / "adapter").exists()
    assert main(arguments(folder, "--resume")) == 0
    assert main(arguments(tmp_path / "whole")) == 0
    cut, whole = weights(folder), weights(tmp_path / "whole")
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    numbers = [[(v["step"], v.get("loss")) for v in lines(tmp_path / n)] for n in ("cut", "whole")]
    assert numbers[0] == numbers[1]


def test_early_stopping_goes_by_the_validation_set_and_never_by_the_test_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def written(name: str, answer: str, numbers: range) -> str:
        rows = [{"prompt": f"Case {n}?", "completion": f" {answer} {n}."} for n in numbers]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    def trained(name: str, **data: Any) -> dict[str, Any]:
        files = {"source": "files", "train_files": [written("train.jsonl", "asthma", range(16))]}
        # a rate this high overshoots: the validation loss falls first, then climbs
        training = {"max_steps": 30, "batch_size": 4, "learning_rate": 0.05}
        stopping = {"eval_steps": 1, "early_stopping_patience": 2}
        (tmp_path / f"{name}.yaml").write_text(
            json.dumps(
                {
                    "data": {**files, **data},
                    "training": {**training, **stopping},
                    "output": {"dir": str(tmp_path / name)},
                }
            )
        )
        assert main(["train", str(tmp_path / f"{name}.yaml"), "--json"]) == 0
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    validation = [written("validation.jsonl", "gout", range(16, 24))]
    tests = [written("one.jsonl", "gout", range(24, 32)), written("two.jsonl", "flu", range(3))]
    one, two = (
        trained(name, validation_files=validation, test_files=[file])
        for name, file in zip(("a", "b"), tests, strict=True)
    )
    assert one["kept_step"] == two["kept_step"] < one["steps"] < 30
    assert one["comparison"] != two["comparison"]
    same = [[v.get("eval_loss") for v in lines(tmp_path / name)] for name in ("a", "b")]
    assert same[0] == same[1]
    best = min(loss for loss in same[0] if loss is not None)
    assert main(["evaluate", str(tmp_path / "a"), "--data", *validation, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["metrics"]["loss"]
    assert again == pytest.approx(best, rel=1e-4)


def test_two_processes_take_the_steps_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    # 5 examples a step: the shares differ, and with dropout off they add up to the same gradient
    extra = ["training.batch_size=5", "training.optimizer=sgd", "training.learning_rate=0.5"]
    extra.append("--json")
    assert main(arguments(tmp_path / "one", *extra)) == 0
    alone = json.loads(capsys.readouterr().out)
    # what `accelerate launch` starts on GPUs; it starts several processes on a CPU under MPI only
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    done = subprocess.run(
        [*launch, "-m", "fedtune", *arguments(tmp_path / "two", *extra)],
        check=True,
        timeout=120,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )
    together = json.loads(done.stdout)
    assert (alone["processes"], together["processes"]) == (1, 2)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert max(float(t.abs().max()) for n, t in one.items() if "lora_B" in n) > 1e-3
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    assert len(lines(tmp_path / "two")) == len(lines(tmp_path / "one"))


def test_bf16_holds_the_frozen_base_in_half(tmp_path: Path):
    training = {**SMALL["training"], "precision": "bf16"}
    settings = RunConfig.model_validate({**SMALL, "training": training})
    model = prepare(settings).model
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert main(arguments(tmp_path / "run", "training.precision=bf16")) == 0
    scores = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert scores["trained"]["loss"] < scores["base"]["loss"]
