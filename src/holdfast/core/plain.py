"""Records as JSON has them: what a program reads of us, on the command line and over HTTP.

Invariants:
    - Field names are those of the records; instants are RFC 3339 in UTC, durations ISO 8601, bytes lower-case hex.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = ["payload", "plain"]


def plain(value: object) -> Any:
    """Turn a record, or anything made of records, into what JSON has."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if abs(value) < float("inf") else None
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        case timedelta():
            return f"{'-' if value < timedelta(0) else ''}PT{abs(value) / timedelta(seconds=1):f}S"
        case bytes():
            return value.hex()
        case Mapping():
            return {str(key): plain(inner) for key, inner in value.items()}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "__struct_fields__"):  # msgspec, which help does without
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: plain(inner) for name, inner in zip(value._fields, value, strict=True)}
    if isinstance(value, Iterable):
        return [plain(inner) for inner in value]
    return str(value)


def payload(value: object) -> Any:
    """Turn a user's value into what JSON has, as far as it can: bytes become base64, NaN null, odd keys text."""
    import json

    from holdfast.core.codec import encode, to_json

    return json.loads(to_json(encode(value)))
