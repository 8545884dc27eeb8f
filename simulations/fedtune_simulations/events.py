"""What a simulation tells while it runs; nothing that listens changes a result."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from fedtune.training.events import Event, StepDone
from fedtune.training.events import Listener as TrainingListener


@dataclass(frozen=True)
class Working:
    """`who` has done `step` of `steps` optimizer steps. `round` is None in the comparison."""

    round: int | None
    who: str
    step: int
    steps: int


Listener = Callable[[Working], None]


def unnamed(listener: Listener | None) -> Listener | None:
    """`listener` without the names of a round's silos, where nobody may know whom it asked."""
    if listener is None:
        return None
    return lambda event: listener(dataclasses.replace(event, who="a silo"))


def steps_of(
    listener: Listener | None, round_number: int | None, who: str
) -> list[TrainingListener]:
    """A trainer's listeners: none, or one that tells `listener` who does which step."""
    if listener is None:
        return []

    def told(event: Event) -> None:
        if isinstance(event, StepDone):
            listener(Working(round_number, who, event.step, event.steps))

    return [told]
