"""The pages under docs/ agree with the code."""

import re
from pathlib import Path

import pytest

from fedtune.cli.main import main

ROOT = Path(__file__).parents[2]
PATH = re.compile(r"`((?:fedtune|server|client|simulations|tests|docs|benchmarks)/[\w./-]*)`")
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    paths = PATH.findall(page.read_text())
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_where_is_answers_the_main_questions() -> None:
    page = (ROOT / "docs" / "where-is.md").read_text()
    assert len(PATH.findall(page)) > 25
    for question in ("noise added", "aggregation?", "config section end"):
        assert question in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_config_reference_is_not_stale(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "reference"]) == 0
    saved = (ROOT / "docs" / "config-reference.md").read_text()
    assert capsys.readouterr().out == saved, "run `fedtune config reference > docs/...`"
