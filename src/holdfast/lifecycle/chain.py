"""Tell receipts apart, and tie them together so that none changes unseen. Pure.

Two receipts are the same when their fields are equal as JSON values; `semantic` leaves out the fields in which a
retry differs. Digests are BLAKE3 over canonical JSON: our encoding with sorted keys.

A chain is a list of receipts in the order of their recording, from index 1:

    h0 = BLAKE3("holdfast.chain.v1" 0 chain_id)
    hn = BLAKE3("holdfast.receipt.v1" 0 hn-1 index recorded_at length body length annotations)

Numbers are unsigned, big-endian and have 64 bits; body and annotations are the stored bytes. With a key the
hashes are keyed, and nobody without it can make a chain that verifies.

Invariants:
    - Receipts have equal digests exactly when `compare` finds no difference between them.
    - A byte of a receipt or its annotations that changes, changes every hash from there on.
    - No difference shows a value of more than 200 bytes, or an open object: only its digest.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from blake3 import blake3

from holdfast.lifecycle.documents import CallbackRequest, LifecycleReceipt, PayloadEnvelope
from holdfast.lifecycle.enums import ReplayMode

__all__ = [
    "FieldDiff",
    "canonical",
    "chain_id",
    "compare",
    "full_digest",
    "genesis",
    "link",
    "request_digest",
    "semantic_digest",
]

VALUE_BYTES_MAX: Final = 200
"""The largest value that a difference shows, as canonical JSON: room for every id, none for a document."""

_OF_ONE_TRY: Final = frozenset({"receipt_id", "at_epoch_s", "sequence"})
"""The fields in which a retry may differ from what it retries."""

_OPEN: Final = frozenset({"telemetry_summary", "capability_degradations", "warnings"})

# --- equality -----------------------------------------------------------------------------------------


class FieldDiff(msgspec.Struct, frozen=True):
    """A field in which two receipts differ.

    Attributes:
        name: The field.
        stored: Its value in the stored receipt, or `blake3:` and the digest of it.
        offered: The same of the offered receipt.
    """

    name: str
    stored: Any
    offered: Any


def compare(stored: LifecycleReceipt, offered: LifecycleReceipt, mode: ReplayMode) -> tuple[FieldDiff, ...]:
    """Say in which fields two receipts differ; in none: they are the same.

    Args:
        stored: The receipt there is.
        offered: The one that is to be recorded under the same key.
        mode: Whether every field counts, or those of one try do not.
    """
    ignored = _OF_ONE_TRY if mode == "semantic" else frozenset()
    found = []
    for name in LifecycleReceipt.__struct_fields__:
        old, new = canonical(getattr(stored, name)), canonical(getattr(offered, name))
        if old != new and name not in ignored:
            found.append(FieldDiff(name, _shown(name, old), _shown(name, new)))
    return tuple(found)


def _shown(name: str, value: bytes) -> Any:
    if name in _OPEN or len(value) > VALUE_BYTES_MAX:
        return f"blake3:{blake3(value).hexdigest()}"
    return msgspec.json.decode(value)


# --- digests ------------------------------------------------------------------------------------------


def canonical(value: object) -> bytes:
    """Write a document, or what JSON has, as canonical JSON.

    Example:
        >>> canonical({"b": 1.0, "a": [True]})
        b'{"a":[true],"b":1.0}'
    """
    return msgspec.json.encode(value, order="sorted")


def full_digest(receipt: LifecycleReceipt) -> bytes:
    """Return the 32 bytes that two receipts share when all their fields are equal."""
    return blake3(canonical(receipt)).digest()


def semantic_digest(receipt: LifecycleReceipt) -> bytes:
    """Return the 32 bytes that two receipts share when all but the fields of one try are equal."""
    fields: dict[str, Any] = msgspec.to_builtins(receipt)
    for name in _OF_ONE_TRY:
        fields.pop(name, None)
    return blake3(canonical(fields)).digest()


def request_digest(request: CallbackRequest, payloads: Sequence[PayloadEnvelope]) -> bytes:
    """Return the 32 bytes that two claims share when they ask the client for the same.

    Args:
        request: The request as the client would see it, under the adapter's canonical id.
        payloads: What goes with it.
    """
    fields: dict[str, Any] = msgspec.to_builtins(request)
    for name in ("sequence", "metadata", "capability_snapshot_ref"):
        fields.pop(name, None)
    bodies = [[each.payload_id, _text_digest(each.body), _text_digest(each.body_ref)] for each in payloads]
    return blake3(canonical([fields, bodies])).digest()


def _text_digest(text: str | None) -> str | None:
    return None if text is None else blake3(text.encode("utf-8", "surrogatepass")).hexdigest()


# --- chains -------------------------------------------------------------------------------------------

_U64 = struct.Struct(">Q")


def chain_id(run_id: str | None, client_id: str, adapter_id: str) -> str:
    """Name the chain of a receipt: its run's, or where it has none, that of its client and adapter.

    Example:
        >>> chain_id("r1", "holdfast", "codex"), chain_id(None, "holdfast", "codex")
        ('["run","r1"]', '["loose","holdfast","codex"]')
    """
    name = ["loose", client_id, adapter_id] if run_id is None else ["run", run_id]
    return msgspec.json.encode(name).decode()


def genesis(chain: str, *, key: bytes | None = None) -> bytes:
    """Return the hash that a chain begins with: 32 bytes.

    Args:
        chain: The chain's id.
        key: The ledger's chain key, 32 bytes, if it has one.
    """
    return _hashed(b"holdfast.chain.v1\0" + chain.encode(), key)


def link(
    previous: bytes,
    *,
    index: int,
    recorded_at: int,
    body: bytes,
    annotations: bytes,
    key: bytes | None = None,
) -> bytes:
    """Return the hash that ties a receipt to those before it: 32 bytes.

    Args:
        previous: The hash before it.
        index: Its place in the chain, from 1.
        recorded_at: When it was recorded, in microseconds of the epoch.
        body: The receipt as it is stored.
        annotations: Its annotations as they are stored.
        key: The ledger's chain key, 32 bytes, if it has one.
    """
    parts = (
        b"holdfast.receipt.v1\0",
        previous,
        _U64.pack(index),
        _U64.pack(recorded_at),
        _U64.pack(len(body)),
        body,
        _U64.pack(len(annotations)),
        annotations,
    )
    return _hashed(b"".join(parts), key)


def _hashed(written: bytes, key: bytes | None) -> bytes:
    return (blake3(written) if key is None else blake3(written, key=key)).digest()
