"""What is seen of a trial on stderr: one screen in a terminal, a line a change elsewhere."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from fedtune.cli.trial import Standing

_STAMP = re.compile(r"^\S+ \S+ (INFO |(?=[A-Z]+ ))(?P<rest>.*)$")
_ROUNDS_SHOWN = 10


@contextmanager
def trial_progress(console: Console | None = None) -> Iterator[Callable[[Standing], None]]:
    """What hears of a trial until the block ends."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield PlainTrial(console)
        return
    shown = LiveTrial()
    with Live(console=console, get_renderable=shown.render, transient=True, refresh_per_second=4):
        yield shown


class PlainTrial:
    """A line for each new word on a process, each new line of its log and each round."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._words: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._rounds, self._state = 0, ""

    def __call__(self, now: Standing) -> None:
        """Print what has changed."""
        for name, word in now.words.items():
            if self._words.get(name) != word:
                self._line(f"{name}: {word}")
        for name, line in now.said.items():
            if line and self._said.get(name) != line:
                self._line(f"{name}: {without_stamp(line)}")
        for told in now.rounds[self._rounds :]:
            self._line(_round(told))
        if (state := now.run.get("state", "")) != self._state:
            self._line(f"run: {state}")
        self._words, self._said = dict(now.words), dict(now.said)
        self._rounds, self._state = len(now.rounds), state

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class LiveTrial:
    """The processes with a word on each and its latest line, the run, and its rounds."""

    def __init__(self) -> None:
        self._now: Standing | None = None

    def __call__(self, now: Standing) -> None:
        """Show this from now on."""
        self._now = now

    def render(self) -> Group:
        """The screen as it is now."""
        if self._now is None:
            return Group(Text("making keys, certificates and notes"))
        now = self._now
        processes = Table(
            Column("process", no_wrap=True),
            Column("state", no_wrap=True),
            Column("last line of its log", no_wrap=True, overflow="ellipsis", ratio=1),
            expand=True,
        )
        for name, word in now.words.items():
            processes.add_row(name, word, Text(without_stamp(now.said.get(name, ""))))
        state, rounds = now.run.get("state", "not begun"), now.run.get("rounds", "?")
        run = Text(f"run: {state}, {len(now.rounds)} of {rounds} rounds")
        return Group(processes, run, *([_table(now.rounds)] if now.rounds else []))


def without_stamp(line: str) -> str:
    """A line of a log without the time and, if nothing is wrong, the level."""
    found = _STAMP.match(line)
    return found["rest"] if found else line


def _table(rounds: list[dict[str, Any]]) -> Table:
    table = Table("round", "loss", "silos", "bytes up", "bytes down", "seconds")
    for told in rounds[-_ROUNDS_SHOWN:]:
        table.add_row(
            str(told["round"]),
            "" if told["loss"] is None else f"{told['loss']:.4f}",
            str(len(told["silos"])),
            f"{told['bytes_up']:,}",
            f"{told['bytes_down']:,}",
            f"{told['seconds']:.1f}",
        )
    return table


def _round(told: dict[str, Any]) -> str:
    loss = "" if told["loss"] is None else f"loss {told['loss']:.4f}, "
    return (
        f"round {told['round']}: {loss}{len(told['silos'])} silos, {told['bytes_up']:,} bytes up, "
        f"{told['bytes_down']:,} down, {told['seconds']:.1f} s"
    )
