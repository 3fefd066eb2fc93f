"""How a ledger is opened, and shared by all in an event loop that open the same one.

Two openers of one file in one process would contend with each other for it, and two SQLite libraries would damage it.

Invariants:
    - Whoever opens a ledger again in the same event loop gets the same `Database`.
    - A process uses a file through one SQLite library only.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from typing import Any, Literal, TypeAlias, cast

from holdfast.core.clock import Clock, SystemClock
from holdfast.core.config import in_memory
from holdfast.core.errors import ConfigError
from holdfast.store.database import Database
from holdfast.store.settings import StoreSettings
from holdfast.store.sqlite import MEMORY, open_sqlite

__all__ = ["Library", "open_database"]

Library: TypeAlias = Literal["apsw", "sqlite3"]
_Key = tuple[int, str, bool]
_open: dict[_Key, Any] = {}
_opening: dict[_Key, asyncio.Future[None]] = {}


async def open_database(
    target: str | os.PathLike[str],
    *,
    clock: Clock,
    settings: StoreSettings | None = None,
    namespace: bytes | None = None,
    read_only: bool = False,
    library: Library = "apsw",
) -> Database:
    """Open a ledger, or take a share in one this event loop has open; give it back with `close`.

    The settings of the first opener hold. `:memory:` is never shared.

    Two SQLite libraries in one process do not see each other's locks, and damage a file that both use. A file whose
    application uses Python's own `sqlite3` on it is therefore opened with `library="sqlite3"`.

    Args:
        target: A path, `:memory:` or another of SQLite's names for it, or a `postgresql://` URL.
        clock: The database's time; a shared one must be the same.
        settings: Limits.
        namespace: What a new ledger gets, and an old one must have.
        read_only: Change nothing, and refuse to write.
        library: Which SQLite library opens a file.

    Raises:
        ConfigError: The target makes no sense, needs an extra that is not installed, or is open with another clock
            or through another library.
        StoreError: The ledger cannot be opened; the error says why.
    """
    settings = settings or StoreSettings()
    name = os.fspath(target)
    if not name or "\0" in name:
        raise ConfigError(f"{name!r} names no ledger", "give a path, ':memory:' or a postgresql:// URL")
    if in_memory(name):
        return await open_sqlite(MEMORY, clock=clock, settings=settings, namespace=namespace)
    postgres = name.startswith(("postgresql://", "postgres://"))
    if not postgres:
        if "://" in name or name.startswith("file:"):
            raise ConfigError("the ledger's URL is not one of PostgreSQL", "give a path or a postgresql:// URL")
        name = os.path.realpath(name)  # noqa: ASYNC240 - quick, and once per opening
        _check_library(name, library)
    key = (id(asyncio.get_running_loop()), name, read_only)
    while key in _opening:
        await asyncio.wait((_opening[key],))
    shared = _open.get(key)
    if shared is not None and not shared.gone and shared.shares > 0 and _is_home(shared):
        _check_clock(shared, clock)
        shared.shares += 1
        return cast(Database, shared)
    _opening[key] = asyncio.get_running_loop().create_future()
    try:
        opener = _postgres() if postgres else open_sqlite if library == "apsw" else _sqlite3()
        opened: Database = await opener(name, clock=clock, settings=settings, namespace=namespace, read_only=read_only)
        _open[key] = opened
    finally:
        _opening.pop(key).set_result(None)
    return opened


def _is_home(database: Any) -> bool:
    # The loop's id may be that of an earlier loop, and the entry may come from before a fork.
    return database.home.loop is asyncio.get_running_loop() and not database.home.foreign


def _check_library(path: str, library: Library) -> None:
    """Make sure that this process uses a file through one SQLite library only."""
    for (_, name, _), database in _open.items():
        used = getattr(database, "library", "apsw")
        if name == path and used != library and not database.gone and database.shares and not database.home.foreign:
            raise ConfigError(
                f"this process has {path} open through {used}, and {library} would damage it",
                "open it once: give a guard whose unit uses sqlite3 the path, and the engine a ledger of its own, "
                "or use apsw for the application's connections too",
                code="config.unit_database",
            )


def _check_clock(database: Database, clock: Clock) -> None:
    if database.clock is not clock and not (type(clock) is type(database.clock) is SystemClock):
        raise ConfigError(f"{database.label} is open with another clock", "give all that share a ledger the same clock")


def _sqlite3() -> Any:
    return importlib.import_module("holdfast.store.foreign").open_sqlite3


def _postgres() -> Any:
    try:
        return importlib.import_module("holdfast.store.postgres").open_postgres
    except ModuleNotFoundError as error:
        if error.name != "asyncpg":
            raise
        raise ConfigError(
            "PostgreSQL needs the package asyncpg", "pip install 'holdfast[postgres]'", code="config.missing_extra"
        ) from None
