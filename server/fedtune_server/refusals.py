"""Refusals in the log: the first of a kind at once, those that follow as one number.

Who is turned away must not fill the disk, nor push all else out of a log that is turned over.
"""

import asyncio
import logging
from dataclasses import dataclass, field

_Kind = tuple[str, str, str]
_MANY: _Kind = "-", "-", "more kinds of refusals than are told apart"


@dataclass
class Refusals:
    """Writes to `log`. A kind is a silo, an address and a reason; `kinds` are told apart at a time,
    so that who comes from many addresses gains nothing.
    """

    log: logging.Logger
    seconds: float = 60.0
    kinds: int = 100
    _more: dict[_Kind, int] = field(default_factory=dict, init=False)

    def tell(self, silo: str, address: str, why: str, said: str = "") -> None:
        """Log a refusal, unless one of its kind was within `seconds`. `said` is what the silo
        itself may choose, and makes no kind.
        """
        kind = silo, address, why
        if kind not in self._more and len(self._more) >= self.kinds:
            kind, said = _MANY, ""
        if kind in self._more:
            self._more[kind] += 1
            return
        self._more[kind] = 0
        self._write(kind, said)
        asyncio.get_running_loop().call_later(self.seconds, self._close, kind)

    def end(self) -> None:
        """Log the numbers that are not told yet."""
        for kind in list(self._more):
            self._close(kind)

    def _close(self, kind: _Kind) -> None:
        more = self._more.pop(kind, 0)
        if more:
            self._write(kind, f" ({more} more within {self.seconds:.0f} s)")

    def _write(self, kind: _Kind, said: str) -> None:
        silo, address, why = kind
        self.log.warning("refused: silo %s at %s: %s%s", silo, address, why, said)
