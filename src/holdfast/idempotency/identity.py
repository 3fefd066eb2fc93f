"""Which operation a request names, and who names it.

This module hides the text of the key header, the keyed hashes that records are found by, and the ways in which an
application proves a caller. It reads no clock and makes no key up.

Invariants:
    - Two different (principal, key) never share an id: every part is hashed with its length.
    - No id can be turned back into a key or a principal without the secret.
    - A field that could be read in two ways is refused, never read in one of them.
    - Nobody proven is nobody: no default stands in for a caller.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, TypeAlias

from holdfast.core.errors import ConfigError
from holdfast.idempotency.errors import KeyInvalid, RequestInvalid
from holdfast.idempotency.rules import KEY_LENGTH_MAX, IdempotencyConfig, Scope
from holdfast.idempotency.values import Principal

__all__ = [
    "FIRST_SENT", "Names", "decoded_key", "derived_key", "execution_id", "framed", "key_id", "key_ref", "lp",
    "parse_first_sent", "parse_key", "principal_from_peer", "principal_from_user", "principal_of", "record_id",
    "scope_id", "shared_principal", "spellings", "weak_key",
]  # fmt: skip

ID_BYTES = 16
REF_CHARS = 12
WEAK_CHARS = 16
"""Shorter keys meet each other by chance, or are counted up."""


# --- ids ----------------------------------------------------------------------------------------


_PADDED = 64
"""Bytes that a secret is brought to by HMAC-SHA-256 (RFC 2104)."""


def lp(*parts: str | bytes) -> bytes:
    """Join parts so that no other parts give the same bytes: each behind its length (8 bytes, big-endian)."""
    # A server may hand over text that is no UTF-8; it must stay distinct rather than fail.
    return framed([part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part for part in parts])


def framed(parts: Sequence[bytes]) -> bytes:
    """Join parts as `lp` does, where all are bytes."""
    pieces: list[bytes] = []
    for part in parts:
        pieces += (len(part).to_bytes(8, "big"), part)
    return b"".join(pieces)


@functools.lru_cache(maxsize=64)
def _pads(secret: bytes) -> tuple[bytes, bytes]:
    """What HMAC-SHA-256 hashes before the message, and before its hash."""
    key = (sha256(secret).digest() if len(secret) > _PADDED else secret).ljust(_PADDED, b"\0")
    return bytes(byte ^ 0x36 for byte in key), bytes(byte ^ 0x5C for byte in key)


def _begun(secret: bytes, message: bytes) -> tuple[bytes, bytes]:
    """Begin HMAC-SHA-256. OpenSSL's own fetches its parts anew for every call, which costs three times as much."""
    inner, outer = _pads(secret)
    return inner + message, outer


def _ended(begun: tuple[bytes, bytes], rest: bytes) -> bytes:
    """End it with the rest of the message."""
    inner, outer = begun
    return sha256(outer + sha256(inner + rest).digest()).digest()


def _keyed(secret: bytes, *parts: str | bytes) -> bytes:
    return _ended(_begun(secret, lp(*parts)), b"")


class Names:
    """Names the keys and operations of one principal under some secrets, faster than the functions below alone.

    Attributes:
        scope_ids: `scope_id` under each secret, in their order.
    """

    __slots__ = ("_keys", "_principal", "_record", "_secrets", "scope_ids")

    def __init__(self, secrets: Sequence[bytes], principal: Principal) -> None:
        who = (principal.tenant, principal.subject)
        self.scope_ids = tuple([scope_id(secret, principal) for secret in secrets])
        self._secrets = secrets
        self._principal = principal
        self._keys = [_begun(secret, lp("holdfast.key.v1", *who)) for secret in secrets]
        self._record = lp("holdfast.record.v1", *who)

    def key_ids(self, key: str, *, route: tuple[str, str] | None = None) -> tuple[bytes, ...]:
        """Return `key_id` under each secret."""
        if route is not None:
            return tuple([key_id(secret, self._principal, key, route=route) for secret in self._secrets])
        text = key.encode("utf-8", "surrogatepass")
        rest = len(text).to_bytes(8, "big") + text  # as `framed` joins them, who is not called for one part
        if len(self._keys) == 1:
            return (_ended(self._keys[0], rest)[:ID_BYTES],)
        return tuple([_ended(begun, rest)[:ID_BYTES] for begun in self._keys])

    def record_id(self, secret: bytes, key: str, fingerprint: bytes) -> bytes:
        """Return `record_id`; the secret need not be one of ours."""
        rest = framed((key.encode("utf-8", "surrogatepass"), fingerprint))
        return _ended(_begun(secret, self._record), rest)[:ID_BYTES]


