"""Reduce a request to the 32 bytes that a repetition of it must equal.

This module hides what of a request counts, and what two bodies must have in common to be one: all
their bytes, their JSON values, their parts, or what a callable makes of them.

Invariants:
    - Two requests of one fingerprint are the same to any handler that looks only at what counts:
      every field is framed by its length, numbers keep their exact text, and nothing is decoded that a
      server might decode otherwise.
    - What has no canonical form is refused; it is never compared as something else.
    - The body's depth costs no stack, and its size costs linear time. No single call into C works
      longer than a few milliseconds on 2 MiB, so a thread that hashes does not starve the loop.
    - No message holds any part of a request.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote

from holdfast.core.errors import ConfigError
from holdfast.idempotency.errors import RecordUnreadable, RequestInvalid
from holdfast.idempotency.identity import framed, lp
from holdfast.idempotency.rules import Body, IdempotencyConfig, RouteRule, Scope
from holdfast.idempotency.values import Headers

__all__ = [
    "DEPTH_MAX",
    "Hasher",
    "Recipe",
    "RequestParts",
    "canonical_json",
    "fingerprint",
    "multipart",
    "parts_of",
]

VERSION: Final = 1
DEPTH_MAX: Final = 64
"""Nesting of a JSON body: more than people write, and less than any parser's own limit."""

_PCHARS: Final = "/!$&'()*+,;=:@~"
_IDENTITY: Final = frozenset({b"", b"identity"})


@dataclass(slots=True)
class RequestParts:
    """What of a request counts. Fields are as they were sent; `fingerprint` brings them to one form.

    Nobody changes one that is made.

    Attributes:
        method: As sent.
        raw_path: Percent-encoded, with or without a query behind it.
        query: Raw, without the question mark.
        content_type: The field's value; empty if there was none.
        content_encoding: The field's value; empty if there was none.
        headers: Of every configured field its name in lower case and its values, present or not.
        form: What of the body is compared.
        body: The whole body.
        ignored: Parameters of the content type that may differ.
    """

    method: str
    raw_path: bytes
    query: bytes = b""
    content_type: bytes = b""
    content_encoding: bytes = b""
    headers: tuple[tuple[bytes, tuple[bytes, ...]], ...] = ()
    form: Body = "raw"
    body: bytes = field(default=b"", repr=False)
    ignored: frozenset[str] = frozenset({"boundary"})


def parts_of(scope: Scope, headers: Headers, rule: RouteRule, config: IdempotencyConfig) -> RequestParts:
    """Take from an HTTP scope what counts, but for the body.

    Args:
        scope: The scope as the server gave it.
        headers: Its header list, copied before the body was read.
        rule: Says what of the body is compared.
        config: Names the fields that count.
    """
    raw_path = scope.get("raw_path")
    names, absent = _counting(config.fingerprint_headers)
    found: dict[bytes, list[bytes]] = {}
    listed = False
    for name, value in headers:
        lowered = name.lower()
        configured = names.get(lowered)
        if configured is not None:
            found.setdefault(lowered, []).append(value.strip(b" \t"))
            listed = listed or configured
    return RequestParts(
        scope["method"],
        quote(scope["path"], safe=_PCHARS, errors="surrogateescape").encode() if raw_path is None else raw_path,
        scope.get("query_string", b""),
        b", ".join(found.get(b"content-type", ())),
        b", ".join(found.get(b"content-encoding", ())),
        tuple([(name, tuple(found.get(name, ()))) for name, _ in absent]) if listed else absent,
        rule.body,
        ignored=config.content_type_ignore,
    )


@lru_cache(maxsize=64)
def _counting(
    configured: tuple[str, ...],
) -> tuple[dict[bytes, bool], tuple[tuple[bytes, tuple[bytes, ...]], ...]]:
    """The fields to look for, and whether each is a configured one; and the configured ones where there are none."""
    names = {name.lower().encode(): True for name in configured}
    absent = tuple((name, ()) for name in names)
    return names | {name: name in names for name in (b"content-type", b"content-encoding")}, absent


