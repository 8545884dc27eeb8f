"""What the coordinator says of a run's privacy: what was asked, no figure that it can't know."""

import json
from pathlib import Path

from fedtune_server.asked import write_asked

from fedtune.config.privacy import PrivacyConfig


def test_what_was_asked_is_told_and_no_epsilon_claimed(tmp_path: Path):
    settings = PrivacyConfig(mode="local", target_epsilon=3.0, delta=1e-5, unit="patient")
    told = write_asked(tmp_path, settings, 4)
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
    told = write_asked(tmp_path, PrivacyConfig(), 4)
    assert (told["mode"], told["promise"]) == ("none", None)
    assert "No differential privacy is promised" in (tmp_path / "privacy.md").read_text()
