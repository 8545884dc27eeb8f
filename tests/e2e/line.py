"""A bad line between nodes and coordinator: it can be slow, break, and be cut."""

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field

_PIECE = 16 * 1024
_BURST_SECONDS = 0.05


@dataclass
class Line:
    """Passes TCP from `port` to `to` on loopback, until `stop`.

    All connections share `up_bytes_per_second` towards the coordinator (None: no limit). `up` and
    `down` count what has passed.
    """

    port: int
    to: int
    up_bytes_per_second: float | None = None
    up: int = field(default=0, init=False)
    down: int = field(default=0, init=False)
    is_cut: bool = field(default=False, init=False)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop, init=False)
    _open: set[asyncio.StreamWriter] = field(default_factory=set, init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _free_at: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Listen from now on."""
        there = threading.Event()

        async def listen() -> None:
            await asyncio.start_server(self._carry, "127.0.0.1", self.port)
            there.set()

        def work() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(listen())
            self._loop.run_forever()

        threading.Thread(target=work, daemon=True).start()
        assert there.wait(10)

    def stop(self) -> None:
        """Pass nothing more."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def cut(self) -> None:
        """Break what is open, and let nothing through until `mend`."""
        self.is_cut = True
        self.break_once()

    def mend(self) -> None:
        """Let everything through again."""
        self.is_cut = False

    def break_once(self) -> None:
        """Break all open connections, as a router does that is started again."""

        def drop() -> None:
            for writer in [*self._open]:
                writer.transport.abort()

        self._loop.call_soon_threadsafe(drop)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        try:
            inner, outer = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:  # the coordinator is not there
            writer.transport.abort()
            return
        self._open |= {writer, outer}
        try:
            await asyncio.gather(self._up(reader, outer), self._down(inner, writer))
        finally:
            for one in (writer, outer):
                one.transport.abort()
                self._open.discard(one)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                if self.up_bytes_per_second is not None:
                    await self._wait_for(len(piece) / self.up_bytes_per_second)
                writer.write(piece)
                await writer.drain()
                self.up += len(piece)
        writer.transport.abort()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(_PIECE):
                writer.write(piece)
                await writer.drain()
                self.down += len(piece)
        writer.transport.abort()

    async def _wait_for(self, seconds: float) -> None:
        """Take the line for so long, after whoever has it now."""
        now = self._loop.time()
        self._free_at = max(self._free_at, now - _BURST_SECONDS) + seconds
        await asyncio.sleep(max(0.0, self._free_at - now))
