"""Callers get in between the parts of a long piece of work."""

import asyncio

from moonshard.rpc.door import CALLS_PER_PAUSE, TURNS_PER_CALL, Door


async def turns_of(door: Door, calls: int) -> int:
    """Turns of the loop that a pause gives when so many calls come in one after the other, each in TURNS_PER_CALL."""
    turns, over = 0, False

    async def count() -> None:
        nonlocal turns
        while not over:
            turns += 1
            if turns % TURNS_PER_CALL == 1 and turns // TURNS_PER_CALL < calls:
                door.came()
            await asyncio.sleep(0)

    counter = asyncio.ensure_future(count())
    await door.pause()
    over = True
    await counter
    return turns


def test_nobody_at_the_door_is_one_turn() -> None:
    assert asyncio.run(turns_of(Door(), 0)) <= 2


def test_while_calls_come_they_have_the_turns_that_they_need() -> None:
    assert TURNS_PER_CALL * 3 <= asyncio.run(turns_of(Door(), 3)) <= TURNS_PER_CALL * 5


def test_the_work_goes_on_however_many_come() -> None:
    assert asyncio.run(turns_of(Door(), 10_000)) <= TURNS_PER_CALL * CALLS_PER_PAUSE + 2
