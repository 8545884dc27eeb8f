"""Epsilon of what was done, by an accountant's name, and the noise that a target needs."""

from collections.abc import Sequence
from typing import Literal

from fedtune.privacy.events import GaussianEvent

Accountant = Literal["pld", "prv", "rdp"]


def epsilon(events: Sequence[GaussianEvent], delta: float, accountant: Accountant) -> float:
    """Epsilon at `delta` of all `events` together; 0.0 for none."""
    raise NotImplementedError


def solve_noise(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    count: int,
    accountant: Accountant,
    before: Sequence[GaussianEvent] = (),
) -> float:
    """The least noise multiplier, within 0.1 %, whose epsilon with `before` is within the target.

    Never overshoots the target. Raises InputError when no noise can meet it.
    """
    raise NotImplementedError
