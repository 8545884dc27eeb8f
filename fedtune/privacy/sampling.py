"""Which units a private step takes, and how their rows are cut to fit memory.

Chances come from the noise's own source: an order that the run's seed tells would be no sampling
to whoever knows the seed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fedtune.privacy.noise import NoiseSource
from fedtune.privacy.plan import ExecutionPlan


@dataclass(frozen=True)
class UnitRows:
    """The rows of each unit: `rows` sorted by unit, those of unit u from `starts[u]`."""

    rows: np.ndarray
    starts: np.ndarray

    @staticmethod
    def of(codes: np.ndarray) -> "UnitRows":
        """From each row's unit, an integer from 0 without gaps."""
        order = np.argsort(codes, kind="stable")
        counts = np.bincount(codes)
        return UnitRows(order, np.concatenate([[0], np.cumsum(counts)]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of_unit(self, unit: int) -> np.ndarray:
        """The rows of one unit."""
        return self.rows[self.starts[unit] : self.starts[unit + 1]]


class UnitSampler:
    """Draws the units of each step as the plan says, and bounds what each contributes."""

    def __init__(self, plan: ExecutionPlan, units: UnitRows, source: NoiseSource) -> None:
        if len(units) != plan.units:
            raise ValueError(f"the plan is for {plan.units} units, there are {len(units)}")
        self._plan, self._units, self._source = plan, units, source
        self._turns = math.ceil(1 / plan.sample_rate)
        self._turn, self._turn_of = 0, np.zeros(0, dtype=np.int64)

    def take(self) -> list[np.ndarray]:
        """The next step's units, each as its rows; empty when chance took none."""
        limit = self._plan.settings.max_records_per_unit if self._plan.unit == "patient" else 1
        return [self._bounded(self._units.of_unit(unit), limit) for unit in self._chosen()]

    def _chosen(self) -> np.ndarray:
        count, sampling = self._plan.units, self._plan.sampling
        if sampling == "full":
            return np.arange(count)
        if sampling == "poisson":
            return np.flatnonzero(self._source.uniform(count) < self._plan.sample_rate)
        if self._turn == 0:
            # each unit draws for itself: one more or less moves no other to another step
            self._turn_of = np.floor(self._source.uniform(count) * self._turns)
        taken = np.flatnonzero(self._turn_of == self._turn)
        self._turn = (self._turn + 1) % self._turns
        return taken

    def _bounded(self, rows: np.ndarray, limit: int) -> np.ndarray:
        if len(rows) <= limit:
            return rows
        return rows[np.argsort(self._source.uniform(len(rows)), kind="stable")[:limit]]


def physical_batches(
    units: Sequence[np.ndarray], most_rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows [at most `most_rows`] and each row's unit number from 0, whole units in every part.

    A unit is clipped once, so its rows must be together. Raises ValueError on a larger unit.
    """
    part: list[np.ndarray] = []
    size = 0
    for rows in units:
        if len(rows) > most_rows:
            raise ValueError(f"a unit of {len(rows)} rows doesn't fit a batch of {most_rows}")
        if size + len(rows) > most_rows:
            yield _joined(part)
            part, size = [], 0
        part.append(rows)
        size += len(rows)
    if part:
        yield _joined(part)


def _joined(part: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    owners = np.repeat(np.arange(len(part)), [len(rows) for rows in part])
    return np.concatenate(part), owners
