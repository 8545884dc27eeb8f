"""Attacks that open a vector of Flower's own clients, and are refused by ours."""

import pytest

from benchmarks.flower_attacks import FLOWER, ours, seed_search, seed_search_on_ours


@pytest.mark.parametrize("name", FLOWER)
def test_what_works_on_flower_s_clients_is_refused_here(name: str):
    attack, same = FLOWER[name]
    assert attack().startswith("the victim's vector opened")
    assert ours(same).startswith("refused")


def test_a_folded_seed_is_found_and_a_key_of_ours_is_not():
    assert seed_search().startswith("seed found")
    assert seed_search_on_ours().startswith("no seed found")
