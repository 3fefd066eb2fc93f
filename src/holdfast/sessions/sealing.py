"""Encryption at rest: what was said lies sealed in the ledger, and nobody above knows.

A `SealedDatabase` stands before a ledger. On the way in it seals the columns that hold bodies, messages and what events
say, on the way out it opens them. A sealed value is a mark, the number of its key, a nonce and the ciphertext; a value
without the mark was stored before there was a key.

Invariants:
    - A value opens in its own column of its own row only.
    - Hashes, and all that is compared, are over what was said: nothing derived depends on keys or nonces.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from holdfast.core.errors import CodecError, ConfigError
from holdfast.core.keyring import ROOT_NUMBER_MAX, ring_of
from holdfast.store import catalogue

if TYPE_CHECKING:
    from holdfast.core.clock import Clock
    from holdfast.core.keyring import KeyRing
    from holdfast.store.catalogue import Dialect, Statement
    from holdfast.store.database import Database, Row, Tx
    from holdfast.store.home import Home
    from holdfast.store.owners import Owner
    from holdfast.store.writer import Writer

__all__ = [
    "COLUMNS", "MARK", "DoesNotOpen", "Place", "SealedDatabase", "check_keys", "drop_keys", "key_of", "note_key",
    "open_value", "place_of", "refuse_sealed", "seal_value", "stand_before",
]  # fmt: skip

MARK: Final = b"\x00hf\x01"
"""No JSON and no frame begins so; a body that does is never stored as it is."""

KEY_NAME: Final = "session_key_"
"""Facts of the ledger of this name say which keys have sealed something in it."""

OFF_LOOP_BYTES: Final = 1024 * 1024
"""More than this is sealed or opened off the event loop: it takes about a millisecond."""

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "envelope": ("event_id",),
    "request": ("event_id",),
    "response": ("event_id",),
    "base_request": ("base_event",),
    "facts": ("event_id", "evidence_key"),
    "content": ("hash",),
    "fold": ("session_id",),
}
"""What is sealed, by its name in statements, and what names its row besides the org."""

_STORED_AS: Final = {"base_request": "request"}


class Place(NamedTuple):
    """A column of one row.

    Attributes:
        row: What names the row, as bytes.
    """

    column: str
    row: tuple[bytes, ...]

    def associated(self) -> bytes:
        """Return what a sealed value is bound to."""
        parts = (_STORED_AS.get(self.column, self.column).encode(), *self.row)
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


class DoesNotOpen(CodecError):
    """A sealed value was changed, or belongs elsewhere.

    Attributes:
        place: Where it is.
    """

    place: Place


_NOTE: Final = Place("key", ())
"""The place of an empty value that shows whether a key is the one that its number stands for."""


# --- one value ----------------------------------------------------------------------------------------


def key_of(value: bytes) -> int:
    """Return the number of the key that sealed a value; 0: it is not sealed."""
    return value[len(MARK)] if value[: len(MARK)] == MARK and len(value) > len(MARK) else 0


def refuse_sealed(value: bytes) -> None:
    """Make sure that a value is not sealed.

    Raises:
        ConfigError: It is, and whoever reads it has no key (`config.cipher_missing`).
    """
    if value[: len(MARK)] == MARK:
        raise _no_keys(key_of(value))


def seal_value(ring: KeyRing, value: bytes, place: Place) -> bytes:
    """Return a value as it is stored."""
    key_id, sealed = ring.seal(value, place.associated())
    return b"%b%c%b" % (MARK, key_id, sealed)


def open_value(ring: KeyRing, value: bytes, place: Place) -> bytes:
    """Return what was stored; what was not sealed as it is.

    Raises:
        ConfigError: Its key is not in the ring.
        DoesNotOpen: It was changed, or belongs elsewhere.
    """
    key_id = key_of(value)
    if not key_id:
        return value
    try:
        return ring.open(key_id, value[len(MARK) + 1 :], place.associated())
    except CodecError as error:
        row = " ".join(part.hex() for part in place.row[1:])
        changed = DoesNotOpen(f"{place.column} of {row} does not open: {error.message}", error.hint)
        changed.place = place
        raise changed from None


# --- which keys a ledger needs ------------------------------------------------------------------------


async def check_keys(database: Database) -> None:
    """Make sure that all that was sealed in a ledger can be opened.

    Raises:
        ConfigError: It needs a key that is not there (`config.unknown_cipher_key`), or there is none at all
            (`config.cipher_missing`).
    """
    ring = database.ring if isinstance(database, SealedDatabase) else None
    async with database.read() as tx:
        needed = await tx.all("ledger.named", prefix=KEY_NAME)
    for row in needed:
        number = key_of(row.value)
        if ring is None:
            raise _no_keys(number)
        _check_key(ring, number, row.value)


def _check_key(ring: KeyRing, number: int, noted: bytes) -> None:
    if number not in ring.numbers:
        raise ConfigError(
            f"captured conversations are sealed with key {number}, which is not there",
            "give it as HOLDFAST_KEY_PREVIOUS until holdfast crypto rotate has run",
            code="config.unknown_cipher_key",
        )
    try:
        open_value(ring, noted, _NOTE)
    except CodecError:
        raise ConfigError(
            f"the key {number} that is there is not the key {number} that captured conversations are sealed with",
            "give the right one, and every new key a number of its own",
            code="config.unknown_cipher_key",
        ) from None


async def note_key(tx: Tx, ring: KeyRing) -> None:
    """Note in a ledger that the current key seals in it from now on.

    Raises:
        ConfigError: Another key of its number does (`config.unknown_cipher_key`).
    """
    number = ring.numbers[0]
    name = f"{KEY_NAME}{number}"
    await tx.run("ledger.add", [(name, seal_value(ring, b"", _NOTE))])
    row = await tx.one("ledger.get", name=name)
    assert row is not None
    _check_key(ring, number, row.value)


async def drop_keys(tx: Tx, *, but: int) -> None:
    """Note that nothing is sealed with any key but one."""
    for row in await tx.all("ledger.named", prefix=KEY_NAME):
        if row.name != f"{KEY_NAME}{but}":
            await tx.run("ledger.drop", [(row.name,)])


def _no_keys(number: int) -> ConfigError:
    return ConfigError(
        f"captured conversations are sealed with key {number}, and there is no key",
        'set encryption = "payload" in [sessions], and the key in HOLDFAST_KEY',
        code="config.cipher_missing",
    )


def stand_before(
    database: Database,
    encryption: Literal["off", "payload"],
    environ: Mapping[str, str],
    ring: KeyRing | None = None,
) -> Database:
    """Return the database that sessions are kept in: the ledger, or what seals in it.

    Args:
        database: The ledger.
        encryption: What the settings say.
        environ: The environment, which has the keys.
        ring: The keys, where they come from somewhere else.

    Raises:
        ConfigError: The settings want keys, and there are none (`config.cipher_missing`), or they are no keys.
    """
    if encryption == "off":
        return database
    keys = ring or ring_of(environ)
    if keys is None:
        raise ConfigError(
            'encryption is "payload", and there is no key',
            "set HOLDFAST_KEY to NUMBER:BASE64 of 32 random bytes",
            code="config.cipher_missing",
            keys=("encryption",),
        )
    return SealedDatabase(database, keys)


# --- the statements that carry such values ------------------------------------------------------------


_TABLES: Final = re.compile(r"\bsession_(raw_events|turn_evidence|nodes|parts|sessions)\b")


class _Plan(NamedTuple):
    """What of a statement is sealed on the way in, and opened on the way out."""

    statement: Statement
    params: tuple[str, ...]
    columns: tuple[str, ...]


@cache
def _plans(dialect: Dialect) -> dict[str, _Plan]:
    found = {}
    for name, statement in catalogue.load(dialect).items():
        if _TABLES.search(statement.text):
            params = tuple(each for each in statement.params if each in COLUMNS)
            columns = tuple(each for each in statement.columns if each in COLUMNS)
            if params or columns:
                found[name] = _Plan(statement, params, columns)
    return found


def place_of(column: str, values: Mapping[str, Any]) -> Place:
    """Return the place of a column in the row that values name, the org among them."""
    names = ("org", *COLUMNS[column])
    return Place(column, tuple(each.encode() if isinstance(each := values[name], str) else each for name in names))


class _Seal:
    """Seals what goes into statements, and opens what they give."""

    __slots__ = ("_plans", "noted", "ring")

    def __init__(self, ring: KeyRing, dialect: Dialect) -> None:
        self.ring = ring
        self.noted = False
        self._plans = _plans(dialect)

    def plan(self, statement: str) -> _Plan | None:
        return self._plans.get(statement)

    async def params(self, plan: _Plan, params: dict[str, object]) -> dict[str, object]:
        sealed = dict(params)
        for name in plan.params:
            value = params.get(name)
            if isinstance(value, bytes):
                sealed[name] = await self._do(seal_value, value, place_of(name, params))
        return sealed

    async def rows(self, plan: _Plan, rows: Iterable[Sequence[object]]) -> list[Sequence[object]]:
        names = plan.statement.params
        return [
            tuple((await self.params(plan, dict(zip(names, row, strict=True)))).values()) if plan.params else row
            for row in rows
        ]

    async def opened(self, plan: _Plan, row: Row, params: Mapping[str, object]) -> Row:
        said = dict(params) | dict(zip(plan.statement.columns, row, strict=True))
        for name in plan.columns:
            value = said[name]
            if isinstance(value, bytes):
                said[name] = await self._do(open_value, value, place_of(name, said))
        return plan.statement.row(tuple(said[name] for name in plan.statement.columns))

    async def _do(self, work: Any, value: bytes, place: Place) -> bytes:
        if len(value) > OFF_LOOP_BYTES:
            done: bytes = await asyncio.to_thread(work, self.ring, value, place)
        else:
            done = work(self.ring, value, place)
        return done


class SealedTx:
    """A `Tx` whose sealed columns are open to whoever has it."""

    __slots__ = ("_seal", "_tx")

    def __init__(self, tx: Tx, seal: _Seal) -> None:
        self._tx = tx
        self._seal = seal

    async def one(self, statement: str, /, **params: object) -> Row | None:
        plan = self._seal.plan(statement)
        if plan is None:
            return await self._tx.one(statement, **params)
        row = await self._tx.one(statement, **await self._seal.params(plan, params))
        return None if row is None or not plan.columns else await self._seal.opened(plan, row, params)

    async def all(self, statement: str, /, **params: object) -> list[Row]:
        plan = self._seal.plan(statement)
        if plan is None:
            return await self._tx.all(statement, **params)
        rows = await self._tx.all(statement, **await self._seal.params(plan, params))
        return [await self._seal.opened(plan, row, params) for row in rows] if plan.columns else rows

    async def run(self, statement: str, rows: Iterable[Sequence[object]], /) -> int:
        plan = self._seal.plan(statement)
        return await self._tx.run(statement, rows if plan is None else await self._seal.rows(plan, rows))

    def notify(self, channel: str, /) -> None:
        self._tx.notify(channel)


class _ReadBlock:
    """A view, whose transaction is a `SealedTx`."""

    __slots__ = ("_block", "_seal")

    def __init__(self, block: AbstractAsyncContextManager[Tx], seal: _Seal) -> None:
        self._block = block
        self._seal = seal

    async def __aenter__(self) -> SealedTx:
        return SealedTx(await self._block.__aenter__(), self._seal)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._block.__aexit__(kind, error, trace)


class _WriteBlock(_ReadBlock):
    """A transaction that writes. The first that commits says in the ledger which key seals."""

    async def __aenter__(self) -> SealedTx:
        tx = await self._block.__aenter__()
        if not self._seal.noted:
            try:
                await note_key(tx, self._seal.ring)
            except BaseException as error:
                await self._block.__aexit__(type(error), error, error.__traceback__)
                raise
        return SealedTx(tx, self._seal)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        ended = await super().__aexit__(kind, error, trace)
        self._seal.noted |= error is None
        return ended


class SealedDatabase:
    """A `Database` in which what was said lies sealed. Closing it closes what it stands before.

    Attributes:
        inner: What it stands before.
        ring: Its keys.
    """

    dialect: Literal["sqlite", "postgres"]
    label: str
    home: Home
    clock: Clock
    writer: Writer
    owner: Owner
    namespace: bytes

    def __init__(self, database: Database, ring: KeyRing) -> None:
        """Stand before an open ledger.

        Args:
            database: The ledger.
            ring: Its keys, numbered from 1 to 255.

        Raises:
            ConfigError: A key has another number.
        """
        if max(ring.numbers) > ROOT_NUMBER_MAX:
            raise ConfigError(
                f"a key of the ledger has a number over {ROOT_NUMBER_MAX}", "count them from 1", keys=("ring",)
            )
        self.ring = ring
        self.inner = database
        self._seal = _Seal(ring, database.dialect)
        for name in ("dialect", "label", "home", "clock", "writer", "owner", "namespace"):
            setattr(self, name, getattr(database, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self) -> _ReadBlock:
        return _ReadBlock(self.inner.read(), self._seal)

    def write(self) -> _WriteBlock:
        return _WriteBlock(self.inner.write(), self._seal)

    async def submit(self, statement: str, /, **params: object) -> Row | None:
        plan = self._seal.plan(statement)
        if plan is None:
            return await self.inner.submit(statement, **params)
        if plan.params and not self._seal.noted:
            async with self.write():
                pass
        row = await self.inner.submit(statement, **await self._seal.params(plan, params))
        return None if row is None or not plan.columns else await self._seal.opened(plan, row, params)

    async def wait(self, channel: str, timeout: float, /) -> bool:  # noqa: ASYNC109 - as in the protocol
        return await self.inner.wait(channel, timeout)

    def wake(self, channel: str, /) -> None:
        self.inner.wake(channel)

    async def close(self) -> None:
        await self.inner.close()
