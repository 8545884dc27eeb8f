"""Refusals are logged, however many there are, in a few lines."""

import asyncio
import logging

import pytest
from fedtune_server.refusals import Refusals

LOG = logging.getLogger("fedtune_server.door")


def test_the_first_is_told_at_once_and_the_rest_as_a_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def go() -> None:
        refusals = Refusals(LOG, seconds=0.2)
        for number in range(1000):
            refusals.tell("north", "10.0.0.7", "may not call", f" '/{number}'")
        refusals.tell("north", "10.0.0.8", "may not call", " '/other'")
        refusals.tell("north", "10.0.0.7", "sent a compressed body")
        assert len(caplog.messages) == 3
        await asyncio.sleep(0.4)
        refusals.tell("north", "10.0.0.7", "may not call", " '/again'")

    asyncio.run(go())
    assert caplog.messages == [
        "refused: silo north at 10.0.0.7: may not call '/0'",
        "refused: silo north at 10.0.0.8: may not call '/other'",
        "refused: silo north at 10.0.0.7: sent a compressed body",
        "refused: silo north at 10.0.0.7: may not call (999 more within 0 s)",
        "refused: silo north at 10.0.0.7: may not call '/again'",
    ]


def test_who_comes_from_many_addresses_gains_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        refusals = Refusals(LOG, kinds=3)
        for number in range(1000):
            refusals.tell("unknown", f"2001:db8::{number:x}", "is in no roster")
        refusals.end()

    asyncio.run(go())
    assert len(caplog.messages) == 3 + 2
    assert caplog.messages[-1].endswith(" (996 more within 60 s)")