def key_id(secret: bytes, principal: Principal, key: str, *, route: tuple[str, str] | None = None) -> bytes:
    """Return what the record of a key is found by (16 bytes).

    Args:
        secret: An accepted secret.
        principal: Who sent the key.
        key: The key, decoded.
        route: Method and path of the rule where one key on two routes is two operations, else None.
    """
    who = (principal.tenant, principal.subject)
    if route is None:
        return _keyed(secret, "holdfast.key.v1", *who, key)[:ID_BYTES]
    return _keyed(secret, "holdfast.key.v1.route", *who, *route, key)[:ID_BYTES]


def scope_id(secret: bytes, principal: Principal) -> bytes:
    """Return what the records of a principal have in common (16 bytes)."""
    return _keyed(secret, "holdfast.scope.v1", principal.tenant, principal.subject)[:ID_BYTES]


def record_id(secret: bytes, principal: Principal, key: str, fingerprint: bytes) -> bytes:
    """Return the name of an operation (16 bytes); give the accepted secret that was used first."""
    return _keyed(secret, "holdfast.record.v1", principal.tenant, principal.subject, key, fingerprint)[:ID_BYTES]


def derived_key(record_id: bytes, step: str) -> str:
    """Return the key for a call that an operation makes: 64 hex digits, the same on every attempt."""
    return _keyed(record_id, "holdfast.derived.v1", step).hex()


def execution_id(record_id: bytes) -> str:
    """Return the id of the execution that an operation in mode `execution` starts or attaches to."""
    return f"idem_{record_id.hex()}"


def key_ref(key_id: bytes) -> str:
    """Return what a key is called in messages: 12 hex digits."""
    return key_id.hex()[:REF_CHARS]


# --- the key header -----------------------------------------------------------------------------

