"""What a round tells about itself."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedtune.aggregation.rule import Rule
from fedtune.errors import RunFailedError
from fedtune.privacy.central import SiloLevel
from fedtune.secagg.weighted import Opened, Weighted
from fedtune_server.collect import Failure
from fedtune_server.messages import Update

_ROUGH = 1e-3


@dataclass(frozen=True)
class RoundingReport:
    """How a secure sum was rounded.

    A number became one of `levels` within its bound, which is the settings' after `halvings`,
    tensor by tensor; in the round after they are `next_halvings`. `largest_error` is the most that
    a number of the mean is off, `relative_error` what the mean's root mean square error is expected
    to be at most, over the mean's own (None: rounding is all that can be seen of it). Both but for
    `cut` of the silos' `numbers`, which were beyond their bounds.
    """

    levels: int
    halvings: list[int]
    next_halvings: list[int]
    largest_error: float
    relative_error: float | None
    numbers: int
    cut: int

    def remarks(self) -> list[str]:
        """What people should know of it; nothing, as a rule."""
        said = []
        if self.cut:
            said.append(f"{self.cut:,} of {self.numbers:,} numbers cut to their bounds")
        if self.relative_error is None:
            said.append("lost in rounding")
        elif self.relative_error > _ROUGH:
            said.append(f"rounded to {self.relative_error:.1%}")
        return said


def rounding_of(code: Weighted, opened: Opened, halvings: Sequence[int]) -> RoundingReport:
    """The report on a sum with these halvings."""
    rounding = code.rounding(opened)
    sizes = {name: opened.mean[name].numel() for name, _ in code.spec}
    noise = sum(rounding[name] ** 2 * size for name, size in sizes.items())
    seen = opened.mean.norm() ** 2 - noise
    return RoundingReport(
        levels=code.levels,
        halvings=list(halvings),
        next_halvings=list(code.halvings_after(opened, halvings)),
        largest_error=max(code.errors(opened).values()),
        relative_error=(noise / seen) ** 0.5 if seen > 0 else None,
        numbers=opened.summands * sum(sizes.values()),
        cut=sum(opened.cut.values()),
    )


@dataclass(frozen=True)
class RoundReport:
    """A round. `loss` and `metric` are the coordinator's own evaluation if it has one; otherwise
    `loss` is the example-weighted training loss that silos told, and `metric` is None. Bytes are
    tensor payloads: up from silos, down to silos. `silos` are those aggregated. None is what may
    not be told (see `told`). `rounding` is of secure sums without noise.
    """

    round: int
    loss: float | None
    metric: float | None
    bytes_up: int | None
    bytes_down: int | None
    seconds: float | None
    silos: list[str] | None
    failures: list[Failure] | None
    rounding: RoundingReport | None = None

    def numbers(self) -> dict[str, float]:
        """What a logger draws over rounds."""
        known = {
            "loss": self.loss,
            "accuracy": self.metric,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "seconds": self.seconds,
            "silos": None if self.silos is None else len(self.silos),
            "failures": None if self.failures is None else len(self.failures),
            "numbers_cut": self.rounding.cut if self.rounding else None,
            "rounding_error": self.rounding.relative_error if self.rounding else None,
        }
        return {name: float(value) for name, value in known.items() if value is not None}


def told(report: RoundReport, rule: Rule) -> RoundReport:
    """What may be told of a round: all of it, unless the rule promises silos privacy.

    Then neither a loss on silos' rows nor the words of a silo's error; and where the promise rests
    on nobody knowing whom a round asked, nothing that tells it: names, bytes and seconds.
    Seconds of any private run are left out before (`RunPlan.timed`).
    """
    if not isinstance(rule, SiloLevel):
        return report
    quiet = dataclasses.replace(
        report,
        loss=None,
        failures=[dataclasses.replace(f, detail="") for f in report.failures or ()],
    )
    if not rule.secret_sample:
        return quiet
    return dataclasses.replace(
        quiet, bytes_up=None, bytes_down=None, seconds=None, silos=None, failures=None
    )


class QuorumLostError(RunFailedError):
    """Too few good replies by the deadline.

    `report` is what may be told of the round that was given up; the message is for the operator.
    """

    def __init__(
        self, report: RoundReport, tally: "Tally", min_silos: int, failures: list[Failure]
    ):
        self.report = report
        lines = [
            f"round {report.round}: {len(tally.silos)} good replies, "
            f"`federation.min_silos` is {min_silos}"
        ]
        lines += [f"  {f.silo}: {f.reason}: {f.detail}" for f in failures]
        super().__init__("\n".join(lines))


@dataclass
class Tally:
    """What the good replies of a round add up to, without their deltas."""

    silos: list[str] = field(default_factory=list)
    bytes: int = 0
    losses: list[tuple[float, int]] = field(default_factory=list)
    rounding: RoundingReport | None = None

    def add(self, silo: str, update: Update) -> None:
        """Count one good reply."""
        self.silos.append(silo)
        self.bytes += update.payload_bytes
        if "loss" in update.metrics:
            self.losses.append((update.metrics["loss"], update.examples))

    def loss(self) -> float | None:
        """Example-weighted mean of the told losses, or None if no silo told one."""
        examples = sum(count for _, count in self.losses)
        # shares first: a silo may tell any finite number, and their sum must not overflow
        return sum(loss * (n / examples) for loss, n in self.losses) if examples else None
