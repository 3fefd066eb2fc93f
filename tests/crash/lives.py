"""Lives of processes that drive journeys: one goes on where the one before died."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from tests.crash.journeys import JOURNEYS, Journey, inspect, live_before
from tests.stage import Stage

import holdfast
from holdfast.testing import Crashed, crash, crash_points

LIFE_SECONDS_MAX = 20
DIED = object()
"""What becomes of a process that is crashed."""

Act = Callable[[holdfast.Holdfast], Awaitable[Any]]


async def process(stage: Stage, journey: Journey, *acts: Act) -> Any:
    """Do this and that in a fresh process; return what the last act gave, or `DIED`."""
    hf = stage.open(**journey.config)
    found: Any = None
    try:
        async with asyncio.timeout(LIFE_SECONDS_MAX), hf:
            for act in acts:
                found = await act(hf)
    except (Crashed, asyncio.CancelledError, holdfast.StoreError):
        if hf.crashed:  # whatever a dying process sees, nobody hears of it
            return DIED
        raise
    return DIED if hf.crashed else found


class Relay:
    """A journey crashed again and again: each process ends what the one before has left, and dies on its own way."""

    def __init__(self, stage: Stage, journey: Journey) -> None:
        self.stage = stage
        self.journey = journey
        self.expected: Any = None
        self._left: list[str] = []

    async def rehearse(self) -> dict[str, int]:
        """Go the journey without a crash; return how often each point was passed."""
        await self._earlier("rehearsal")
        with ExitStack() as stack:
            armed = [stack.enter_context(crash(point, 10**9)) for point in crash_points()]
            self.expected = await process(self.stage, self.journey, lambda hf: self.journey.drive(hf, "rehearsal"))
            passed = {each.name: each.passed for each in armed if each.passed}
        await process(self.stage, self.journey, lambda hf: self._inspect(hf, "rehearsal", deaths=0))
        return passed

    async def die(self, id: str, meet: Callable[[holdfast.Holdfast], AbstractContextManager[object]]) -> bool:
        """Go on the journey to meet a fate; say whether it was death."""

        async def go(hf: holdfast.Holdfast) -> Any:
            with meet(hf):
                return await self.journey.drive(hf, id)

        acts = [self.finish]
        if await self._earlier(id):
            acts = []
        elif self.journey is JOURNEYS["steps"]:  # one journey meets its fate in processes that have just begun
            await process(self.stage, self.journey, self.finish)
            acts = []
        output = await process(self.stage, self.journey, *acts, go)
        if output is DIED:
            self._left.append(id)
        else:
            assert output == self.expected
        return output is DIED

    async def recover(self, id: str) -> None:
        """Finish what died elsewhere, in a fresh process."""
        self._left.append(id)
        assert await process(self.stage, self.journey, self.finish) is not DIED

    async def finish(self, hf: holdfast.Holdfast) -> None:
        """Recover what died last, and see that all is well."""
        while self._left:
            id = self._left.pop()
            with told(id):
                assert await self.journey.drive(hf, id) == self.expected
                await self._inspect(hf, id, deaths=1)

    async def _earlier(self, id: str) -> bool:
        """Live the earlier life of the journey, if it has one."""
        if self.journey.before is None:
            return False
        await process(self.stage, self.journey, self.finish, lambda hf: live_before(hf, self.journey, id))
        return True

    async def _inspect(self, hf: holdfast.Holdfast, id: str, *, deaths: int) -> None:
        await inspect(hf, self.journey, id, deaths=deaths + (self.journey.before is not None))


@contextmanager
def told(where: str) -> Iterator[None]:
    """Name the place of the crash in whatever fails after it."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"after the crash at {where}")
        raise
