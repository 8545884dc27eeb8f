"""What the coordinator says of a run's privacy: what was asked, no figure that it can't know."""

import json
from pathlib import Path

from fedtune_server.asked import write_asked

from fedtune.config.schema import RunConfig


def test_what_was_asked_is_told_and_no_epsilon_claimed(tmp_path: Path):
    privacy = {"mode": "local", "target_epsilon": 3.0, "delta": 1e-5, "unit": "patient"}
    told = write_asked(tmp_path, RunConfig.model_validate({"privacy": privacy}), 4)
    assert json.loads((tmp_path / "privacy.json").read_text()) == told
    assert told["promise"] is None
    assert told["asked"]["target_epsilon"] == 3.0
    page = (tmp_path / "privacy.md").read_text()
    for words in (
        "4 silos",
        "target_epsilon 3.0",
        "delta 1e-05",
        "unit patient",
        "gives no epsilon",
    ):
        assert words in page


def test_no_privacy_is_called_none(tmp_path: Path):
    told = write_asked(tmp_path, RunConfig(), 4)
    assert (told["mode"], told["promise"]) == ("none", None)
    assert "No differential privacy is promised" in (tmp_path / "privacy.md").read_text()


def test_noise_in_shares_is_told_with_the_silos_that_it_needs(tmp_path: Path):
    tree = {
        "secure_aggregation": {"enabled": True, "max_colluders": 1},
        "federation": {"min_silos": 4},
        "privacy": {"mode": "distributed", "unit": "silo", "target_epsilon": 3.0},
    }
    write_asked(tmp_path, RunConfig.model_validate(tree), 5)
    page = (tmp_path / "privacy.md").read_text()
    for words in ("its share of the noise", "min_silos 4", "max_colluders 1", "unit silo"):
        assert words in page
    assert "sampling" not in page
