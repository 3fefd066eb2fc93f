"""Turn an outcome into the columns of its row, and back.

This module hides compression, encryption and the sum that every read checks. All of it works on bytes
in memory; whoever calls it with much to do (`heavy`) does so off the event loop.

The sum is over the columns as they are stored, so that anybody can check a row without its keys. Under
a cipher the header block is sealed together with a second sum, over the outcome in clear: the first
finds damage, which has no key, and the second whatever somebody made to look undamaged.

Invariants:
    - What opens is what was sealed: one changed byte in any of the columns makes the row unreadable.
    - Under a cipher no column tells what a header or a body holds; so there is no digest of the body
      either, which would let anybody confirm a guess.
    - A row never grows beyond the size it names while it is opened.
"""

from __future__ import annotations

import hashlib
import hmac
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Final, cast, get_args

from blake3 import blake3

from holdfast.core.errors import CodecError, ConfigError
from holdfast.core.keyring import KeyRing
from holdfast.idempotency.errors import RecordUnreadable
from holdfast.idempotency.headers import decode_headers, encode_headers, lasting, storable
from holdfast.idempotency.identity import framed, lp
from holdfast.idempotency.values import (
    RECORD_FORMAT,
    Completed,
    Outcome,
    Sealed,
    Tombstone,
    TombstoneReason,
)

__all__ = ["OFF_LOOP_BYTES", "check_sum", "heavy", "open_outcome", "redacted", "seal_outcome"]

OFF_LOOP_BYTES: Final = 64 * 1024
"""More than this is compressed, encrypted or summed off the event loop: it takes about a millisecond."""
COMPRESS_OVER_BYTES: Final = 16 * 1024

_PLAIN: Final = 0
_ZLIB: Final = 1
_LEVEL: Final = 3
"""Most of what is to be gained, for a third of the time: a record is read seldom, and kept for a day."""
_SUM_BYTES: Final = 16
_REASONS: Final = frozenset(get_args(TombstoneReason))
_ABSENT: Final = framed((b"none", b""))
_PRESENT: Final = framed((b"some",))


def heavy(outcome: Outcome | Sealed) -> bool:
    """Whether sealing or opening it is work for a thread."""
    if isinstance(outcome, Completed):
        return len(outcome.body) > OFF_LOOP_BYTES
    if isinstance(outcome, Tombstone) or outcome.body is None:
        return False
    # What is compressed is opened to its full size.
    return max(len(outcome.body), outcome.body_bytes or 0) > OFF_LOOP_BYTES


def redacted(response: Completed, redact: Callable[[Completed], Completed | None] | None) -> Outcome:
    """Return what may be kept of a response; a tombstone `redaction` where that is nothing.

    That is so too when the function raises, or returns what could not be sent.

    Args:
        response: With the headers that are kept.
        redact: The application's function; None: everything may be kept.
    """
    if redact is None:
        return response
    try:
        kept = redact(response)
        if isinstance(kept, Completed) and isinstance(kept.body, bytes) and storable(kept.status, kept.headers):
            return kept
    except Exception:  # noqa: BLE001, S110 - whatever a user's function raises: nothing is kept
        pass
    return Tombstone(response.status, lasting(response.headers), "redaction", body_bytes=len(response.body))


def seal_outcome(
    outcome: Outcome,
    *,
    key_id: bytes,
    record_id: bytes,
    cipher: KeyRing | None = None,
    compress_over_bytes: int = COMPRESS_OVER_BYTES,
) -> Sealed:
    """Return the columns of an outcome.

    Args:
        outcome: With the headers that are kept.
        key_id: Of the row it goes to.
        record_id: Of the same row.
        cipher: Seals header block and body.
        compress_over_bytes: Larger bodies are compressed, unless they have a content coding already.
    """
    block = encode_headers(outcome.headers)
    codec = _PLAIN
    if isinstance(outcome, Completed):
        body, body_bytes, digest = outcome.body, len(outcome.body), hashlib.sha256(outcome.body).digest()
        if len(body) > compress_over_bytes and not _coded(outcome):
            packed = zlib.compress(body, _LEVEL)
            if len(packed) < len(body):
                codec, body = _ZLIB, packed
        sealed = Sealed(outcome.status, block, body, body_bytes, digest, b"", codec)
    else:
        sealed = Sealed(
            outcome.status, block, None, outcome.body_bytes, outcome.body_digest, b"", reason=outcome.reason
        )
    if cipher is not None:
        sealed = _encrypted(sealed, cipher, _associated(key_id, record_id, RECORD_FORMAT))
    sealed.block_sum = _sum(sealed)
    return sealed