class Recipe:
    """How requests that differ in their bodies alone are fingerprinted. Nobody changes one that is made.

    Attributes:
        parts: What counts; the body is left out.
        form: What of the body is hashed: `raw`, `json`, `multipart` or `custom`.
        head: What is hashed before that.
    """

    __slots__ = ("form", "head", "parts")

    def __init__(self, parts: RequestParts) -> None:
        self.parts = parts
        self.form = _form(parts)
        self.head = bytes((VERSION,)) + framed(
            [
                parts.method.encode("utf-8", "surrogatepass"),
                parts.raw_path.partition(b"?")[0],
                parts.query,
                content_type(parts.content_type, parts.ignored),
                parts.content_encoding.strip(b" \t"),
                self.form.encode(),
                *[framed((name, *values)) for name, values in parts.headers],
            ]
        )

    def finish(self, body: bytes) -> bytes:
        """Return the fingerprint of a request with this body.

        Raises:
            RequestInvalid: The body has no canonical form (`idempotency.body_not_canonical`).
        """
        if self.form != "raw":
            body = _canonical(replace(self.parts, body=body), self.form)
        return sha256(self.head + sha256(body).digest()).digest()


class Hasher:
    """Fingerprints one request while its body arrives.

    Attributes:
        streams: The chunks themselves are hashed as they come. Otherwise `finish` does the work, and
            takes time for a large body.
    """

    __slots__ = ("_recipe", "_sum", "streams")

    def __init__(self, recipe: Recipe) -> None:
        """Begin."""
        self._recipe = recipe
        self._sum: Any = None
        self.streams = recipe.form == "raw"

    @property
    def begun(self) -> bool:
        """Whether any chunk was taken."""
        return self._sum is not None

    def update(self, chunk: bytes) -> None:
        """Take the next chunk; without effect unless `streams`."""
        if self.streams:
            if self._sum is None:
                self._sum = sha256()
            self._sum.update(chunk)

    def finish(self, body: bytes = b"") -> bytes:
        """Return the fingerprint. Call once.

        Args:
            body: The whole body; not looked at if chunks were taken before.

        Raises:
            RequestInvalid: The body has no canonical form (`idempotency.body_not_canonical`).
        """
        if self._sum is None:
            return self._recipe.finish(body)
        return sha256(self._recipe.head + self._sum.digest()).digest()


def fingerprint(parts: RequestParts, *, version: int = VERSION) -> bytes:
    """Return the 32 bytes of a whole request.

    Raises:
        RequestInvalid: The body has no canonical form (`idempotency.body_not_canonical`).
        RecordUnreadable: A newer Holdfast knows this version (`idempotency.record_newer`).
    """
    if version != VERSION:
        raise RecordUnreadable(
            f"fingerprints of version {version} are not known here", "upgrade Holdfast", code="idempotency.record_newer"
        )
    return Recipe(parts).finish(parts.body)


def _form(parts: RequestParts) -> str:
    """The form that is hashed: a form that does not fit the content type gives way to the bytes.

    So does one under a content encoding, whose bytes are neither JSON nor parts before they are decoded.
    """
    if parts.form == "raw":
        return "raw"
    if callable(parts.form):
        return "custom"
    if parts.content_encoding.strip(b" \t").lower() in _IDENTITY:
        essence = _essence(parts.content_type)
        if parts.form == "json" and (essence in (b"application/json", b"text/json") or essence.endswith(b"+json")):
            return "json"
        if parts.form == "multipart" and essence.startswith(b"multipart/"):
            return "multipart"
    return "raw"


def _canonical(parts: RequestParts, form: str) -> bytes:
    if form == "json":
        return canonical_json(parts.body)
    if form == "multipart":
        return multipart(parts.body, parts.content_type)
    assert callable(parts.form)
    made = parts.form(parts)
    if not isinstance(made, bytes):
        raise ConfigError(
            f"the body form of a rule returned {type(made).__name__}, not bytes",
            "return the bytes to compare",
            code="config.rule_invalid",
        )
    return made


def _not_canonical(what: str) -> RequestInvalid:
    return RequestInvalid(
        f"the body has no canonical form: {what}", "send a well-formed body", code="idempotency.body_not_canonical"
    )


