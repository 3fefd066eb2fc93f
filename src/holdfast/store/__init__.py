"""The store: the only SQL and the only drivers.

`open_database` opens a ledger in a SQLite file, in memory, or in PostgreSQL. Names are loaded on first use: the store
of dropped hooks lies in this package too, and is imported where the rest would cost too much.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what `typing` says too
if TYPE_CHECKING:
    from typing import Any

    from holdfast.store.database import Append as Append
    from holdfast.store.database import Database as Database
    from holdfast.store.database import Plan as Plan
    from holdfast.store.database import Row as Row
    from holdfast.store.database import Tx as Tx
    from holdfast.store.opening import open_database as open_database
    from holdfast.store.settings import StoreSettings as StoreSettings

__all__ = ["Append", "Database", "Plan", "Row", "StoreSettings", "Tx", "open_database"]

_HOME = {
    **dict.fromkeys(("Append", "Database", "Plan", "Row", "Tx"), "database"),
    "StoreSettings": "settings",
    "open_database": "opening",
}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'holdfast.store' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"holdfast.store.{home}"), name)
    globals()[name] = value
    return value
