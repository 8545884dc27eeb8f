"""Which rounds' noise was drawn: written to disk before it is, so that no restart forgets one."""

import json
from collections.abc import Sequence
from pathlib import Path

from fedtune.atomic import write_text
from fedtune.errors import InputError, RunFailedError
from fedtune.privacy.accounting import epsilon
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.plan import ExecutionPlan
from fedtune.privacy.told import rounded_up

RELEASED = "released.json"
"""The record's name in the coordinator's folder of checkpoints."""


class Spending:
    """The numbers of the rounds released so far under `plan`, in order, kept at `path` if given.

    A round that is run again after its noise was drawn (from an older checkpoint, or after a kill
    in the instant between) stands there twice and is counted twice.
    """

    def __init__(self, plan: ExecutionPlan, path: Path | None = None) -> None:
        self.plan = plan
        self._path = path
        self.released: Sequence[int] = _read(path) if path and path.exists() else ()

    def charge(self, round_number: int) -> None:
        """Note that this round's noise is about to be drawn. To be called before it is.

        Raises RunFailedError, and notes nothing, when that would go beyond `target_epsilon`.
        """
        released = [*self.released, round_number]
        self._check(released)
        if self._path is not None:
            write_text(self._path, json.dumps({"rounds": released}) + "\n")
        self.released = released

    def events(self) -> list[GaussianEvent]:
        """What the rounds released so far cost."""
        return [self.plan.event_of(self.released)] if self.released else []

    def _check(self, released: Sequence[int]) -> None:
        target = self.plan.settings.target_epsilon
        if target is None or len(set(released)) == len(released):
            return  # the plan's own rounds fit: its noise was solved for them
        spent = epsilon(
            [self.plan.event_of(released)],
            self.plan.settings.delta,
            self.plan.settings.accountant,
        )
        if spent > target:
            raise RunFailedError(
                f"round {released[-1]}: rounds were run again after their noise was drawn; with "
                f"this one the run would reach epsilon {rounded_up(spent)} for a silo (delta "
                f"{self.plan.settings.delta:g}), above `privacy.target_epsilon` ({target})"
            )


def _read(path: Path) -> list[int]:
    try:
        rounds = json.loads(path.read_text())["rounds"]
        if not all(type(number) is int and number >= 1 for number in rounds):
            raise ValueError("rounds are not numbers")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the record of released rounds is damaged ({error})", where=path
        ) from None
    return list(rounds)
