"""`fedtune generate` through the command line."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from fedtune.cli.main import main
from fedtune.models import generation
from fedtune.models.saved import load_saved

PROMPT = "A man with"


def generated(capsys: pytest.CaptureFixture[str], run: Path, *arguments: str) -> list[dict]:
    assert main(["generate", str(run), *arguments, "--max-new-tokens", "12", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["generate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_text_comes_out_with_and_without_the_adapter(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
):
    adapted = generated(capsys, run_folder, PROMPT)
    bare = generated(capsys, run_folder, PROMPT, "--no-adapter")
    assert adapted[0]["text"] != bare[0]["text"]
    assert adapted == generated(capsys, run_folder / "adapter", PROMPT)
    assert adapted[0]["tokens"] == 12 or adapted[0]["stopped"]
    assert main(["generate", str(run_folder), PROMPT, "--max-new-tokens", "12"]) == 0
    assert capsys.readouterr().out == adapted[0]["text"] + "\n"


def test_a_model_that_stops_at_once_is_told_beside_the_text(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    ids = AutoTokenizer.from_pretrained(run_folder / "adapter")(PROMPT)["input_ids"]
    (first,) = generated(capsys, run_folder, PROMPT)
    assert not first["stopped"] or first["text"]
    whole = load_saved(run_folder)
    likeliest = int(whole.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    monkeypatch.setattr(generation, "stop_tokens", lambda loaded: {likeliest})
    assert main(["generate", str(run_folder), PROMPT]) == 0
    out, err = capsys.readouterr()
    assert out == "\n"
    assert err == "prompt 1 of 1: the model stopped at once and wrote nothing\n"


def test_chat_puts_the_prompt_in_the_template(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    chatted = generated(capsys, run_folder, PROMPT, "--chat")
    tokenizer = AutoTokenizer.from_pretrained(run_folder / "adapter")
    turn = [{"role": "user", "content": PROMPT}]
    whole = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    assert whole != PROMPT
    assert chatted[0]["text"] == generated(capsys, run_folder, whole)[0]["text"]
    assert chatted[0]["text"] != generated(capsys, run_folder, PROMPT)[0]["text"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prompts.txt", "A man with\n\nA woman with\n"),
        ("prompts.jsonl", '{"prompt": "A man with"}\n{"prompt": "A woman with", "id": 7}\n'),
    ],
)
def test_a_file_has_a_prompt_a_line(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
):
    (tmp_path / name).write_text(text)
    both = generated(capsys, run_folder, "--prompt-file", str(tmp_path / name))
    assert [one["prompt"] for one in both] == ["A man with", "A woman with"]
    assert both[:1] == generated(capsys, run_folder, PROMPT)


def test_a_temperature_draws_from_the_seed(run_folder: Path, capsys: pytest.CaptureFixture[str]):
    drawn = [
        generated(capsys, run_folder, PROMPT, "--temperature", "2", "--seed", seed)
        for seed in ("1", "1", "2")
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_bad_input_is_told(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = str(run_folder)
    assert "no such folder" in refused(capsys, str(tmp_path / "none"), PROMPT)
    assert "not both" in refused(capsys, run)
    assert "can't be read" in refused(capsys, run, "--prompt-file", str(tmp_path / "none"))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"promt": "b"}\n')
    bad = str(tmp_path / "bad.jsonl")
    assert f"{bad}:2: no prompt" in refused(capsys, run, "--prompt-file", bad)
    (tmp_path / "empty.txt").write_text("\n")
    assert "has no prompt" in refused(capsys, run, "--prompt-file", str(tmp_path / "empty.txt"))
    refused(capsys, run, PROMPT, "--temperature", "-1")
    assert "no temperature" in refused(capsys, run, PROMPT, "--temperature", "nan")
    refused(capsys, run, PROMPT, "--max-new-tokens", "0")
    assert "room for" in refused(capsys, run, "word " * 2000)
