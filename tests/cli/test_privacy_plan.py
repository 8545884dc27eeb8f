"""`fedtune privacy plan` by its command line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedtune.cli.main import main
from fedtune.privacy.accounting import epsilon
from fedtune.privacy.events import GaussianEvent

BASE = ["privacy", "plan", "--units", "5000", "--batch", "100"]
NOISY = [*BASE, "--steps", "200", "--noise-multiplier", "1.1"]


def told(argv: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_target_over_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    """Noise meets the target at the last round; the figures are the accountants' own."""
    argv = [*BASE, "--rounds", "4", "--local-steps", "50", "--target-epsilon", "3"]
    found = told([*argv, "--accountant", "rdp"], capsys)

    event = GaussianEvent(0.02, found["plan"]["noise_multiplier"], 200)
    assert found["epsilon"][0]["epsilon"] == epsilon([event], 1e-5, "rdp") <= 3.0
    assert found["epsilon"][1]["epsilon"] == epsilon([event], 1e-5, "pld")
    assert [point["round"] for point in found["over_rounds"]] == [1, 2, 3, 4]
    assert [point["steps"] for point in found["over_rounds"]] == [50, 100, 150, 200]
    values = [point["epsilons"][0] for point in found["over_rounds"]]
    assert values == sorted(values)
    assert values[-1] == found["epsilon"][0]["epsilon"]


def test_each_setting_moves_epsilon_its_way(capsys: pytest.CaptureFixture[str]) -> None:
    found = told([*NOISY, "--accountant", "rdp"], capsys)

    now = found["epsilon"][0]["epsilon"]
    knobs = {knob["setting"]: (knob["half"], knob["double"]) for knob in found["knobs"]}
    assert set(knobs) == {"noise", "steps", "batch", "units"}
    for setting, (half, double) in knobs.items():
        falls = setting in ("noise", "units")
        assert (half > now > double) if falls else (half < now < double), setting
    assert knobs["batch"][1] == epsilon([GaussianEvent(0.04, 1.1, 200)], 1e-5, "rdp")
    assert knobs["units"][1] == epsilon([GaussianEvent(0.01, 1.1, 200)], 1e-5, "rdp")
    assert knobs["steps"][0] == epsilon([GaussianEvent(0.02, 1.1, 100)], 1e-5, "rdp")


def test_the_claim_is_never_bare(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*NOISY, "--accountant", "rdp"]) == 0
    said = capsys.readouterr().out
    for part in (
        "by rdp (opacus ", "by pld (dp-accounting ", "delta 1e-05", "presence or absence of one",
        "patient", "everybody outside the silo", "poisson sampling", "not counted: other runs",
    ):  # fmt: skip
        assert part in said
    assert "warning" not in said


def test_signal_to_noise(capsys: pytest.CaptureFixture[str]) -> None:
    """100 units, noise 1.1 over the root of 10,000 weights: 100 / 110."""
    found = told([*NOISY, "--accountant", "rdp", "--weights", "10000"], capsys)
    assert found["signal_to_noise"] == pytest.approx(100 / 110)


def test_adaptive_clipping_leaves_less_signal(capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*NOISY, "--accountant", "rdp", "--weights", "10000", "--clipping", "adaptive"]
    found = told([*argv, "privacy.count_noise=2"], capsys)
    sum_noise = (1.1**-2 - 4.0**-2) ** -0.5
    assert found["signal_to_noise"] == pytest.approx(1 / sum_noise)


def test_records_of_a_patient(capsys: pytest.CaptureFixture[str]) -> None:
    """A record's promise is told for a patient of five; rows make units of patients."""
    argv = ["privacy", "plan", "--batch", "100", "--steps", "40", "--noise-multiplier", "1.5"]
    argv += ["--rows", "5000", "--records-per-unit", "5", "--accountant", "rdp"]

    record = told([*argv, "--unit", "record"], capsys)
    assert record["plan"]["units"] == 5000
    one = epsilon([GaussianEvent(0.02, 1.5, 40)], 1e-5, "pld")
    assert 2 * one < record["patient_epsilon"]
    assert any("promise is for one record" in word for word in record["warnings"])

    patient = told([*argv, "--unit", "patient"], capsys)
    assert patient["plan"]["units"] == 1000
    assert patient["patient_epsilon"] is None


