"""Name things by content: uids, shapes, keys and the values drawn from a seed.

This module hides the exact bytes. Everything is BLAKE3 over length-framed fields, so no two different
lists of fields give the same input; the purposes keep one use from ever meeting another.

Invariants:
    - A key depends on the execution, the chapter, the enclosing branches and what is done there; never
      on a position, a generation, an attempt or a policy.
    - Equal inputs give equal bytes on every machine and in every process.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from uuid import UUID

from blake3 import blake3

from holdfast.core.ids import v8

_U32 = struct.Struct("<I")
_BE32 = struct.Struct(">I")

_CONTEXT = "holdfast durable v1 "


def frame(*fields: str | bytes) -> bytes:
    """Join fields so that they can be told apart: length (u32, little-endian), then bytes, for each.

    Example:
        >>> frame("ab", b"c").hex()
        '0200000061620100000063'
    """
    parts: list[bytes] = []
    for field in fields:
        data = field.encode() if isinstance(field, str) else field
        parts.append(_U32.pack(len(data)))
        parts.append(data)
    return b"".join(parts)


def derive(purpose: str, *fields: str | bytes) -> bytes:
    """H(purpose, fields…): 32 bytes of BLAKE3 in key-derivation mode."""
    return blake3(frame(*fields), derive_key_context=_CONTEXT + purpose).digest()


def keyed(key: bytes, *fields: str | bytes) -> bytes:
    """K(key, fields…): 32 bytes of keyed BLAKE3."""
    return blake3(frame(*fields), key=key).digest()


# The three digests on the path of every step start from a hasher that has its context derived already.
_SHAPE = blake3(derive_key_context=_CONTEXT + "shape")
_KEY = blake3(derive_key_context=_CONTEXT + "key")
_ARGUMENTS = blake3(derive_key_context=_CONTEXT + "arguments")


def uid(namespace: bytes, id: str) -> bytes:
    """Return the uid of an execution whose id the user chose."""
    return v8(derive("uid", namespace, id))


def arguments(canonical: bytes) -> bytes:
    """Return the hash of canonical arguments: an input hash, or the default fingerprint of a step."""
    hasher = _ARGUMENTS.copy()
    hasher.update(_U32.pack(len(canonical)) + canonical)
    return hasher.digest()


@lru_cache(maxsize=4096)
def what(kind: str, name: str, effect: str) -> bytes:
    """Frame the part of shape and key that does not change from call to call."""
    return frame(kind, name, effect)


def shape(framed: bytes, fingerprint: bytes) -> bytes:
    """Return the shape of a call: `framed` comes from `what`."""
    hasher = _SHAPE.copy()
    hasher.update(framed + _U32.pack(len(fingerprint)) + fingerprint)
    return hasher.digest()


def key_prefix(execution_uid: bytes, chapter: int, scope: bytes) -> bytes:
    """Frame the part of a key that all calls of one scope share. `scope` comes from `scope_label`."""
    return b"".join((b"\x10\0\0\0", execution_uid, b"\x04\0\0\0", _U32.pack(chapter), _U32.pack(len(scope)), scope))


def key(prefix: bytes, framed: bytes, fingerprint: bytes, occurrence: int) -> bytes:
    """Return the idempotency key of a call, equal on every attempt, resume and generation."""
    hasher = _KEY.copy()
    hasher.update(
        b"".join((prefix, framed, _U32.pack(len(fingerprint)), fingerprint, b"\x04\0\0\0", _U32.pack(occurrence)))
    )
    return hasher.digest()


def scope_label(parent: bytes, label: str, occurrence: int) -> bytes:
    """Extend a scope's label path by one branch or parallel block."""
    return parent + frame(label, _U32.pack(occurrence))


def scope_bytes(path: tuple[int, ...]) -> bytes:
    """Write a scope path as stored: its indexes as big-endian u32, so that bytes sort as positions do."""
    return b"".join(_BE32.pack(index) for index in path)


def extend(scope: bytes, index: int) -> bytes:
    """Return the scope opened by the branch or parallel block at a position."""
    return scope + _BE32.pack(index)


def position(scope: bytes, index: int) -> str:
    """Write a position as people read it.

    Example:
        >>> position(scope_bytes((3, 0)), 2)
        '3.0.2'
    """
    if not scope:
        return str(index)
    return ".".join([*(str(i) for i in struct.unpack(f">{len(scope) // 4}I", scope)), str(index)])


def parse_position(text: str) -> tuple[bytes, int]:
    """Read a position back into scope and index; ValueError if it is none.

    Example:
        >>> parse_position("3.0.2") == (scope_bytes((3, 0)), 2)
        True
    """
    parts = text.split(".")
    if not all(part.isascii() and part.isdigit() and len(part) <= 10 for part in parts):
        raise ValueError(text)
    numbers = [int(part) for part in parts]
    if any(number >= 1 << 32 for number in numbers):
        raise ValueError(text)
    return scope_bytes(tuple(numbers[:-1])), numbers[-1]


def random_float(seed: bytes, call_key: bytes) -> float:
    """Draw a float in [0, 1) with 53 bits, the same for ever for one seed and key."""
    return float(int.from_bytes(keyed(seed, call_key)[:8], "little") >> 11) * 2.0**-53


def random_uuid(seed: bytes, call_key: bytes) -> UUID:
    """Draw a version 4 UUID, the same for ever for one seed and key."""
    return UUID(bytes=keyed(seed, call_key)[:16], version=4)
