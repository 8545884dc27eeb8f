"""Imports are made without a search for garbage, and all else with it."""

import gc
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedtune.loading import loading


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of one that says whether garbage was searched for as it was loaded."""
    (tmp_path / "seen_while_loading.py").write_text("import gc\nSEARCHED = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "seen_while_loading"
    gc.unfreeze()


def test_no_garbage_is_searched_for_inside_and_what_came_is_left_out_later(module: str):
    before = gc.get_freeze_count()
    with loading():
        loaded = importlib.import_module(module)
    assert not loaded.SEARCHED
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


def test_where_nothing_is_loaded_all_stays_as_it_was(module: str):
    before = gc.get_freeze_count()
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_whoever_has_switched_the_search_off_finds_it_off(module: str):
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
