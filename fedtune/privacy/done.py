"""What was really done on one party's data, as the statement tells it."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.ledger import Charge
from fedtune.privacy.plan import ExecutionPlan


@dataclass(frozen=True)
class Done:
    """What was done on one party's data: the plan, what was released of it, and its charge.

    `events` are all noisy sums that left, repeated ones included, and `steps` their number.
    """

    plan: ExecutionPlan
    events: Sequence[GaussianEvent]
    steps: int
    charge: Charge | None = None
