"""What rounding takes from one delta is in the next, also after a silo died."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fedtune_client.encoders import Encoder, encoder_of
from flwr.app import Array

from fedtune.delta_encoding import Encoded, decode
from fedtune.tensors import TensorSet

SPEC = (("a", (40, 10)), ("b", (30,)))
GENERATOR = torch.Generator().manual_seed(0)
DELTAS = [TensorSet.of_flat(torch.randn(430, generator=GENERATOR), SPEC) for _ in range(30)]


def silo(folder: Path) -> Encoder:
    return encoder_of("int8", folder, lambda number: np.random.default_rng([7, number]))


def read(encoded: Encoded) -> torch.Tensor:
    layout, array = encoded
    return decode(layout, Array(*array), SPEC, "int8").flat()


def test_errors_of_rounding_do_not_add_up(tmp_path: Path):
    send = silo(tmp_path)
    off = [torch.zeros(430)]
    for number, delta in enumerate(DELTAS, start=1):
        off.append(off[-1] + read(send(delta, number)) - delta.flat())
    # what is missing after any round is what the last rounding left: less than one of its steps
    assert max(float(missing.abs().max()) for missing in off) < 1.2 * 4.5 / 127


def test_a_silo_that_died_goes_on_as_if_it_had_not(tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "other"
    whole = [read(silo(one)(delta, n)) for n, delta in enumerate(DELTAS[:5], start=1)]
    living = silo(other)
    assert all(
        torch.equal(sent, read(living(delta, n)))
        for n, (sent, delta) in enumerate(zip(whole, DELTAS, strict=False), start=1)
    )


def test_a_round_that_is_asked_for_again_gives_the_same_bytes(tmp_path: Path):
    send = silo(tmp_path)
    send(DELTAS[0], 2)  # not every round asks every silo
    first = send(DELTAS[1], 5)
    assert send(DELTAS[1], 5) == first
    assert silo(tmp_path)(DELTAS[1], 5) == first
    assert send(DELTAS[2], 6) != silo(tmp_path / "new")(DELTAS[2], 6)


def test_what_is_left_of_two_rounds_is_kept(tmp_path: Path):
    send = silo(tmp_path)
    for number in range(1, 6):
        send(DELTAS[number], number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-000004", "round-000005"]


def test_a_delta_that_can_not_be_sent_leaves_nothing_behind(tmp_path: Path):
    send = silo(tmp_path)
    with pytest.raises(ValueError, match="NaN"):
        send(DELTAS[0] * float("nan"), 1)
    assert list(tmp_path.iterdir()) == []
