"""Cursors that fit one list only, and that nobody else can make. Pure.

Invariants:
    - A cursor of another org, order or filter, or one that was tampered with, is refused.
    - Its values are those of the last row shown, ending with the id, so that ties have an order.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping, Sequence
from uuid import UUID

import msgspec
from blake3 import blake3

from holdfast.sessions import jcs
from holdfast.sessions.errors import CursorMismatch
from holdfast.sessions.jcs import Json

__all__ = ["Listing", "decode", "encode"]

_VERSION = 1
_MAC_BYTES = 16
_CHARS_MAX = 2048


class Listing(msgspec.Struct, frozen=True):
    """One way of listing: whose rows, of what, in which order, which of them.

    Attributes:
        filters: The filters that are set, by name.
    """

    org: UUID
    of: str
    sort: str
    descending: bool
    filters: Mapping[str, Json]


def encode(listing: Listing, values: Sequence[int | str | bytes | None], *, secret: bytes) -> str:
    """Return the cursor that follows a row.

    Args:
        listing: The list.
        values: The row's sort values, its id last.
        secret: The installation's secret, 32 bytes.
    """
    body = msgspec.msgpack.encode((_VERSION, *values))
    return base64.urlsafe_b64encode(body + _mac(listing, body, secret)).rstrip(b"=").decode()


def decode(listing: Listing, cursor: str, *, secret: bytes) -> tuple[int | str | bytes | None, ...]:
    """Return the sort values of a cursor.

    Raises:
        CursorMismatch: It is no cursor of this list.
    """
    if len(cursor) > _CHARS_MAX:
        raise CursorMismatch
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise CursorMismatch from None
    body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(listing, body, secret)):
        raise CursorMismatch
    version, *values = msgspec.msgpack.decode(body)  # nobody but us can have written it
    if version != _VERSION:
        raise CursorMismatch
    return tuple(values)


def _mac(listing: Listing, body: bytes, secret: bytes) -> bytes:
    which = [str(listing.org), listing.of, listing.sort, listing.descending, dict(listing.filters)]
    return blake3(jcs.write(which) + b"\x00" + body, key=secret).digest(_MAC_BYTES)
