"""`fedtune merge` through the command line."""

import json
import shutil
from pathlib import Path

import peft.tuners.lora.layer as lora_layer
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedtune.cli.main import main


def test_a_merged_run_needs_no_peft(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "merged"
    assert main(["merge", str(run_folder), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(out)
    assert told["largest_difference"] <= told["allowed_difference"] < told["adapter_effect"]

    # it writes what the run writes
    assert main(["generate", str(run_folder), "A man with", "--max-new-tokens", "16"]) == 0
    adapted = capsys.readouterr().out
    assert main(["generate", str(out), "A man with", "--max-new-tokens", "16"]) == 0
    assert capsys.readouterr().out == adapted
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("A man with", return_tensors="pt")
    new = AutoModelForCausalLM.from_pretrained(out).generate(
        input_ids=ids["input_ids"], max_new_tokens=16, do_sample=False
    )[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True) == adapted.removesuffix("\n")


def test_it_goes_beside_the_adapter_and_overwrites_nothing(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    assert main(["merge", str(run)]) == 0
    out = capsys.readouterr().out
    assert "base: embedded" in out
    assert "largest difference of logits: " in out
    assert (run / "merged" / "model.safetensors").is_file()
    assert main(["merge", str(run)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_folder_that_can_not_be_written_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").write_text("")
    for out in ("/proc/x", str(tmp_path / "file" / "x"), str(tmp_path / ("x" * 300))):
        assert main(["merge", str(run_folder), "--out", out]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"fedtune: {out}: can't be written (")
        assert "--out" in err


def test_a_broken_merge_is_refused_with_its_figures_and_leaves_nothing(
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    exact = lora_layer.Linear.get_delta_weight
    monkeypatch.setattr(
        lora_layer.Linear, "get_delta_weight", lambda self, name: 1.5 * exact(self, name)
    )
    assert main(["merge", str(run_folder), "--out", str(tmp_path / "merged")]) == 1
    err = capsys.readouterr().err
    assert "logits differ by up to" in err
    assert "nothing was saved" in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_bad_input_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["merge", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith(f"fedtune: {tmp_path / 'none'}: no such folder")
