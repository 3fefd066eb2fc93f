"""Write outcomes that are more than a value: failures, lost results, and values too large for a row.

Invariants:
    - A failure is rebuilt on replay exactly as the program saw it live, or not as its own type at all.
    - A spilled value and the entry that refers to it become durable in one append.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

from holdfast.core.codec import codec, decode, encode
from holdfast.core.redact import redact
from holdfast.execution import journal
from holdfast.execution.config import DurableConfig
from holdfast.execution.errors import IntegrityError, ResultLost, ResultTooLarge, ResultUnserializable
from holdfast.store.database import Tx

SPILLED = 2
"""Format byte of a payload that only says where the value is."""

CHUNK_BYTES = 1 << 20
"""Size of one row of a spilled value: small enough for one statement, large enough to be few."""

_REFERENCE = struct.Struct(">BQQ")


def type_name(error: BaseException) -> str:
    """Name an exception's type as it is recorded: qualified, but for built-in ones."""
    return _class_name(type(error))


def failure_message(error: BaseException, config: DurableConfig) -> str:
    """Return an exception's message as far as the configuration lets it be recorded."""
    if config.failure_message == "none":
        return ""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        text = ""
    if config.failure_message == "redacted":
        text = redact(text)
    return text.encode("utf-8", "replace").decode()[: config.failure_message_chars_max]


@dataclass(frozen=True, slots=True)
class Failure:
    """A recorded failure of a step or an execution."""

    error_type: str
    message: str
    attempt: int
    retryable: bool
    args: bytes | None = None
    positions: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        error: BaseException,
        attempt: int,
        raises: tuple[type[Exception], ...],
        config: DurableConfig,
        *,
        retryable: bool = False,
        positions: tuple[str, ...] = (),
    ) -> Failure:
        """Record an exception; its `args` too when it is of a listed type and they survive the journey."""
        args = None
        if isinstance(error, raises) and not retryable:
            args = _portable(error, raises)
        return cls(type_name(error), failure_message(error, config), attempt, retryable, args, positions)

    def encode(self) -> bytes:
        """Return the payload."""
        return encode(self)

    def rebuild(self, raises: tuple[type[Exception], ...]) -> Exception | None:
        """Make the exception again if its type is listed and it was recorded with its `args`."""
        if self.args is None:
            return None
        for cls in _descendants(raises):
            if _class_name(cls) == self.error_type:
                return cls(*_tuple(decode(self.args)))
        return None


FAILURE = codec(Failure)


def _portable(error: BaseException, raises: tuple[type[Exception], ...]) -> bytes | None:
    try:
        blob = encode(list(error.args))
        args = _tuple(decode(blob))
        again = type(error)(*args)
    except Exception:  # noqa: BLE001 - a constructor may raise anything; then the type cannot be rebuilt
        return None
    same = args == error.args and again.args == error.args
    found = any(_class_name(cls) == type_name(error) for cls in _descendants(raises))
    return blob if same and found else None


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value)


def _class_name(cls: type) -> str:
    if cls.__module__ == "builtins":
        return cls.__qualname__
    if cls.__module__.startswith("holdfast."):
        return f"holdfast.{cls.__qualname__}"  # where users find it, wherever it is defined
    return f"{cls.__module__}.{cls.__qualname__}"


def _descendants(classes: tuple[type[Exception], ...]) -> list[type[Exception]]:
    found: dict[type[Exception], None] = {}
    queue = list(classes)
    while queue:
        cls = queue.pop(0)
        if cls not in found:
            found[cls] = None
            queue.extend(cls.__subclasses__())
    return list(found)


@dataclass(frozen=True, slots=True)
class Lost:
    """Why a result has no value: it did not encode, did not fit, or was too large."""

    why: str
    message: str
    size: int
    maximum: int

    def encode(self) -> bytes:
        """Return the payload."""
        return encode(self)

    @staticmethod
    def decode(payload: bytes) -> Lost:
        """Read the payload."""
        lost: Lost = _LOST.decode(payload)
        return lost

    def error(self, name: str, position: str) -> ResultLost:
        """Make the error that the program sees, live and on replay."""
        if self.why == "too_large":
            return ResultTooLarge(
                f"step {name!r} at {position}: the result has {self.size} bytes, the limit is {self.maximum}",
                "return a reference, declare spill=True, or raise payload_bytes_max",
                size=self.size,
                maximum=self.maximum,
            )
        return ResultUnserializable(
            f"step {name!r} at {position}: the result does not fit its declared type: {self.message}",
            "return plain data, dataclasses or models, and declare the type that is returned",
        )


_LOST = codec(Lost)


def spill(pk: int, payload: bytes) -> tuple[bytes, journal.Rows]:
    """Cut a large payload into rows of their own; return the reference and the rows."""
    blob_pk = int.from_bytes(os.urandom(8), "big") >> 1
    rows: journal.Rows = [
        ("blobs.add", (blob_pk, pk, number, payload[start : start + CHUNK_BYTES]))
        for number, start in enumerate(range(0, len(payload), CHUNK_BYTES))
    ]
    return _REFERENCE.pack(SPILLED, blob_pk, len(payload)), rows


async def read_spilled(tx: Tx, execution_id: str, reference: bytes) -> bytes:
    """Read back a payload that was spilled.

    Raises:
        IntegrityError: Rows of it are missing.
    """
    _, blob_pk, size = _REFERENCE.unpack(reference)
    payload = await journal.blob(tx, blob_pk)
    if len(payload) != size:
        raise IntegrityError(
            f"a spilled value has {len(payload)} of {size} bytes",
            "run holdfast verify",
            execution_id=execution_id,
            table="durable_blobs",
            row=str(blob_pk),
        )
    return payload
