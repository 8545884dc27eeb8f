"""What a round tells about itself."""

import dataclasses
from dataclasses import dataclass, field

from fedtune.aggregation.rule import Rule
from fedtune.errors import RunFailedError
from fedtune.privacy.central import SiloLevel
from fedtune.secagg.weighted import Bounds, Opened, Weighted
from fedtune_server.collect import Failure
from fedtune_server.messages import Update


@dataclass(frozen=True)
class RoundingReport:
    """How a secure sum was rounded.

    `levels` integers within the bounds, which are the settings' after `halvings`, tensor by tensor.
    `largest_error` is the most that a number of the mean may be off, `relative_error` the most that
    all of them are, in the root mean square, over the mean's own (None: it is zero); both but for
    numbers that were `cut` to their bounds, counted over all silos. `next_halvings` and
    `most_halvings` are for the round after.
    """

    levels: int
    halvings: list[int]
    cut: int
    largest_error: float
    relative_error: float | None
    next_halvings: list[int]
    most_halvings: list[int]

    @property
    def bounds(self) -> Bounds:
        """Those of the round after."""
        return Bounds(tuple(self.next_halvings), tuple(self.most_halvings))


def rounding_of(code: Weighted, opened: Opened, now: Bounds) -> RoundingReport:
    """The report on a sum with bounds `now`."""
    after = code.bounds_after(opened, now)
    rounding = code.rounding(opened)
    squares = sum(rounding[name] ** 2 * opened.mean[name].numel() for name, _ in code.spec)
    length = opened.mean.norm()
    return RoundingReport(
        code.levels,
        list(now.halvings),
        sum(opened.cut.values()),
        max(code.errors(opened).values()),
        squares**0.5 / length if length else None,
        list(after.halvings),
        list(after.most),
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
