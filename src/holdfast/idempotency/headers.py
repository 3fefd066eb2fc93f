"""Choose which fields of a response are kept, keep them as one block, and put them back on the wire.

This module hides the fields HTTP has opinions about: those that belong to one connection or one
sending, those that name a person, those that must be computed anew.

Invariants:
    - What a block decodes to can be sent: names are tokens in lower case, no value can end a line, and
      anything else is refused whole.
    - Order and repetition of fields survive.
    - A replayed body has its exact length; what is decoded for a client no longer says it is encoded.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import itemgetter
from typing import Final

from holdfast.idempotency.errors import RecordUnreadable
from holdfast.idempotency.rules import RouteRule
from holdfast.idempotency.values import Completed, Headers

__all__ = [
    "CORS_ALLOW_HEADERS",
    "CORS_EXPOSE_HEADERS",
    "MARKER",
    "MARKER_STRIPE",
    "Control",
    "Head",
    "decode_headers",
    "encode_headers",
    "filter_headers",
    "head_of",
    "imf_date",
    "keepable",
    "lasting",
    "needs_transcoding",
    "parse_control",
    "replay",
    "sets_cookie",
    "sf_string",
    "storable",
    "tombstone_headers",
    "transcode",
    "without",
]

CORS_ALLOW_HEADERS: Final = ("Idempotency-Key", "Idempotency-First-Sent")
"""Request fields a browser must be allowed to send."""
CORS_EXPOSE_HEADERS: Final = (
    "Idempotency-Replayed",
    "Idempotent-Replayed",
    "Idempotency-Key",
    "Idempotency-Expires",
    "Idempotency-Unprotected",
    "Retry-After",
    "Location",
    "ETag",
    "Link",
)
"""Response fields a script in a browser must be allowed to read."""

MARKER: Final = b"idempotency-replayed"
MARKER_STRIPE: Final = b"idempotent-replayed"
MARKERS: Final = frozenset({MARKER, MARKER_STRIPE})
CONTROL: Final = b"idempotency-control"
OURS: Final = MARKERS | {CONTROL}
"""Fields of a handler's response that are not for its client."""