# -- content type

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# An unquoted value may be more than a token: senders write boundary=--=_1 and mean it.
_PARAMETER = re.compile(rb"[ \t]*+;[ \t]*+(?:(" + _TOKEN + rb')=(?:([^ \t;"]++)|"((?:[^"\\]++|\\.)*+)"))?+', re.DOTALL)
_PLAIN_TOKEN = re.compile(_TOKEN)


def content_type(value: bytes, ignored: Iterable[str] = ()) -> bytes:
    """Bring a content type to one form: essence in lower case, then its parameters in the order of their names.

    A value that is not one is returned as it is.
    """
    value = value.strip(b" \t")
    if b";" not in value:
        return value.lower()
    parameters = _parameters(value)
    if parameters is None:
        return value
    left_out = {name.lower().encode() for name in ignored}
    kept = sorted(((name, text) for name, text in parameters if name not in left_out), key=lambda pair: pair[0])
    return _essence(value) + b"".join(b"; %b=%b" % (name, _written(text)) for name, text in kept)


def _essence(value: bytes) -> bytes:
    return value.partition(b";")[0].strip(b" \t").lower()


def _parameters(value: bytes) -> list[tuple[bytes, bytes]] | None:
    """Names in lower case with their unquoted values; None if the value is malformed."""
    found = []
    at, end = value.index(b";"), len(value.rstrip(b" \t"))
    while at < end:
        match = _PARAMETER.match(value, at)
        if match is None:
            return None
        name, plain, quoted = match.groups()
        if name is not None:
            found.append((name.lower(), plain if plain is not None else re.sub(rb"(?s)\\(.)", rb"\1", quoted)))
        at = match.end()
    return found


def _written(text: bytes) -> bytes:
    return text if _PLAIN_TOKEN.fullmatch(text) else b'"%b"' % re.sub(rb'(["\\])', rb"\\\1", text)


# -- JSON

# The repetitions are bounded, so that one match is done in well under a millisecond.
_BLANK: Final = rb"[ \t\n\r]{0,1024}+"
_SHORT: Final = rb'[^"\\\x00-\x1f]{0,1024}+'
_SCALAR: Final = rb'(?:"' + _SHORT + rb'"|-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+|true|false|null)'
_SPACE = re.compile(rb"[ \t\n\r]{1,65536}+")
_ONE = re.compile(_SCALAR)
_ITEMS = re.compile(rb"(%b(?:,%b){0,511}+)%b([,\]])%b" % (_SCALAR, _SCALAR, _BLANK, _BLANK))
_MEMBER = re.compile(rb'"(%b)"%b:%b(%b)%b([,}])%b' % (_SHORT, _BLANK, _BLANK, _SCALAR, _BLANK, _BLANK))
# An escape; of a surrogate only together with its other half, so a lone one is none.
_ESCAPE: Final = (
    rb'\\(?:["\\/bfnrt]|u(?:[0-9a-cefA-CEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}'
    rb"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
)
_PIECE = re.compile(rb'(?:[^"\\\x00-\x1f]{0,128}+' + _ESCAPE + rb'){1,256}+|[^"\\\x00-\x1f]{1,65536}+')
_GROUP: Final = 4096
"""Elements that are sorted, joined or freed at a time."""


def canonical_json(body: bytes, *, depth_max: int = DEPTH_MAX) -> bytes:
    """Bring JSON to one form: equal values give equal bytes, whatever their spacing and the order of members.

    Members are sorted by the UTF-8 bytes of their names, strings are written in one way, numbers keep
    their source text (`1.0` is not `1`). An empty body stays empty. Time is linear in the body for each
    level of `depth_max`.

    Raises:
        RequestInvalid: Not JSON in UTF-8, a member named twice, half of a surrogate pair, or nested
            deeper than `depth_max` (`idempotency.body_not_canonical`).

    Example:
        >>> canonical_json(b'{ "b" : 1.0, "a" : "\\\\u0041" }')
        b'{"a":"A","b":1.0}'
    """
    if not body:
        return b""
    try:
        body.decode()
    except UnicodeDecodeError:
        raise _not_canonical("it is not UTF-8") from None
    return _Reader(body, depth_max).read()


