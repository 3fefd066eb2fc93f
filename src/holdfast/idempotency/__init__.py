"""The `Idempotency-Key` header done right: a retried request takes effect once.

    from holdfast.idempotency import Idempotency, IdempotencyConfig, IdempotencyMiddleware, principal_from_user

    guard = Idempotency("orders.db", IdempotencyConfig(principal=principal_from_user, secrets=[SECRET]))
    app.add_middleware(IdempotencyMiddleware, guard=guard)

Names are loaded on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.idempotency import outbox as outbox
    from holdfast.idempotency.asgi import IdempotencyMiddleware as IdempotencyMiddleware
    from holdfast.idempotency.declare import idempotent as idempotent
    from holdfast.idempotency.events import IdempotencyEvent as IdempotencyEvent
    from holdfast.idempotency.guard import Idempotency as Idempotency
    from holdfast.idempotency.headers import CORS_ALLOW_HEADERS as CORS_ALLOW_HEADERS
    from holdfast.idempotency.headers import CORS_EXPOSE_HEADERS as CORS_EXPOSE_HEADERS
    from holdfast.idempotency.idem import Idem as Idem
    from holdfast.idempotency.idem import current as current
    from holdfast.idempotency.identity import principal_from_peer as principal_from_peer
    from holdfast.idempotency.identity import principal_from_user as principal_from_user
    from holdfast.idempotency.identity import shared_principal as shared_principal
    from holdfast.idempotency.openapi import openapi_for as openapi_for
    from holdfast.idempotency.rules import IdempotencyConfig as IdempotencyConfig
    from holdfast.idempotency.rules import RouteRule as RouteRule
    from holdfast.idempotency.unit import Unit as Unit
    from holdfast.idempotency.unit import UnitOfWork as UnitOfWork
    from holdfast.idempotency.values import Absent as Absent
    from holdfast.idempotency.values import Completed as Completed
    from holdfast.idempotency.values import Conflict as Conflict
    from holdfast.idempotency.values import Decision as Decision
    from holdfast.idempotency.values import InFlight as InFlight
    from holdfast.idempotency.values import KeyRecord as KeyRecord
    from holdfast.idempotency.values import Once as Once
    from holdfast.idempotency.values import Principal as Principal
    from holdfast.idempotency.values import Proceed as Proceed
    from holdfast.idempotency.values import Replay as Replay
    from holdfast.idempotency.values import Rerun as Rerun
    from holdfast.idempotency.values import Running as Running
    from holdfast.idempotency.values import State as State
    from holdfast.idempotency.values import Tombstone as Tombstone
    from holdfast.idempotency.values import Undecided as Undecided

_HOMES = {
    "asgi": ("IdempotencyMiddleware",),
    "declare": ("idempotent",),
    "events": ("IdempotencyEvent",),
    "guard": ("Idempotency",),
    "headers": ("CORS_ALLOW_HEADERS", "CORS_EXPOSE_HEADERS"),
    "idem": ("Idem", "current"),
    "identity": ("principal_from_peer", "principal_from_user", "shared_principal"),
    "openapi": ("openapi_for",),
    "rules": ("IdempotencyConfig", "RouteRule"),
    "unit": ("Unit", "UnitOfWork"),
    "values": (
        "Absent", "Completed", "Conflict", "Decision", "InFlight", "KeyRecord", "Once", "Principal", "Proceed",
        "Replay", "Rerun", "Running", "State", "Tombstone", "Undecided",
    ),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "outbox"])


def __getattr__(name: str) -> Any:
    if name == "outbox":
        return import_module("holdfast.idempotency.outbox")
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'holdfast.idempotency' has no attribute {name!r}")
    value = getattr(import_module(f"holdfast.idempotency.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
