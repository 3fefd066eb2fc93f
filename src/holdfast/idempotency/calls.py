"""Journal the calls of a client, so that a call outlives the process that began it.

This module hides the table `idem_calls`: one row for each named call that was begun and has no outcome yet, with the
key it goes by. The row is durable before the first byte leaves, so whoever makes the call again after a crash sends
the same key, and a server that keeps outcomes answers what it did.

Invariants:
    - A call is sent under the key of its row, and the row is durable before.
    - A row goes when its outcome is known, or when it is known that nothing happened.
    - No credential and no cookie is ever in a row: of headers only those that are named here or by the program, of a
      URL neither user nor password nor the value of a parameter that carries a secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote_plus

from holdfast.core import points
from holdfast.core.clock import micros, to_datetime
from holdfast.core.errors import Closed, CodecError, ConfigError, LimitError, WrongLoop
from holdfast.core.ids import uuid7
from holdfast.idempotency.errors import CallChanged, RecordUnreadable
from holdfast.idempotency.headers import decode_headers, encode_headers
from holdfast.idempotency.identity import lp
from holdfast.idempotency.values import Headers

if TYPE_CHECKING:
    import httpx

    from holdfast.core.keyring import KeyRing
    from holdfast.store.database import Database, Row

__all__ = ["CALL", "Asked", "Entry", "KeyJournal", "PendingCall"]

T = TypeVar("T")

CALL = "holdfast.call"
"""The extension of a request that names its call."""
NAME_LENGTH_MAX = 255
BODY_BYTES_MAX = 2 * 1024 * 1024
"""What a guarded route accepts unless its rule says otherwise."""
ROW_FORMAT = 1
_HEADERS, _BODY = "holdfast.call.headers", "holdfast.call.body"
SECRET_PARAMS = frozenset({
    "access_token", "apikey", "api_key", "api-key", "auth", "client_secret", "id_token", "key", "password",
    "refresh_token", "secret", "sig", "signature", "token", "x-amz-credential", "x-amz-security-token",
    "x-amz-signature",
})  # fmt: skip
"""Parameters of a URL that carry credentials; OAuth 2 and the large clouds use them."""
_COMPARED = frozenset({"content-encoding", "if-match", "if-none-match", "x-http-method-override"})
_KEPT = _COMPARED | {
    "accept", "accept-language", "content-language", "content-type", "if-modified-since", "if-unmodified-since",
    "prefer",
}  # fmt: skip
_CREDENTIAL = re.compile(r"auth|cookie|token|secret|passw|credential|session|signature|api-?key|access-?key")
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]+)"|([^\s;"]+))', re.IGNORECASE)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")

points.register("journal.written")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the journal keeps it.

    Attributes:
        name: What the program calls it.
        method: Its method.
        url: Its URL, without credentials.
        headers: The fields that are kept.
        body: Its body.
    """

    name: str
    method: str
    url: str
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def call_id(self) -> bytes:
        """What its row is found by."""
        return _call_id(self.name)