class _Array:
    """An open array. What came before is joined from time to time."""

    __slots__ = ("_done", "_items")

    end = b"]"

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._items: list[bytes] = []

    def scalars(self, body: bytes, at: int) -> tuple[int, bool]:
        """Read entries as long as they are plain; return where that ends, and whether the array ends there too."""
        while match := _ITEMS.match(body, at):
            self.add(match[1])
            at = match.end()
            if match[2] == b"]":
                return at, True
        return at, False

    def add(self, value: bytes) -> None:
        self._items.append(value)
        if len(self._items) == _GROUP:
            self._done.append(b",".join(self._items))
            self._items.clear()

    def encode(self) -> bytes:
        return b"[%b]" % b",".join(self._done + self._items)


class _Object:
    """An open object: its members by decoded name, and the name whose value comes next."""

    __slots__ = ("_members", "_name")

    end = b"}"

    def __init__(self) -> None:
        self._members: dict[bytes, bytes] = {}
        self._name = (b"", b"")

    def scalars(self, body: bytes, at: int) -> tuple[int, bool]:
        """Read members as long as they are plain; return where that ends, and whether the object ends there too."""
        while match := _MEMBER.match(body, at):
            name, value, end = match.groups()
            self._put(name, name, value)
            at = match.end()
            if end == b"}":
                return at, True
        return at, False

    def expect(self, name: bytes, written: bytes) -> None:
        self._name = name, written

    def add(self, value: bytes) -> None:
        self._put(*self._name, value)

    def _put(self, name: bytes, written: bytes, value: bytes) -> None:
        if name in self._members:
            raise _not_canonical("it names a member twice")
        self._members[name] = b'"%b":%b' % (written, value)

    def encode(self) -> bytes:
        names = list(self._members)
        if len(names) <= _GROUP:
            return b"{%b}" % b",".join([self._members[name] for name in sorted(names)])
        # One sort of very many names would keep every other thread waiting; so would freeing them at once.
        runs = [sorted(names[at : at + _GROUP]) for at in range(0, len(names), _GROUP)]
        del names
        sorted_members = _Array()
        for name in heapq.merge(*runs):
            sorted_members.add(self._members.pop(name))
        return b"{%b}" % sorted_members.encode()[1:-1]


class _Reader:
    """Reads one document from left to right; what is open lies on a list, not on the stack."""

    __slots__ = ("_at", "_body", "_depth_max", "_open")

    def __init__(self, body: bytes, depth_max: int) -> None:
        self._body = body
        self._depth_max = depth_max
        self._at = 0
        self._open: list[_Array | _Object] = []

    def read(self) -> bytes:
        self._blank()
        value = self._value()
        while True:
            if value is None:
                value = self._entries()
            elif self._open:
                self._open[-1].add(value)
                value = self._separator()
            else:
                self._blank()
                if self._at != len(self._body):
                    raise self._malformed()
                return value

    def _malformed(self) -> RequestInvalid:
        return _not_canonical(f"it is not JSON at byte {self._at}")

    def _blank(self) -> None:
        while match := _SPACE.match(self._body, self._at):
            self._at = match.end()

    def _next(self) -> bytes:
        return self._body[self._at : self._at + 1]

    def _value(self) -> bytes | None:
        """Read the value that begins here; None: it is a container, and now open."""
        first = self._next()
        if first in (b"[", b"{"):
            return self._container(_Array() if first == b"[" else _Object())
        if first == b'"':
            return b'"%b"' % self._string()
        match = _ONE.match(self._body, self._at)
        if match is None:
            raise self._malformed()
        self._at = match.end()
        return match[0]

    def _container(self, opened: _Array | _Object) -> bytes | None:
        if len(self._open) == self._depth_max:
            raise _not_canonical(f"it is nested deeper than {self._depth_max}")
        self._open.append(opened)
        self._at += 1
        self._blank()
        return self._close() if self._next() == opened.end else None

    def _close(self) -> bytes:
        self._at += 1
        return self._open.pop().encode()

    def _separator(self) -> bytes | None:
        """Go on behind a value; None: another entry follows."""
        self._blank()
        found = self._next()
        if found == b",":
            self._at += 1
            self._blank()
            return None
        if found != self._open[-1].end:
            raise self._malformed()
        return self._close()

    def _entries(self) -> bytes | None:
        """Read the entries of the innermost container as far as they are scalars, and begin the next."""
        container = self._open[-1]
        self._at, closed = container.scalars(self._body, self._at)
        if closed:
            return self._open.pop().encode()
        self._blank()
        if isinstance(container, _Object):
            container.expect(*self._name())
        return self._value()

    def _name(self) -> tuple[bytes, bytes]:
        """Read a name and its colon: decoded, and as it is written."""
        if self._next() != b'"':
            raise self._malformed()
        written = self._string()
        self._blank()
        if self._next() != b":":
            raise self._malformed()
        self._at += 1
        self._blank()
        return _unescaped(written).encode() if b"\\" in written else written, written

    def _string(self) -> bytes:
        """Read the string that begins here; return what stands between its quotes, written in one way."""
        self._at += 1
        pieces = []
        while match := _PIECE.match(self._body, self._at):
            piece = match[0]
            if b"\\" in piece:
                piece = json.dumps(_unescaped(piece), ensure_ascii=False)[1:-1].encode()
            pieces.append(piece)
            self._at = match.end()
        if self._next() != b'"':
            raise self._malformed()
        self._at += 1
        return b"".join(pieces)


