"""What is seen of a run on stderr: a live display in a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from fedtune.training.events import Evaluated, Event, Listener, StepDone

if TYPE_CHECKING:
    from fedtune_server.reports import RoundReport
    from fedtune_simulations.events import Working

_LINE_SECONDS = 10.0
_LINES_A_RUN = 10
_ROUNDS_SHOWN = 10
_WIDTH = 28


@contextmanager
def training_progress(console: Console | None = None) -> Iterator[Listener]:
    """A listener that shows a training run until the block ends."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield PlainTraining(console)
        return
    with _bar(console) as progress:
        yield LiveTraining(progress)


class PlainTraining:
    """A line every ten seconds or tenth of the run, and one for each evaluation."""

    def __init__(self, console: Console) -> None:
        self._console, self._told, self._began = console, -math.inf, 0.0
        self._first: int | None = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Evaluated):
            _line(self._console, _evaluated(event))
        if isinstance(event, StepDone):
            now = time.monotonic()
            if self._first is None:  # what came before the first step says nothing of the rest
                self._first, self._began = event.step - 1, now - event.seconds
            tenth = max(1, event.steps // _LINES_A_RUN)
            due = event.step % tenth == 0 or now - self._told >= _LINE_SECONDS
            if due or event.step == event.steps:
                self._told = now
                left = (now - self._began) / (event.step - self._first) * (event.steps - event.step)
                _line(
                    self._console,
                    f"step {event.step}/{event.steps}: {_step(event)}, {left:.0f} s left",
                )


class LiveTraining:
    """A bar with loss, learning rate and speed."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("training", total=None, detail="")

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Evaluated):
            _line(self._progress.console, _evaluated(event))
        if isinstance(event, StepDone):
            self._progress.update(
                self._task, completed=event.step, total=event.steps, detail=_step(event)
            )


@contextmanager
def simulation_progress(rounds: int, console: Console | None = None) -> Iterator["Rounds"]:
    """A display of a simulation of `rounds` rounds until the block ends."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield PlainRounds(console)
        return
    shown = LiveRounds(console, rounds)
    with Live(console=console, get_renderable=shown.render, transient=True, refresh_per_second=4):
        yield shown


@contextmanager
def counting(
    what: str, total: int, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar that hears how many more of `total` are done; nothing outside a terminal."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    with _bar(console) as progress:
        task = progress.add_task(what, total=total, detail="")
        yield lambda count: progress.advance(task, count)


class Rounds(Protocol):
    """What hears of a simulation."""

    def round(self, report: "RoundReport") -> None:
        """A round is finished."""

    def work(self, event: "Working") -> None:
        """A silo, or a part of the comparison, made a step."""


class PlainRounds:
    """A line a round, and one when the comparison begins."""

    def __init__(self, console: Console) -> None:
        self._console, self._compares = console, False

    def round(self, report: "RoundReport") -> None:
        """A line for the finished round."""
        _line(self._console, _round(report))

    def work(self, event: "Working") -> None:
        """One line for all of the comparison."""
        if event.round is None and not self._compares:
            self._compares = True
            _line(self._console, "comparing: each silo alone, then central")


class LiveRounds:
    """A bar for the rounds, one for the silo now training, and the latest rounds as a table."""

    def __init__(self, console: Console, rounds: int) -> None:
        self._finished: list[RoundReport] = []
        self._bars = _bar(console)
        self._all = self._bars.add_task("rounds", total=rounds, detail="")
        self._one = self._bars.add_task("preparing", total=None, detail="")

    def round(self, report: "RoundReport") -> None:
        """The finished round joins the table."""
        self._finished.append(report)
        self._bars.update(self._all, completed=report.round)

    def work(self, event: "Working") -> None:
        """The second bar is the one who works now."""
        who = event.who if event.round is None else f"round {event.round}: {event.who}"
        if event.step == 1:
            self._bars.reset(self._one)
        self._bars.update(self._one, description=who, completed=event.step, total=event.steps)

    def render(self) -> Group:
        """The display as it is now."""
        return Group(self._table(), self._bars) if self._finished else Group(self._bars)

    def _table(self) -> Table:
        table = Table("round", "loss", "accuracy", "silos", "failed", "seconds")
        for report in self._finished[-_ROUNDS_SHOWN:]:
            loss = "" if report.loss is None else f"{report.loss:.4f}"
            metric = "" if report.metric is None else f"{report.metric:.3f}"
            silos = "" if report.silos is None else str(len(report.silos))
            failed = "" if report.failures is None else str(len(report.failures))
            seconds = "" if report.seconds is None else f"{report.seconds:.1f}"
            table.add_row(str(report.round), loss, metric, silos, failed, seconds)
        return table


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", table_column=Column(width=_WIDTH, no_wrap=True)),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _step(event: StepDone) -> str:
    if event.loss is None:  # of a private step; its speed tells how many units chance took
        return f"lr {event.learning_rate:.2e}"
    speed = event.examples / event.seconds if event.seconds else 0.0
    return f"loss {event.loss:.4f}, lr {event.learning_rate:.2e}, {speed:.0f} examples/s"


def _evaluated(event: Evaluated) -> str:
    shown = ", ".join(f"{name} {value:.4f}" for name, value in event.metrics.items())
    return f"step {event.step}, validation: {shown}"


def _round(report: "RoundReport") -> str:
    parts = [
        None if report.loss is None else f"loss {report.loss:.4f}",
        None if report.silos is None else f"{len(report.silos)} silos",
        f"{len(report.failures)} failed" if report.failures else None,
        None if report.seconds is None else f"{report.seconds:.1f} s",
        *(report.rounding.remarks() if report.rounding else ()),
    ]
    shown = ", ".join(part for part in parts if part is not None)
    return f"round {report.round}: {shown or 'finished'}"
