"""What the calls of silos that are under way hold of the coordinator's memory, and its limits."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import StreamReader


class NotNowError(Exception):
    """A call is one too many, brings more than there is room for, or came to a halt. Made again, it
    may be taken.
    """


class TooLargeError(Exception):
    """A body is larger than any may be."""


@dataclass
class UnderWay:
    """Counts calls, and bytes of their bodies, from their arrival until they are answered.

    A node has a few calls under way, with two pieces of 1 MiB at a time; what it sends again after
    its line broke may come on top. A body of which nothing comes for `stalls_seconds` is given up.
    """

    calls_of_silo: int = 32
    bytes_of_silo: int = 16 * 2**20
    bytes_of_all: int = 512 * 2**20
    stalls_seconds: float = 30.0
    _calls: Counter[str] = field(default_factory=Counter, init=False)
    _bytes: Counter[str] = field(default_factory=Counter, init=False)
    _all_bytes: int = field(default=0, init=False)

    @contextmanager
    def call(self, silo: str) -> Iterator["Call"]:
        """A call, until the block ends. Raises NotNowError if the silo has too many already."""
        if self._calls[silo] >= self.calls_of_silo:
            raise NotNowError(f"has {self.calls_of_silo} calls under way already")
        call = Call(self, silo)
        self._calls[silo] += 1
        try:
            yield call
        finally:
            self._calls[silo] -= 1
            self._bytes[silo] -= call.size
            self._all_bytes -= call.size

    def take(self, silo: str, size: int) -> None:
        """Make room for so many bytes more. Raises NotNowError if there is none."""
        if self._bytes[silo] + size > self.bytes_of_silo:
            raise NotNowError(f"has over {self.bytes_of_silo} bytes under way")
        if self._all_bytes + size > self.bytes_of_all:
            raise NotNowError(f"comes while all have over {self.bytes_of_all} bytes under way")
        self._bytes[silo] += size
        self._all_bytes += size


@dataclass
class Call:
    """One call, and how much of its body has come."""

    under_way: UnderWay
    silo: str
    size: int = 0

    async def body(self, content: StreamReader, largest: int) -> bytes:
        """The whole body. Raises NotNowError and TooLargeError."""
        taken, seconds = bytearray(), self.under_way.stalls_seconds
        while True:
            try:
                async with asyncio.timeout(seconds):
                    piece = await content.readany()
            except TimeoutError:
                raise NotNowError(f"sent no more of a body for {seconds:.0f} s") from None
            if not piece:
                return bytes(taken)
            self.under_way.take(self.silo, len(piece))
            self.size += len(piece)
            if self.size > largest:
                raise TooLargeError
            taken += piece
