"""Guards on open ledgers, requests as they know them, and a line to the ledger that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from hashlib import sha256
from types import TracebackType
from typing import Any

from tests.flow.exchanges import Counting

from holdfast.core.errors import Unavailable
from holdfast.idempotency import keys
from holdfast.idempotency.claims import Held, Ticket
from holdfast.idempotency.events import IdempotencyEvent
from holdfast.idempotency.guard import Idempotency
from holdfast.idempotency.rules import IdempotencyConfig, RouteRule
from holdfast.idempotency.values import Completed, KeyRecord, Principal
from holdfast.store.database import Database
from holdfast.testing import ManualClock
from holdfast.testing.store_contract import LocalStore

SECRET = bytes(range(32))
AGAIN = RouteRule(on_lapse="rerun")
"""A rule under which what has lapsed runs again."""
CREATED = Completed(201, [(b"content-type", b"text/plain")], b"made")


def config(**settings: Any) -> IdempotencyConfig:
    """Settings under which nothing is swept unless it is asked for."""
    usual = {"principal": lambda scope: "user-1", "secrets": [SECRET], "sweep_every": timedelta(days=1000)}
    return IdempotencyConfig(**usual | settings)


class Desk:
    """A guard, and what it told."""

    def __init__(self, database: Any, **settings: Any) -> None:
        self.events: list[IdempotencyEvent] = []
        self.guard = Idempotency(database, config(on_event=self.events.append, **settings))

    def kinds(self) -> list[str]:
        """What it told, without what it says of weak keys."""
        return [event.kind for event in self.events if event.kind != "weak_key"]

    def ticket(
        self, key: str = "order-17", *, body: bytes = b"5", rule: RouteRule | None = None, who: str = "user-1",
        method: str = "POST", route: str = "/orders", first_sent_at: int | None = None,
    ) -> Ticket:  # fmt: skip
        """A request as the guard knows it."""
        return self.guard.ticket(
            principal=Principal(who), key=key, rule=rule or RouteRule(), method=method, route=route,
            fingerprint=sha256(body).digest(), first_sent_at=first_sent_at,
        )  # fmt: skip

    async def held(self, key: str = "order-17", **request: Any) -> Held:
        """Claim a key that must be free."""
        found = await self.guard.claim(self.ticket(key, **request))
        assert isinstance(found, Held), found
        return found

    async def ask(self, key: str = "order-17", **request: Any) -> Any:
        """Claim a key, whatever comes of it."""
        return await self.guard.claim(self.ticket(key, **request))

    async def record(self, key: str = "order-17", **request: Any) -> KeyRecord:
        """The record of a key as it stands."""
        found = await self.guard.record(self.ticket(key, **request))
        assert found is not None
        return found

    async def count(self) -> int:
        """How many records there are."""
        async with self.guard.database.read() as tx:
            return len((await keys.list(tx, limit=200)).items)


@asynccontextmanager
async def desk(store: LocalStore, clock: ManualClock, **settings: Any) -> AsyncIterator[Desk]:
    """A guard on a handle of its own, as another process would have it."""
    async with store.opened(clock=clock) as database:
        opened = Desk(database, **settings)
        try:
            yield opened
        finally:
            if not database.gone:
                await opened.guard.stop(timedelta(0))


def die(some: Desk) -> None:
    """Let the process of a guard die: what it holds in memory is gone, and so is its lock."""
    database: Any = some.guard.database
    database.abandon()


async def turns(count: int = 30) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Any) -> None:
    """Let the loop turn until something holds; what the ledger does takes real time on PostgreSQL."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.to_thread(lambda: None)


class Line:
    """A line between a guard and its ledger.

    Attributes:
        cut: Nothing gets through.
        deaf: Of so many writes the answer is lost.
        busy: How many calls the ledger has under way.
        calls: What was asked, in order.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._free = asyncio.Event()
        self._free.set()
        self.cut = False
        self.deaf = 0
        self.busy = 0
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def hang(self) -> None:
        """Answer nothing until `resume`."""
        self._free.clear()

    def resume(self) -> None:
        """Let everything through again."""
        self.cut = False
        self.deaf = 0
        self._free.set()

    async def submit(self, statement: str, /, **params: object) -> Any:
        await self.pass_on(statement)
        self.busy += 1
        try:
            row = await self._database.submit(statement, **params)
        finally:
            self.busy -= 1
        self.answer(statement)
        return row

    def read(self) -> Any:
        return _Block(self, self._database.read(), "read")

    def write(self) -> Any:
        return _Block(self, self._database.write(), "write")

    async def pass_on(self, what: str) -> None:
        """Let a call through, or not."""
        self.calls.append(what)
        await self._free.wait()
        if self.cut:
            raise Unavailable("the line is cut")

    def answer(self, what: str) -> None:
        """Let an answer through, or lose it."""
        if self.deaf and what not in ("read", "keys.get"):
            self.deaf -= 1
            raise Unavailable("the answer was lost")


class _Block:
    def __init__(self, line: Line, block: Any, what: str) -> None:
        self._line, self._block, self._what = line, block, what

    async def __aenter__(self) -> Any:
        await self._line.pass_on(self._what)
        self._line.busy += 1
        try:
            return await self._block.__aenter__()
        except BaseException:
            self._line.busy -= 1
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._block.__aexit__(kind, error, trace)
        finally:
            self._line.busy -= 1
        if kind is None:
            self._line.answer(self._what)


class Wired(Desk):
    """A guard whose line to the ledger can be cut."""

    def __init__(self, line: Line, **settings: Any) -> None:
        super().__init__(line, **settings)
        self.line = line


async def over(it: Wired, clock: ManualClock, condition: Any, step: float = 0.1) -> None:
    """Let time pass until something holds, but not while the ledger is at work: that takes real time."""
    async with asyncio.timeout(60):
        while not condition():
            if not it.line.busy:
                await clock.advance(timedelta(seconds=step))
            await asyncio.to_thread(lambda: None)


class Gated(Counting):
    """An application that answers when it is let."""

    def __init__(self, **answer: Any) -> None:
        super().__init__(**answer)
        self.free = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def when_let(message: Any) -> None:
            await self.free.wait()
            await send(message)

        await super().__call__(scope, receive, when_let)
