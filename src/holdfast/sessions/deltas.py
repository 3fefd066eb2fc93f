"""Keep a body by how it differs from another: each call of a conversation repeats what the calls before it said.

A delta is a zstd frame whose dictionary is the other body. The bodies of a conversation are packed in the order they
came: the first is the base of those after it, until one differs so much that it becomes a base too. The last few
bases stay in use, for conversations interleave: an agent, the agents it calls, and small calls between theirs.

Invariants:
    - A base is never a delta, so one step gives any body back.
    - A delta that is given out has been read back, and was the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import zstandard

__all__ = ["BASES_MAX", "DELTAS_MAX", "Base", "Packing", "decode", "encode"]

BASES_MAX: Final = 4
"""Bases that a body is tried against; the smallest delta is kept."""

DELTAS_MAX: Final = 500
"""Deltas against one base: so many bodies at most have to be written again when it is taken away."""

_LEVEL: Final = 9
_WINDOW_LOG_MIN: Final = 10
_WINDOW_LOG_MAX: Final = 27
"""What any reader takes without being told: 128 MiB."""


def encode(data: bytes, base: bytes) -> bytes:
    """Return a body as a delta against another. It takes a while for large ones."""
    reach = (len(data) + len(base)).bit_length()
    params = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        source_size=len(data),
        dict_size=len(base),
        window_log=min(max(reach, _WINDOW_LOG_MIN), _WINDOW_LOG_MAX),
        enable_ldm=True,
    )
    return zstandard.ZstdCompressor(dict_data=_dictionary(base), compression_params=params).compress(data)


def decode(stored: bytes, base: bytes) -> bytes:
    """Return the body of a delta.

    Raises:
        zstandard.ZstdError: It is none, or not against this base.
    """
    return zstandard.ZstdDecompressor(dict_data=_dictionary(base)).decompress(stored)


def _dictionary(base: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


@dataclass(slots=True)
class Base:
    """A body that others are packed against.

    Attributes:
        key: Its name.
        taken: How many deltas there are against it.
    """

    key: bytes
    data: bytes
    taken: int = 0


class Packing:
    """Packs the bodies of one conversation, given in the order they came."""

    def __init__(self, bases: Sequence[Base] = ()) -> None:
        """Begin, or go on with the bases of before, the one used last at first."""
        self._bases = list(bases)

    def add(self, key: bytes, data: bytes, stored_bytes: int) -> tuple[bytes, bytes] | None:
        """Return the base of a body and its delta; None: it stays as it is, and is a base for those after it.

        Args:
            key: The body's name.
            data: The body.
            stored_bytes: What it takes as it is stored now.
        """
        base, delta = self._best(data)
        if base is None or 2 * len(delta) > stored_bytes or decode(delta, base.data) != data:
            self._bases = [Base(key, data), *self._bases][:BASES_MAX]
            return None
        base.taken += 1
        self._bases.remove(base)
        self._bases.insert(0, base)
        return base.key, delta

    def _best(self, data: bytes) -> tuple[Base | None, bytes]:
        found: tuple[Base | None, bytes] = None, b""
        for base in self._bases:
            if base.taken < DELTAS_MAX:
                delta = encode(data, base.data)
                if found[0] is None or len(delta) < len(found[1]):
                    found = base, delta
        return found
