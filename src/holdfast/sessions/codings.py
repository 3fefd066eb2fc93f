"""Undo the content codings of a captured body, within bounds. Pure.

Codings are peeled from the right. A stream that ends early but gave something is kept as far as it goes; one that
is damaged, or gave nothing, is an error of its class.

Invariants:
    - No layer unfolds to more than its limit, and no more than that, and one step of the decoder, is ever in memory.
    - Without a coding the very same bytes come back.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import zstandard

from holdfast.sessions.limits import CODED_BYTES_MAX, ZSTD_WINDOW_BYTES_MAX

__all__ = ["CodingError", "Decoded", "Fault", "decode"]

Fault: TypeAlias = Literal["undecodable", "unsupported", "oversize"]

_STEP_BYTES = 2048
"""How much is fed at once: zstd can make 64 MiB of it, more than of any other coding."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A body without its codings. `salvaged` says that a stream had ended early."""

    data: bytes
    salvaged: bool = False


class CodingError(Exception):
    """A body's codings cannot be undone.

    Attributes:
        fault: Which way it failed; also the turn's error type.
    """

    def __init__(self, fault: Fault, why: str) -> None:
        super().__init__(why)
        self.fault = fault


class _Stream(Protocol):
    """A decoder of one member or frame: what zlib and zstandard have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def decode(body: bytes, encoding: str | None, *, limit: int = CODED_BYTES_MAX) -> Decoded:
    """Undo the codings of a `Content-Encoding` header.

    Args:
        body: The bytes as they were captured. No bytes under a coding are an error: do not ask about bodies that
            were never sent.
        encoding: The header's value, or None.
        limit: The most bytes that each layer may unfold to.

    Raises:
        CodingError: A coding is unknown, a layer is damaged, empty, or too large.
    """
    if not encoding:
        return Decoded(body)
    tokens = [token for part in encoding.split(",") if (token := part.strip().lower()) not in ("", "identity")]
    for token in tokens:
        if token not in _OPENERS:
            raise CodingError("unsupported", f"the content coding {token!r} of {encoding!r} is not supported")
    salvaged = False
    for token in reversed(tokens):
        if not body:
            raise CodingError("undecodable", f"there are no bytes to undo {token} on")
        body, cut = _peel(body, token, limit)
        salvaged = salvaged or cut
    return Decoded(body, salvaged)


def _peel(body: bytes, token: str, limit: int) -> tuple[bytes, bool]:
    """Undo one layer: all of its members or frames. Say whether the last one was cut off."""
    parts: list[bytes] = []
    total = 0
    stream: _Stream | None = None
    try:
        for start in range(0, len(body), _STEP_BYTES):
            rest = body[start : start + _STEP_BYTES]
            while rest:
                if stream is None:
                    stream = _OPENERS[token]()
                part = stream.decompress(rest)
                total += len(part)
                if total > limit:
                    raise CodingError("oversize", f"{token} unfolds to more than {limit} bytes")
                parts.append(part)
                rest = b""
                if stream.eof:
                    rest, stream = stream.unused_data, None
    except (zlib.error, zstandard.ZstdError):
        raise CodingError("undecodable", f"the body is no {token} stream, or a damaged one") from None
    if stream is not None and not total:
        raise CodingError("undecodable", f"the {token} stream ends before it gives anything")
    return b"".join(parts), stream is not None


def _gzip() -> _Stream:
    return zlib.decompressobj(wbits=31)


def _zstd() -> _Stream:
    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX).decompressobj()


_OPENERS = {"gzip": _gzip, "x-gzip": _gzip, "zstd": _zstd}