def test_choosing_among_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The best of about ten costs more than one run and less than ten."""
    found = told([*NOISY, "--accountant", "rdp", "--select-from", "10"], capsys)
    chosen = found["selection"]
    assert found["epsilon"][0]["epsilon"] < chosen["best_of_poisson"] < chosen["composed"]
    assert chosen["composed"] == epsilon([GaussianEvent(0.02, 1.1, 2000)], 1e-5, "rdp")


def test_a_config_file_and_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file's privacy, batch, steps and rounds; an option stands above the file."""
    path = tmp_path / "run.yaml"
    path.write_text(
        "training: {batch_size: 50, max_steps: 10}\nfederation: {rounds: 3}\n"
        "privacy: {mode: local, target_epsilon: 2, accountant: rdp, delta: 1.0e-6}\n"
    )
    found = told(["privacy", "plan", str(path), "--units", "1000"], capsys)
    assert (found["rounds"], found["plan"]["steps"]) == (3, 30)
    assert found["plan"]["sample_rate"] == 0.05
    assert found["delta"] == 1e-6

    argv = ["privacy", "plan", str(path), "federation.rounds=2", "--units", "1000"]
    found = told([*argv, "--noise-multiplier", "2"], capsys)
    assert (found["rounds"], found["plan"]["noise_multiplier"]) == (2, 2.0)


def test_silos_as_units(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "federation: {rounds: 5, fraction: 0.5}\n"
        "privacy: {mode: central, noise_multiplier: 2, accountant: rdp, delta: 1.0e-3}\n"
    )
    found = told(["privacy", "plan", str(path), "--units", "100"], capsys)
    assert found["plan"]["unit"] == "silo"
    assert "coordinator is trusted" in found["adversary"]
    assert found["epsilon"][0]["epsilon"] == epsilon([GaussianEvent(0.5, 2.0, 5)], 1e-3, "rdp")
    for noise, said in (("gaussian", "poisson sampling"), ("tree", "no sampling")):
        words = [str(path), f"privacy.server_noise={noise}"]
        assert main(["privacy", "plan", *words, "--units", "100"]) == 0
        assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        (["--noise-multiplier", "0.5", "--steps", "2000"], "over 10"),
        (["--noise-multiplier", "0.2", "--steps", "1"], "no noise to speak of"),
        (["--noise-multiplier", "5", "--steps", "9", "--batch", "5000"], "no amplification"),
        (
            ["--noise-multiplier", "5", "--steps", "9", "--sampling", "full", "--batch", "16"],
            "no amplification",
        ),
        (["--noise-multiplier", "5", "--steps", "9", "--sampling", "shuffle"], "shuffled batches"),
        (["--noise-multiplier", "5", "--steps", "9", "--delta", "1e-4"], "tenth of one over"),
    ],
)
def test_settings_that_look_private_and_are_not(
    changed: list[str], warning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*BASE, "--accountant", "rdp", *changed]) == 0
    said = capsys.readouterr().out
    assert said.count("warning: ") >= 1
    assert warning in said


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--units", "50", "--batch", "100", "--steps", "9", "--target-epsilon", "3"], "more than"),
        ([*NOISY[2:], "--delta", "2e-4"], "privacy.delta"),
        ([*NOISY[2:], "--target-epsilon", "3"], "target_epsilon"),
        ([*BASE[2:], "--steps", "9"], "target_epsilon"),
        ([*BASE[2:], "--target-epsilon", "3"], "--steps"),
        ([*BASE[2:], "--target-epsilon", "-3", "--steps", "9"], "privacy.target_epsilon"),
        ([*NOISY[2:], "--rounds", "3"], "--steps"),
        (["--batch", "9", "--steps", "9", "--noise-multiplier", "1"], "--units"),
        ([*NOISY[2:], "--accountant", "gdp"], "privacy.accountant"),
        ([*NOISY[2:], "--delta", "1e-14"], "privacy.delta"),
        (
            ["--units", "100", "--batch", "100", "--steps", "10", "--noise-multiplier", "0.001"],
            "privacy.noise_multiplier: noise of 0.001 gives an epsilon above 700",
        ),
        ([*NOISY[2:], "--accountant", "rdp", "--plot", "x.gif"], "--plot"),
        ([*NOISY[2:], "--accountant", "rdp", "--plot", "/nowhere/x.png"], "--plot"),
        ([*NOISY[2:], "privacy.clippin=adaptive"], "clipping"),
        (
            [*NOISY[2:], "--accountant", "rdp", "--clipping", "adaptive", "privacy.count_noise=.5"],
            "privacy.count_noise",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["privacy", "plan", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fedtune: ")
    assert err.count("fedtune: ") == 1
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_the_noise_that_a_refusal_names_would_do(
    accountant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["privacy", "plan", "--units", "100", "--batch", "10", "--steps", "10"]
    argv += ["--delta", "1e-3", "--accountant", accountant, "--noise-multiplier"]
    assert main([*argv, "0.001"]) == 2
    least = re.search(r"expected: at least ([\d.]+);", capsys.readouterr().err)
    assert least is not None
    found = told([*argv, least[1]], capsys)
    assert 100 < found["epsilon"][0]["epsilon"] <= 700
    assert main([*argv, str(float(least[1]) * 0.99)]) == 2


def test_the_plot(tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    assert main([*NOISY, "--accountant", "rdp", "--plot", str(path)]) == 0
    with Image.open(path) as picture:
        assert picture.size[0] > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50
