"""Requests are packed as deltas of one another: smaller, byte for byte what they were, and nobody can tell."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.flow.captured import CARDS, archive, call, recording, secrets
from tests.flow.commandline import ask, tell
from tests.unit.sessions_data import SHARED

from holdfast.sessions import deltas, identity
from holdfast.sessions.archive import packing
from holdfast.sessions.archive.captures import load
from holdfast.sessions.config import Prices, SessionsConfig
from holdfast.sessions.facade import Archive
from holdfast.sessions.packer import PackReport
from holdfast.sessions.values import LOCAL, Call, Stored
from holdfast.store import Database
from holdfast.testing import Crashed, crash
from holdfast.testing.boundaries import CrashingDatabase
from holdfast.testing.store_contract import LocalStore

ORG = LOCAL.org_id


def books(database: Database, **more: Any) -> Archive:
    """An archive that packs at once."""
    config = SessionsConfig(prices=Prices(cards=CARDS, package=False), **{"pack_after_ms": 0, **more})
    if database.dialect == "postgres":
        config = replace(config, secret_file=secrets() / database.namespace.hex())
    return archive(database, config=config)


def talk(name: str, count: int, *, session: str | None = None, seed: int = 0) -> list[Call]:
    """Calls of a conversation: each says all that was said before, and a little more."""
    said = random.Random(f"{name}{seed}").randbytes(2000).hex()  # noqa: S311 - made-up data
    return [
        call(f"{name}-{at}", f"{said} {'on ' * at}", session=name if session is None else session)
        for at in range(count)
    ]


async def take(archive: Archive, calls: Sequence[Call]) -> list[bytes]:
    """Take calls in and derive them; return the ids of their events."""
    answers = [await archive.ingest(each) for each in calls]
    while (await archive.derive()).pending:
        pass
    assert all(isinstance(each, Stored) for each in answers)
    async with archive._database.read() as tx:
        found = await tx.all("raw_events.page", org=ORG.bytes, after=0, limit=999)
    return [row.event_id for row in found[-len(calls) :]]


async def requests(database: Database) -> dict[str, tuple[str, bytes, int]]:
    """How each request lies in the ledger, what it is, and what it takes; by capture id."""
    found: dict[str, tuple[str, bytes, int]] = {}
    async with database.read() as tx:
        for row in await tx.all("raw_events.page", org=ORG.bytes, after=0, limit=999):
            loaded = await load(tx, ORG, row.event_id)
            assert loaded is not None
            request = loaded.request
            if request is None:
                continue  # it was refused
            found[loaded.capture_id] = request.storage, request.data(), len(request.stored)
    return found


async def first_capture(archive: Archive, session: str) -> str:
    """The capture id of the first evidence of a session."""
    [turn] = [each async for each in archive.turns(session)]
    return turn.evidence[0].capture_id


@SHARED
async def test_the_recorded_session_packs_into_a_sixteenth_and_is_what_it_was(db: Database) -> None:
    """SA-60, SX-31."""
    archive = books(db)
    calls = {each.capture_id: each for each in recording()}
    await take(archive, recording())
    [shown] = (await archive.list()).items
    turns = [each async for each in archive.turns(shown.id, payload="full")]
    hashed = await archive.projection_hash()

    assert await archive.pack(dry_run=True) == PackReport(17, 0, 787_168, 787_168)
    report = await archive.pack()
    assert (report.events, report.deltas, report.bytes_before) == (17, 15, 787_168)
    assert await archive.pack() == PackReport()

    found = await requests(db)
    assert sum(len(data) for _, data, _ in found.values()) == 2_141_603
    assert sum(size for _, _, size in found.values()) == report.bytes_after <= 140_000
    assert {name: data for name, (_, data, _) in found.items()} == {name: each.request for name, each in calls.items()}
    assert [each async for each in archive.turns(shown.id, payload="full")] == turns
    body = await archive.raw(turns[-1].id, "request")
    assert body is not None
    assert body.data in {each.request for each in calls.values()}
    assert (await archive.list()).items == (shown,)
    assert await archive.projection_hash() == hashed
    assert await archive.verify() == []
    assert (await archive.rebuild(shown.id)).derived == 17
    assert await archive.projection_hash() == hashed
    await archive.delete(shown.id, reason="test")
    assert await requests(db) == {}
    assert await archive.verify() == []


async def test_what_came_lately_is_left_alone(db: Database) -> None:
    archive = books(db, pack_after_ms=3_600_000)
    await take(archive, talk("a", 3))
    assert await archive.pack() == PackReport()


async def test_a_later_pass_goes_on_with_the_bases_of_before(db: Database) -> None:
    archive = books(db)
    calls = [each for pair in zip(talk("a", 4), talk("b", 4, session="a"), strict=True) for each in pair]
    await take(archive, calls[:4])
    assert (await archive.pack()).deltas == 2
    await take(archive, calls[4:])
    report = await archive.pack()
    assert (report.events, report.deltas) == (4, 4)
    assert {name: data for name, (_, data, _) in (await requests(db)).items()} == {
        each.capture_id: each.request for each in calls
    }


async def test_deleting_a_base_leaves_what_was_packed_against_it_whole(db: Database) -> None:
    """SA-60: calls without a session id are stored together, whatever sessions they turn out to be of."""
    archive = books(db)
    calls = talk("loose", 5, session="")
    await take(archive, calls)
    assert (await archive.pack()).deltas == 4
    sessions = {each.id: each for each in (await archive.list()).items}
    assert len(sessions) == 5
    [base] = [name for name, (storage, _, _) in (await requests(db)).items() if storage != "delta"]
    firsts = {await first_capture(archive, each): each for each in sessions}
    await archive.delete(firsts[base], reason="test")

    left = {each.capture_id: each.request for each in calls if each.capture_id != base}
    found = await requests(db)
    assert {name: data for name, (_, data, _) in found.items()} == left
    assert {storage for storage, _, _ in found.values()} == {"zstd"}
    assert await archive.verify() == []
    assert (await archive.pack()).deltas == 3  # and they are packed anew
    assert {name: data for name, (_, data, _) in (await requests(db)).items()} == left


async def test_refusing_a_base_leaves_what_was_packed_against_it_whole(db: Database) -> None:
    archive = books(db)
    calls = talk("loose", 4, session="")
    await archive.ingest_many(calls)
    assert (await archive.pack()).deltas == 3
    [base] = [name for name, (storage, _, _) in (await requests(db)).items() if storage != "delta"]
    key = (identity.UNKNOWN, identity.synthetic_key(ORG, base))
    async with db.write() as tx:
        await tx.run("tombstones.put", [(ORG.bytes, *key, bytes(16), 1, "", "")])
    assert (await archive.derive()).refused == 1
    left = [each for each in calls if each.capture_id != base]
    assert {name: data for name, (_, data, _) in (await requests(db)).items()} == {
        each.capture_id: each.request for each in left
    }
    assert await archive.verify() == []


async def test_two_packers_a_deleter_and_live_calls_lose_nothing(ledger: str, tmp_path: Path) -> None:
    store = LocalStore(ledger, tmp_path / "owners")
    async with store.opened() as one, store.opened() as two:
        first, second = books(one, secret_file=tmp_path / "s"), books(two, secret_file=tmp_path / "s")
        calls = talk("loose", 12, session="") + talk("kept", 12) + talk("gone", 6)
        await take(first, calls)
        gone = [each.id for each in (await first.list(limit=200)).items if each.harness_session_id != "kept"][::2]
        live = talk("kept", 20)[12:]
        await asyncio.gather(
            first.pack(), second.pack(), *(first.ingest(each) for each in live), second.derive(),
            *(second.delete(each, reason="test") for each in gone), second.pack(), first.pack(),
        )  # fmt: skip
        while (await first.derive()).pending:
            pass
        found = await requests(one)
        assert await first.verify() == []
        sent = {each.capture_id: each.request for each in (*calls, *live)}
        assert {name: data for name, (_, data, _) in found.items()} == {name: sent[name] for name in found}
        assert {each.capture_id for each in (*calls[12:24], *live)} <= found.keys()


async def test_a_delete_waits_for_who_packs_against_what_it_takes(
    make_target: Callable[[str], str], tmp_path: Path
) -> None:
    async with LocalStore(make_target("postgres"), tmp_path / "owners").opened() as db:
        archive = books(db, secret_file=tmp_path / "s")
        calls = talk("loose", 2, session="")
        base, other = await take(archive, calls)
        [first] = [
            each.id for each in (await archive.list()).items if await first_capture(archive, each.id) == "loose-0"
        ]
        assert calls[0].request is not None
        assert calls[1].request is not None
        delta = deltas.encode(calls[1].request, calls[0].request)
        async with db.write() as tx:
            todo = [packing.Packed(base, base, None), packing.Packed(other, base, delta)]
            assert await packing.put(tx, ORG, todo) == {base, other}
            deleting = asyncio.create_task(archive.delete(first, reason="test"))
            for _ in range(200):
                await archive.get(first)
            assert not deleting.done()
        await deleting
        assert {name: data for name, (_, data, _) in (await requests(db)).items()} == {"loose-1": calls[1].request}
        assert await archive.verify() == []


async def test_a_packer_that_comes_second_changes_nothing(db: Database) -> None:
    archive = books(db)
    ids = await take(archive, talk("a", 3))
    stale = [packing.Packed(ids[0], ids[0], None), packing.Packed(ids[1], ids[0], b"never read")]
    await archive.pack()
    async with db.write() as tx:
        assert await packing.put(tx, ORG, stale) == set()
    # A base that was not one, or is one no more, is none.
    await take(archive, talk("b", 1))
    async with db.write() as tx:
        assert await packing.put(tx, ORG, [packing.Packed(ids[2], ids[1], b"never read")]) == set()
    assert await archive.verify() == []


async def test_a_damaged_body_is_left_to_be_found(db: Database) -> None:
    archive = books(db)
    ids = await take(archive, talk("a", 3))
    async with db.write() as tx:
        await tx.one("raw_events.keep", org=ORG.bytes, event_id=ids[0])
        await tx.one("raw_events.unpack", request=b"\0", request_storage="zstd", org=ORG.bytes, event_id=ids[0])
    report = await archive.pack()
    assert (report.events, report.deltas) == (3, 1)
    assert [each.code for each in await archive.verify()] == ["body"]


async def test_packing_can_die_anywhere(ledger: str, tmp_path: Path) -> None:
    """SX-31: at every named point; what is on disk is whole, and the next one goes on."""
    store = LocalStore(ledger, tmp_path / "owners")
    calls = talk("loose", 4, session="")
    async with store.opened() as database:
        await take(books(database, secret_file=tmp_path / "s"), calls)
    for point, hit in (("packing", 1), ("packing", 3), ("packed", 1)):
        async with store.opened() as database:
            with contextlib.suppress(Crashed), crash(f"sessions.{point}", hit, "raise"):
                await books(database, secret_file=tmp_path / "s").pack()
                raise AssertionError(point)
    async with store.opened() as database:
        archive = books(database, secret_file=tmp_path / "s")
        [first] = [each.id for each in (await archive.list()).items][-1:]
        with contextlib.suppress(Crashed), crash("sessions.freeing", 2, "raise"):
            await archive.delete(first, reason="test")
            raise AssertionError("freeing")
    async with store.opened() as database:
        archive = books(database, secret_file=tmp_path / "s")
        assert {name: data for name, (_, data, _) in (await requests(database)).items()} == {
            each.capture_id: each.request for each in calls
        }
        assert await archive.verify() == []


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.torture)])
async def test_packing_and_deleting_can_die_between_any_statements(ledger: str, tmp_path: Path, step: int) -> None:
    """SX-31, SA-60."""
    store = LocalStore(ledger, tmp_path / "owners")
    calls = talk("loose", 4, session="")
    async with store.opened() as database:
        await take(books(database, secret_file=tmp_path / "s"), calls)
    sent = {each.capture_id: each.request for each in calls}
    boundary = 1
    while True:
        async with store.opened() as database:
            archive = books(CrashingDatabase(database, boundary), secret_file=tmp_path / "s")
            with contextlib.suppress(Crashed):
                await archive.pack()
                await archive.delete((await archive.list()).items[0].id, reason="test")
                break
        async with store.opened() as database:
            archive = books(database, secret_file=tmp_path / "s")
            found = await requests(database)
            if len(found) < len(sent):  # deleted, and its acknowledgement lost
                break
            assert {name: data for name, (_, data, _) in found.items()} == sent
            assert await archive.verify() == []
        boundary += step
    assert boundary > 15
    async with store.opened() as database:
        found = await requests(database)
        assert {name: data for name, (_, data, _) in found.items()} == {name: sent[name] for name in found}
        assert len(found) == 3
        assert await books(database, secret_file=tmp_path / "s").verify() == []


async def test_a_started_archive_packs_by_itself(db: Database) -> None:
    archive = books(db)
    await take(archive, talk("a", 3))
    async with archive, asyncio.timeout(30):
        while (await archive.pack(dry_run=True)).events:  # noqa: ASYNC110 - the loop tells nobody
            await asyncio.sleep(0)
    assert sorted(storage for storage, _, _ in (await requests(db)).values()) == ["delta", "delta", "zstd"]


def test_the_command_says_what_it_would_pack_and_packs_it(ledger: str, tmp_path: Path) -> None:
    async def capture() -> None:
        async with LocalStore(ledger, tmp_path / "owners").opened() as database:
            await take(books(database, secret_file=tmp_path / "s"), talk("a", 3))

    asyncio.run(capture())
    settings = tmp_path / "holdfast.toml"
    settings.write_text("[sessions]\npack_after_ms = 0\nsecret_file = 's'\n")
    place = ("--config", settings, "--db", ledger)
    asked = ask("sessions", "pack", *place)
    assert (asked.code, "3 requests of " in asked.out, "--yes does it" in asked.out) == (0, True, True)
    assert "2 of 3 requests packed" in ask("sessions", "pack", "--yes", *place).out
    assert tell("sessions", "pack", *place)["report"]["events"] == 0


def test_nothing_of_a_deleted_session_is_in_the_file(make_target: Callable[[str], str], tmp_path: Path) -> None:
    """SX-161: short bodies and messages lie there as they are, long ones as frames, of which a piece is looked for."""
    target = make_target("sqlite-file")

    async def come_and_go() -> set[bytes]:
        async with LocalStore(target, tmp_path / "owners").opened() as database:
            archive = books(database)
            long = [replace(each, response=each.request) for each in talk("long", 20, session="gone")]
            await take(archive, [call("a", "XYZZY-MARKER", session="gone"), *long, *talk("kept", 20)])
            pieces = {b"XYZZY-MARKER"}
            async with database.read() as tx:
                for row in await tx.all("raw_events.scan", org=ORG.bytes, after_seq=0, limit=99):
                    if row.capture_id.startswith("long"):
                        pieces |= {row.request[at : at + 32] for at in range(100, len(row.request) - 32, 400)}
            await archive.pack()
            for each in (await archive.list()).items:
                if each.harness_session_id == "gone":
                    await archive.delete(each.id, reason="test")
        return pieces

    pieces = asyncio.run(come_and_go())
    data = Path(target).read_bytes()
    assert not Path(target + "-wal").exists()
    assert len(pieces) > 20
    assert [piece for piece in pieces if piece in data] == []
