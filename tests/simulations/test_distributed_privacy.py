"""Noise in shares in whole runs: what is learned, told, charged and refused."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from fedtune_simulations.simulate import simulate

from benchmarks.aggregation_rules import merged
from fedtune.cli.main import main
from fedtune.config.schema import RunConfig
from fedtune.data.load import load_splits
from fedtune.errors import RunFailedError
from fedtune.privacy.accounting import epsilon
from fedtune.privacy.events import GaussianEvent
from fedtune.tensors import TensorSet
from fedtune.training.trainer import Trainer

ROWS: dict[str, Any] = {
    "data": {"embedded_patients": 60},
    "federation": {"rounds": 1, "min_silos": 8},  # eight specialties
}
SHARED = {"secure_aggregation": {"enabled": True, "max_dropouts": 0}}
STEPS = {"training": {"max_steps": 2, "batch_size": 4, "learning_rate": 0.004}}
ONE_STEP = {
    "training": {"max_steps": 1, "batch_size": 12, "learning_rate": 1.0, "optimizer": "sgd"}
}


def learned(out: Path, tree: dict[str, Any]) -> TensorSet:
    simulate(RunConfig.model_validate(tree), out, compare=False)
    return TensorSet.load(out / "adapter" / "adapter_model.safetensors")


def test_silos_as_units_learn_the_mean_of_what_they_train(tmp_path: Path):
    """With little noise, what a trusted coordinator would make of the same deltas."""
    privacy = {
        "mode": "distributed",
        "unit": "silo",
        "noise_multiplier": 0.06,
        "clipping_norm": 2.0,
    }
    mine = learned(tmp_path / "shared", {**ROWS, **STEPS, **SHARED, "privacy": privacy})
    central = {"mode": "central", "noise_multiplier": 0.06, "clipping_norm": 2.0}
    trusted = learned(tmp_path / "central", {**ROWS, **STEPS, "privacy": central})
    noise = 2**0.5 * 0.06 * 2.0 / 8
    off = (mine - trusted).flat()
    assert float(off.std()) == pytest.approx(noise, rel=0.02)
    assert abs(float(off.mean())) < 5 * noise / len(off) ** 0.5


def test_patients_as_units_learn_one_step_on_all_silos_patients(tmp_path: Path):
    """With every patient in the step and little noise, what DP-SGD in one place makes of them."""
    noised = {"noise_multiplier": 0.1, "clipping_norm": 0.05}
    shared = {**noised, "mode": "distributed", "sample_rate": 1.0}
    tree = {**ROWS, **ONE_STEP, **SHARED, "privacy": shared}
    mine = learned(tmp_path / "shared", tree)
    start = learned(tmp_path / "start", merged(tree, {"training": {"learning_rate": 1e-9}}))
    rows = load_splits(RunConfig.model_validate(tree)).train
    units = len(set(rows.codes("unit_id")[0]))
    one_place = {
        **ROWS,
        "federation": {"rounds": 1, "min_silos": 1, "partition": {"by": "iid", "silos": 1}},
        "training": {"max_steps": 1, "learning_rate": 1.0, "optimizer": "sgd"},
        "privacy": {**noised, "mode": "local", "sampling": "full"},
    }
    pooled = learned(tmp_path / "pooled", one_place)
    sums = (mine - start) * (8 * 12), (pooled - start) * units
    off = (sums[0] - sums[1]).flat()
    assert float(off.std()) == pytest.approx(2**0.5 * 0.1 * 0.05, rel=0.02)
    assert abs(float(off.mean())) < 5 * 0.1 * 0.05 / len(off) ** 0.5
    assert sums[1].norm() > 1.5 * 0.1 * 0.05 * len(off) ** 0.5  # it isn't all noise


def command(tmp_path: Path, *more: str) -> tuple[int, str, str]:
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {embedded_patients: 60}\n"
        "training: {max_steps: 1, batch_size: 4, optimizer: sgd, learning_rate: 0.5}\n"
        "federation: {rounds: 2, min_silos: 4, partition: {by: iid, silos: 5}}\n"
        "secure_aggregation: {enabled: true, max_colluders: 1, max_dropouts: 1}\n"
        "privacy: {mode: distributed, target_epsilon: 4.0, delta: 1.0e-4, held_out: refuse}\n"
    )
    out, err = io.StringIO(), io.StringIO()
    words = ["simulate", str(file), f"output.dir={tmp_path / 'out'}", "--json", *more]
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return code, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("unit", ["patient", "silo"])
def test_the_statement_and_the_ledger_say_what_was_done(tmp_path: Path, unit: str):
    chosen = ["privacy.unit=silo"] if unit == "silo" else ["privacy.sample_rate=0.3"]
    code, told, said = command(tmp_path, *chosen)
    assert code == 0, said
    facts = json.loads((tmp_path / "out" / "privacy.json").read_text())
    promise, parties = facts["promise"], facts["parties"]
    assert promise["unit"] == unit
    assert promise["relation"] == ("zero_out" if unit == "silo" else "add_remove")
    assert promise["epsilon"] <= 4.0
    assert "1 silos that tell it all they know" in promise["adversary"]
    assert "at least 3 with this one" in promise["adversary"]
    assert len(parties) == 5
    for party in parties.values():
        assert party["mechanism"] == "discrete gaussian in shares"
        assert party["shares"] == {"silos": 4, "colluders": 1}
        assert party["steps_released"] == 2
        noise = party["noise_multiplier"]
        counted = (
            GaussianEvent(1.0, noise / 2, 2) if unit == "silo" else GaussianEvent(0.3, noise, 2)
        )
        spent = epsilon([counted], 1e-4, "pld")
        assert party["ledger"]["after"]["pld"] == pytest.approx(spent, rel=1e-3)
        person = party["person"]
        assert person is None if unit == "patient" else person["epsilon"] == pytest.approx(spent)
    page = (tmp_path / "out" / "privacy.md").read_text()
    assert "Discrete Gaussian in shares noise" in page
    assert ("counts half" in page) == (unit == "silo")
    card = (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert "**Secure aggregation**" in card
    assert ("(zero/out)" in card) == (unit == "silo")
    (line, _) = json.loads(told)["rounds"]
    assert line["loss"] is None
    assert line["seconds"] is None


def test_a_dry_run_says_it_before(tmp_path: Path):
    code, told, said = command(tmp_path, "privacy.unit=silo", "--dry-run")
    assert code == 0, said
    plans = json.loads(told)["privacy"]
    assert len(plans) == 5
    assert {plan["unit"] for plan in plans.values()} == {"silo"}
    assert all(plan["person_epsilon"] > plan["epsilon"]["pld"] for plan in plans.values())
    assert all("1 silos that help it" in plan["adversary"] for plan in plans.values())
    assert not (tmp_path / "out").exists()


def test_a_budget_that_it_would_pass_is_refused_before_anything(tmp_path: Path):
    assert main(["budget", "set", "--epsilon", "3", "--delta", "1e-4"]) == 0
    code, _, said = command(tmp_path, "privacy.unit=silo")  # 4 for silos, more for people
    assert code == 2
    assert "budget" in said
    assert not (tmp_path / "out" / "adapter").exists()


def test_training_in_one_place_has_no_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run.yaml").write_text("{}")
    command(tmp_path, "privacy.unit=silo", "--dry-run")
    assert main(["train", str(tmp_path / "run.yaml"), "privacy.unit=silo"]) == 2
    assert "`train` has no silos" in capsys.readouterr().err


def files(tmp_path: Path, rows: list[dict[str, str]], *more: str) -> tuple[int, str]:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    err = io.StringIO()
    file = tmp_path / "files.yaml"
    file.write_text(
        "training: {max_steps: 1, batch_size: 4, optimizer: sgd}\n"
        "federation: {rounds: 1, min_silos: 3, partition: {column: silo}}\n"
        "secure_aggregation: {enabled: true, max_dropouts: 0}\n"
        f"data: {{source: files, train_files: ['{tmp_path / 'rows.jsonl'}'], test_fraction: 0.1,\n"
        "  columns: {privacy_unit: patient}}\n"
        "privacy: {mode: distributed, target_epsilon: 4.0, delta: 1.0e-4, sample_rate: 0.5}\n"
        f"output: {{dir: '{tmp_path / 'out'}'}}\n"
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(err):
        code = main(["simulate", str(file), *more])
    return code, err.getvalue()


def rows_of(*silos: str) -> list[dict[str, str]]:
    return [
        {
            "silo": silo,
            "patient": f"{silo}{number}",
            "prompt": f"question {number} of {silo}",
            "completion": "yes",
        }
        for silo in silos
        for number in range(20)
    ]


def test_one_row_in_two_silos_of_a_sum_is_refused(tmp_path: Path):
    rows = rows_of("a", "b", "c")
    shared = {"prompt": "what ails me", "completion": "a cold"}
    twice = [{**shared, "silo": silo, "patient": f"me at {silo}"} for silo in "ab"] * 8
    code, said = files(tmp_path, rows + twice)
    assert code == 2
    assert "the same row is in silo a and silo b" in said
    assert not (tmp_path / "out" / "charged.json").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["federation.min_silos=4", "secure_aggregation.max_dropouts=2"], "can't bear"),
        (["privacy.noise_multiplier=100000", "privacy.target_epsilon=null"], "leave no room"),
        (["privacy.unit=silo", "privacy.sample_rate=null", "privacy.delta=0.15"], "delta 0.15"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_what_can_not_begin_is_refused_before_anybody_is_charged(
    tmp_path: Path, more: list[str], said: str, dry: bool
):
    code, told = files(tmp_path, rows_of("a", "b", "c", "d"), *more, *["--dry-run"] * dry)
    assert code == 2, told
    assert said in told
    assert not (tmp_path / "out" / "charged.json").exists()


def test_a_silo_whose_training_fails_sends_zeros_under_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Were it left out, that its data make it fail would be seen."""
    whole = Trainer.fit
    calls = iter(range(100))

    def fit(self: Trainer, *given: Any, **more: Any):
        if next(calls) == 1:
            raise RunFailedError("the loss is nan")
        return whole(self, *given, **more)

    monkeypatch.setattr(Trainer, "fit", fit)
    code, _, said = command(tmp_path, "privacy.unit=silo")
    assert code == 0, said
    (line, _) = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert len(json.loads(line)["silos"]) == 5
    assert json.loads(line)["failures"] == []
