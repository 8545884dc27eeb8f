"""The quick start's commands, run as the page has them on a made-up file of the page's shape."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from peft import PeftModel

from fedtune.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text()
COMPLAINTS = ["Fever and a stiff neck.", "Crushing chest pain.", "A swollen red knee."]
ANSWERS = ["Lumbar puncture today.", "ECG and troponin now.", "Aspirate the joint."]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def made_up_rows() -> list[dict[str, str]]:
    """Sixty rows of three silos, the page's own two first."""
    silos = ("north", "south", "west")
    return [
        {
            "prompt": COMPLAINTS[i % 3],
            "completion": ANSWERS[i % 3],
            "silo": silos[i % 3],
            "patient": f"{silos[i % 3][0]}{i // 3 + 1}",
        }
        for i in range(60)
    ]


def shape(text: str) -> list[str]:
    """Lines without their numbers and without the width of a table."""
    text = re.sub(r"\d[\d,.]*( (bytes|kB|MB))?", "#", text)
    return [re.sub(r"[━─ ]+", " ", line).strip() for line in text.splitlines()]


def test_the_rows_on_the_page_are_those_that_are_tried() -> None:
    shown = [json.loads(line) for line in blocks("jsonl")[0].splitlines()]
    assert shown == made_up_rows()[:2]


def test_the_commands_run_and_print_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))
    rows = "".join(json.dumps(row) + "\n" for row in made_up_rows())
    (tmp_path / "train.jsonl").write_text(rows)
    sessions = [block.partition("\n") for block in blocks("console")]
    assert len(sessions) == 4
    for command, _, shown in sessions:
        assert command.startswith("$ fedtune ")
        assert main(shlex.split(command)[2:]) == 0
        out, err = capsys.readouterr()
        if shown:
            assert shape(err + out) == shape(shown)
    adapter = tmp_path / "runs" / "lora" / "adapter"
    (snippet,) = blocks("python")
    made: dict[str, Any] = {}
    exec(snippet, made)  # noqa: S102 - the page's own
    assert isinstance(made["model"], PeftModel)
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    with pytest.raises(HFValidationError):  # nobody can put another model there
        validate_repo_id(base)
    assert not Path(base).exists()
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json"} <= {
        path.name for path in adapter.iterdir()
    }
    named = re.findall(r"`(\w+\.(?:yaml|jsonl?))`", PAGE.partition("Beside the adapter lie")[2])
    assert len(named) == 7
    for name in named:
        assert (tmp_path / "runs" / "lora" / name).exists(), name