_BARE = re.compile(rb"(?![:(?@])[!#-+\--:<-\[\]-~]+")
_QUOTED = re.compile(rb'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_ESCAPED = re.compile(rb"\\(.)")
_RAW_BYTES_MAX = 2 + 2 * KEY_LENGTH_MAX
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-%s[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_UUIDS = {
    "uuid": re.compile(_UUID % "[1-8]"),
    "uuid4": re.compile(_UUID % "4"),
    "uuid7": re.compile(_UUID % "7"),
}


@functools.lru_cache(maxsize=64)
def _named(headers: tuple[str, ...]) -> tuple[frozenset[bytes], frozenset[int]]:
    """The configured names in lower case, and their lengths, which spare other fields a look."""
    names = frozenset(name.lower().encode("ascii") for name in headers)
    return names, frozenset(map(len, names))


def parse_key(lines: Sequence[tuple[bytes, bytes]], config: IdempotencyConfig) -> str | None:
    """Read the key of a request from its header lines.

    Args:
        lines: All header lines, in order.
        config: Which names count, and what a key may look like.

    Returns:
        The key, decoded and in lower case if it is a UUID by configuration; None where no line has such a name.

    Raises:
        KeyInvalid: A key was sent that is malformed, sent twice, or not of the configured format.
    """
    names, lengths = _named(config.headers)
    found: dict[bytes, bytes] = {}
    for name, value in lines:
        if len(name) not in lengths:
            continue
        lowered = name.lower()
        if lowered in names:
            if lowered in found:
                raise _invalid("there are two lines of the key header", "send one key in one line")
            found[lowered] = value
        elif lowered.replace(b"_", b"-") in names:
            # A gateway may have folded it, or somebody sends it past one that reads only the proper name.
            raise _invalid("the key header is spelled with an underscore", "spell it with hyphens")
    if not found:
        return None
    first, *others = found.values()
    key = decoded_key(first, config)
    for other in others:
        if decoded_key(other, config) != key:
            raise _invalid("two key headers disagree", "send one of them, or the same key in both")
    return key


def decoded_key(value: bytes, config: IdempotencyConfig) -> str:
    """Read the only line of the key's header: a Structured Field String, or the same without its quotes.

    Raises:
        KeyInvalid: It is malformed, or not of the configured format.
    """
    trimmed = value.strip(b" \t")
    if not trimmed:
        raise _invalid("the key is blank", "send a fresh UUID")
    if len(trimmed) > _RAW_BYTES_MAX:
        raise _invalid("the key is too long", f"send at most {KEY_LENGTH_MAX} characters")
    if trimmed.startswith(b'"'):
        quoted = _QUOTED.fullmatch(trimmed)
        if quoted is None:
            raise _not_sf()
        raw = _ESCAPED.sub(rb"\1", quoted[1])
        if raw.strip(b" ") != raw:
            raise _invalid("the key begins or ends with a space", "send it without")
    elif config.strict_sf or _BARE.fullmatch(trimmed) is None:
        raise _not_sf()
    else:
        raw = trimmed
    if not config.key_length_min <= len(raw) <= KEY_LENGTH_MAX:
        wanted = f"{config.key_length_min} to {KEY_LENGTH_MAX} characters"
        raise _invalid(f"the key does not have {wanted}", f"send {wanted}")
    key = raw.decode("ascii")
    return key if config.key_format == "any" else _formatted(key, config.key_format)


def _formatted(key: str, key_format: str | re.Pattern[str]) -> str:
    """Return the key as it is compared, when it has the format."""
    if isinstance(key_format, re.Pattern):
        pattern, wanted = key_format, "the documented format"
    else:
        key = key.lower()
        pattern, wanted = _UUIDS[key_format], f"a hyphenated {key_format.upper()}"
    if pattern.fullmatch(key) is None:
        raise _invalid(f"the key is not {wanted}", f"send {wanted}")
    return key


def spellings(key: str) -> tuple[str, ...]:
    """Return what a key that somebody wrote down may be in a record, likeliest first.

    He may have it from a request, in quotes, and a UUID in any case; the guard's configuration, which would decide, is
    not at hand.
    """
    trimmed = key.strip(" \t")
    quoted = _QUOTED.fullmatch(trimmed.encode("utf-8", "surrogatepass"))
    written = [trimmed, key]
    if quoted is not None:
        written.insert(0, _ESCAPED.sub(rb"\1", quoted[1]).decode("ascii"))
    uuids = [each.lower() for each in written if _UUIDS["uuid"].fullmatch(each.lower())]
    return tuple(dict.fromkeys(written + uuids))


def _invalid(message: str, hint: str) -> KeyInvalid:
    return KeyInvalid(message, hint)


def _not_sf() -> KeyInvalid:
    return _invalid("the key is no Structured Field String", 'send one string in double quotes, such as "8e03978e"')


def weak_key(key: str) -> bool:
    """Say whether a key is short or a mere number: another operation may come to use it too."""
    return len(key) < WEAK_CHARS or (key.isascii() and key.isdigit())


# --- when a call was first sent -----------------------------------------------------------------

FIRST_SENT = b"idempotency-first-sent"
FIRST_SENT_AHEAD_MAX = timedelta(minutes=5)
"""Clocks of clients differ by less; a date further ahead says nothing about the past."""
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_IMF_FIXDATE = re.compile(
    rf"({'|'.join(_DAYS)}), ([0-9]{{2}}) ({'|'.join(_MONTHS)}) ([0-9]{{4}}) ([0-9]{{2}}):([0-9]{{2}}):([0-9]{{2}}) GMT"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_first_sent(lines: Sequence[tuple[bytes, bytes]], *, now: int) -> int | None:
    """Read when the client first sent a call: an IMF-fixdate (RFC 9110, 5.6.7) in one line.

    Args:
        lines: All header lines, in order.
        now: Microseconds since the epoch.

    Returns:
        Microseconds since the epoch, or None where the client does not say.

    Raises:
        RequestInvalid: There are two lines, or it is no such date, or one more than five minutes ahead.
    """
    values = [value for name, value in lines if len(name) == len(FIRST_SENT) and name.lower() == FIRST_SENT]
    if not values:
        return None
    if len(values) > 1:
        raise _no_date("there are two lines of Idempotency-First-Sent")
    sent_at = _instant(values[0].strip(b" \t").decode("latin-1"))
    if sent_at is None:
        raise _no_date("Idempotency-First-Sent is no date of HTTP")
    if sent_at - now > FIRST_SENT_AHEAD_MAX // timedelta.resolution:
        raise _no_date("Idempotency-First-Sent is in the future")
    return sent_at


def _instant(text: str) -> int | None:
    found = _IMF_FIXDATE.fullmatch(text)
    if found is None:
        return None
    day, month = int(found[2]), _MONTHS.index(found[3]) + 1
    try:
        at = datetime(int(found[4]), month, day, int(found[5]), int(found[6]), int(found[7]), tzinfo=UTC)
    except ValueError:
        return None
    return (at - _EPOCH) // timedelta.resolution if _DAYS[at.weekday()] == found[1] else None


def _no_date(message: str) -> RequestInvalid:
    return RequestInvalid(
        message, "send one date such as: Sun, 06 Nov 1994 08:49:37 GMT", code="idempotency.first_sent_invalid"
    )


# --- who asks -----------------------------------------------------------------------------------

_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_PORTED = re.compile(r"\[([^\]]*)\](?::[0-9]+)?|([0-9.]+):[0-9]+")
"""An address as some proxies write it: with its port, or in brackets."""


def principal_of(value: object) -> Principal | None:
    """Read what a principal function returned.

    Returns:
        The principal, or None where nobody is proven: None, or a subject that is empty.

    Raises:
        TypeError: It is neither a `Principal` nor a string nor None.
    """
    if value is None:
        return None
    principal = Principal(value) if isinstance(value, str) else value
    if not isinstance(principal, Principal):
        raise TypeError(f"a principal function returned {type(value).__name__}, not Principal, str or None")
    if not isinstance(principal.subject, str) or not isinstance(principal.tenant, str):
        raise TypeError("the subject and the tenant of a Principal are strings")
    return principal if principal.subject.strip() else None


def principal_from_user(scope: Scope) -> Principal | None:
    """Take the user that authentication put into the scope.

    The subject is the user's `identity`, `username` or `display_name`, the first that it has; the tenant is its
    `tenant`. Strings, whole numbers and UUIDs count.

    Returns:
        The principal; None where the user is not authenticated or has no name.

    Raises:
        ConfigError: `config.middleware_order`; no authentication has run.
    """
    if "user" not in scope:
        raise ConfigError(
            "there is no user in the scope: authentication has not run",
            "put the guard inside the authentication middleware",
            code="config.middleware_order",
        )
    user = scope["user"]
    # A method of that name would be true for everybody, so nothing but True counts.
    if _attribute(user, "is_authenticated") is not True:
        return None
    names = (_text(_attribute(user, name)) for name in ("identity", "username", "display_name"))
    subject = next(filter(None, names), None)
    given = _attribute(user, "tenant")
    tenant = "" if given is None else _text(given)
    # A tenant that cannot be read must not put its users among those who have none.
    return None if subject is None or tenant is None else principal_of(Principal(subject, tenant))


def _attribute(user: Any, name: str) -> Any:
    try:
        return getattr(user, name, None)
    except NotImplementedError:  # how base classes of frameworks say that there is none
        return None


def _text(value: object) -> str | None:
    """Write a name that is the same in every process, or return None."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | uuid.UUID) and not isinstance(value, bool) else None


def principal_from_peer(trusted: Iterable[str] = ()) -> Callable[[Scope], Principal | None]:
    """Make a principal function that tells callers apart by their address.

    Everybody behind one address is one caller. Where the peer is a trusted proxy, `X-Forwarded-For` is read from
    the right, and the first hop that is not trusted counts; what is left of it anybody may have written.

    Args:
        trusted: Networks of proxies, such as `10.0.0.0/8`.

    Raises:
        ConfigError: `config.rule_invalid`; one of them is no network.
    """
    try:
        networks = tuple(ipaddress.ip_network(network) for network in trusted)
    except ValueError as error:
        raise ConfigError(
            f"trusted holds what is no network: {error}",
            'write networks such as "10.0.0.0/8"',
            code="config.rule_invalid",
            keys=("trusted",),
        ) from None

    def principal(scope: Scope) -> Principal | None:
        client = scope.get("client")
        host = client[0] if client else ""
        peer = _address(host)
        if peer is None:
            return Principal(host) if host else None
        hop = _origin(peer, scope["headers"], networks)
        return None if hop is None else Principal(str(hop))

    return principal


def _origin(peer: _Address, lines: Iterable[tuple[bytes, bytes]], networks: tuple[_Network, ...]) -> _Address | None:
    """Return the right-most hop that is not trusted, the left-most where all are; None where one is no address."""
    hops = [
        hop.strip()
        for name, value in lines
        if name.lower() == b"x-forwarded-for"
        for hop in value.decode("latin-1").split(",")
        if hop.strip()
    ]
    here: _Address | None = peer
    while hops and here is not None and any(here in network for network in networks):
        hop = hops.pop()
        ported = _PORTED.fullmatch(hop)
        here = _address(ported[1] or ported[2] if ported else hop)
    return here


def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address if mapped is None else mapped


def shared_principal(name: str) -> Callable[[Scope], Principal]:
    """Make a principal function that puts all callers into one bucket.

    Each of them may get what another caused with the same key and request, so use it where all are one.

    Raises:
        ConfigError: `config.rule_invalid`; the name is empty.
    """
    if not name.strip():
        raise ConfigError("a shared principal has a name", "name it", code="config.rule_invalid", keys=("name",))
    shared = Principal(name)
    return lambda _scope: shared