def open_outcome(
    sealed: Sealed, *, key_id: bytes, record_id: bytes, format: int = RECORD_FORMAT, cipher: KeyRing | None = None
) -> Outcome:
    """Return the outcome a row holds. A row without body is a tombstone.

    Args:
        sealed: The columns.
        key_id: Of the row.
        record_id: Of the row.
        format: Of the row.
        cipher: What sealed it, if anything did.

    Raises:
        RecordUnreadable: Something does not fit (`idempotency.record_unreadable`), or it is written by a
            newer Holdfast (`idempotency.record_newer`).
    """
    if format > RECORD_FORMAT or sealed.codec > _ZLIB:
        raise RecordUnreadable(
            "the record is written by a newer Holdfast", "upgrade this process", code="idempotency.record_newer"
        )
    if not check_sum(sealed):
        raise _unreadable("it does not have the sum it was written with")
    if sealed.cipher_key is not None:
        sealed = _decrypted(sealed, cipher, _associated(key_id, record_id, format))
    headers = decode_headers(sealed.headers)
    if sealed.body is None:  # its status is told, never sent: it may be 101, or one that may not be sent again
        if sealed.reason not in _REASONS:
            raise _unreadable("its reason is none")
        reason = cast(TombstoneReason, sealed.reason)
        return Tombstone(sealed.status, headers, reason, sealed.body_bytes, sealed.body_digest)
    if not storable(sealed.status, ()):
        raise _unreadable("its status is none")
    return Completed(sealed.status, headers, _unpacked(sealed, sealed.body))


def check_sum(sealed: Sealed) -> bool:
    """Whether a row still has the sum it was written with. Needs no key."""
    return hmac.compare_digest(_sum(sealed), sealed.block_sum)


def _unreadable(why: str) -> RecordUnreadable:
    return RecordUnreadable(f"the record cannot be read: {why}", "look at it with holdfast verify")


def _coded(outcome: Completed) -> bool:
    return any(name.lower() == b"content-encoding" and value.lower() != b"identity" for name, value in outcome.headers)


def _sum(sealed: Sealed) -> bytes:
    """Over everything that says what the outcome is; what is absent differs from what is empty."""
    headers, body, digest = sealed.headers, sealed.body, sealed.body_digest
    reason = None if sealed.reason is None else sealed.reason.encode()
    told = (
        _numbers(sealed.status, sealed.codec, sealed.body_bytes, sealed.cipher_key),
        _PRESENT + len(headers).to_bytes(8, "big") + headers,
        _ABSENT if body is None else _PRESENT + len(body).to_bytes(8, "big") + body,
        _ABSENT if digest is None else _PRESENT + len(digest).to_bytes(8, "big") + digest,
        _ABSENT if reason is None else _PRESENT + len(reason).to_bytes(8, "big") + reason,
    )
    return blake3(b"".join(told)).digest(_SUM_BYTES)


@lru_cache(maxsize=1024)
def _numbers(*numbers: int | None) -> bytes:
    return framed([b"" if number is None else b"%d" % number for number in numbers])


def _associated(key_id: bytes, record_id: bytes, format: int) -> bytes:
    return lp(key_id, record_id, str(format))


def _encrypted(sealed: Sealed, cipher: KeyRing, associated: bytes) -> Sealed:
    clear = replace(sealed, body_digest=None)
    cipher_key, headers = cipher.seal(_sum(clear) + clear.headers, associated)
    body = None if clear.body is None else cipher.seal(clear.body, associated)[1]
    return replace(clear, headers=headers, body=body, cipher_key=cipher_key)


def _decrypted(sealed: Sealed, cipher: KeyRing | None, associated: bytes) -> Sealed:
    assert sealed.cipher_key is not None
    if cipher is None:
        raise _unreadable(f"it is sealed with key {sealed.cipher_key}, and no cipher is configured")
    try:
        opened = cipher.open(sealed.cipher_key, sealed.headers, associated)
        body = None if sealed.body is None else cipher.open(sealed.cipher_key, sealed.body, associated)
    except (CodecError, ConfigError) as error:
        raise _unreadable(error.message) from error
    clear = replace(sealed, headers=opened[_SUM_BYTES:], body=body, cipher_key=None)
    if not hmac.compare_digest(_sum(clear), opened[:_SUM_BYTES]):
        raise _unreadable("its columns do not belong together")
    return clear


def _unpacked(sealed: Sealed, body: bytes) -> bytes:
    if sealed.codec == _PLAIN:
        return body
    size = max(0, sealed.body_bytes or 0)
    decoder = zlib.decompressobj()
    try:
        unpacked = decoder.decompress(body, size + 1)
    except zlib.error as error:
        raise _unreadable("its body does not decompress") from error
    if len(unpacked) != size or not decoder.eof or decoder.unused_data:
        raise _unreadable("its body is not of the size it names")
    return unpacked
