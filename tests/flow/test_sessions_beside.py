"""What two transactions both touch is guarded on PostgreSQL too: who comes second provably waits for the first."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.flow.captured import AT, archive, call

from holdfast.sessions import Attribution, Selector
from holdfast.sessions.facade import Archive
from holdfast.sessions.values import Envelope, Stored, Upstream
from holdfast.store import Database
from holdfast.store.database import Tx
from holdfast.testing.store_contract import LocalStore

Act = Callable[[Archive], Awaitable[object]]

WAITING = """SELECT wait_event FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' LIMIT 1"""
LIMIT_S = 30


class Held:
    """A ledger whose next transaction that would commit waits for leave to."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.written = asyncio.Event()
        self.leave = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Tx]:
        async with self._database.write() as tx:
            yield tx
            self.written.set()
            await self.leave.wait()


def turn(name: str, session: str = "s", parent: str = "", **more: Any) -> Act:
    """Take a call in, and derive it."""
    envelope = Envelope(harness_id="claude", harness_session_id=session, parent_harness_session_id=parent)
    given = replace(call(name), session=envelope if session or parent else None, **more)

    async def taken(books: Archive) -> None:
        assert isinstance(await books.ingest(given, wait=timedelta(0)), Stored)

    return taken


def told(name: str, session: str) -> Act:
    """The same call as another of this kind tells of, said to be of another session."""
    return turn(name, session, response=call("one").response, upstream=Upstream(200, request_id="r"))


def other(name: str, session: str = "s", parent: str = "") -> Act:
    """A call in which nothing is said that others say: the same messages would be waited for too."""
    return turn(name, session, parent, request=call(name, "something else").request)


def chat(name: str, *said: str, parent: str = "") -> Act:
    """A call without a session id that goes on from an earlier one."""
    messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(said)]
    asked = json.dumps({"model": "claude-sonnet-4-6", "messages": messages}).encode()
    return turn(name, "", parent, request=asked, captured_at=AT + timedelta(seconds=len(said)))


def put(books: Archive) -> Awaitable[object]:
    change = Attribution(harness_session_id="new", parent_harness_session_id="p")
    return books.attribute(Selector(session=("claude", "s")), change, reason="test", dry_run=False)


def delete(books: Archive) -> Awaitable[object]:
    return books.delete(("claude", "s"), reason="test")


def rename(books: Archive) -> Awaitable[object]:
    return books.rename(("claude", "s"), "a name")


def rebuild(books: Archive) -> Awaitable[object]:
    return books.rebuild(("claude", "s"))


CASES: dict[str, tuple[list[Act], Act, Act]] = {
    "turns of a new session": ([], turn("a"), turn("b")),
    "turns of a session": ([turn("a")], turn("b"), turn("c")),
    "tellings of one call": ([], told("a", "s"), told("b", "t")),
    "a child and its parent": ([], turn("a", "c", "s"), turn("b")),
    "a parent and its child": ([], turn("a"), turn("b", "c", "s")),
    "children of a session nobody has seen": ([], turn("a", "c", "s"), turn("b", "d", "s")),
    "calls that go on from one another": ([], chat("a", "hi"), chat("b", "hi", "done", "more")),
    "a call that comes before the one that goes on from it": ([], chat("b", "hi", "done", "more"), chat("a", "hi")),
    "a parent and the next call of a child nobody named": (
        [chat("a", "hi", parent="s")], other("p"), chat("b", "hi", "done", "more"),
    ),
    "a call of a child nobody named, and its parent": (
        [chat("a", "hi", parent="s")], chat("b", "hi", "done", "more"), other("p"),
    ),
    "a turn and an attribution": ([turn("a")], turn("b"), put),
    "an attribution and a turn": ([turn("a")], put, turn("b")),
    "a turn elsewhere and an attribution": ([turn("a")], turn("b", "t"), put),
    "a turn and a delete": ([turn("a"), turn("c", "c", "s")], turn("b"), delete),
    "a turn and a name": ([turn("a")], turn("b"), rename),
    "a name and a turn": ([turn("a")], rename, turn("b")),
    "a turn and a rebuild": ([turn("a")], turn("b"), rebuild),
    "a rebuild and a turn": ([turn("a")], rebuild, turn("b")),
}  # fmt: skip


async def held_up(target: str, second: asyncio.Task[None]) -> None:
    """Wait until the second waits for what guards its rows, and not only for a row that it is about to write."""
    watch = await asyncpg.connect(target)
    try:
        async with asyncio.timeout(LIMIT_S):
            while (found := await watch.fetchval(WAITING)) is None:
                assert not second.done(), "it did not wait for the first"
            assert found == "advisory"
    finally:
        await watch.close()


async def run(act: Act, books: Archive) -> None:
    await act(books)


@pytest.mark.parametrize("case", CASES)
async def test_who_comes_second_waits_and_both_count(
    make_target: Callable[[str], str], tmp_path: Path, case: str
) -> None:
    before, first, second = CASES[case]
    target = make_target("postgres")
    async with LocalStore(target, tmp_path / "owners").opened() as db, LocalStore(":memory:").opened() as memory:
        books, fresh = archive(db), archive(memory)
        for act in before:
            await act(books)
        held = Held(db)
        one = asyncio.create_task(run(first, archive(held)))
        async with asyncio.timeout(LIMIT_S):
            await held.written.wait()
        two = asyncio.create_task(run(second, books))
        try:
            await held_up(target, two)
        finally:
            held.leave.set()
            await asyncio.gather(one, two)
        assert await books.verify() == []
        for act in (*before, first, second):
            await act(fresh)
        assert await books.projection_hash() == await fresh.projection_hash()


async def test_who_derives_something_else_waits_for_nobody(make_target: Callable[[str], str], tmp_path: Path) -> None:
    async with LocalStore(make_target("postgres"), tmp_path / "owners").opened() as db:
        held = Held(db)
        one = asyncio.create_task(run(turn("a", "s", "p"), archive(held)))
        async with asyncio.timeout(LIMIT_S):
            await held.written.wait()
            await other("b", "t", "q")(archive(db))
        assert [each.harness_session_id for each in (await archive(db).list()).items] == ["t"]
        held.leave.set()
        await one
        assert await archive(db).verify() == []