@dataclass(frozen=True, slots=True)
class Entry:
    """The row of a call.

    Attributes:
        asked: The request, with headers and body as they were first sent.
        claim_id: Names the row.
        key: The value of the key's header.
        first_sent_at: When it was first sent, in microseconds.
        expires_at: From then on the server may have forgotten it.
        fresh: It was written for this call; otherwise somebody began it before.
    """

    asked: Asked
    claim_id: bytes
    key: str = field(repr=False)
    first_sent_at: int
    expires_at: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class PendingCall:
    """A call that was begun and has no outcome yet.

    Attributes:
        name: What the program calls it.
        method: Its method.
        url: Its URL, without credentials.
        headers: The fields that were kept.
        body: Its body.
        key: The value of the key's header.
        first_sent_at: When it was first sent.
        expires_at: From then on it is not sent again: the server may have forgotten it.
    """

    name: str
    method: str
    url: str
    headers: Headers = field(repr=False)
    body: bytes = field(repr=False)
    key: str = field(repr=False)
    first_sent_at: datetime
    expires_at: datetime

    def request(self, client: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Build the request again; sent by a client whose transport has this journal, it goes under its old key.

        Credentials come from the client: its headers, its cookies, its authentication, and its parameters for those
        of the URL whose values are not kept.
        """
        request = client.build_request(
            self.method, self.url, headers=self.headers, content=self.body, extensions={CALL: self.name}
        )
        # The client's parameters would take the place of the whole query, whose text must stay as it was.
        request.url = type(request.url)(_filled(self.url, client.params))
        return request


class KeyJournal:
    """The calls of a client that were begun and have no outcome yet, in a ledger.

    Give it to a transport, and name a call with `extensions={"holdfast.call": name}`. A name stands for one
    operation: while it has no outcome, every call of that name is the same call under the same key; once it has one,
    the next call of that name is another operation under a new key. Remembering that the operation is done is the
    program's part. A process may die between reading an outcome and noting it; if that matters, turn `settle_on_read`
    off and say `settle` when it is noted.

    An outcome is a response whose body was read to its end. An answer that only says how it is just now, such as a
    401 or a 429, is none; the name is free again when it is certain that nothing happened. A call that nobody
    answers stays, and is refused with `KeyWindowPassed` once the server may have forgotten it. `settle` takes it off.

    Method, URL, body and some headers are kept, headers and body sealed if there is a cipher.
    """

    def __init__(  # noqa: PLR0913 - each is one thing its user may set, and none must be
        self,
        database: Database,
        *,
        lifetime: timedelta = timedelta(hours=24),
        headers: Iterable[str] = (),
        secret_params: Iterable[str] = SECRET_PARAMS,
        body_bytes_max: int = BODY_BYTES_MAX,
        cipher: KeyRing | None = None,
        settle_on_read: bool = True,
    ) -> None:
        """Keep a journal in an open ledger.

        Args:
            database: The ledger; closing it is its owner's.
            lifetime: How long the servers keep outcomes, from the first sending.
            headers: More header fields to keep and to compare, such as the version of an API.
            secret_params: Parameters of URLs whose values are not kept.
            body_bytes_max: Larger bodies are refused.
            cipher: Seals headers and bodies.
            settle_on_read: A call is over when its outcome has been read; otherwise when the program says `settle`,
                having noted the outcome where it will find it again.

        Raises:
            ConfigError: A header's name says that it carries a credential, or a limit makes no sense.
        """
        own = {name.lower() for name in headers}
        for name in sorted(own):
            if not _TOKEN.fullmatch(name) or _CREDENTIAL.search(name):
                raise ConfigError(f"a journal does not keep the header {name!r}", "credentials come from the client")
        if lifetime <= timedelta(0) or body_bytes_max < 0:
            raise ConfigError("a journal's lifetime and limits are not negative", "leave them out for the defaults")
        self._database = database
        self._lifetime = micros(lifetime)
        self._kept = _KEPT | own
        self._compared = _COMPARED | own
        self._secret = frozenset(name.lower() for name in secret_params)
        self._body_bytes_max = body_bytes_max
        self._cipher = cipher
        self.settle_on_read = settle_on_read

    async def pending(self, *, limit: int = 100) -> list[PendingCall]:
        """Return the calls without an outcome, the oldest first.

        Raises:
            RecordUnreadable: A row was written by a newer Holdfast, or is damaged.
        """
        async with self._database.read() as tx:
            rows = await tx.all("calls.list", limit=limit)
        return [self._pending(row) for row in rows]

    def _pending(self, row: Row) -> PendingCall:
        headers, body = self._opened(row, row.call_id)
        return PendingCall(
            row.name, row.method, row.url, headers, body, row.key,
            to_datetime(row.first_sent_at), to_datetime(row.expires_at),
        )  # fmt: skip

    async def settle(self, name: str) -> bool:
        """Take a call off the journal, because its outcome is known from elsewhere; say whether it was there."""
        return await self._database.submit("calls.drop", call_id=_call_id(name)) is not None

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run one of this journal's methods for a synchronous program: `journal.call(journal.pending())`.

        Raises:
            WrongLoop: This thread runs the ledger's own loop, and would wait for itself.
            Closed: The ledger's loop does not run any more.
        """
        loop = self._database.home.loop
        if _running_loop() is loop:
            coroutine.close()
            raise WrongLoop(
                "a synchronous call would wait for the event loop it is made in", "use AsyncIdempotentTransport"
            )
        if not loop.is_running():
            coroutine.close()
            raise Closed(f"the event loop of {self._database.label} does not run", "make calls while it is open")
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    # What transports use

    def describe(self, name: object, method: str, url: tuple[str, str], headers: Headers, body: bytes) -> Asked:
        """Return a request as it is kept.

        Args:
            name: What the program calls it.
            method: Its method.
            url: Its origin, without user and password, and its path with the query.
            headers: All its fields.
            body: Its body.

        Raises:
            ConfigError: The name is none.
            LimitError: The body is larger than the journal takes.
        """
        if not isinstance(name, str) or not 1 <= len(name) <= NAME_LENGTH_MAX:
            raise ConfigError(f"{CALL} is not the name of a call", f"give a text of 1 to {NAME_LENGTH_MAX} characters")
        if len(body) > self._body_bytes_max:
            raise LimitError(
                f"the body of call {name!r} is larger than its journal takes", "raise body_bytes_max",
                limit="body_bytes_max", maximum=self._body_bytes_max, actual=len(body),
            )  # fmt: skip
        fields = [(name.lower(), value.strip(b" \t")) for name, value in headers]
        kept = [field for field in fields if field[0].decode("latin-1") in self._kept]
        origin, target = url
        place = origin + _blanked(target, self._secret)
        return Asked(name, method, place, kept, body)

    def _fingerprint(self, method: str, url: str, kept: Headers, body: bytes) -> bytes:
        """Return what calls of one name must not differ in. It is not stored: it would confirm guesses of a body."""
        kind, form = _compared_body(dict(kept).get(b"content-type", b"").decode("latin-1"), body)
        digest = hashlib.sha256(lp("holdfast.call.v1", method, url, kind, form))
        for each in sorted(self._compared):
            values = [value for name, value in kept if name.decode("latin-1") == each]
            digest.update(lp(each, lp(*values)))
        return digest.digest()

    async def claim(self, asked: Asked, *, key: str, claim_id: bytes | None = None, now: int) -> Entry:
        """Return the row of a call, written now if nobody has begun it before; it is durable.

        Args:
            asked: The request.
            key: The value of the key's header, for a new row.
            claim_id: The row that this call wrote before.
            now: The wall time: when a new row was first sent.

        Raises:
            CallChanged: Another request was begun under this name, and has no outcome yet.
            RecordUnreadable: The row was written by a newer Holdfast, is damaged, or sealed with a key we lack.
            StoreError: The ledger cannot be written; nothing may be sent.
        """
        own = claim_id or uuid7(now).bytes
        cipher_key, headers, body = self._sealed(asked)
        row = await self._database.submit(
            "calls.claim", call_id=asked.call_id, name=asked.name, claim_id=own,
            key=key, method=asked.method, url=asked.url, headers=headers, body=body,
            cipher_key=cipher_key, first_sent_at=now, expires_at=now + self._lifetime, format=ROW_FORMAT,
        )  # fmt: skip
        assert row is not None
        kept, first = self._opened(row, asked.call_id)
        if self._fingerprint(row.method, row.url, kept, first) != self._fingerprint(
            asked.method, asked.url, asked.headers, asked.body
        ):
            raise CallChanged(
                f"call {asked.name!r} was begun with another request, and has no outcome yet",
                "make it again as it was, or settle it in the journal",
            )
        if points.armed:
            points.reach("journal.written")
        asked = replace(asked, headers=kept, body=first)
        return Entry(asked, row.claim_id, row.key, row.first_sent_at, row.expires_at, row.claim_id == own)

    def _sealed(self, asked: Asked) -> tuple[int | None, bytes, bytes]:
        """Return the number of the cipher's key, and headers and body as they are stored."""
        block = encode_headers(asked.headers)
        if self._cipher is None:
            return None, block, asked.body
        number, sealed = self._cipher.seal(block, lp(_HEADERS, asked.call_id))
        return number, sealed, self._cipher.seal(asked.body, lp(_BODY, asked.call_id))[1]

    def _opened(self, row: Row, call_id: bytes) -> tuple[Headers, bytes]:
        """Return headers and body of a row."""
        if row.format > ROW_FORMAT:
            raise RecordUnreadable(
                "a call was journaled by a newer Holdfast", "upgrade this one", code="idempotency.record_newer"
            )
        if row.cipher_key is None:
            return decode_headers(row.headers), row.body
        if self._cipher is None:
            raise _unreadable()
        try:
            block = self._cipher.open(row.cipher_key, row.headers, lp(_HEADERS, call_id))
            return decode_headers(block), self._cipher.open(row.cipher_key, row.body, lp(_BODY, call_id))
        except (CodecError, ConfigError) as error:
            raise _unreadable() from error

    async def conclude(self, entry: Entry) -> None:
        """Take a call off that has its outcome."""
        await self._database.submit("calls.settle", call_id=entry.asked.call_id, claim_id=entry.claim_id)

    async def release(self, entry: Entry) -> None:
        """Take a call off that did not happen, unless somebody else has come to it meanwhile."""
        await self._database.submit("calls.release", call_id=entry.asked.call_id, claim_id=entry.claim_id)


def _call_id(name: str) -> bytes:
    return hashlib.sha256(lp("holdfast.call.v1", name)).digest()[:16]


def _unreadable() -> RecordUnreadable:
    return RecordUnreadable(
        "a journaled call cannot be read: it is damaged, or sealed with a key that is not here",
        "give the journal the cipher it was written with",
        code="idempotency.record_unreadable",
    )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _compared_body(content_type: str, body: bytes) -> tuple[str, bytes]:
    """Return content type and body as they are compared: a multipart boundary may be another one each time."""
    found = _BOUNDARY.search(content_type) if content_type.lower().startswith("multipart/") else None
    if found is None:
        return content_type, body
    boundary = (found[1] or found[2]).encode("latin-1")
    return content_type[: found.start()] + content_type[found.end() :], body.replace(b"--" + boundary, b"--boundary")


def _blanked(target: str, secret: frozenset[str]) -> str:
    """Take the values of secret parameters out of a path with its query."""
    path, mark, query = target.partition("?")
    return path + mark + "&".join(_assigned(part, "") if _name(part) in secret else part for part in query.split("&"))


def _filled(url: str, params: httpx.QueryParams) -> str:
    """Put the client's parameters where values are missing."""
    place, mark, query = url.partition("?")
    parts = []
    for part in query.split("&"):
        known = {name.lower(): value for name, value in params.items()}.get(_name(part))
        parts.append(part if known is None or not part.endswith("=") else _assigned(part, quote(known, safe="")))
    return place + mark + "&".join(parts)


def _name(part: str) -> str:
    return unquote_plus(part.partition("=")[0]).lower()


def _assigned(part: str, value: str) -> str:
    return f"{part.partition('=')[0]}={value}"
