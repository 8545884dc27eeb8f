"""`fedtune evaluate` gives what the run itself told, and scores new files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedtune.cli.main import main
from fedtune.data.embedded.clinical import generate_notes

CONFIG = {
    "data": {"embedded_patients": 24},
    "task": {"max_length": 160},
    "training": {"max_steps": 3, "batch_size": 4},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    file = folder.with_suffix(".yaml")
    file.write_text(json.dumps({**CONFIG, "output": {"dir": str(folder)}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDTUNE_CACHE", str(folder.with_suffix(".cache")))
        assert main(["train", str(file)]) == 0
    return folder


@pytest.fixture(autouse=True)
def _cache(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDTUNE_CACHE", str(run.with_suffix(".cache")))


def scores(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["evaluate", *arguments, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def test_the_scores_are_those_that_the_run_told(run: Path, capsys: pytest.CaptureFixture[str]):
    told = json.loads((run / "comparison.json").read_text())
    on, off = scores(capsys, str(run)), scores(capsys, str(run), "--no-adapter")
    assert on["metrics"] == pytest.approx(told["trained"], abs=1e-6)
    assert off["metrics"] == pytest.approx(told["base"], abs=1e-6)
    assert on["metrics"]["loss"] < off["metrics"]["loss"]
    assert scores(capsys, str(run / "adapter"), "--config", str(run / "config.yaml")) == on


def test_new_files_are_scored(run: Path, capsys: pytest.CaptureFixture[str]):
    file = run.parent / "new.jsonl"
    notes = [{k: n[k] for k in ("prompt", "completion")} for n in generate_notes(5, seed=99)]
    file.write_text("".join(json.dumps(note) + "\n" for note in notes))
    told = scores(capsys, str(run), "--data", str(file))
    assert told["examples"] == len(notes)
    assert told["metrics"]["loss"] > 0


def test_what_can_not_be_scored_is_refused(run: Path, capsys: pytest.CaptureFixture[str]):
    config = run.parent / "classify.yaml"
    config.write_text("task: {name: sequence_classification}\n")
    for arguments, says in [
        ([str(run / "adapter")], "--config"),
        ([str(run), "--config", str(config)], "task.name"),
        ([str(run), "--data", "none.jsonl"], "none.jsonl"),
        (["nowhere"], "no such folder"),
    ]:
        assert main(["evaluate", *arguments]) == 2
        assert says in capsys.readouterr().err


def notes(path: Path, seed: int) -> str:
    """A file of 12 patients, whom no other seed has."""
    rows = [
        {**{k: n[k] for k in ("prompt", "completion")}, "who": f"{seed}-{n['patient_id']}"}
        for n in generate_notes(12, seed)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def private_run(folder: Path, train: str, test: str, held_out: str) -> str:
    file = folder.with_suffix(".yaml")
    data = {"source": "files", "train_files": [train], "test_files": [test]}
    tree = {
        **CONFIG,
        "data": {**data, "columns": {"privacy_unit": "who"}},
        "training": {"max_steps": 1, "batch_size": 4},
        "privacy": {"mode": "local", "noise_multiplier": 1, "delta": 1e-3, "held_out": held_out},
        "output": {"dir": str(folder)},
    }
    file.write_text(json.dumps(tree))
    plain = {**tree, "privacy": {"mode": "none"}}
    folder.with_suffix(".plain.yaml").write_text(json.dumps(plain))
    assert main(["train", str(file)]) == 0
    return str(folder)


def test_a_private_model_that_was_moved_away_still_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FEDTUNE_LEDGER", str(tmp_path / "ledger.sqlite"))
    train, test, new = (notes(tmp_path / f"{n}.jsonl", n) for n in (1, 2, 3))
    refuses = Path(private_run(tmp_path / "refuses", train, test, "refuse"))
    public = Path(private_run(tmp_path / "public", train, test, "public"))
    plain = ["--config", str(tmp_path / "refuses.plain.yaml")]
    moved, merged, shared = tmp_path / "moved", tmp_path / "merged", tmp_path / "shared"
    shutil.copytree(refuses / "adapter", moved)
    shutil.copytree(public / "adapter", shared)
    assert main(["merge", str(moved), "--out", str(merged)]) == 0
    # an adapter from before it had its own statement
    (refuses / "adapter" / "privacy.json").unlink()
    old = tmp_path / "old"
    assert main(["merge", str(refuses), "--out", str(old)]) == 0
    for model in (moved, merged, old):
        for more, says in (
            ([], "privacy.held_out: `refuse`"),
            (["--data", train], "holds the private run's own rows"),
            (["--data", test], "holds the private run's own rows"),
        ):
            capsys.readouterr()
            assert main(["evaluate", str(model), *plain, *more]) == 2
            out, err = capsys.readouterr()
            assert out == ""
            assert says in err
        told = scores(capsys, str(model), *plain, "--data", new)
        assert "no epsilon covers them" in told["who_may_see"]
    assert "no epsilon covers them" in scores(capsys, str(shared), *plain)["who_may_see"]
    assert main(["evaluate", str(shared), *plain, "--data", train]) == 2
    said = json.loads((merged / "privacy.json").read_text())
    run = json.loads((refuses / "privacy.json").read_text())
    assert said["promise"] == run["promise"]
    assert "parties" not in said  # names of silos, and what the ledger told
    (moved / "privacy.json").write_text('{"mode": "maybe"}')
    capsys.readouterr()
    assert main(["evaluate", str(moved), *plain, "--data", new]) == 2
    assert "is no privacy statement" in capsys.readouterr().err


def test_a_private_runs_own_rows_are_not_scored_and_others_are_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("FEDTUNE_LEDGER", str(tmp_path / "ledger.sqlite"))
    train, test, new = (notes(tmp_path / f"{n}.jsonl", n) for n in (1, 2, 3))
    copy = notes(tmp_path / "copy.jsonl", 1)
    refuses = private_run(tmp_path / "refuses", train, test, "refuse")
    public = private_run(tmp_path / "public", train, test, "public")
    plain = ["--config", str(tmp_path / "refuses.plain.yaml")]
    members = tmp_path / "members.yaml"
    tree = json.loads((tmp_path / "public.plain.yaml").read_text())
    tree["data"] |= {"train_files": [new], "test_files": [train]}
    members.write_text(json.dumps(tree))
    for refused, says in (
        ([refuses], "privacy.held_out: `refuse`"),
        ([refuses, *plain], "privacy.held_out: `refuse`"),
        ([f"{refuses}/adapter", *plain], "privacy.held_out: `refuse`"),
        ([refuses, "--data", test], "holds the private run's own rows"),
        ([refuses, "--data", new, "--data", copy], "copy.jsonl: holds the private run's own rows"),
        ([public, "--data", train], "holds the private run's own rows"),
        ([public, "--config", str(members)], "holds the private run's own rows"),
    ):
        capsys.readouterr()
        assert main(["evaluate", *refused]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert says in err
    for given in ([refuses, "--data", new], [public, "--data", new]):
        assert "no epsilon covers them" in scores(capsys, *given)["who_may_see"]
        assert main(["evaluate", *given]) == 0
        assert "no epsilon covers them" in capsys.readouterr().out
    assert scores(capsys, public).keys() == {"metrics", "examples", "adapter"}
