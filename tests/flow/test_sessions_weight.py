"""What a turn costs: as much as the call itself, however much has been said before; and who pays for a large one."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, cast

import msgspec
import pytest
from tests.flow.captured import archive, call
from tests.store.sessions_ledger import ORG as OWNER
from tests.store.sessions_ledger import answer, ask, digest, event, fold, fresh, said, session, take

from holdfast.core.errors import StoreError
from holdfast.sessions import archive as records
from holdfast.sessions import registry
from holdfast.sessions.derivation import Derived
from holdfast.sessions.values import LOCAL, Call, Facts, Message, Stored, Upstream
from holdfast.store.database import Database, Row, Tx
from holdfast.testing import ManualClock

ORG = OWNER.bytes
NOON = 1_760_000_000_000_000


class Counting:
    """A ledger that counts the statements and rows of its transactions."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.counted: Counter[str] = Counter()
        self.fails: Callable[[str], bool] = lambda _: False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Tx]:
        async with self._database.write() as tx:
            yield cast("Tx", CountingTx(tx, self))
        self.counted["commits"] += 1


class CountingTx:
    """A transaction of it."""

    def __init__(self, tx: Tx, owner: Counting) -> None:
        self._tx = tx
        self._owner = owner

    def _count(self, statement: str, rows: int) -> None:
        self._owner.counted["statements"] += 1
        self._owner.counted["rows"] += rows
        if self._owner.fails(statement):
            raise StoreError("no", "never")

    async def one(self, statement: str, /, **params: object) -> Row | None:
        self._count(statement, 1)
        return await self._tx.one(statement, **params)

    async def all(self, statement: str, /, **params: object) -> list[Row]:
        found = await self._tx.all(statement, **params)
        self._count(statement, len(found))
        return found

    async def run(self, statement: str, rows: Iterable[Sequence[object]], /) -> int:
        given = list(rows)
        self._count(statement, len(given))
        return await self._tx.run(statement, given)

    def notify(self, channel: str, /) -> None:
        self._tx.notify(channel)


def wired(number: int, message_id: str, at: int | None = None) -> records.Event:
    """One of many calls with the same answer."""
    asked = Call(
        "anthropic",
        ask("hi"),
        answer("done", message_id),
        session=session("s"),
        upstream=Upstream(200, request_id=f"req-{number}"),
    )
    return event(asked, f"c{number}", NOON + (number if at is None else at))


def heard(loaded: records.Loaded) -> Derived:
    """What a call says; one whose name begins so was read in a transcript that knows no message id."""
    found = said(loaded)
    if found.evidence is None or not loaded.capture_id.startswith("loose"):
        return found
    loose = msgspec.structs.replace(found.evidence, rank=2, source="transcript", message_id="", request_id="")
    return dataclasses.replace(found, evidence=loose)


# --- one after the other


@pytest.mark.parametrize("message_id", ["", "always the same"], ids=["answers", "message ids"])
async def test_what_repeats_makes_no_turn_dearer(message_id: str) -> None:
    """SX-3: calls with the same answer, from a server whose message ids differ, and from one whose ids do not."""
    costs = []
    async with fresh() as plain:
        database = Counting(plain)
        for number in range(40):
            one = wired(number, message_id or f"m{number}")
            await take(plain, [one])
            database.counted.clear()
            await fold(cast("Database", database), one.event_id)
            costs.append((database.counted["statements"], database.counted["rows"]))
        async with plain.read() as tx:
            assert len({row.turn_id for row in await tx.all("turns.scan", org=ORG, after_turn_id=b"", limit=99)}) == 40
    assert set(costs[1:]) == {costs[-1]}  # the first makes the session besides


@pytest.mark.parametrize("message_id", ["", "always the same"], ids=["answers", "message ids"])
async def test_a_view_without_a_message_id_finds_its_call_whenever_it_comes(message_id: str) -> None:
    calls = [wired(number, message_id or f"m{number}") for number in range(6)]
    views = [dataclasses.replace(wired(at, "", at=50 + at), capture_id=f"loose{at}") for at in (10, 11)]
    views = [dataclasses.replace(each, event_id=bytes([7, at] * 8)) for at, each in enumerate(views)]
    orders = [
        [*views, *calls],
        [*calls[:3], *views, *calls[3:]],
        [*calls, *views],
        [*reversed(calls), *reversed(views)],
        [views[1], *calls, views[0]],
    ]
    found = set()
    for order in orders:
        async with fresh() as database:
            await take(database, order)
            for each in order:
                await fold(database, each.event_id, read=heard)
            async with database.read() as tx:
                turns = await tx.all("turns.scan", org=ORG, after_turn_id=b"", limit=99)
            found.add((len(turns), await digest(database)))
    assert [count for count, _ in found] == [6]


# --- together


async def test_events_share_a_transaction_as_long_as_nothing_is_wrong(db: Database) -> None:
    """SX-81: one of them cannot be written; the others are derived all the same, each alone."""
    database = Counting(db)
    books = archive(cast("Database", database), clock=ManualClock())  # else it may end early, on a slow machine
    for number in range(12):
        await books.ingest(call(f"c{number}", session=f"s{number % 3}"))
    database.counted.clear()
    assert (await books.derive()).derived == 12
    assert database.counted["commits"] == 1
    for number in range(12, 16):
        await books.ingest(call(f"c{number}", session="new"))
    writes = iter(range(100))
    database.fails = lambda statement: statement == "ids.add" and next(writes) in (0, 1)
    database.counted.clear()
    report = await books.derive()
    assert (report.derived, report.pending) == (3, 1)


