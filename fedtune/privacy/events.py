"""What a mechanism did, as accountants, the ledger and the statement read it.

Every event is of the add/remove relation: neighbouring data differ by one unit's presence.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MAX_STEPS = 10**8


@dataclass(frozen=True)
class GaussianEvent:
    """`count` sums of units' clipped vectors with Gaussian noise.

    `noise_multiplier` is the noise's standard deviation over the most that one unit can move the
    sum (L2). At each sum every unit takes part with chance `sample_rate`, independently of the
    others (Poisson); 1 is no sampling. Raises ValueError on what can't be such.
    """

    sample_rate: float
    noise_multiplier: float
    count: int = 1

    def __post_init__(self) -> None:
        if not 0.0 < self.sample_rate <= 1.0:
            raise ValueError(f"sample rate is {self.sample_rate}, want above 0 and up to 1")
        if not 0.0 < self.noise_multiplier < 1e9:
            raise ValueError(f"noise multiplier is {self.noise_multiplier}, want above 0")
        if type(self.count) is not int or not 1 <= self.count <= MAX_STEPS:
            raise ValueError(f"count is {self.count!r}, want 1 to {MAX_STEPS}")

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` undoes it."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> "GaussianEvent":
        """Undo `to_json`. Raises ValueError or TypeError on anything else."""
        return GaussianEvent(
            float(values["sample_rate"]), float(values["noise_multiplier"]), values["count"]
        )


def merged(events: Iterable[GaussianEvent]) -> Sequence[GaussianEvent]:
    """The same events, those of equal rate and noise counted together, in a fixed order."""
    counts: dict[tuple[float, float], int] = {}
    for event in events:
        key = event.sample_rate, event.noise_multiplier
        counts[key] = counts.get(key, 0) + event.count
    return [GaussianEvent(*key, count) for key, count in sorted(counts.items())]
