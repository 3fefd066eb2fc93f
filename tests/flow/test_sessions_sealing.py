"""What was captured lies sealed: nothing of it can be read without the key, and nothing else is different."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Literal
from uuid import UUID

import apsw
import pytest
from tests.flow.captured import CARDS, archive, call, recording, rows, secrets
from tests.flow.commandline import ask, tell
from tests.unit.sessions_data import SHARED

from holdfast.core.errors import CodecError, ConfigError
from holdfast.core.keyring import KeyRing
from holdfast.sessions import sealing
from holdfast.sessions.config import Prices, SessionsConfig
from holdfast.sessions.facade import Archive
from holdfast.sessions.resealing import KeyCount, count_keys, reseal
from holdfast.sessions.sealing import SealedDatabase
from holdfast.sessions.values import LOCAL, Call, Principal, Stored
from holdfast.store import Database
from holdfast.testing.store_contract import LocalStore

MARKER = "XYZZY-MARKER"
FIRST, SECOND = (1, bytes(32)), (2, bytes(range(32)))


def books(database: Database, *ring: tuple[int, bytes]) -> Archive:
    """An archive that packs at once; with keys it is sealed."""
    config = SessionsConfig(
        prices=Prices(cards=CARDS, package=False), pack_after_ms=0, encryption="payload" if ring else "off"
    )
    if database.dialect == "postgres":
        config = replace(config, secret_file=secrets() / database.namespace.hex())
    return archive(database, config=config, ring=KeyRing(*ring) if ring else None)


async def take(archive: Archive, *calls: Call) -> None:
    for each in calls:
        assert isinstance(await archive.ingest(each), Stored)
    while (await archive.derive()).pending:
        pass


async def counts(database: Database) -> dict[int, int]:
    """How many values are sealed with each key."""
    found: dict[int, int] = {}
    for each in await count_keys(database):
        found[each.key_id] = found.get(each.key_id, 0) + each.count
    return found


@pytest.mark.parametrize("dialect", ["sqlite", "postgres"])
def test_every_statement_names_the_rows_whose_values_it_carries(dialect: Literal["sqlite", "postgres"]) -> None:
    plans = sealing._plans(dialect)
    assert len(plans) > 40
    for name, plan in plans.items():
        known = {*plan.statement.params, *plan.statement.columns}
        for column in (*plan.params, *plan.columns):
            assert {"org", *sealing.COLUMNS[column]} <= known, (name, column)


@SHARED
async def test_a_sealed_session_is_the_same_session(db: Database, tmp_path: Path) -> None:
    """SX-31: hashes, totals, messages, bodies; packed, rebuilt, verified and deleted."""
    sealed = books(db, FIRST)
    await take(sealed, *recording())
    assert (await sealed.pack()).bytes_after < 140_000
    assert await sealed.verify() == []
    async with LocalStore(str(tmp_path / "plain.db"), tmp_path / "more").opened() as other:
        plain = books(other)
        await take(plain, *recording())
        assert await sealed.projection_hash() == await plain.projection_hash()
        [a], [b] = (await sealed.list()).items, (await plain.list()).items
        assert replace(a, id=b.id, row_hash=b.row_hash) == b
        shown = [turn.messages async for turn in sealed.turns(a.id, payload="full")]
        assert shown == [turn.messages async for turn in plain.turns(b.id, payload="full")]
        assert shown[-1] is not None
        assert len(shown[-1]) > 10
    bodies = set()
    async for turn in sealed.turns(a.id):
        body = await sealed.raw(turn.id, "request")
        assert body is not None
        bodies.add(body.data)
    assert bodies == {each.request for each in recording()}
    assert set(await counts(db)) == {1}
    await sealed.delete(a.id, reason="test")
    assert await sealed.verify() == []
    assert await counts(db) == {}


async def test_no_text_is_in_the_ledger(ledger: str, tmp_path: Path) -> None:
    """SX-31: neither in a row nor, on SQLite, anywhere in the file and its log."""
    async with LocalStore(ledger, tmp_path / "owners").opened() as database:
        await take(
            books(database, FIRST),
            call("a", f"{MARKER} one"),
            replace(call("b", f"{MARKER} two"), response=f'{{"text": "{MARKER}"}}'.encode()),
            replace(call("c", "three"), request=MARKER.encode()),  # which nobody can read
        )
        seen = await rows(ledger)
        files = await asyncio.to_thread(lambda: [each.read_bytes() for each in tmp_path.glob("ledger.db*")])
    assert len(seen["session_raw_events"]) == 3
    for needle in (MARKER, MARKER.encode().hex()):
        assert needle not in repr(seen)
    assert all(MARKER.encode() not in each for each in files)


async def test_without_its_key_a_ledger_says_which_it_needs(db: Database) -> None:
    await take(books(db, FIRST), call("a"))
    for ring, code in (((), "config.cipher_missing"), ((SECOND,), "config.unknown_cipher_key")):
        stranger = books(db, *ring)
        for asked in (stranger.start, stranger.verify, stranger.projection_hash):
            with pytest.raises(ConfigError, match="key 1") as caught:
                await asked()
            assert caught.value.code == code
        with pytest.raises(ConfigError, match="key 1"):
            await stranger.list()
        with pytest.raises(ConfigError, match="key 1"):
            await stranger.ingest(call("b"))
    with pytest.raises(ConfigError, match="over 255"):
        books(db, (256, bytes(32)))
    liar = books(db, (1, b"!" * 32))
    with pytest.raises(CodecError, match="does not open"):
        await liar.list()
    with pytest.raises(ConfigError, match="not the key 1"):
        await liar.start()
    with pytest.raises(ConfigError, match="not the key 1"):
        await liar.ingest(call("b"))


async def test_a_body_that_looks_sealed_is_kept_as_it_is(db: Database) -> None:
    body = sealing.MARK + b"\x01 only looks so"
    for ring in ((), (FIRST,)):
        name = f"looks-{len(ring)}"
        mine = books(db, *ring)
        answer = await mine.ingest(replace(call(name, session=name), request=body))
        assert isinstance(answer, Stored)
        found = await mine.raw(answer.event_id, "request")
        assert found is not None
        assert found.data == body


async def test_a_key_that_is_missing_is_nothing_that_an_event_did(db: Database) -> None:
    sealed = books(db, FIRST)
    await sealed.ingest(call("a"))
    for ring in ((), (SECOND,)):
        with pytest.raises(ConfigError, match="key 1"):
            await books(db, *ring).derive()
    [event] = (await sealed.events()).items
    assert (event.state, event.attempts) == ("pending", 0)
    assert (await sealed.derive()).derived == 1


@pytest.mark.parametrize(
    ("table", "column"),
    [
        ("raw_events", "envelope"),
        ("raw_events", "request"),
        ("raw_events", "response"),
        ("turn_evidence", "facts"),
        ("nodes", "content"),
        ("parts", "content"),
        ("sessions", "fold"),
    ],
)
async def test_what_does_not_open_is_found_by_who_verifies(tmp_path: Path, table: str, column: str) -> None:
    """The row is named, and the rows of another org are looked at all the same."""
    other = Principal(UUID(int=7), LOCAL.scopes)
    async with LocalStore(str(tmp_path / "ledger.db"), tmp_path / "owners").opened() as database:
        sealed = books(database, FIRST)
        asked = {"model": "m", "tools": [{"name": "x" * 9000}], "messages": [{"role": "user", "content": "hi"}]}
        await take(sealed, call("a"), replace(call("b"), request=json.dumps(asked).encode()))
        await sealed.ingest(call("b"), principal=other)
        await sealed.derive()
        with closing(apsw.Connection(str(tmp_path / "ledger.db"))) as connection:
            cut = "UPDATE session_TABLE SET COLUMN = CAST(substr(COLUMN, 1, 20) || x'00' AS BLOB) WHERE org = ?"
            connection.execute(cut.replace("TABLE", table).replace("COLUMN", column), (LOCAL.org_id.bytes,))
        [found] = await sealed.verify()
        assert (found.org_id, found.table, found.code) == (str(LOCAL.org_id), f"session_{table}", "unreadable")
        assert found.row
        assert await sealed.verify(principal=other) == []


async def test_a_value_opens_in_its_own_place_only(ledger: str, tmp_path: Path) -> None:
    async with LocalStore(ledger, tmp_path / "owners").opened() as database:
        sealed = books(database, FIRST)
        await take(sealed, call("a", session="a"), call("b", session="b"))
        async with database.write() as tx:
            one, two = await tx.all("sessions.scan", org=LOCAL.org_id.bytes, after_session_id=b"", limit=2)
            for row, other in ((one, two), (two, one)):
                assert await tx.one(
                    "sessions.reseal", fold=other.fold, org=LOCAL.org_id.bytes, session_id=row.session_id, was=row.fold
                )
        with pytest.raises(CodecError, match="fold of"):
            await sealed.list()


async def test_keys_change_under_a_running_ledger(db: Database) -> None:
    old, both, new = (FIRST,), (SECOND, FIRST), (SECOND,)
    await take(books(db), call("plain", session="plain"))
    await take(books(db, *old), call("old", session="old"))
    assert set(await counts(db)) == {0, 1}
    hashed = await books(db, *old).projection_hash()
    sealed = books(db, *both)
    await take(sealed, call("new", "on", session="old"))
    assert isinstance(sealed._database, SealedDatabase)
    moved, _ = await asyncio.gather(reseal(sealed._database, batch=3), sealed.ingest(call("live"), wait=timedelta(0)))
    assert moved >= 5
    await reseal(sealed._database)
    assert set(await counts(db)) == {2}
    assert await reseal(sealed._database) == 0
    only = books(db, *new)
    await only.start()
    await only.stop()
    assert await only.verify() == []
    assert await only.projection_hash() != hashed
    with pytest.raises(ConfigError, match="key 2"):
        await books(db, *old).start()


def test_the_command_counts_and_changes_keys(
    ledger: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capture: Callable[..., None]
) -> None:
    capture(ledger, call("a"))
    settings = tmp_path / "holdfast.toml"
    settings.write_text("[sessions]\nencryption = 'payload'\nsecret_file = 'secret'\n")
    place = ("--config", settings, "--db", ledger)
    assert "HOLDFAST_KEY" in ask("crypto", "rotate", *place).err
    monkeypatch.setenv("HOLDFAST_KEY", f"7:{base64.b64encode(bytes(32)).decode()}")
    assert {each["key_id"] for each in tell("crypto", "status", *place)["items"]} == {0}
    hashes = [("verify", "--slice", "sessions", "--projection-hash"), ("sessions", "verify", "--projection-hash")]
    before = [tell(*each, *place) for each in hashes]
    assert ask("crypto", "rotate", *place).out.endswith("rows sealed anew\n")
    assert {each["key_id"] for each in tell("crypto", "status", *place)["items"]} == {7}
    assert ask("verify", "--slice", "sessions", *place).code == 0
    assert [tell(*each, *place) for each in hashes] == before
    assert tell("sessions", "list", *place)["items"][0]["turn_count"] == 1
    assert tell("crypto", "rotate", *place) == {"resealed": 0}
    monkeypatch.delenv("HOLDFAST_KEY")
    assert "HOLDFAST_KEY" in ask("verify", "--slice", "sessions", *place).err
    settings.write_text("[sessions]\nsecret_file = 'secret'\n")
    assert "key 7" in ask("sessions", "list", *place).err
    assert "encryption is off" in ask("crypto", "rotate", *place).err
    assert KeyCount("session_nodes", 7, 2) in asyncio.run(_counted(ledger, tmp_path))


async def _counted(target: str, folder: Path) -> list[KeyCount]:
    async with LocalStore(target, folder / "owners").opened() as database:
        return await count_keys(database)


@pytest.fixture
def capture(tmp_path: Path) -> Callable[..., None]:
    """Put calls into a ledger in the clear, and derive them."""

    async def work(target: str, *calls: Call) -> None:
        async with LocalStore(target, tmp_path / "owners").opened() as database:
            await take(archive(database, config=SessionsConfig(secret_file=tmp_path / "secret")), *calls)

    return lambda target, *calls: asyncio.run(work(target, *calls))
