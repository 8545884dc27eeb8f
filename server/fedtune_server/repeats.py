"""A call that a silo makes again, since no answer came, is answered as it was.

SuperLink takes a piece of a reply once, and calls it lost when it comes again: a line that breaks
between the piece and the answer would cost the silo its round.
"""

import asyncio
import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from fedtune_server.letters import Answer

_KEPT = 64
_Known = OrderedDict[bytes, asyncio.Future[Answer]]


@dataclass
class Repeats:
    """The latest answers to each silo, by what was asked."""

    _known: defaultdict[str, _Known] = field(
        default_factory=lambda: defaultdict(OrderedDict), init=False
    )

    async def once(
        self, silo: str, path: str, body: bytes, ask: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """The answer of `ask`, or of an earlier call of the same bytes, also of one under way.

        Only answers of status 200 are kept.
        """
        known = self._known[silo]
        key = hashlib.sha256(path.encode() + b"\n" + body).digest()
        if key in known:
            return await asyncio.shield(known[key])
        coming = known[key] = asyncio.get_running_loop().create_future()
        while len(known) > _KEPT:
            known.popitem(last=False)
        answer = Answer(503, b"", "text/plain")
        try:
            answer = await ask()
        finally:
            if answer.status != 200:
                known.pop(key, None)
            coming.set_result(answer)
        return answer
