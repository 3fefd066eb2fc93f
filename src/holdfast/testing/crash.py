"""Crashes at named points, and a journal that fails on demand."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from holdfast import execution, idempotency, lifecycle, sessions, store
from holdfast.core import points
from holdfast.core.points import Action, Armed

__all__ = ["WriterFaults", "crash", "crash_points"]

_PASSING = (store, execution, idempotency, lifecycle, sessions)
# What they import is an extra, and they have no points of their own.
_EXTRAS = ("holdfast.store.postgres", "holdfast.idempotency.bodies", "holdfast.idempotency.client")
# Where this is not installed, there are no sessions to crash.
_WHOLE_EXTRAS = ("zstandard",)


def crash_points() -> tuple[str, ...]:
    """Return the names of all points where `crash` can strike, sorted."""
    _import_all()
    return points.names()


@contextmanager
def crash(point: str, hit: int = 1, action: Action = "kill") -> Iterator[Armed]:
    """Crash at a point while the block runs.

    Args:
        point: One of `crash_points()`.
        hit: At which pass of the point, counted from 1.
        action: `kill` sends SIGKILL to this process; `raise` drops all that open ledgers hold in memory,
            as a crash would, and raises `Crashed`; a callable is called.

    Yields:
        The armed point; `passed` says how often it was passed.

    Raises:
        ConfigError: There is no such point, or `hit` or `action` makes no sense.
    """
    _import_all()
    armed = points.arm(point, hit, action)
    try:
        yield armed
    finally:
        points.disarm(armed)


def _import_all() -> None:
    """Import the modules that pass points, since that is what registers them."""
    for package in _PASSING:
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name not in _EXTRAS:
                try:
                    importlib.import_module(module.name)
                except ModuleNotFoundError as missing:
                    if missing.name not in _WHOLE_EXTRAS:
                        raise


class _Opened(Protocol):
    @property
    def database(self) -> Any: ...


class WriterFaults:
    """Let the journal of an open ledger fail."""

    def __init__(self, hf: _Opened) -> None:
        """Take the ledger: a `Holdfast`, or whatever has its `database`."""
        self._faults = hf.database.writer.faults

    def stall(self) -> None:
        """Let nothing commit until `resume`."""
        self._faults.stall()

    def resume(self) -> None:
        """Let commits go on."""
        self._faults.resume()

    def die(self) -> None:
        """Let the writer die, in the middle of what it does; it is restarted as after any failure."""
        self._faults.die()

    def fail_next(self, count: int = 1) -> None:
        """Let the next commits fail."""
        self._faults.fail_next(count)
