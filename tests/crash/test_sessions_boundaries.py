"""Whatever is done to captured calls happens wholly or not at all, wherever whoever does it dies.

Each journey ends in one deed. It is done once in peace, and then in an org of its own for every named point and every
boundary to the store: there it dies, and what is left is what was before the deed or what is after it. Whoever did it
does it again, and the end is that of peace.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.crash.test_sessions import POINTS, World
from tests.flow.captured import AT, archive, call
from tests.flow.commandline import tell
from tests.stage import halves

from holdfast.sessions import Attribution, Selector
from holdfast.sessions.config import SessionsConfig
from holdfast.sessions.errors import NotFound
from holdfast.sessions.facade import Archive
from holdfast.sessions.pricing import CardSource, RateCard
from holdfast.sessions.values import LOCAL, Call, Envelope, Principal
from holdfast.testing import Crashed, crash
from holdfast.testing.boundaries import CrashingDatabase

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")

Deed = Callable[[Archive, Principal], Awaitable[Any]]
STEP = 11
"""Of the boundaries the suite tries one in so many, and under torture all."""


def child(name: str, session: str, parent: str, at: int = 0) -> Call:
    """A call of a session that names its parent."""
    named = Envelope(harness_id="claude", harness_session_id=session, parent_harness_session_id=parent)
    return replace(call(name), session=named, captured_at=AT + timedelta(seconds=at))


def loose(name: str, at: int) -> Call:
    """A call of nobody's session that goes on from those before it."""
    asked = b'{"model":"m","messages":[%s{"role":"user","content":"go"}]}'
    before = b'{"role":"user","content":"hi"},{"role":"assistant","content":"done"},' if at else b""
    return replace(call(name, session=""), request=asked % before, captured_at=AT + timedelta(seconds=at))


def taking(given: Call) -> Deed:
    async def take(books: Archive, who: Principal) -> None:
        await books.ingest(given, principal=who)
        await books.derive()

    return take


async def _delete(books: Archive, who: Principal) -> None:
    with suppress(NotFound):  # it was done, and nobody was told
        await books.delete(("claude", "s"), reason="asked", principal=who)


async def _attribute(books: Archive, who: Principal) -> None:
    selector, change = Selector(session=("claude", "s")), Attribution(harness_id="claude", harness_session_id="t")
    if not await books.attributions(principal=who):
        await books.attribute(selector, change, reason="asked", dry_run=False, principal=who)


async def _reprice(books: Archive, who: Principal) -> None:
    card = RateCard(id="new", provider="anthropic", model="claude*", per_million={"input": Decimal(9)})
    books._deriver._prices = CardSource([card])  # the same settings, but for what things cost
    await books.reprice(reason="asked", dry_run=False, principal=who)


async def _rebuild(books: Archive, who: Principal) -> None:
    await books.rebuild(dry_run=False, principal=who)


FAMILY = (call("a"), call("b", "ho"), child("c", "kid", "s", 5), call("d", session="t"))
JOURNEYS: dict[str, tuple[tuple[Call, ...], Deed]] = {
    "a turn below its parent": ((call("a"),), taking(child("c", "kid", "s", 5))),
    "a parent after its child": ((child("c", "kid", "s", 5),), taking(call("a"))),
    "an earlier hint": ((*FAMILY, child("e", "kid", "t", 4)), taking(child("f", "kid", "u", 1))),
    "the first of a group": ((loose("y", 1), loose("z", 2)), taking(loose("x", 0))),
    "deleting": (FAMILY, _delete),
    "attributing": (FAMILY, _attribute),
    "pricing again": (FAMILY, _reprice),
    "deriving anew": (FAMILY, _rebuild),
}


async def state(books: Archive, who: Principal) -> object:
    """All that was derived of an org; where keys are made of the org itself, what they stand for."""
    sessions = (await books.list(limit=200, principal=who)).items
    found = sorted(
        (each.turn_count, each.tokens["input"] or 0, str(each.cost.usd), each.parent.state) for each in sessions
    )
    synthetic = any(each.is_synthetic for each in sessions)
    return found, "" if synthetic else await books.projection_hash(principal=who)


class Stage(World):
    """The ledger, and an org for every death."""

    def __init__(self, target: str, folder: Path) -> None:
        super().__init__(target, folder)
        self._orgs = 0

    def books(self, database: Any) -> Archive:
        return archive(database, config=SessionsConfig(secret_file=self.folder / "secret"), prices=CardSource(()))

    async def org(self, calls: tuple[Call, ...]) -> Principal:
        """An org in which these calls were captured and derived."""
        self._orgs += 1
        who = Principal(UUID(int=self._orgs), LOCAL.scopes)
        database = await self.open()
        books = self.books(database)
        for each in calls:
            await books.ingest(each, principal=who)
        await books.derive()
        await database.close()
        return who

    async def look(self, who: Principal) -> object:
        database = await self.open()
        try:
            return await state(self.books(database), who)
        finally:
            await database.close()

    async def do(
        self, deed: Deed, who: Principal, fate: AbstractContextManager[Any], dies_at: int | None = None
    ) -> bool:
        """Do it, or die; say whether that was survived."""
        database = await self.open()
        try:
            with fate:
                await deed(self.books(CrashingDatabase(database, dies_at)), who)
        except Crashed:
            database.abandon()
            return False
        await database.close()
        return True


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Iterator[Stage]:
    yield Stage(ledger, tmp_path)
    assert tell("verify", "--slice", "sessions", "--db", ledger)["problems"] == []


async def through(stage: Stage, name: str, step: int) -> int:
    """Take a journey with every death; return how many there were."""
    calls, deed = JOURNEYS[name]
    peace = await stage.org(calls)
    before = await stage.look(peace)
    assert await stage.do(deed, peace, nullcontext())
    after = await stage.look(peace)
    fates: list[tuple[AbstractContextManager[Any], int | None]] = [
        (crash(f"sessions.{each}", 1, "raise"), None) for each in POINTS
    ]
    deaths, boundary = 0, 1
    while True:
        fate, dies_at = fates.pop(0) if fates else (nullcontext(), boundary)
        who = await stage.org(calls)
        survived = await stage.do(deed, who, fate, dies_at)
        assert survived or await stage.look(who) in (before, after), (name, fate, dies_at)
        await stage.do(deed, who, nullcontext())
        assert await stage.look(who) == after, (name, fate, dies_at)
        deaths += not survived
        if dies_at is not None:
            if survived:
                return deaths
            boundary += step


@pytest.mark.parametrize(("ledger", "journey"), halves(*JOURNEYS), indirect=["ledger"])
async def test_a_deed_is_done_wholly_or_not_at_all(stage: Stage, journey: str) -> None:
    """SA-25, SX-6: one in some boundaries."""
    assert await through(stage, journey, STEP) >= 1


@pytest.mark.torture
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("journey", JOURNEYS)
async def test_a_deed_is_done_wholly_or_not_at_all_at_every_boundary(stage: Stage, journey: str) -> None:
    """SA-25, SX-6."""
    assert await through(stage, journey, 1) > 4
