"""What PostgreSQL's errors mean, in the ledger's own words; and what to call a server without its password.

    faults of one append    a constraint, a value that fits no column, a statement's own text: `is_append_fault`
    all the rest            the connection, the server, a lock: they will be the same for the next append

The driver quotes values in the details of its errors, so an error about values is not chained to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

import asyncpg

from holdfast.core.errors import Busy, ConfigError, Conflict, SchemaMismatch, StoreError, Unavailable

__all__ = [
    "DRIVER_ERRORS",
    "Edge",
    "cause_of",
    "is_append_fault",
    "is_collision",
    "is_lost",
    "is_unprepared",
    "label_of",
    "sqlstate_of",
    "translate",
]

VALUE_FAULTS = (OverflowError, TypeError, ValueError)
"""What a value raises that cannot be encoded, an array that cannot be built."""

DRIVER_ERRORS: tuple[type[Exception], ...] = (
    asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError, *VALUE_FAULTS,
)  # fmt: skip

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.%-]*)(:[0-9]+)?")
_COLLISIONS = ("40001", "40P01")
_UNPREPARED = ("26000", "42P05")
_ENDED = ("57P01", "57P02", "57P03", "57P05", "25P03")
_VALUE_CLASSES = ("22", "23")


class Edge:
    """Turns what the driver raises in a block into errors of the store; reusable and reentrant.

    Args:
        label: What to call the server.
        learn: Told of every error first.
    """

    __slots__ = ("_label", "_learn")

    def __init__(self, label: str, learn: Callable[[BaseException], object] | None = None) -> None:
        self._label = label
        self._learn = learn

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, DRIVER_ERRORS):
            if self._learn is not None:
                self._learn(error)
            raise translate(error, self._label) from cause_of(error)


def cause_of(error: BaseException) -> BaseException | None:
    """What may stand as the cause of a store's error: the driver's, unless that quotes values."""
    quotes = isinstance(error, VALUE_FAULTS) or sqlstate_of(error)[:2] in _VALUE_CLASSES
    return None if quotes else error


def sqlstate_of(error: BaseException) -> str:
    """Return the server's code, empty when the server did not say."""
    return getattr(error, "sqlstate", None) or "" if isinstance(error, asyncpg.PostgresError) else ""


def is_append_fault(error: Exception) -> bool:
    """Whether an error is the fault of its own row or statement, so that another append may do better."""
    state = sqlstate_of(error)
    if state:
        return state[:2] in ("22", "23", "42", "54") and state not in ("42501", *_UNPREPARED)
    if isinstance(error, StoreError):
        return True  # a statement that the catalogue does not have
    return isinstance(error, asyncpg.InterfaceError | ValueError | TypeError | OverflowError) and not is_lost(error)


def is_collision(error: Exception) -> bool:
    """Whether two transactions met, and the same one again would succeed."""
    return sqlstate_of(error) in _COLLISIONS


def is_unprepared(error: BaseException | None) -> bool:
    """Whether a statement that was prepared is gone, or another is in its place: the session was another one."""
    return error is not None and sqlstate_of(error) in _UNPREPARED


def is_lost(error: Exception) -> bool:
    """Whether the connection is gone, and with it the knowledge of what the server did."""
    state = sqlstate_of(error)
    if state:
        return state[:2] == "08" or state in _ENDED
    if isinstance(error, asyncpg.InterfaceError):
        return "closed" in str(error)  # the driver has no error of its own for it
    return isinstance(error, OSError | TimeoutError | asyncpg.InternalClientError)


def label_of(url: str) -> str:
    """Return what to call a server: its URL without user, password and settings.

    Raises:
        ConfigError: The URL cannot be read for certain; it may be the password that makes it so.
    """
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        raise _unreadable() from None
    hosts = parts.netloc.rpartition("@")[2]
    sure = all(_HOST.fullmatch(host) for host in hosts.split(","))
    if not sure or parts.fragment or "@" in parts.path + parts.query:
        raise _unreadable()
    place = "".join(f"?host={value}" for value in query.get("host", ())[:1])
    return f"postgresql://{hosts}{parts.path}{place}"


def _unreadable() -> ConfigError:
    return ConfigError(
        "the ledger's URL cannot be read",
        "write postgresql://user:password@host:port/database, with special characters percent-encoded",
    )


def translate(error: Exception, label: str) -> StoreError:
    """Return the store's error for one of the driver. Messages quote no values and no credentials."""
    if isinstance(error, StoreError):
        return error
    state = sqlstate_of(error)
    if state:
        return _by_state(state, error, label)
    if isinstance(error, asyncpg.DataError) or (isinstance(error, VALUE_FAULTS) and not is_lost(error)):
        return StoreError(f"a value cannot be stored in {label}", "check its type and range", code="store.value")
    if isinstance(error, asyncpg.InterfaceError) and "another operation" in str(error):
        return StoreError(
            f"two tasks used one transaction of {label} at once", "a transaction serves one statement at a time"
        )
    return Unavailable(
        f"{label} cannot be reached: {type(error).__name__}", "check that the server runs and is reachable"
    )


def _by_state(state: str, error: Exception, label: str) -> StoreError:
    """The server's own errors. See "PostgreSQL Error Codes" in its manual."""
    match state[:2], state:
        case "23", _:
            constraint = getattr(error, "constraint_name", None) or getattr(error, "column_name", None) or "one"
            return Conflict(f"a row violates a constraint of {label}: {constraint}")
        case "22", _:
            return StoreError(f"a value cannot be stored in {label}", "check its type and range", code="store.value")
        case "54", _:
            return StoreError(f"a value is too big for {label}", "store less in one value", code="store.too_big")
        case (("40" | "55"), _):
            return Busy(f"{label}: another transaction was in the way", "try again")
        case "28", _:
            return StoreError(f"{label} refuses the login", "check user and password", code="store.permission")
        case _, "42501":
            return StoreError(
                f"{label}: the user lacks a permission: {error.args[0]}",
                "grant it; to create the ledger's tables the user needs CREATE on the schema",
                code="store.permission",
            )
        case _, ("42P01" | "3F000" | "42703"):
            return SchemaMismatch(
                f"a table or column of {label} is missing", "open the ledger again, or restore a backup"
            )
        case "3D", _:
            return StoreError(f"{label} does not exist", "create the database", code="store.cannot_open")
        case _, ("26000" | "42P05"):
            return Unavailable(
                f"a pooler gives every transaction of {label} another session", "it is asked so from now on: try again"
            )
        case _, "25006":
            return StoreError(
                f"{label} cannot be written: the server or the session is read-only",
                "give the primary server, or open it for reading only",
                code="store.read_only",
            )
        case _, "25P02":
            return StoreError(
                f"{label}: an earlier statement of this transaction failed", "leave the block when it does"
            )
        case _, "0A000":
            return Busy(f"the tables of {label} have just been changed", "try again")
        case _, ("53100" | "53200" | "53300" | "58030" | "57014"):
            return Unavailable(
                f"{label} cannot work just now: {error.args[0]}", "see the server's log", retry_after=5.0
            )
        case (("08" | "57"), _):
            return Unavailable(f"the connection to {label} is gone: {error.args[0]}", "it is made again by itself")
        case "XX", ("XX001" | "XX002"):
            return StoreError(f"{label} is damaged", "stop writing to it, and restore a backup", code="store.corrupt")
        case _:
            return StoreError(f"{label}: error {state}", "see the server's log")
