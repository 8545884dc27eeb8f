"""What a simulation tells while it runs; nothing that listens changes a result."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Working:
    """`who` has done `step` of `steps` optimizer steps. `round` is None in the comparison."""

    round: int | None
    who: str
    step: int
    steps: int


Listener = Callable[[Working], None]
