"""What a node writes down of a round before it trains."""

import os
from pathlib import Path

import pytest
from fedtune_client.replies import Replies


def test_a_round_s_beginning_is_on_the_disk_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, flush = set(), os.fsync

    def noted(descriptor: int) -> None:
        flush(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    replies = Replies(tmp_path / "run")
    replies.begin(1)
    assert {(tmp_path / "run" / "begun.jsonl").stat().st_ino, (tmp_path / "run").stat().st_ino} <= (
        flushed
    )
    assert replies.begun() == [1]
