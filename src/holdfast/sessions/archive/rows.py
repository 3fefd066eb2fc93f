"""How what the slice knows becomes columns, and back: bodies, JSON, marks, hashes of rows. No statement is run here.

Large JSON is kept as a zstd frame, which its first byte tells from JSON. A large member of a request's parameters,
such as the tools that a harness sends with every call, is kept once under its hash and named by it.

Invariants:
    - Marks in storage sort as marks do.
    - What was packed is unpacked to the same bytes.
    - The hash of a row holds no id that was minted: equal truth gives equal hashes in every store.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec
import zstandard
from blake3 import blake3

from holdfast.core.errors import ConfigError
from holdfast.sessions import deltas
from holdfast.sessions.evidence import Account, Evidence, SessionRow, TurnFacts
from holdfast.sessions.jcs import Json
from holdfast.sessions.nodes import Node
from holdfast.sessions.sealing import MARK, refuse_sealed
from holdfast.sessions.values import Block, Cost, CostLine, Mark, SessionKey

__all__ = [
    "Body", "Storage", "Told", "body_of", "expand", "hash_session", "hash_turn", "mark_of", "pack", "part_hashes",
    "read_account", "read_blocks", "read_lines", "read_mark", "read_session", "shrink", "unpack", "write_account",
    "write_blocks", "write_lines", "write_session",
]  # fmt: skip

Storage: TypeAlias = Literal["plain", "zstd", "delta"]
Told: TypeAlias = Mapping[str, Json]

PACKED_BYTES_MIN = 384
"""Below this a frame saves nothing worth its reading."""

PART_BYTES_MIN = 512
"""A member of the parameters from this size on is kept by itself."""

ROW_HASH_BYTES = 16
_MAGIC = b"\x28\xb5\x2f\xfd"
_PART = "$part"
_LEVEL = 3
_JSON = msgspec.json.Encoder(order="sorted")
_ACCOUNT = msgspec.json.Decoder(Account)
_SESSION = msgspec.json.Decoder(SessionRow)
_BLOCKS = msgspec.json.Decoder(tuple[Block, ...])


# --- bytes --------------------------------------------------------------------------------------------


class _Frames(threading.local):
    """What makes frames and reads them. To make one takes longer than most bodies; no two threads may use the same."""

    def __init__(self) -> None:
        self.packer = zstandard.ZstdCompressor(level=_LEVEL)
        self.unpacker = zstandard.ZstdDecompressor()


_frames = _Frames()


def pack(data: bytes) -> bytes:
    """Return JSON as it is stored."""
    if len(data) < PACKED_BYTES_MIN:
        return data
    packed = _frames.packer.compress(data)
    return packed if len(packed) < len(data) else data


def unpack(stored: bytes) -> bytes:
    """Return JSON that was packed.

    Raises:
        ConfigError: It is sealed, and there is no key.
    """
    refuse_sealed(stored)
    return _frames.unpacker.decompress(stored) if stored[:4] == _MAGIC else stored


class Body(msgspec.Struct, frozen=True):
    """A body in its stored form.

    Attributes:
        stored: The bytes in the ledger.
        sha256: Of the body itself, 32 bytes.
        size: Of the body itself.
        encoding: The content coding that it was sent with, which is still on it.
        base: The body that a delta is against.
    """

    stored: bytes
    storage: Storage
    sha256: bytes
    size: int
    encoding: str = ""
    content_type: str = ""
    base: Body | None = None

    def data(self) -> bytes:
        """Return the body. It takes a while for a large one.

        Raises:
            ConfigError: It is sealed, and there is no key.
        """
        refuse_sealed(self.stored)
        if self.storage == "zstd":
            return _frames.unpacker.decompress(self.stored)
        if self.storage == "delta":
            return deltas.decode(self.stored, b"" if self.base is None else self.base.data())
        return self.stored

    def is_whole(self) -> bool:
        """Say whether it is what was captured."""
        try:
            return hashlib.sha256(self.data()).digest() == self.sha256
        except ConfigError:
            raise
        except Exception:  # noqa: BLE001 - a frame that cannot be read is not whole
            return False


def body_of(data: bytes, *, encoding: str = "", content_type: str = "") -> Body:
    """Return a body as it is to be stored. It takes a while for a large one."""
    marked = data.startswith(MARK)
    packed = data
    if marked or len(data) >= PACKED_BYTES_MIN:
        packed = _frames.packer.compress(data)
    sha256 = hashlib.sha256(data).digest()
    if marked or len(packed) < len(data):
        return Body(packed, "zstd", sha256, len(data), encoding, content_type)
    return Body(data, "plain", sha256, len(data), encoding, content_type)


# --- marks --------------------------------------------------------------------------------------------


def mark_of(mark: Mark) -> bytes:
    """Return a mark as bytes, which sort as marks do: neither id holds a zero byte."""
    at, capture_id, evidence_key = mark
    return at.to_bytes(8, "big") + capture_id.encode() + b"\0" + evidence_key.encode()


def read_mark(stored: bytes) -> Mark:
    """Return the mark of bytes."""
    capture_id, _, evidence_key = stored[8:].partition(b"\0")
    return int.from_bytes(stored[:8], "big"), capture_id.decode(), evidence_key.decode()


# --- JSON columns -------------------------------------------------------------------------------------


def write_account(says: Account) -> bytes:
    """Return what an evidence says, to be stored."""
    return pack(_JSON.encode(says))


def read_account(stored: bytes) -> Account:
    """Return what an evidence says."""
    return _ACCOUNT.decode(unpack(stored))


def write_session(row: SessionRow) -> bytes:
    """Return what turns make of a session, to be stored."""
    return pack(_JSON.encode(row))


def read_session(stored: bytes) -> SessionRow:
    """Return what turns make of a session."""
    return _SESSION.decode(unpack(stored))


def write_blocks(node: Node) -> bytes:
    """Return the content of a node, to be stored."""
    return pack(_JSON.encode(node.blocks))


def read_blocks(stored: bytes) -> tuple[Block, ...]:
    """Return the content of a node."""
    return _BLOCKS.decode(unpack(stored))


def write_lines(cost: Cost) -> bytes:
    """Return the lines of a cost, to be stored: amounts are text."""
    return _JSON.encode([[line.what, line.count, line.rate, line.usd] for line in cost.lines])


def read_lines(stored: bytes) -> tuple[CostLine, ...]:
    """Return the lines of a cost."""
    raw: list[list[Any]] = msgspec.json.decode(stored)
    names = ("what", "count", "rate", "usd")
    return tuple(msgspec.convert([dict(zip(names, each, strict=True)) for each in raw], list[CostLine]))


# --- parameters of requests ---------------------------------------------------------------------------


def shrink(params: Told) -> tuple[dict[str, Json], dict[bytes, bytes]]:
    """Return parameters whose large members are named by their hash, and those members as JSON by hash."""
    small: dict[str, Json] = {}
    parts: dict[bytes, bytes] = {}
    for name, value in params.items():
        data = _JSON.encode(value)
        # What looks like such a name is kept as a part too, so that it is no name when it is read.
        if len(data) >= PART_BYTES_MIN or (isinstance(value, dict) and _PART in value):
            hashed = blake3(data).digest()
            parts[hashed] = data
            small[name] = {_PART: hashed.hex()}
        else:
            small[name] = value
    return small, parts


def part_hashes(params: Told) -> set[bytes]:
    """Return the hashes of the parts of shrunken parameters."""
    return {
        bytes.fromhex(value[_PART]) for value in params.values() if isinstance(value, dict) and value.keys() == {_PART}
    }


def expand(params: Told, parts: Mapping[bytes, bytes]) -> dict[str, Json]:
    """Return parameters as they were, given the parts they name; one that is missing stays a name."""
    found = dict(params)
    for name, value in params.items():
        if isinstance(value, dict) and value.keys() == {_PART}:
            data = parts.get(bytes.fromhex(value[_PART]))
            if data is not None:
                found[name] = msgspec.json.decode(data)
    return found


# --- hashes of rows -----------------------------------------------------------------------------------


def hash_turn(turn: TurnFacts, evidences: tuple[Evidence, ...]) -> bytes:
    """Return the hash of a turn: what it says, and which evidences it is made of."""
    said = msgspec.structs.asdict(turn)
    for minted in ("turn_id", "usage_event"):
        del said[minted]
    return _hashed([said, [[each.source, each.rank, *each.mark] for each in evidences]])


def hash_session(row: SessionRow | None, parent: SessionKey | None, *said: str | None) -> bytes:
    """Return the hash of a session: its turns' work, its parent's key, and what else is shown of it."""
    return _hashed([None if row is None else msgspec.to_builtins(row), parent, said])


def _hashed(value: Json) -> bytes:
    return blake3(_JSON.encode(value)).digest(ROW_HASH_BYTES)
