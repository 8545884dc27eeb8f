"""What training tells while it runs. Displays and loggers listen; nothing they do changes a result.

Events are told by one process only, however many train.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class StepDone:
    """Optimizer step `step` of `steps` (from 1). `loss` is the mean over its `examples`.

    Of a private step the loss is nobody's business (None), and `examples` the expected number.
    """

    step: int
    steps: int
    loss: float | None
    learning_rate: float
    examples: int
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    """Metrics on the validation set after `step` steps; `loss` is among them."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on disk: a run that ends now goes on after `step`."""

    step: int
    path: Path


Event = StepDone | Evaluated | Saved
Listener = Callable[[Event], None]
