"""One batch of appends inside a SQLite transaction, on whichever thread.

Invariants:
    - When `run_batch` raises, nothing of its transaction is left; it never raises for a careful batch's appends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import apsw

from holdfast.core import points
from holdfast.store.batch import AppendFailed, Batch, Group
from holdfast.store.catalogue import Catalogue
from holdfast.store.database import Call
from holdfast.store.sqlite_errors import APPEND_FAULTS, translate

if TYPE_CHECKING:
    from holdfast.store.catalogue import Statement
    from holdfast.store.database import Row

__all__ = ["first_of", "roll_back", "run_batch"]

LARGE_BYTES = 1024 * 1024
"""A statement with larger values is not cached: it would keep them until it runs again."""


def run_batch(batch: Batch, connection: apsw.Connection, statements: Catalogue, label: str) -> None:
    """Run a batch in the transaction that has begun; the commit is the caller's.

    Raises:
        AppendFailed: An append is at fault.
        StoreError: The database is.
    """
    # A cursor for all of them: making one costs as much as a small statement.
    cursor = connection.cursor()
    try:
        if points.armed:
            points.reach("batch.begun")
        for group in batch.groups:
            if batch.careful:
                _run_carefully(group, cursor, statements, label)
            else:
                _run(group, cursor, statements)
        for call in batch.calls:
            _call(call, connection, cursor, label)
        if points.armed:
            points.reach("batch.inserted")
    except APPEND_FAULTS as error:
        roll_back(connection)
        raise AppendFailed from error
    except apsw.Error as error:
        roll_back(connection)
        raise translate(error, label) from error
    except BaseException:
        roll_back(connection)
        raise


def _run(group: Group, cursor: apsw.Cursor, statements: Catalogue) -> None:
    plan, rows = group.plan, group.rows
    executemany = cast(Any, cursor.executemany)
    for name in plan.creates:
        if found := rows[name]:
            executemany(statements[name].text, found)
    guards = group.guards
    if guards:
        guard = statements[plan.guard]
        make = guard.row
        keys = list(guards)
        # A guard gives one row or none, so as many rows as keys are the rows of the keys, in their order.
        given = executemany(guard.text, keys).fetchall()
        if len(given) == len(keys):
            for key, row in zip(keys, given, strict=True):
                guards[key] = make(row)
        else:
            for key in keys:
                for row in executemany(guard.text, (key,)):
                    guards[key] = make(row)
            rows = group.admitted()
    for name in plan.writes:
        if found := rows[name]:
            executemany(statements[name].text, found)


def _run_carefully(group: Group, cursor: apsw.Cursor, statements: Catalogue, label: str) -> None:
    """Run the one append of a group so that its failure stays its own."""
    if group.error is not None or (group.again and _find_recorded(group, cursor, statements)):
        return
    cursor.execute("SAVEPOINT append")
    try:
        _run(group, cursor, statements)
    except APPEND_FAULTS as error:
        cursor.execute("ROLLBACK TO append")
        group.error = translate(error, label)
    cursor.execute("RELEASE append")


def first_of(statement: Statement, rows: list[Any], connection: apsw.Connection) -> Row | None:
    """Return the first row of a statement that has just run, given the rows it returned."""
    if rows:
        return statement.row(rows[0])
    return statement.row((1,)) if statement.counts and connection.changes() else None


def _call(call: Call, connection: apsw.Connection, cursor: apsw.Cursor, label: str) -> None:
    """Run a statement; one that fails leaves nothing, and the transaction goes on."""
    try:
        rows = cursor.execute(call.statement.text, call.values, can_cache=call.size < LARGE_BYTES).fetchall()
    except APPEND_FAULTS as error:
        call.error = translate(error, label)
    else:
        call.row = first_of(call.statement, rows, connection)


def _find_recorded(group: Group, cursor: apsw.Cursor, statements: Catalogue) -> bool:
    for name, row in group.items[0].rows:
        companion = statements.companion(name)
        if companion is not None:
            for found in cursor.execute(companion.statement.text, cast(Any, companion.params(row))).fetchall():
                group.recorded = companion.statement.row(found)
                return True
    return False


def roll_back(connection: apsw.Connection) -> None:
    """End a transaction without committing it; nothing when there is none, or the connection is closed."""
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except apsw.Error:
        # Closed, or an error of the file: then SQLite ends it by itself, or the next BEGIN will say.
        pass
