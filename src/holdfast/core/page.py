"""Pages of a list, and the opaque cursors between them.

A cursor holds the sort values of the last row shown, so a page costs the same however deep it is and
rows that come or go in between neither repeat nor vanish. It names the list it belongs to.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from types import GenericAlias
from typing import Any, Generic, TypeVar

import msgspec

from holdfast.core.errors import CodecError, ConfigError, LimitError

__all__ = ["PAGE_ITEMS_MAX", "Page", "check_limit", "decode_cursor", "encode_cursor"]

T = TypeVar("T")

PAGE_ITEMS_MAX = 500
"""Items on one page: what one query and one screenful of JSON carry without strain."""

_VERSION = 1
_CURSOR_CHARS_MAX = 4096


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some items of a list.

    Attributes:
        items: The items, in the order of the list.
        next: Cursor of the page after this one, or None if this is the last.
    """

    items: list[T]
    next: str | None


def check_limit(limit: int) -> int:
    """Return how many items a page may have, if that many are allowed.

    Raises:
        LimitError: It is more than `PAGE_ITEMS_MAX`.
        ConfigError: It is less than one, or no whole number.
    """
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ConfigError("the limit of a page is not a whole number from 1", "ask for at least one item")
    if limit > PAGE_ITEMS_MAX:
        raise LimitError(
            f"a page holds {PAGE_ITEMS_MAX} items at most, not {limit}",
            "ask for fewer, and follow `next`",
            limit="list page",
            maximum=PAGE_ITEMS_MAX,
            actual=limit,
        )
    return limit


def encode_cursor(of: str, values: Sequence[int | str | bytes | None]) -> str:
    """Make the cursor that follows a row.

    Args:
        of: Which list, its sort order and filters included: a cursor fits no other.
        values: The row's sort values.
    """
    body = msgspec.msgpack.encode((_VERSION, of, tuple(values)))
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def decode_cursor(of: str, cursor: str, *types: Any) -> tuple[Any, ...]:
    """Return the sort values of a cursor.

    Args:
        of: The list that is being read.
        cursor: What a caller gave; anything.
        types: The declared type of each value.

    Raises:
        CodecError: It is no cursor, or one of another list (`codec.cursor`).
    """
    wanted: Any = GenericAlias(tuple, (int, str, GenericAlias(tuple, types)))
    try:
        if len(cursor) > _CURSOR_CHARS_MAX:
            raise ValueError  # noqa: TRY301 - every way of being wrong is told alike
        body = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        version, list_name, values = msgspec.msgpack.decode(body, type=wanted)
        if version != _VERSION or list_name != of or encode_cursor(of, values) != cursor:
            raise ValueError  # noqa: TRY301 - as above
    except (ValueError, TypeError, RecursionError):
        raise CodecError(
            "the cursor does not belong to this list", "start again without a cursor", code="codec.cursor"
        ) from None
    decoded: tuple[Any, ...] = values
    return decoded
