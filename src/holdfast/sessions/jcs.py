"""JSON from strangers, read strictly; canonical JSON (RFC 8785), written exactly. Pure.

Reading refuses NaN, Infinity, numbers outside binary64 and deep nesting, keeps the last of equal keys, and makes
U+FFFD of what is no character: an unpaired surrogate, and every ill-formed byte. Writing sorts keys by UTF-16 code
units and writes numbers as ECMAScript writes their binary64. Neither recurses over what it is given: nesting is
known before a recursive reader sees the bytes.

Invariants:
    - `read` returns a value that `write` can write, or raises `MalformedJson` or `NumberRange`.
    - `write(read(write(value))) == write(value)`.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import accumulate
from json.encoder import encode_basestring
from typing import Any, TypeAlias

import msgspec

from holdfast.sessions.errors import MalformedJson, NumberRange
from holdfast.sessions.limits import DEPTH_MAX

__all__ = [
    "Json", "check_depth", "elements", "is_storable", "members", "names", "quoted", "read", "scrub", "text", "write",
]  # fmt: skip

Json: TypeAlias = Any
"""What JSON can say: None, booleans, numbers, text, lists, and dicts with text keys."""

_FAST = msgspec.json.Decoder()
_FAST_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_FAST_ELEMENTS = msgspec.json.Decoder(list[msgspec.Raw])
_FAST_WRITER = msgspec.json.Encoder(order="sorted")
# A string that nothing closes ends with the bytes: looked for again from each of its quotes it would cost its square.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_UNBRACKETED = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = tuple({91: 1, 123: 1, 93: -1, 125: -1}.get(byte, 0) for byte in range(126))
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},:]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_BLANK = b" \t\r\n"
_EXACT = 2**53


def text(data: bytes) -> str:
    """Return bytes as text, with U+FFFD for every byte that is not well-formed UTF-8."""
    return data.decode("utf-8", _REPLACE)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


# Python's own `replace` makes one character of a cut-off sequence; the hash wants one for each of its bytes.
_REPLACE = "holdfast.sessions.bytewise"
codecs.register_error(_REPLACE, _replaced)


def scrub(value: str) -> str:
    """Return a text as a text column may hold it: U+FFFD for U+0000 and unpaired surrogates."""
    return value if value.isascii() and "\0" not in value else _UNSTORABLE.sub("\ufffd", value)


def is_storable(data: bytes) -> bool:
    """Say whether no text of some JSON has what a text column cannot hold: U+0000, an unpaired surrogate."""
    if b"\\" not in data or b"\\u" not in data or not any(each in data for each in (b"\\u0000", b"\\ud", b"\\uD")):
        return True
    awaited = -1  # where the second half of a pair has to begin
    for escape in _ESCAPE.finditer(data):
        code = int(escape[1] or b"20", 16)
        is_second = 0xDC00 <= code < 0xE000
        if code == 0 or is_second != (awaited >= 0) or (is_second and awaited != escape.start()):
            return False
        awaited = escape.end() if 0xD800 <= code < 0xDC00 else -1
    return awaited < 0


# --- reading ------------------------------------------------------------------------------------------


def read(data: bytes, *, depth_max: int = DEPTH_MAX) -> Json:
    """Return what JSON bytes say.

    Raises:
        MalformedJson: They are not JSON, or nest deeper than `depth_max`.
        NumberRange: A number in them has no binary64.
    """
    try:
        value = _FAST.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        check_depth(data, depth_max)
        value = _read_slowly(data)
    else:
        _check(value, depth_max)
    return value


def _read_slowly(data: bytes) -> Json:
    """Read what msgspec does not: ill-formed text, lone surrogates, numbers at the edge."""
    try:
        value = json.loads(
            text(data), parse_constant=_refuse, parse_float=_float, parse_int=_integer, object_pairs_hook=_object
        )
    except NumberRange:
        raise
    except ValueError:
        raise MalformedJson("the bytes are not JSON") from None
    return _mended(value)


def _refuse(name: str) -> float:
    raise ValueError(name)


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise NumberRange
    return number


def _integer(digits: str) -> int | float:
    if len(digits) <= 18:
        return int(digits)
    number = _float(digits)
    # The text of so long an integer is only what binary64 keeps of it; nothing that counts is as large.
    return number if abs(number) >= 2**64 else int(digits)


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    return {_well_formed(key): value for key, value in pairs}


def _well_formed(value: str) -> str:
    return value if value.isascii() else _SURROGATE.sub("\ufffd", value)


def _mended(value: Json) -> Json:
    """Replace the unpaired surrogates of all texts; keys are mended already."""
    root = [value]
    unseen: list[list[Json] | dict[str, Json]] = [root]
    while unseen:
        holder = unseen.pop()
        places: Iterable[tuple[Any, Json]] = (
            list(enumerate(holder)) if isinstance(holder, list) else list(holder.items())
        )
        for place, inner in places:
            if isinstance(inner, str):
                holder[place] = _well_formed(inner)
            elif isinstance(inner, list | dict):
                unseen.append(inner)
    return root[0]


def _check(value: Json, depth_max: int) -> None:
    """Check how deep a value nests, and its integers, which msgspec reads of any length.

    What an exponent takes too far msgspec refuses itself.
    """
    level: list[Iterable[Json]] = [(value,)]
    depth = 0
    while level:
        below: list[Iterable[Json]] = []
        for holder in level:
            for inner in holder:
                kind = type(inner)
                if kind is str:
                    continue
                if kind is dict:
                    below.append(inner.values())
                elif kind is list:
                    below.append(inner)
                elif kind is int:
                    _binary64(inner)
        level = below
        if level and depth == depth_max:
            raise _too_deep(depth_max)
        depth += 1


def check_depth(data: bytes, depth_max: int = DEPTH_MAX) -> None:
    """Check how deep bytes nest that may be JSON, in time proportional to their length.

    Raises:
        MalformedJson: Deeper than `depth_max`.
    """
    if data.count(b"[") + data.count(b"{") <= depth_max:
        return
    brackets = _STRING.sub(b"", data).translate(None, _UNBRACKETED)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > depth_max:
        raise _too_deep(depth_max)


def _too_deep(depth_max: int) -> MalformedJson:
    return MalformedJson(f"the JSON nests deeper than {depth_max}", limit="json_depth_max")


def members(data: bytes, *, depth_max: int = DEPTH_MAX) -> dict[str, bytes]:
    """Return the members of a JSON object, each with the exact bytes of its value; the last of equal names.

    Raises:
        MalformedJson: It is no JSON object, or nests deeper than `depth_max`.
    """
    check_depth(data, depth_max)
    try:
        return {name: bytes(raw) for name, raw in _FAST_MEMBERS.decode(data).items()}
    except (msgspec.DecodeError, UnicodeDecodeError):
        parts = _parts(data, b"{}")
    return {str(_read_slowly(name)): value for name, value in parts}


def names(data: bytes) -> Collection[str]:
    """Return the names of a JSON object's members, without a copy of their values.

    Raises:
        MalformedJson: It is no JSON object, or nests too deep.
    """
    try:
        return _FAST_MEMBERS.decode(data).keys()
    except (msgspec.DecodeError, UnicodeDecodeError):
        return members(data).keys()


def elements(data: bytes, *, depth_max: int = DEPTH_MAX) -> list[bytes]:
    """Return the elements of a JSON list, each as its exact bytes.

    Raises:
        MalformedJson: It is no JSON list, or nests deeper than `depth_max`.
    """
    check_depth(data, depth_max)
    try:
        return [bytes(raw) for raw in _FAST_ELEMENTS.decode(data)]
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [value for _, value in _parts(data, b"[]")]


def _parts(data: bytes, brackets: bytes) -> list[tuple[bytes, bytes]]:
    """Split a list or an object that holds what msgspec does not skip, after proving that it is JSON."""
    body = data.strip(_BLANK)
    try:
        json.loads(text(body), parse_constant=_refuse, parse_float=str, parse_int=str)
    except ValueError:
        raise MalformedJson("the bytes are not JSON") from None
    if body[:1] != brackets[:1]:
        raise MalformedJson(f"the bytes are not a JSON {'object' if brackets == b'{}' else 'list'}")
    found: list[tuple[bytes, bytes]] = []
    depth, start, name = 0, 1, b""
    for token in _TOKEN.finditer(body):
        mark = token[0]
        if mark in (b"[", b"{"):
            depth += 1
        elif depth == 1 and mark == b":":
            name, start = body[start : token.start()].strip(_BLANK), token.end()
        elif depth == 1 and mark in (b",", b"]", b"}"):
            # What sent us here is some element, so none of these is the inside of an empty list.
            found.append((name, body[start : token.start()].strip(_BLANK)))
            start = token.end()
        if mark in (b"]", b"}"):
            depth -= 1
    return found


# --- writing ------------------------------------------------------------------------------------------


def write(value: Json) -> bytes:
    """Return the canonical JSON (RFC 8785) of a value.

    Raises:
        NumberRange: A number in it has no binary64.
        TypeError: It holds something that JSON cannot say.
    """
    if _is_plain(value):
        try:
            return _FAST_WRITER.encode(value)
        except (UnicodeEncodeError, RecursionError):
            pass
    return _write_slowly(value)


def _is_plain(value: Json) -> bool:
    """Say whether msgspec writes a value as it is to be written, but for what it refuses.

    It sorts names by their code points, and has its own way with floats and long integers.
    """
    unseen: list[Iterable[Json]] = [(value,)]
    for holder in unseen:
        for inner in holder:
            kind = type(inner)
            if kind is str or kind is bool or inner is None:
                continue
            if kind is int:
                if not -_EXACT <= inner <= _EXACT:
                    return False
            elif kind is dict:
                if not "".join(inner).isascii():
                    return False
                unseen.append(inner.values())
            elif kind is list or kind is tuple:
                unseen.append(inner)
            else:
                return False
    return True


def _write_slowly(value: Json) -> bytes:
    out: list[str] = []
    # What is still to be written, the next last: text as it is, or a value in a tuple.
    rest: list[str | tuple[Json]] = [(value,)]
    put = out.append
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            put(item)
            continue
        inner = item[0]
        scalar = _SCALARS.get(type(inner))
        if scalar is not None:
            put(scalar(inner))
        elif isinstance(inner, list | tuple):
            rest.append("]")
            for index in range(len(inner) - 1, -1, -1):
                rest.append((inner[index],))
                rest.append("," if index else "[")
            if not inner:
                put("[")
        elif isinstance(inner, Mapping):
            rest.append("}")
            keys = sorted(inner, key=_units)
            for index in range(len(keys) - 1, -1, -1):
                rest.append((inner[keys[index]],))
                rest.append(("," if index else "{") + _string(keys[index]) + ":")
            if not keys:
                put("{")
        else:
            raise TypeError(f"JSON has no {type(inner).__name__}")
    return "".join(out).encode()


def quoted(value: str) -> bytes:
    """Return the canonical JSON of a text."""
    try:
        return _FAST_WRITER.encode(value)
    except UnicodeEncodeError:
        return _string(value).encode()


def _string(value: str) -> str:
    return encode_basestring(_well_formed(value))


def _units(key: str) -> bytes:
    return _well_formed(key).encode("utf-16-be")


def _binary64(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        raise NumberRange from None


def _whole(value: int) -> str:
    return str(value) if -_EXACT <= value <= _EXACT else _number(_binary64(value))


def _number(value: float) -> str:
    """Write a binary64 as ECMAScript's Number.prototype.toString does."""
    if not math.isfinite(value):
        raise NumberRange
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        return sign + digits + "0" * (point - count)
    if 0 < point <= 21:
        return sign + digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    tail = "." + digits[1:] if count > 1 else ""
    return f"{sign}{digits[0]}{tail}e{'+' if point > 0 else '-'}{abs(point - 1)}"


_SCALARS: Mapping[type, Callable[[Any], str]] = {
    type(None): lambda _: "null",
    bool: lambda value: "true" if value else "false",
    int: _whole,
    float: _number,
    str: _string,
}
