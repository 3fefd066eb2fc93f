"""Numbered migrations, and which of them a ledger has.

The pure part both dialects share: reading the files, and choosing what to apply. A dialect applies
each migration in a transaction of its own that also records its number in the ledger row `schema`,
holding its write lock (SQLite) or an advisory lock (PostgreSQL) while it looks and applies.

Invariants:
    - Numbers are 1, 2, 3 … without a gap, and equal in both dialects.
    - A ledger newer than this code is left untouched.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import msgspec

from holdfast.core.errors import ConfigError, SchemaMismatch, StoreError
from holdfast.store.catalogue import Dialect

__all__ = [
    "Migration",
    "Status",
    "behind",
    "check_namespace",
    "decode_number",
    "encode_number",
    "load",
    "namespace",
    "pending",
    "status",
]

NAMESPACE_BYTES = 16
_FILE = re.compile(r"(?P<number>[0-9]{4})_(?P<name>[a-z0-9_]+)\.sql$")


class Migration(msgspec.Struct, frozen=True):
    """One step of the schema.

    Attributes:
        number: Its place, from 1.
        name: What it brings.
        text: Its SQL statements.
    """

    number: int
    name: str
    text: str


class Status(msgspec.Struct, frozen=True):
    """How far a ledger's schema is.

    Attributes:
        applied: Number of the newest migration it has; 0: it is no ledger yet.
        newest: Number of the newest one this code knows.
        pending: Those it lacks.
    """

    applied: int
    newest: int
    pending: tuple[Migration, ...]


@cache
def load(dialect: Dialect) -> tuple[Migration, ...]:
    """Return the migrations of a dialect in their order.

    Raises:
        StoreError: A file's name is malformed, or a number is missing or given twice.
    """
    found = []
    for file in (Path(__file__).parent / "migrations" / dialect).iterdir():
        if not file.name.endswith(".sql"):
            continue
        match = _FILE.match(file.name)
        if match is None:
            raise StoreError(f"migrations/{dialect}/{file.name}: not named NNNN_what.sql")
        found.append(Migration(int(match["number"]), match["name"], file.read_text("utf-8")))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise StoreError(f"migrations/{dialect}: the numbers have a gap or a repetition")
    return tuple(found)


def pending(applied: int, known: tuple[Migration, ...], *, label: str) -> tuple[Migration, ...]:
    """Choose what a ledger still needs.

    Args:
        applied: The number the ledger records; 0: none.
        known: What this code knows.
        label: What to call the ledger.

    Raises:
        SchemaMismatch: The ledger is newer than this code.
    """
    if applied > len(known):
        raise SchemaMismatch(
            f"{label} has schema {applied}, and this Holdfast knows {len(known)} at most",
            "it was written by a newer Holdfast: upgrade this one",
            applied=applied,
        )
    return known[applied:]


def status(applied: int, dialect: Dialect, *, label: str) -> Status:
    """Say how far a ledger's schema is.

    Raises:
        SchemaMismatch: The ledger is newer than this code.
    """
    known = load(dialect)
    return Status(applied, len(known), pending(applied, known, label=label))


def encode_number(number: int) -> bytes:
    """Return the value of the ledger row `schema`."""
    return str(number).encode()


def decode_number(value: bytes | None, *, label: str) -> int:
    """Read the value of the ledger row `schema`; None: the ledger's table is there, but not the row.

    Raises:
        SchemaMismatch: It is no number.
    """
    if value is None or not (value.isdigit() and value.isascii()):
        raise SchemaMismatch(f"{label} has a ledger table that Holdfast did not make", "give another database")
    return int(value)


def behind(applied: int, *, label: str) -> SchemaMismatch:
    """Return the error of a reader that needs a schema a ledger does not have yet."""
    if applied == 0:
        return SchemaMismatch(f"{label} holds no Holdfast ledger", "give the path of a ledger, or open it for writing")
    return SchemaMismatch(
        f"{label} has the old schema {applied}", "open it for writing once, which migrates it", applied=applied
    )


def namespace(given: bytes | None) -> bytes:
    """Return the namespace of a ledger about to be made.

    Raises:
        ConfigError: The one given has not 16 bytes.
    """
    if given is None:
        return os.urandom(NAMESPACE_BYTES)
    if len(given) != NAMESPACE_BYTES:
        raise ConfigError(f"a namespace has {NAMESPACE_BYTES} bytes, not {len(given)}", keys=("namespace",))
    return given


def check_namespace(found: bytes, given: bytes | None, *, label: str) -> None:
    """Make sure a ledger is the one the caller means.

    Raises:
        ConfigError: It has another namespace than the one given.
    """
    if given is not None and found != namespace(given):
        hint = "give its own, or none"
        raise ConfigError(f"{label} has another namespace than the one given", hint, keys=("namespace",))
