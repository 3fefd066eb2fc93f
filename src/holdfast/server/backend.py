"""What every route is given: the open ledger, and what was made round it when the server started.

Invariants:
    - There is one of each in a server; routes make none.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from litestar import Response

from holdfast.core.plain import plain

if TYPE_CHECKING:
    from holdfast import Holdfast
    from holdfast.core.keyring import KeyRing
    from holdfast.server.gate import Gate
    from holdfast.sessions.facade import Archive
    from holdfast.sessions.values import Principal

__all__ = ["Backend", "actor", "aware", "said"]

T = TypeVar("T")


class Backend:
    """The server's parts. No dataclass: the framework would look into one for what routes can be sent.

    Attributes:
        hf: The ledger, open.
        gate: Who comes in.
        archive: Captured conversations.
        ring: The cipher of the application's guard, for answers that operators give; None: it has none.
        stopping: Whether the server is on its way out.
    """

    def __init__(self, hf: Holdfast, gate: Gate, archive: Archive, ring: KeyRing | None) -> None:
        self.hf = hf
        self.gate = gate
        self.archive = archive
        self.ring = ring
        self.stopping = False


def actor(principal: Principal) -> str:
    """Name who asks, for audits."""
    return f"access key {principal.access_key_id}" if principal.access_key_id else "local"


def aware(at: datetime | None) -> datetime | None:
    """Return an instant that somebody sent, or none; one without a zone is in UTC."""
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def said(value: T, status: int = 200) -> Response[T]:
    """Answer with a record, or what is made of records, in the JSON that the command line prints."""
    content: Any = msgspec.json.encode(plain(value))
    return Response(content, status_code=status, media_type="application/json")