# --- large ones


class Elsewhere:
    """A provider's parser that notes who runs it."""

    threads: ClassVar[list[int]] = []

    def __call__(self, request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
        Elsewhere.threads.append(threading.get_ident())
        return Facts(provider="acme", model="m", messages=(Message("user", ()),), outcome="complete")


parser = Elsewhere()


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Install a package with a parser, when it is called."""
    folder = tmp_path / "packages"
    info = folder / "acme-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nacme = {__name__}:parser\n")

    def install() -> None:
        sys.path.insert(0, str(folder))
        registry.parsers.cache_clear()

    yield install
    if str(folder) in sys.path:
        sys.path.remove(str(folder))
    registry.parsers.cache_clear()


async def test_what_nobody_could_read_is_read_once_somebody_can(db: Database, installed: Callable[[], None]) -> None:
    """SX-83: a provider's parser is installed later; the next start derives what had waited for it."""
    async with archive(db) as books:
        stored = await books.ingest(call("early", provider="acme"), wait=timedelta(seconds=20))
    assert isinstance(stored, Stored)
    assert (stored.state, stored.reason, stored.derived) == ("stored_unparsed", "unknown_provider", False)
    async with archive(db) as books:  # nothing is new: it is not tried again
        assert await books.turn(stored.turn_id) is None
        assert [each.state for each in (await books.events(state="unparsed")).items] == ["unparsed"]
    installed()
    async with archive(db) as books:
        await books.ingest(call("late", provider="acme"), wait=timedelta(seconds=20))
        turn = await books.turn(stored.turn_id)
        assert turn is not None
        assert (turn.provider, turn.model) == ("acme", "m")
        assert (await books.events(state="unparsed")).items == ()


async def test_large_bodies_are_read_off_the_loop(db: Database, installed: Callable[[], None]) -> None:
    """SX-187: when they are taken in, and when they are derived; small ones are not worth a thread."""
    installed()
    books = archive(db)
    own = threading.get_ident()
    for text, here in (("hi", True), ("x" * 300_000, False)):
        Elsewhere.threads.clear()
        await books.ingest(call(text[:2], text, provider="acme"))
        assert [each == own for each in Elsewhere.threads] == [here]
        await books.derive()
        assert [each == own for each in Elsewhere.threads] == [here, here]


async def test_an_image_is_kept_and_found_whatever_its_size(db: Database) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QUJD" * 400_000}}
    asked = {"model": "m", "messages": [{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}]}
    books = archive(db)
    given = call("image")
    stored = await books.ingest(dataclasses.replace(given, request=msgspec.json.encode(asked)))
    assert isinstance(stored, Stored)
    await books.derive()
    turn = await books.turn(stored.turn_id, payload="full")
    assert turn is not None
    assert turn.messages is not None
    [block, _] = turn.messages[0].content
    assert block.image_base64 == "QUJD" * 400_000
    assert await books.verify() == []


# --- calls without bodies


async def test_a_call_of_which_only_the_metadata_is_kept_costs_what_its_model_costs(db: Database) -> None:
    """SX-70: the model is told in `reduced`, whose words are dropped like the bodies; how it went, in `upstream`."""
    books = archive(db)
    said_ = {"role": "assistant", "content": [{"type": "text", "text": "psst"}]}
    told = msgspec.json.encode(
        {
            "capture_id": "m",
            "provider": "anthropic",
            "capture": "metadata",
            "request": {"secret": 1},
            "session": {"harness_session_id": "s"},
            "reduced": {"model": "claude-sonnet-4-6", "message": said_},
            "usage": {"input": 1000, "output": 100},
        }
    )
    stored = await books.receive(told)
    await books.receive(told.replace(b'"m"', b'"unknown"').replace(b"claude-sonnet-4-6", b"who"))
    failed = b'"upstream":{"status":529},"usage"'
    await books.receive(told.replace(b'"m"', b'"failed"').replace(b'"usage"', failed))
    assert (await books.derive()).derived == 3
    turns = {each.model + each.status: each async for each in books.turns(("unknown", "s"))}
    assert set(turns) == {"claude-sonnet-4-6ok", "whook", "claude-sonnet-4-6failed"}
    known = turns["claude-sonnet-4-6ok"]
    assert (known.id, known.fidelity, known.usage_state) == (stored.turn_id, "metadata", "provided")
    assert (str(known.cost.usd), known.cost.state, known.chain_length) == ("0.004500000000", "priced", 0)
    assert (turns["whook"].cost.usd, turns["whook"].cost.state) == (None, "unpriced")
    async with db.read() as tx:
        known = await records.recorded(tx, LOCAL.org_id, "m")
        assert known is not None
        loaded = await records.load(tx, LOCAL.org_id, known.event_id)
    assert loaded is not None
    assert (loaded.request, b"psst" in loaded.told, b"secret" in loaded.told) == (None, False, False)
