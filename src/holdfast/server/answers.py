"""Answers about captured conversations: JSON under a strong ETag, which is not sent again to who has it.

Invariants:
    - An ETag changes whenever anything does that the answer shows. Where a row's hash says that, it is the ETag.
    - What is not there, or is another org's, is one and the same 404.
"""

from __future__ import annotations

import asyncio
import gzip
import re
from typing import Any, TypeAlias, TypeVar

import msgspec
from blake3 import blake3
from litestar import Request, Response

from holdfast.sessions.errors import NotFound
from holdfast.sessions.views import Session, Turn, document

__all__ = ["GZIP_FROM_BYTES", "Asked", "shown", "there"]

T = TypeVar("T")
Asked: TypeAlias = Request[Any, Any, Any]

GZIP_FROM_BYTES = 1024
"""Below a packet's size compression saves nothing."""

_GZIP = b"\x1f\x8b"
_GZIP_LEVEL = 5
_HASH_BYTES = 16
_NEVER = re.compile(r"q\s*=\s*0(\.0*)?")


async def shown(request: Asked, value: T) -> Response[T]:
    """Answer with records as JSON, or with 304 who has just these."""
    packed = _takes_gzip(request.headers.get("accept-encoding", ""))
    data, tag = await asyncio.to_thread(_rendered, value, packed=packed)
    wanted = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    headers = {"etag": tag, "cache-control": "private, no-cache", "vary": "accept-encoding"}
    content: Any = None
    if tag in wanted or wanted == ["*"]:
        return Response(content, status_code=304, headers=headers)
    if data.startswith(_GZIP):
        headers["content-encoding"] = "gzip"
    content = data
    return Response(content, status_code=200, media_type="application/json", headers=headers)


def there(found: T | None, what: str) -> T:
    """Return what was found.

    Raises:
        NotFound: Nothing was.
    """
    if found is None:
        raise NotFound(f"there is no such {what}", "ids are those of the lists, in this org")
    return found


def _rendered(value: object, *, packed: bool) -> tuple[bytes, str]:
    """Return the JSON of records, packed if that is wanted and worth it, and its tag. For a thread: both take time."""
    data = msgspec.json.encode(document(value))
    tag = f'"{_tag(value, data)}"'
    return gzip.compress(data, _GZIP_LEVEL, mtime=0) if packed and len(data) >= GZIP_FROM_BYTES else data, tag


def _takes_gzip(accepted: str) -> bool:
    for each in accepted.lower().split(","):
        coding, _, weight = each.partition(";")
        if coding.strip() in ("gzip", "*"):
            return not _NEVER.fullmatch(weight.strip())
    return False


def _tag(value: object, data: bytes) -> str:
    match value:
        case Turn(messages=None):
            return value.row_hash
        case Session():
            # How it ended is another row's, and whether it is live is the clock's.
            beyond = msgspec.json.encode([value.live, document(value.outcome)])
            return f"{value.row_hash}-{blake3(beyond).hexdigest(4)}"
        case _:
            return blake3(data).hexdigest(_HASH_BYTES)
