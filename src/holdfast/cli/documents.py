"""Documents of the lifecycle on standard input and output, and the ledger that keeps their receipts.

Invariants:
    - A document is printed as the JSON that it is; characters that could steer a terminal are escaped.
    - No more is read than a document may have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from datetime import timedelta

    from holdfast.cli.ledger import Place
    from holdfast.core.clock import Clock
    from holdfast.lifecycle.documents import Document
    from holdfast.lifecycle.enums import ReplayMode
    from holdfast.lifecycle.router import Listener, Router
    from holdfast.store.database import Database

__all__ = ["instant_of", "opened", "print_document", "print_pretty", "read_file", "read_input", "router_of", "span_of"]

SPAN_DAYS_MAX = 36_500
"""A century: instants stay well inside what a datetime can hold."""


def read_input() -> bytes:
    """Return what is on standard input, up to one byte more than a document may have."""
    from holdfast.lifecycle.wire import DOCUMENT_BYTES_MAX

    return sys.stdin.buffer.read(DOCUMENT_BYTES_MAX + 1)


def read_file(path: Path) -> bytes:
    """Return what a file has; of `-`, all of standard input.

    Raises:
        UndecodableDocument: It cannot be read.
    """
    from holdfast.lifecycle.errors import UndecodableDocument

    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise UndecodableDocument(f"{path} cannot be read: {error.strerror}") from error


def print_document(document: Document) -> None:
    """Print a document on one line."""
    from holdfast.lifecycle import wire

    typer.echo(_shown(wire.encode(document).decode()))


def print_pretty(value: Any) -> None:
    """Print what JSON has, or a document, over several lines."""
    import msgspec

    from holdfast.cli.render import json_text

    typer.echo(json_text(msgspec.to_builtins(value), indent=2))


def _shown(text: str) -> str:
    if text.isprintable():
        return text
    # Outside its strings compact JSON has none of these.
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)


@asynccontextmanager
async def opened(place: Place) -> AsyncIterator[Database]:
    """Open the ledger for reading and writing, and make it when there is none. No execution is run."""
    import os

    from holdfast.core.clock import SystemClock
    from holdfast.core.config import prepare_folder
    from holdfast.store import open_database

    target = place.target()
    prepare_folder(target, os.environ)
    database = await open_database(target, clock=SystemClock())
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def router_of(
    place: Place, *, mode: ReplayMode, told: Listener | None = None
) -> AsyncIterator[tuple[Router, Clock]]:
    """Open the ledger, and a router on it; `told` hears of every receipt, those of a recovery included."""
    from holdfast.lifecycle.manifest import Registry
    from holdfast.lifecycle.router import Router

    config = place.lifecycle()
    key = config.chain_key()
    async with opened(place) as database:
        router = Router(
            database,
            registry=Registry.builtin(),
            clock=database.clock,
            mode=mode,
            ambiguous=config.ambiguous,
            chain_key=key,
            policy=config.policy,
        )
        if told is not None:
            router.subscribe(told)
        async with router:
            yield router, database.clock


def instant_of(since: str | None, now: int) -> int | None:
    """Read a span back from now, or an instant; return microseconds.

    Raises:
        typer.BadParameter: It is neither.
    """
    from datetime import UTC, datetime

    from holdfast.core.clock import from_datetime, micros

    if since is None:
        return None
    if (span := span_of(since)) is not None:
        return now - micros(span)
    try:
        at = datetime.fromisoformat(since)
    except ValueError:
        raise typer.BadParameter("--since is a span like 90s, 15m, 12h, 7d, or an instant in ISO 8601") from None
    return from_datetime(at if at.tzinfo is not None else at.replace(tzinfo=UTC))


def span_of(text: str) -> timedelta | None:
    """Read a span like 90s, 15m, 12h, 7d, of at most a century; None: it is none."""
    from datetime import timedelta

    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    digits, unit = text[:-1], text[-1:]
    if not (digits.isascii() and digits.isdigit()) or unit not in units or len(digits) > 9:
        return None
    span = timedelta(**{units[unit]: int(digits)})
    return span if span.days <= SPAN_DAYS_MAX else None
