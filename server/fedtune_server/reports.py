"""What a round tells about itself."""

from dataclasses import dataclass, field

from fedtune.errors import RunFailedError
from fedtune_server.collect import Failure
from fedtune_server.messages import Update


@dataclass(frozen=True)
class RoundReport:
    """A round. `loss` and `metric` are the coordinator's own evaluation if it has one; otherwise
    `loss` is the example-weighted training loss that silos told, and `metric` is None. Bytes are
    tensor payloads: up from silos, down to silos. `silos` are those aggregated.
    """

    round: int
    loss: float | None
    metric: float | None
    bytes_up: int
    bytes_down: int
    seconds: float
    silos: list[str]
    failures: list[Failure]

    def numbers(self) -> dict[str, float]:
        """What a logger draws over rounds."""
        known = {
            "loss": self.loss,
            "accuracy": self.metric,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "seconds": self.seconds,
            "silos": len(self.silos),
            "failures": len(self.failures),
        }
        return {name: float(value) for name, value in known.items() if value is not None}


class QuorumLostError(RunFailedError):
    """Too few good replies by the deadline. `report` is of the round that was given up."""

    def __init__(self, report: RoundReport, min_silos: int) -> None:
        self.report = report
        lines = [
            f"round {report.round}: {len(report.silos)} good replies, "
            f"`federation.min_silos` is {min_silos}"
        ]
        lines += [f"  {f.silo}: {f.reason}: {f.detail}" for f in report.failures]
        super().__init__("\n".join(lines))


@dataclass
class Tally:
    """What the good replies of a round add up to, without their deltas."""

    silos: list[str] = field(default_factory=list)
    bytes: int = 0
    losses: list[tuple[float, int]] = field(default_factory=list)

    def add(self, silo: str, update: Update) -> None:
        """Count one good reply."""
        self.silos.append(silo)
        self.bytes += update.delta.payload_bytes
        if "loss" in update.metrics:
            self.losses.append((update.metrics["loss"], update.examples))

    def loss(self) -> float | None:
        """Example-weighted mean of the told losses, or None if no silo told one."""
        examples = sum(count for _, count in self.losses)
        # shares first: a silo may tell any finite number, and their sum must not overflow
        return sum(loss * (n / examples) for loss, n in self.losses) if examples else None
