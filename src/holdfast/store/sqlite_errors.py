"""What SQLite's errors mean, in the ledger's own words.

A constraint, or a value that fits no column, is the fault of one append (`APPEND_FAULTS`); all the rest, the file,
the disk, another process, will be the same for the next append.
"""

from __future__ import annotations

from types import TracebackType

import apsw

from holdfast.core.errors import Busy, Closed, Conflict, StoreError, Unavailable

__all__ = ["APPEND_FAULTS", "Edge", "translate"]

_VALUE_FAULTS = (OverflowError, UnicodeError, TypeError, ValueError, KeyError)
APPEND_FAULTS: tuple[type[Exception], ...] = (
    apsw.ConstraintError,
    apsw.TooBigError,
    apsw.MismatchError,
    apsw.RangeError,
    apsw.BindingsError,
    apsw.SQLError,
    StoreError,
    *_VALUE_FAULTS,
)
"""Errors of a statement that are the fault of its own row or text, an unknown statement among them."""


class Edge:
    """Turns what the driver raises in a block into errors of the store; reusable and reentrant.

    Args:
        label: What to call the database.
        values: Also turn what Python raises for values that cannot be bound.

    Attributes:
        mapped: What is turned.
    """

    __slots__ = ("_label", "mapped")

    def __init__(self, label: str, *, values: bool = False) -> None:
        self._label = label
        self.mapped: tuple[type[Exception], ...] = (apsw.Error, *_VALUE_FAULTS) if values else (apsw.Error,)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, self.mapped):
            raise translate(error, self._label) from error


def translate(error: Exception, label: str) -> StoreError:
    """Return the store's error for one of the driver or of a binding. Messages quote no values."""
    match error:
        case StoreError():
            return error
        case apsw.BusyError() | apsw.LockedError():
            return Busy(f"{label} is held by another process", "try again; see who keeps a transaction open")
        case apsw.ConstraintError():
            # SQLite names the constraint and its columns, never a value.
            return Conflict(f"a row of {label} violates a constraint: {error}")
        case apsw.ConnectionClosedError() | apsw.CursorClosedError():
            return Closed(f"{label} is closed", "open it again")
        case apsw.FullError():
            return Unavailable(
                f"the disk of {label} is full", "free some space; nothing acknowledged is lost", retry_after=5.0
            )
        case apsw.IOError() | apsw.CantOpenError() | apsw.ReadOnlyError() | apsw.PermissionsError() | apsw.AuthError():
            return _translate_file(error, label)
        case apsw.CorruptError() | apsw.FormatError():
            return StoreError(f"{label} is damaged", "stop writing to it, and restore a backup", code="store.corrupt")
        case apsw.NotADBError():
            return StoreError(f"{label} is not a SQLite database", "give another path", code="store.not_a_database")
        case apsw.TooBigError():
            return StoreError(f"a value is too big for {label}", "store less in one value", code="store.too_big")
        case apsw.NoMemError():
            return Unavailable(f"there is no memory left to use {label}", "free some memory")
        case apsw.Error():
            return StoreError(f"{label}: {error}")
        case OverflowError():
            return StoreError(f"a number is too large for {label}", "integers have 64 bits", code="store.value")
        case _:
            return StoreError(f"a value cannot be stored in {label}: {type(error).__name__}", code="store.value")


def _translate_file(error: apsw.Error, label: str) -> StoreError:
    if isinstance(error, apsw.ReadOnlyError):
        return StoreError(
            f"{label} cannot be written: its file or folder is read-only",
            "make both writable, or open it for reading only",
            code="store.read_only",
        )
    if isinstance(error, apsw.CantOpenError):
        return StoreError(
            f"{label} cannot be opened",
            "its folder must exist and be writable, for SQLite keeps its log beside the file",
            code="store.cannot_open",
        )
    if isinstance(error, apsw.IOError):
        return Unavailable(f"reading or writing {label} failed: {error}", "check the disk and its free space")
    return StoreError(f"{label} may not be used: {error}", "check who may read and write it", code="store.permission")
