"""Instants as microseconds, as datetimes, and as they are written. Pure.

Invariants:
    - An instant without a time zone is none.
    - What is finer than a microsecond is cut off, never rounded up into the future.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from holdfast.sessions.errors import InvalidField

__all__ = ["micros", "moment", "parse", "written"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}:\d{2})(?:\.(\d{1,6})\d{0,32})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


def micros(when: datetime, field: str = "") -> int:
    """Return a datetime in microseconds of the epoch.

    Raises:
        InvalidField: It has no time zone; `field` is named.
    """
    if when.tzinfo is None:
        raise InvalidField("an instant needs a time zone", "give it one: datetime.now(UTC)", field=field)
    since = when - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def moment(at: int) -> datetime:
    """Return microseconds of the epoch as a datetime in UTC."""
    return _EPOCH + timedelta(microseconds=at)


def parse(text: str) -> int | None:
    """Return an RFC 3339 instant in microseconds, or None where the text is none."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    day, clock, fraction, zone = found.groups()
    try:
        when = datetime.fromisoformat(f"{day}T{clock}.{(fraction or '0').ljust(6, '0')}{zone.upper()}")
        return micros(when)
    except (ValueError, OverflowError):
        return None


def written(at: int) -> str:
    """Return microseconds as RFC 3339 in UTC, with six decimals."""
    return moment(at).strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")
