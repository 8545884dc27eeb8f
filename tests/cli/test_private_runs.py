"""Private training through the command line: what it refuses, and what it tells nobody."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedtune.cli.main import main
from fedtune.config.load import load_config
from fedtune.training.prepare import Prepared, prepare
from fedtune.training.private import private_steps

NAMED = re.compile(r'\b(eval_)?(loss|accuracy|perplexity)"?\s*[:=]?\s*\d')
NUMBER = re.compile(r"(?<![\w.])\d+\.\d+")
NEAR = 3e-6  # two ways of adding up one loss
DURATION = re.compile(r'"seconds": ?[\d.]+')  # may be any number, a loss's too
PRIVACY = {"mode": "local", "noise_multiplier": 1.0, "max_records_per_unit": 2, "delta": 1e-3}
APART = {"validation_fraction": 0.2}
NO_SCORES = (
    "## Held-out test metrics\n\n"
    "None: exact scores would tell of the people in the held-out rows.\n\n## Settings"
)
SMALL: dict[str, Any] = {
    "data": {"embedded_patients": 40},
    "task": {"max_length": 64},
    "training": {"max_steps": 4, "batch_size": 6, "save_steps": 2},
    "privacy": PRIVACY,
}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDTUNE_LEDGER", str(tmp_path / "ledger" / "budget.sqlite"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def arguments(folder: Path, *extra: str, command: str = "train", **parts: Any) -> list[str]:
    file = folder.with_suffix(".yaml")
    tree = {name: {**SMALL.get(name, {}), **parts.get(name, {})} for name in {*SMALL, *parts}}
    file.write_text(json.dumps({**tree, "output": {"dir": str(folder)}}))
    return [command, str(file), *extra]


def texts(folder: Path) -> dict[str, str]:
    """Every file of the run that is text, but the tokenizer."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("tokenizer"):
            found[path.relative_to(folder).as_posix()] = path.read_bytes().decode("latin-1")
    return found


def exact_losses(ready: Prepared) -> list[float]:
    """The mean loss on the train and on the held-out rows before training: of B = 0."""
    means = []
    for rows in (ready.train, ready.test):
        batch = ready.task.collate([rows[index] for index in range(len(rows))])
        with torch.no_grad():
            means.append(float(ready.task.losses(ready.model, batch).mean()))
    return means


def places_of_losses(everything: dict[str, str], losses: list[float]) -> list[str]:
    """Files in which a loss stands, by name or to a thousandth by value; weights apart."""
    named = [n for n, t in everything.items() if _is_text(n) and NAMED.search(t)]
    return sorted({*named, *places_of_values(everything, losses, near=1e-3)})


def places_of_values(everything: dict[str, str], losses: list[float], *, near: float) -> list[str]:
    found = []
    for name, text in everything.items():
        if not _is_text(name):
            continue
        numbers = [float(number) for number in NUMBER.findall(DURATION.sub("", text))]
        if any(abs(number - loss) < near for number in numbers for loss in losses):
            found.append(name)
    return found


def _is_text(name: str) -> bool:
    return not name.endswith(".safetensors")


def test_a_loss_is_found_by_name_and_by_value_but_no_duration_is_taken_for_one():
    assert places_of_losses({"a": '{"x": 5.5731}', "b": "loss 1", "c": "v2.5.573"}, [5.573]) == [
        "a",
        "b",
    ]
    assert places_of_losses({"a": '{"seconds": 5.5731, "round": 1}'}, [5.573]) == []


@pytest.mark.parametrize(
    ("unit", "most_rows"), [("record", 16), ("patient", 2)], ids=["record", "patient"]
)
def test_a_run_tells_no_loss_no_metric_and_no_count(
    unit: str, most_rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    unit_settings = {"unit": unit, "max_records_per_unit": most_rows}
    given = arguments(folder, "--json", privacy=unit_settings)
    assert main(given) == 0
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert (told["loss"], told["comparison"], told["steps"]) == (None, {}, 4)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line.keys() == {"step", "learning_rate", "examples"} for line in lines)
    assert {line["examples"] for line in lines} == {6}  # expected, not what chance took
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["run_hash"], manifest["data"]) == (None, {})  # no digest of rows
    ready = prepare(load_config(Path(given[1])))
    card = (folder / "adapter" / "README.md").read_text()
    assert NO_SCORES in card
    everything = {**texts(folder), "stdout": said.out, "stderr": said.err}
    assert places_of_losses(everything, exact_losses(ready)) == []
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert max(float(t.abs().max()) for n, t in weights.items() if "lora_B" in n) > 1e-4


def test_public_held_out_rows_are_scored_and_train_rows_never(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    extra = {"privacy": {"held_out": "public"}, "training": {"eval_steps": 2}}
    given = arguments(folder, "--json", data=APART, **extra)
    assert main(given) == 0
    told = json.loads(capsys.readouterr().out)
    train, held_out = exact_losses(prepare(load_config(Path(given[1]))))
    assert told["comparison"]["base"]["loss"] == pytest.approx(held_out, abs=NEAR)
    assert told["loss"] is None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4]
    assert not any("loss" in line for line in lines)
    # the held-out rows' losses are told, and come within a thousandth of the train rows' by chance
    everything = texts(folder)
    assert "comparison.json" in places_of_values(everything, [held_out], near=NEAR)
    assert places_of_values(everything, [train], near=NEAR) == []


