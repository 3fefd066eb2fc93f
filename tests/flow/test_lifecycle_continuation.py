"""Continuations: blobs that a client finds again, over the API on every database, and from the command line."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from tests.flow.commandline import Answer, ask, tell

from holdfast.core.clock import micros
from holdfast.lifecycle import ContinuationConflict, ContinuationRefused, Continuations, put_continuation
from holdfast.lifecycle.continuations import BODY_BYTES_MAX, NAME_MAX, NAMES_MAX, PAGE, TTL_MAX, list_continuations
from holdfast.store.database import Database
from holdfast.testing import ManualClock
from holdfast.testing.store_contract import LocalStore

SECRET = b"the plan: buy milk, quietly"


async def test_a_put_replaces_the_whole_blob_and_counts_its_versions(db: Database) -> None:
    """LA-67."""
    blobs = Continuations(db)
    assert await blobs.get("thread", "plan") is None
    assert await blobs.put("thread", "plan", b"one") == 1
    assert await blobs.put("thread", "plan", b"\x00\xff") == 2
    found = await blobs.get("thread", "plan")
    assert found is not None
    assert (found.body, found.entry.version, found.entry.byte_size) == (b"\x00\xff", 2, 2)
    assert found.entry.expires_at - found.entry.created_at == micros(timedelta(days=7))
    assert await blobs.get("another", "plan") is None
    assert await blobs.get("thread", "\0") is None
    assert await blobs.list("thread") == [found.entry]


async def test_a_put_of_a_version_loses_to_whoever_came_first(db: Database) -> None:
    blobs = Continuations(db)
    with pytest.raises(ContinuationConflict, match="is not there") as refused:
        await blobs.put("thread", "plan", b"one", if_version=1)
    assert (refused.value.expected, refused.value.found) == (1, 0)
    assert await blobs.put("thread", "plan", b"one", if_version=0) == 1
    with pytest.raises(ContinuationConflict, match="is there in version 1; none was expected"):
        await blobs.put("thread", "plan", b"two", if_version=0)
    tries = (blobs.put("thread", "plan", each, if_version=1) for each in (b"two", b"three"))
    ends = await asyncio.gather(*tries, return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["ContinuationConflict", "int"]
    found = await blobs.get("thread", "plan")
    assert found is not None
    assert found.entry.version == 2


async def test_what_was_dropped_is_absent_and_begins_anew(db: Database) -> None:
    blobs = Continuations(db)
    for thread, name in (("a", "x"), ("a", "y"), ("b", "x")):
        await blobs.put(thread, name, b"body")
    assert [(entry.thread, entry.name) for entry in await blobs.list()] == [("a", "x"), ("a", "y"), ("b", "x")]
    assert [await blobs.drop("a", "x"), await blobs.drop("a", "x"), await blobs.drop("a", "\0")] == [True, False, False]
    assert await blobs.put("a", "x", b"again", if_version=0) == 1
    assert [await blobs.drop_thread("a"), await blobs.drop_thread("a"), await blobs.drop_thread("")] == [2, 0, 0]
    assert [entry.thread for entry in await blobs.list()] == ["b"]


async def test_a_blob_has_its_time_and_is_absent_after_it(store: LocalStore) -> None:
    clock = ManualClock()
    async with store.opened(clock=clock) as db:
        blobs = Continuations(db)
        await blobs.put("thread", "short", b"body", ttl=timedelta(seconds=10))
        await blobs.put("thread", "long", b"body", ttl=TTL_MAX)
        clock.advance(timedelta(seconds=10))
        assert await blobs.get("thread", "short") is None
        assert [entry.name for entry in await blobs.list("thread")] == ["long"]
        assert await blobs.drop("thread", "short") is False
        async with db.read() as tx:
            kept = await list_continuations(tx, "thread", now=0)
        assert [entry.name for entry in kept] == ["long", "short"], "it is only hidden so far"
        assert await blobs.put("another", "plan", b"body") == 1
        async with db.read() as tx:
            kept = await list_continuations(tx, "thread", now=0)
        assert [entry.name for entry in kept] == ["long"], "the next put deletes it"
        assert await blobs.put("thread", "short", b"body", if_version=0) == 1


@pytest.mark.parametrize(
    ("thread", "name", "size", "ttl", "why"),
    [
        ("thread", "plan", BODY_BYTES_MAX + 1, timedelta(days=1), "at most 262144"),
        ("thread", "plan", 1, TTL_MAX + timedelta(seconds=1), "at most 30 days"),
        ("thread", "plan", 1, timedelta(0), "at most 30 days"),
        ("", "plan", 1, timedelta(days=1), "characters that print"),
        ("thread", "", 1, timedelta(days=1), "characters that print"),
        ("thread", "a\0b", 1, timedelta(days=1), "characters that print"),
        ("thread", "\udc80", 1, timedelta(days=1), "characters that print"),
        ("t" * (NAME_MAX + 1), "plan", 1, timedelta(days=1), "characters that print"),
    ],
)
async def test_what_is_beyond_a_limit_is_refused_and_nothing_written(
    tmp_path: Path, thread: str, name: str, size: int, ttl: timedelta, why: str
) -> None:
    async with LocalStore(":memory:", tmp_path).opened() as db:
        blobs = Continuations(db)
        with pytest.raises(ContinuationRefused, match=why):
            await blobs.put(thread, name, b"x" * size, ttl=ttl)
        assert await blobs.list() == []
        assert await blobs.list("") == []
        assert await blobs.put("thread", "plan", b"x" * BODY_BYTES_MAX) == 1


async def test_all_threads_are_listed_however_many_there_are(tmp_path: Path) -> None:
    async with LocalStore(":memory:", tmp_path).opened() as db:
        async with db.write() as tx:
            for number in range(PAGE + 1):
                await put_continuation(tx, f"t{number:03}", "plan", b"", now=db.clock.now())
        assert [each.thread for each in await Continuations(db).list()] == [
            f"t{number:03}" for number in range(PAGE + 1)
        ]


async def test_a_thread_has_its_limits_whoever_puts_at_the_same_time(db: Database) -> None:
    blobs = Continuations(db)
    async with db.write() as tx:
        for number in range(NAMES_MAX - 1):
            await put_continuation(tx, "names", f"n{number}", b"", now=db.clock.now())
        for number in range(15):
            await put_continuation(tx, "bytes", f"n{number}", b"x" * BODY_BYTES_MAX, now=db.clock.now())
    for thread, body in (("names", b""), ("bytes", b"x" * BODY_BYTES_MAX)):
        ends = await asyncio.gather(*(blobs.put(thread, f"m{n}", body) for n in range(4)), return_exceptions=True)
        assert sorted(type(end).__name__ for end in ends) == [*["ContinuationRefused"] * 3, "int"]
        assert await blobs.put(thread, "n0", body) == 2, "what is there may be replaced"


# --- from the command line ----------------------------------------------------------------------------


class Shell:
    """The command line over one ledger, with something on its standard input."""

    def __init__(self, ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ledger = ledger
        self._monkeypatch = monkeypatch

    def ask(self, *arguments: object, stdin: bytes = b"") -> Answer:
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return ask("continuation", *arguments, "--db", self.ledger)


@pytest.fixture
def shell(ledger: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    return Shell(ledger, monkeypatch)


def test_a_blob_goes_in_and_comes_out_as_it_was(shell: Shell, caplog: pytest.LogCaptureFixture) -> None:
    """LA-67, and LX-73: no blob in a log line."""
    with caplog.at_level(logging.DEBUG):
        answer = shell.ask("put", "session-1", "plan", stdin=SECRET)
        assert (answer.code, answer.out, answer.err) == (0, "1\n", "")
        assert shell.ask("put", "session-1", "plan", "--if-version", "0", stdin=SECRET).code == 1
        got = shell.ask("get", "session-1", "plan")
        assert (got.code, got.out.encode(), got.err) == (0, SECRET, "")
        [listed] = shell.ask("list", "session-1", "--json").json
        assert (listed["thread"], listed["name"], listed["byte_size"], listed["version"]) == (
            "session-1",
            "plan",
            len(SECRET),
            1,
        )
        assert listed["created_at"] < listed["expires_at"]
        shown = shell.ask("list")
        assert "session-1" in shown.out
        assert SECRET.decode() not in shown.out + shown.err + caplog.text
        assert shell.ask("drop", "session-1", "plan").code == 0
        for gone in (("drop", "session-1", "plan"), ("get", "session-1", "plan"), ("drop-thread", "session-1")):
            answer = shell.ask(*gone)
            assert (answer.code, answer.out) == (1, "")
            assert "there is no" in answer.err
    assert SECRET.decode() not in caplog.text


def test_a_thread_is_dropped_with_all_that_it_has(shell: Shell) -> None:
    for name in ("one", "two"):
        assert shell.ask("put", "session-1", name, stdin=SECRET).code == 0
    answer = shell.ask("drop-thread", "session-1")
    assert (answer.code, answer.out) == (0, "2\n")
    assert shell.ask("list", "--json").json == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("put", "t", "n", "--if-version", "7"), 1, "version 7 was expected"),
        (("put", "t", "n", "--ttl", "31d"), 2, "--ttl"),
        (("put", "t", "n", "--ttl", "soon"), 2, "--ttl"),
        (("put", "t", "n", "--ttl", "0s"), 2, "--ttl"),
        (("put", "t", ""), 1, "characters that print"),
        (("put", "t", "n", "--file", "missing"), 3, "cannot be read"),
        (("put", "t"), 2, "NAME"),
        ((), 2, ""),
    ],
    ids=str,
)
def test_what_cannot_be_put_says_why_and_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, said: str
) -> None:
    shell = Shell(str(tmp_path / "ledger.db"), monkeypatch)
    assert shell.ask("put", "t", "there", stdin=b"x").code == 0
    answer = shell.ask(*arguments, stdin=b"body")
    assert answer.code == code
    assert said in answer.err
    assert [each["name"] for each in tell("continuation", "list", "--db", shell.ledger)] == ["there"]


def test_a_blob_that_is_too_large_is_refused_however_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell(str(tmp_path / "ledger.db"), monkeypatch)
    (tmp_path / "blob").write_bytes(b"x" * (BODY_BYTES_MAX + 1))
    for arguments in (("--file", tmp_path / "blob"), ()):
        answer = shell.ask("put", "t", "n", *arguments, stdin=b"x" * (BODY_BYTES_MAX + 1))
        assert (answer.code, answer.out) == (1, "")
        assert "at most 262144" in answer.err
    (tmp_path / "blob").write_bytes(b"small")
    assert shell.ask("put", "t", "n", "--file", tmp_path / "blob", "--ttl", "1h").code == 0
    assert shell.ask("get", "t", "n").out == "small"


def test_reading_makes_no_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = Shell(str(tmp_path / "none.db"), monkeypatch)
    for arguments in (("get", "t", "n"), ("list",), ("drop", "t", "n"), ("drop-thread", "t")):
        assert shell.ask(*arguments).code == 3
    assert list(tmp_path.iterdir()) == []
