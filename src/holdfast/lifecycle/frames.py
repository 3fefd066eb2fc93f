"""How a hook call and its answer look on the resident's socket.

A frame is its length and then its fields, each after its own length, all lengths in four bytes. A call has the fields
of `call`; its answer has exit code, stdout and stderr, or is `BUSY`, after which the caller sees to the call itself.
This module is imported where `typing` and `struct` would cost too much.

Invariants:
    - `decode(encode(fields)) == fields`.
    - Nothing is read beyond a frame, and no frame is longer than `FRAME_BYTES_MAX`.
"""

from __future__ import annotations

from holdfast.core import version

TYPE_CHECKING = False  # what `typing` says too
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BUSY", "FRAME_BYTES_MAX", "HEAD_BYTES", "VERSION", "call", "decode", "encode", "length", "row"]

VERSION = f"1 {version.VERSION}".encode()
"""Of the frames and of the program: both ends are the same program, or do not talk."""
BUSY = (b"busy",)
"""The answer of a resident that does not take the call."""
HEAD_BYTES = 4
FRAME_BYTES_MAX = 8 * 1024 * 1024
"""Room for the largest body of a hook and what goes with it."""

_NUMBERS = (4, 6, 8)  # body_bytes, received_at, lease_until
_BYTES = (3, 5)  # body, body_digest
_FIELDS = 9


def encode(fields: Sequence[bytes]) -> bytes:
    """Return a frame."""
    body = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return len(body).to_bytes(HEAD_BYTES, "big") + body


def length(head: bytes) -> int:
    """Return how many bytes follow the first `HEAD_BYTES` of a frame.

    Raises:
        ValueError: They are more than a frame may have.
    """
    size = int.from_bytes(head, "big")
    if len(head) != HEAD_BYTES or size > FRAME_BYTES_MAX:
        raise ValueError("not a frame")
    return size


def decode(body: bytes) -> tuple[bytes, ...]:
    """Return the fields of a frame whose first `HEAD_BYTES` have been taken off.

    Raises:
        ValueError: The lengths do not add up.
    """
    fields = []
    at = 0
    while at < len(body):
        start = at + 4
        at = start + int.from_bytes(body[at:start], "big")
        if at > len(body) or start > len(body):
            raise ValueError("not a frame")
        fields.append(body[start:at])
    return tuple(fields)


def call(head: str, row: Sequence[object]) -> tuple[bytes, ...]:
    """Return the fields of a call.

    Args:
        head: What the caller's plan is for.
        row: The parameters of `hooks.append`, in its order.
    """
    return (VERSION, head.encode("utf-8", "surrogateescape"), *(_encoded(value) for value in row))


def row(fields: Sequence[bytes]) -> tuple[object, ...]:
    """Return the parameters of `hooks.append` out of the fields of a call, without the first two.

    Raises:
        ValueError: There are more or fewer, or one is not what it has to be.
    """
    if len(fields) != _FIELDS:
        raise ValueError("not a call")
    return tuple(_decoded(place, field) for place, field in enumerate(fields))


def _encoded(value: object) -> bytes:
    """A byte that says whether there is a value, and the value."""
    if value is None:
        return b"-"
    if isinstance(value, int):
        return b"+%d" % value
    return b"+" + (value if isinstance(value, bytes) else str(value).encode())


def _decoded(place: int, field: bytes) -> object:
    if field == b"-":
        return None
    if field[:1] != b"+":
        raise ValueError("not a call")
    if place in _NUMBERS:
        return int(field[1:])
    return field[1:] if place in _BYTES else field[1:].decode()
