"""What is at a path is whole: the old content or the new, never a part."""

from pathlib import Path

import pytest

from fedtune.atomic import new_folder, write_text


def test_text_replaces_what_was_there(tmp_path: Path):
    path = tmp_path / "deep" / "file.json"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_replaces_the_old_one_whole(tmp_path: Path):
    for text in ("old", "new"):
        with new_folder(tmp_path / "out") as draft:
            (draft / text).write_text(text)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_the_old_folder_and_no_draft(tmp_path: Path):
    def half() -> None:
        with new_folder(tmp_path / "out") as draft:
            (draft / "new").write_text("half")
            raise KeyboardInterrupt

    with new_folder(tmp_path / "out") as draft:
        (draft / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        half()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old"]