_OF_ONE_SENDING: Final = (
    MARKERS
    | {CONTROL, b"content-length"}
    | {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
    | {b"set-cookie2", b"www-authenticate", b"authentication-info", b"authorization"}
    | {b"date", b"age", b"server", b"server-timing"}
    | {b"traceparent", b"tracestate", b"x-request-id", b"x-correlation-id"}
)
_FAMILIES: Final = (b"proxy-", b"ratelimit", b"x-ratelimit-")
_OF_TOMBSTONES: Final = frozenset({b"location", b"etag", b"content-type"})
_DIGESTS: Final = frozenset({b"content-md5", b"digest", b"content-digest", b"repr-digest"})
_BODILESS: Final = frozenset({204, 304})
_STATUSES: Final = range(200, 600)

HEADS_MAX, NAMES_BYTES_MAX = 1024, 2048
"""How many sets of names are remembered, and how long one may be: a handler may make names up."""
_BLOCK: Final = b"\x01"
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_name_of = itemgetter(0)
LF, CR = b"\n\r"  # numbers: bytes are asked for one of them ten times as fast as for bytes
_UNSENDABLE = re.compile(rb"[\r\n\x00]")


# -- what is kept


def filter_headers(headers: Iterable[tuple[bytes, bytes]], rule: RouteRule) -> Headers:
    """Return the fields of a response that a replay sends again, as they are stored.

    Left out are fields of the connection (also those `Connection` names), of authentication, of this
    one sending and of this one caller's rate, what is computed anew, and what the rule denies; cookies
    unless the rule keeps them.
    """
    return _filtered(_normal(headers), rule)


def keepable(status: int, headers: Headers, rule: RouteRule, head: Head | None = None) -> Headers | None:
    """Return what `filter_headers` does, or None where the head may not be sent again (`storable`).

    `head` is what `head_of` says of them, for whoever knows it.
    """
    head = head or head_of(headers, rule)
    if status not in _STATUSES or head.kept is None:
        return None
    for _, value in headers:
        if LF in value or CR in value or 0 in value:
            return None
    if head.hops:
        return _filtered(_normal(headers), rule)
    kept = []
    for at, name in head.kept:
        kept.append((name, headers[at][1].strip(b" \t")))
    return kept


class Head:
    """What the fields of a response say, by their places.

    Attributes:
        ours: Whether any is a marker or `Idempotency-Control`.
        type_at: The place of the first `Content-Type`; None: there is none.
        kept: The places of those that are stored, with their names as stored; None: some cannot be sent at all.
        hops: Whether any names others that are not stored.
    """

    __slots__ = ("hops", "kept", "ours", "type_at")

    def __init__(self, names: Sequence[bytes], denied: frozenset[bytes]) -> None:
        self.ours = any(name in OURS for name in names)
        self.type_at = next((at for at, name in enumerate(names) if name == b"content-type"), None)
        self.hops = b"connection" in names
        self.kept: list[tuple[int, bytes]] | None = None
        if all(_NAME.fullmatch(name) for name in names):
            places = enumerate(names)
            self.kept = [(at, name) for at, name in places if name not in denied and not name.startswith(_FAMILIES)]


class _Heads(dict[tuple[bytes, ...], Head]):
    """The heads of responses by the names of their fields as they are sent. An application has few sets of them."""

    def __init__(self, denied: frozenset[bytes]) -> None:
        super().__init__()
        self._denied = denied

    def __missing__(self, names: tuple[bytes, ...]) -> Head:
        head = Head([name.lower() for name in names], self._denied)
        if sum(map(len, names)) <= NAMES_BYTES_MAX:
            if len(self) >= HEADS_MAX:
                self.clear()
            self[names] = head
        return head


@lru_cache(maxsize=256)
def _heads(named: tuple[str, ...], cookies: bool) -> _Heads:  # noqa: FBT001 - a key of the cache
    return _Heads(_denied(named, cookies))


def head_of(headers: Headers, rule: RouteRule) -> Head:
    """Return what the fields of a response say under a rule."""
    return _heads(rule.header_deny, rule.set_cookie != "keep")[tuple(map(_name_of, headers))]


def _filtered(fields: Headers, rule: RouteRule) -> Headers:
    denied = _denied(rule.header_deny, rule.set_cookie != "keep")
    kept = []
    for field in fields:
        name = field[0]
        if name == b"connection":
            hops = (value for other, value in fields if other == b"connection")
            named = {token.strip(b" \t").lower() for value in hops for token in value.split(b",")}
            return [each for each in _filtered(_without_hops(fields), rule) if each[0] not in named]
        if name not in denied and not name.startswith(_FAMILIES):
            kept.append(field)
    return kept


def _without_hops(fields: Headers) -> Headers:
    return [field for field in fields if field[0] != b"connection"]


@lru_cache(maxsize=256)
def _denied(named: tuple[str, ...], cookies: bool) -> frozenset[bytes]:  # noqa: FBT001 - a key of the cache
    denied = _OF_ONE_SENDING.union(name.lower().encode() for name in named)
    return denied | {b"set-cookie"} if cookies else denied


def tombstone_headers(headers: Iterable[tuple[bytes, bytes]], rule: RouteRule) -> Headers:
    """Return the fields that stay when the body does not: where the result is, and which one it is."""
    return lasting(filter_headers(headers, rule))


def lasting(kept: Headers) -> Headers:
    """Return those of the kept fields that a tombstone keeps."""
    return [field for field in kept if field[0].lower() in _OF_TOMBSTONES]


def sets_cookie(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response hands out a cookie."""
    return any(name.lower() == b"set-cookie" for name, _ in headers)


def storable(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response's head may be sent again as it is: its status, the names and the values."""
    return status in _STATUSES and all(_sendable(name, value) for name, value in _normal(headers))


def without(headers: Iterable[tuple[bytes, bytes]], *names: bytes) -> Headers:
    """Return the fields not named, as they are. Names are given in lower case."""
    return [field for field in headers if field[0].lower() not in names]


def _normal(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return [(name.lower(), value.strip(b" \t")) for name, value in headers]


def _sendable(name: bytes, value: bytes) -> bool:
    return _NAME.fullmatch(name) is not None and _UNSENDABLE.search(value) is None


# -- the block


def encode_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write fields as one block; names become lower case, values lose outer space."""
    pieces: list[bytes] = [b""]
    count = 0
    for name, value in headers:
        name, value = name.lower(), value.strip(b" \t")
        pieces += (len(name).to_bytes(8, "big"), name, len(value).to_bytes(8, "big"), value)
        count += 1
    pieces[0] = _BLOCK + count.to_bytes(4, "big")
    return b"".join(pieces)


def decode_headers(block: bytes) -> Headers:
    """Read a block back.

    Raises:
        RecordUnreadable: It is not a block, or something in it could not be sent.
    """
    if block[:1] != _BLOCK or len(block) < 5:
        raise _unreadable()
    at = 5
    fields: Headers = []
    for _ in range(int.from_bytes(block[1:5], "big")):
        name, at = _part(block, at)
        value, at = _part(block, at)
        if not _sendable(name, value) or value.strip(b" \t") != value:
            raise _unreadable()
        fields.append((name, value))
    if at != len(block):
        raise _unreadable()
    return fields


def _part(block: bytes, at: int) -> tuple[bytes, int]:
    begin = at + 8
    end = begin + int.from_bytes(block[at:begin], "big")
    if end > len(block):
        raise _unreadable()
    return block[begin:end], end


def _unreadable() -> RecordUnreadable:
    return RecordUnreadable("the header block of a record is damaged", "look at it with holdfast verify")


# -- what a handler says by a field


@dataclass(frozen=True, slots=True)
class Control:
    """What a response asked for by `Idempotency-Control`.

    Attributes:
        no_store: Let go of the key after the response.
        ttl: Keep the outcome that long.
        irreversible: The effect cannot be taken back.
    """

    no_store: bool = False
    ttl: timedelta | None = None
    irreversible: bool = False


NOTHING_SAID: Final = Control()
"""Of a response without the field."""

_TTL = re.compile(rb"ttl[ \t]*=[ \t]*([0-9]{1,9})")


def parse_control(headers: Headers) -> tuple[Control, Headers]:
    """Read `Idempotency-Control`, and return the headers without it and without markers, which are not the handler's.

    Directives are separated by commas, in any case; one that is unknown or malformed is passed over, and
    of two lifetimes the shorter counts.
    """
    if not any(name.lower() in OURS for name, _ in headers):
        return NOTHING_SAID, headers
    values = [value for name, value in headers if name.lower() == CONTROL]
    if not values:
        return NOTHING_SAID, without(headers, *OURS)
    directives = {directive.strip(b" \t").lower() for value in values for directive in value.split(b",")}
    seconds = [int(match[1]) for match in map(_TTL.fullmatch, directives) if match]
    ttl = min((timedelta(seconds=n) for n in seconds if n), default=None)
    control = Control(no_store=b"no-store" in directives, ttl=ttl, irreversible=b"irreversible" in directives)
    return control, without(headers, *OURS)


# -- the wire


def replay(response: Completed, marker: bytes) -> Completed:
    """Return a kept response as it is sent again: marked, and with its exact length.

    204 and 304 have neither body nor length.
    """
    headers = without(response.headers, *MARKERS, b"content-length")
    if response.status in _BODILESS:
        return Completed(response.status, [*headers, (marker, b"true")], b"")
    length = (b"content-length", b"%d" % len(response.body))
    return Completed(response.status, [*headers, length, (marker, b"true")], response.body)


def sf_string(text: str) -> bytes:
    """Write printable ASCII as a Structured Field String.

    Example:
        >>> sf_string('a"b')
        b'"a\\\\"b"'
    """
    return b'"%b"' % text.replace("\\", "\\\\").replace('"', '\\"').encode("ascii")


_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_SECOND = (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


def imf_date(at: int) -> bytes:
    """Write an instant (microseconds) as HTTP writes dates, in whole seconds downwards.

    Example:
        >>> imf_date(784111777_000_000)
        b'Sun, 06 Nov 1994 08:49:37 GMT'
    """
    when = _EPOCH + timedelta(microseconds=min(at, _LAST_SECOND))
    day, month = _DAYS[when.weekday()], _MONTHS[when.month - 1]
    return f"{day}, {when:%d} {month} {when.year:04} {when:%H:%M:%S} GMT".encode()


# -- content codings

DECODED_BYTES_MAX: Final = 64 * 1024 * 1024
"""A body that grows beyond this is sent as it is kept: one small record must not fill the memory."""
CODINGS_MAX: Final = 4
"""Codings on top of each other; nobody sends more than one."""
MEMBERS_MAX: Final = 64
"""Streams one behind the other in one body; each costs a copy of what follows it."""
_ALIASES: Final = {b"x-gzip": b"gzip", b"x-deflate": b"deflate"}
_WINDOWS: Final = {b"gzip": (16 + zlib.MAX_WBITS,), b"deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS)}
_QUALITY = re.compile(rb"[ \t]*q[ \t]*=[ \t]*([01](?:\.[0-9]{0,3})?)[ \t]*", re.IGNORECASE)


def needs_transcoding(response: Completed, request_headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response is kept in a coding that this client does not accept, and that can be decoded."""
    codings = _codings(response.headers)
    if not response.body or not codings or len(codings) > CODINGS_MAX or not _WINDOWS.keys() >= set(codings):
        return False
    accepted = _accepted(request_headers)
    return accepted is not None and not all(accepted.get(each, accepted.get(b"*", False)) for each in codings)


def transcode(response: Completed, request_headers: Iterable[tuple[bytes, bytes]]) -> Completed:
    """Decode a response for a client that does not accept its coding.

    gzip and deflate are decoded; a strong ETag becomes weak, and digests of the bytes go. Everything
    else, and what does not decode, is returned as it is. Takes time for a large body.
    """
    if not needs_transcoding(response, request_headers):
        return response
    body: bytes | None = response.body
    for coding in reversed(_codings(response.headers)):
        body = _inflated(body, coding) if body is not None else None
    if body is None:
        return response
    headers: Headers = []
    for name, value in without(response.headers, b"content-encoding", *_DIGESTS):
        match name.lower():
            case b"content-length":
                headers.append((name, b"%d" % len(body)))
            case b"etag" if not value.startswith(b"W/"):
                headers.append((name, b"W/" + value))
            case _:
                headers.append((name, value))
    return Completed(response.status, headers, body)


def _codings(headers: Headers) -> list[bytes]:
    listed = (token for name, value in headers if name.lower() == b"content-encoding" for token in value.split(b","))
    named = (token.strip(b" \t").lower() for token in listed)
    return [_ALIASES.get(token, token) for token in named if token not in (b"", b"identity")]


def _accepted(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bool] | None:
    """Which codings `Accept-Encoding` takes or refuses; None: it is not there, and any will do."""
    values = [value for name, value in headers if name.lower() == b"accept-encoding"]
    if not values:
        return None
    accepted = {}
    for each in b",".join(values).split(b","):
        coding, _, weight = each.partition(b";")
        quality = _QUALITY.fullmatch(weight)
        name = coding.strip(b" \t").lower()
        accepted[_ALIASES.get(name, name)] = quality is None or float(quality[1]) > 0
    return accepted


def _inflated(body: bytes, coding: bytes) -> bytes | None:
    """Decode one coding; None if the bytes are not in it, or too many.

    `deflate` is the zlib format, but some send it bare.
    """
    for window in _WINDOWS[coding]:
        try:
            return _members(body, window)
        except (zlib.error, EOFError):
            continue
    return None


def _members(body: bytes, window: int) -> bytes | None:
    """Decode the members of a stream one after the other."""
    done: list[bytes] = []
    room = DECODED_BYTES_MAX
    for _ in range(MEMBERS_MAX):
        decoder = zlib.decompressobj(window)
        done.append(decoder.decompress(body, room + 1))
        room -= len(done[-1])
        if room < 0:
            return None
        if not decoder.eof:
            raise EOFError
        body = decoder.unused_data
        if not body:
            return b"".join(done)
    return None