def _unescaped(text: bytes) -> str:
    decoded: str = json.loads(b'"%b"' % text)
    return decoded


# -- multipart

_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_LINE_END = re.compile(rb"[ \t]*+\r\n")
_CLOSE = re.compile(rb"--[ \t]*+(?:\r\n|\Z)")
_FOLD = re.compile(rb"\r\n(?=[ \t])")
_HEADER = re.compile(rb"(" + _TOKEN + rb")(:[^\r\n\x00]*+)")


def multipart(body: bytes, content_type: bytes) -> bytes:
    """Bring a multipart body to one form: its parts in order, without boundary, preamble and epilogue.

    Each part is its header lines, names in lower case, and its content, framed by their lengths.

    Args:
        body: As it was sent.
        content_type: As it was sent; it names the boundary.

    Raises:
        RequestInvalid: The body is not what the content type says (`idempotency.body_not_canonical`).
    """
    parameters = _parameters(content_type.strip(b" \t")) if b";" in content_type else None
    boundaries = [text for name, text in parameters or () if name == b"boundary"]
    if len(boundaries) != 1 or not _BOUNDARY.fullmatch(boundaries[0]):
        raise _not_canonical("its content type names no boundary")
    opening = b"--" + boundaries[0]
    delimiter = b"\r\n" + opening
    if body.startswith(opening):
        at = len(opening)
    elif (at := body.find(delimiter)) >= 0:
        at += len(delimiter)
    else:
        raise _not_canonical("it does not hold its boundary")
    parts = []
    while not _CLOSE.match(body, at):
        line = _LINE_END.match(body, at)
        if line is None or body.startswith(opening, line.end()):
            raise _not_canonical("a boundary is not on a line of its own")
        end = body.find(delimiter, line.end())
        if end < 0:
            raise _not_canonical("its last boundary is missing")
        parts.append(_part(body[line.end() : end]))
        at = end + len(delimiter)
    return b"".join(parts)


def _part(text: bytes) -> bytes:
    if text[:2] in (b"", b"\r\n"):
        return lp(b"", text[2:])
    head, blank, content = text.partition(b"\r\n\r\n")
    if not blank:
        # The empty line may be the one that ends at the boundary; then there is no content.
        if not text.endswith(b"\r\n"):
            raise _not_canonical("a part has no end of its header")
        head = text[:-2]
    lines = []
    for line in _FOLD.sub(b"", head).split(b"\r\n"):
        match = _HEADER.fullmatch(line)
        if match is None:
            raise _not_canonical("a part's header is malformed")
        lines.append(match[1].lower() + match[2])
    return lp(b"\r\n".join(lines), content)
