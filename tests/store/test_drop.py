"""Dropped hook calls: in the ledger or in the spool file, once under an id, and out again in their order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.core.clock import SystemClock
from holdfast.store import catalogue, drop, migrate, open_database


def row(id: str, at: int = 1, body: bytes = b"{}") -> tuple[object, ...]:
    return (id, "claude", "Stop", body, len(body), None, at, None, 0)


def test_the_statements_are_those_of_the_catalogue() -> None:
    known = catalogue.load("sqlite")
    for file, name in (("sqlite/hooks.sql", "hooks.append"), ("sqlite/ledger.sql", "ledger.get")):
        assert drop._statement(file, name) == known[name].text
    spooled = catalogue.parse("sqlite", "spool.sql", (Path(drop._SQL) / "spool" / "spool.sql").read_text())
    for statement in spooled:
        assert drop._statement("spool/spool.sql", statement.name) == statement.text
        if statement.columns:  # what is read back is what `hooks.append` takes
            assert statement.columns == known["hooks.append"].params
    with pytest.raises(ValueError, match="no statement"):
        drop._statement("sqlite/hooks.sql", "hooks.none")


def test_a_spool_gives_back_what_it_got_in_order_and_forgets_it(tmp_path: Path) -> None:
    path = str(tmp_path / "state" / "hooks.db")
    assert drop.waiting(path) == []
    drop.forget(path, ["a"])
    assert not os.path.exists(path)
    for each in (row("b", 2), row("c", 1, b"\x00\xff"), row("a", 2), row("b", 3, b"again")):
        drop.spool(path, each, wait_ms=100)
    assert drop.waiting(path) == [row("c", 1, b"\x00\xff"), row("a", 2), row("b", 2)]
    assert drop.waiting(path, 1) == [row("c", 1, b"\x00\xff")]
    drop.forget(path, ["c", "b", "z"])
    assert drop.waiting(path) == [row("a", 2)]
    assert [each.stat().st_mode & 0o077 for each in (tmp_path / "state").iterdir()] == [0] * 3


async def test_a_ledger_takes_a_call_once_and_only_in_its_schema(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.db")
    with pytest.raises(drop.Refused, match="cannot be written"):
        drop.append(path, row("a"), schema=1, wait_ms=0)
    database = await open_database(path, clock=SystemClock())
    schema = len(migrate.load("sqlite"))
    try:
        for _ in range(2):
            drop.append(path, row("a"), schema=schema, wait_ms=0)
        with pytest.raises(drop.Refused, match="another schema"):
            drop.append(path, row("b"), schema=schema + 1, wait_ms=0)
        async with database.write() as tx:
            with pytest.raises(drop.Refused, match="BusyError"):
                drop.append(path, row("c"), schema=schema, wait_ms=0)
            assert await tx.one("hooks.get", id="c") is None
            assert [found.id for found in await tx.all("hooks.unfinished", most=10)] == ["a"]
    finally:
        await database.close()


def test_the_log_is_left_as_it_is_until_it_is_long(tmp_path: Path) -> None:
    path = str(tmp_path / "hooks.db")
    log = Path(path + "-wal")
    drop.spool(path, row("a", body=bytes(drop.LOG_BYTES_MAX)), wait_ms=0)
    assert log.stat().st_size > drop.LOG_BYTES_MAX
    drop.spool(path, row("b"), wait_ms=0)
    assert not log.exists()
    drop.spool(path, row("c"), wait_ms=0)
    assert log.exists()
    assert len(drop.waiting(path)) == 3