def test_resume_goes_on_with_fresh_noise_and_the_norm_that_clipping_had(tmp_path: Path):
    adaptive = {"clipping": "adaptive", "clipping_norm": 7.0}
    folder = tmp_path / "run"
    given = arguments(folder, privacy=adaptive)
    assert main(given) == 0
    first = load_file(folder / "adapter" / "adapter_model.safetensors")
    shutil.rmtree(folder / "checkpoints" / "step-00000004")
    saved = json.loads((folder / "checkpoints" / "step-00000002" / "progress.json").read_text())
    assert saved["step"] == 2
    assert saved["clipping_norm"] not in (None, 7.0)
    assert saved["loss_sum"] == 0.0
    assert main([*given, "--resume"]) == 0
    again = load_file(folder / "adapter" / "adapter_model.safetensors")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    # noise that a seed tells could be taken away again
    assert any(not torch.equal(first[name], again[name]) for name in first)


def test_a_silos_steps_are_planned_for_all_rounds_and_nothing_exact_leaves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    three = {"rounds": 3, "partition": {"by": "iid", "silos": 2}}
    given = arguments(
        folder,
        "--json",
        command="simulate",
        federation=three,
        training={"max_steps": 2, "save_steps": None},
    )
    assert main(given) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["comparison"] == {}
    assert [(r["round"], r["loss"], r["metric"]) for r in told["rounds"]] == [
        (1, None, None),
        (2, None, None),
        (3, None, None),
    ]
    assert NO_SCORES in (folder / "adapter" / "README.md").read_text()
    # as in `train`: how long a round took hangs on how many units chance took
    assert [r["seconds"] for r in told["rounds"]] == [None, None, None]
    assert not DURATION.search(" ".join(texts(folder).values()))
    ready = prepare(load_config(Path(given[1])))
    assert places_of_losses(texts(folder), exact_losses(ready)) == []
    plan = private_steps(ready.config, ready.splits.train, rounds=3).plan
    assert (plan.steps, plan.unit) == (6, "patient")


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"task": {"packing": True}}, "task.packing"),
        ({"training": {"micro_batch_size": 2}}, "max_physical_batch"),
        ({"training": {"max_grad_norm": 0.5}}, "clipping_norm"),
        ({"training": {"eval_steps": 2}, "data": APART}, "held_out: public"),
        (
            {"training": {"early_stopping_patience": 1, "eval_steps": 2}, "data": APART},
            "held_out: public",
        ),
        ({"training": {"batch_size": 500}}, "more than there are"),
        ({"privacy": {"delta": 0.1}}, "privacy.delta"),
        ({"privacy": {"target_epsilon": 3.0}}, "needs one of"),
        ({"privacy": {"noise_multiplier": None}}, "needs one of"),
        ({"privacy": {"max_records_per_unit": 64}}, "max_physical_batch"),
        ({"adapter": {"use_dora": True}}, "use_dora"),
        ({"adapter": {"method": "ia3"}}, "ia3"),
        ({"privacy": {"count_noise": 2.0}}, "count_noise"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_break_the_promise_is_refused(
    parts: dict[str, Any], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "run"
    assert main(arguments(folder, **parts)) == 2
    assert named in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize("four_bit", [False, True])
def test_a_classifier_trains_on_four_bits_and_with_gradient_checkpointing(
    four_bit: bool, tmp_path: Path
):
    rows = [{"text": f"note {i}", "label": "ab"[i % 2], "patient": f"p{i}"} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"source": "files", "train_files": [str(tmp_path / "rows.jsonl")]}
    settings = {
        "data": {**files, "columns": {"privacy_unit": "patient"}},
        "model": {"load_in_4bit": four_bit},
        "task": {"name": "sequence_classification", "labels": ["a", "b"], "max_length": 32},
        "training": {"max_steps": 2, "batch_size": 6, "gradient_checkpointing": True},
        "privacy": {"mode": "local", "noise_multiplier": 1.0, "delta": 1e-3},
        "output": {"dir": str(tmp_path / "run")},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    # the run itself compares examples of its first batch with plain autograd, one by one
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert max(float(t.abs().max()) for n, t in weights.items() if "lora_B" in n) > 1e-4


def test_patients_need_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"prompt": f"patient {i}", "completion": "well"} for i in range(30)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": "files", "train_files": [str(file)]}
    tree = {**SMALL, "data": data, "output": {"dir": str(tmp_path / "run")}}
    tree["privacy"] = {**PRIVACY, "unit": "patient"}
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    assert main(["train", str(tmp_path / "run.yaml")]) == 2
    assert "data.columns.privacy_unit" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (1, "1 noisy sum was released (1 was planned)"),
        (3, "3 noisy sums were released (3 were planned)"),
    ],
)
def test_sums_of_shuffled_passes_are_counted_one_by_one(steps: int, says: str, tmp_path: Path):
    shuffled = {"sampling": "shuffle"}
    assert main(arguments(tmp_path / "run", f"training.max_steps={steps}", privacy=shuffled)) == 0
    told = json.loads((tmp_path / "run" / "privacy.json").read_text())
    party = told["parties"]["run"]
    assert (party["steps_planned"], party["steps_released"]) == (steps, steps)
    # of a pass, which a unit is once in
    assert party["events"] == [{"sample_rate": 1.0, "noise_multiplier": 1.0, "count": 1}]
    assert says in (tmp_path / "run" / "privacy.md").read_text()


def test_a_pass_that_was_cut_can_not_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = arguments(tmp_path / "run", "training.max_steps=1", privacy={"sampling": "shuffle"})
    assert main(given) == 0
    assert main([*given, "--resume"]) == 2
    assert "privacy.sampling" in capsys.readouterr().err


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    folder = tmp_path / "run"
    done = subprocess.run(
        [*launch, "-m", "fedtune", *arguments(folder)],
        timeout=300,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "private steps run in one process" in done.stderr
    assert not folder.exists()
