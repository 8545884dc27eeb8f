"""What is at a path is whole: the old content or the new, never a part."""

from pathlib import Path

import pytest

from fedtune.atomic import append_line, new_folder, write_text
from fedtune.errors import NotWrittenError
from tests.file_limit import files_end_at


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


def test_a_line_that_does_not_fit_leaves_no_part_of_it(tmp_path: Path):
    path = tmp_path / "lines"
    append_line(path, 59 * "a")
    with (
        files_end_at(100),
        pytest.raises(NotWrittenError, match=r"lines: can't be written \(File too large\)"),
    ):
        append_line(path, 59 * "b")
    assert path.read_text() == 59 * "a" + "\n"


def test_a_text_that_does_not_fit_leaves_the_old_one_and_no_draft(tmp_path: Path):
    path = tmp_path / "file.json"
    write_text(path, "old")
    with files_end_at(100), pytest.raises(NotWrittenError, match="about 101 bytes needed"):
        write_text(path, 101 * "x")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
