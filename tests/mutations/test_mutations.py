"""Every known way of breaking the promise is found by the tests that guard it."""

import pytest

from tests.mutations.bugs import BUGS
from tests.mutations.patched import ROOT, Mutation, mutated, outcome
from tests.mutations.table import page

TESTS_FAILED = 1


def test_there_are_enough_and_no_two_are_one():
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 40
    assert len({(bug.file, bug.before, bug.after) for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_its_place_is_there_once(bug: Mutation):
    assert mutated(bug) != (ROOT / bug.file).read_text()


def test_the_published_table_is_this_one():
    assert (ROOT / "docs" / "privacy-bugs.md").read_text() == page()


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_mutation_is_caught(bug: Mutation):
    code, told = outcome(bug)
    assert code == TESTS_FAILED, told[-2000:]
    assert "\nFAILED tests/" in told, told[-2000:]  # a test, not what it stands on
