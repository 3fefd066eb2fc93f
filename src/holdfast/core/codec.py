"""Values on disk: what a payload looks like, and the canonical bytes that fingerprints hash.

A blob is a format byte, 0 for MessagePack or 1 for JSON, and a body. Values made in the program are
MessagePack; values that arrive as JSON stay JSON and decode by JSON's rules. A codec decodes to its
declared type: what msgspec knows (dataclasses, Structs, attrs, TypedDicts, NamedTuples, enums,
containers, dates, Decimal, UUID), and pydantic models, which are recognised without importing pydantic.

Invariants:
    - Whatever the bytes, decoding returns a value of the declared type or raises `CodecError`.
    - No message holds any part of a value.
    - `canonical` does not depend on the order of dicts and sets, and no two different values share it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec

from holdfast.core.errors import CodecError

__all__ = ["Codec", "canonical", "codec", "decode", "encode", "json_blob", "to_json"]

_MSGPACK = 0
_JSON = 1
_MSGPACK_PREFIX = b"\x00"
_JSON_PREFIX = b"\x01"

_COPY_BYTES_MAX = 4096
"""Up to this size a slice is cheaper than a memoryview."""

_HINT = "use plain data: numbers, text, bytes, dates, containers, dataclasses, Structs, attrs or pydantic models"


class Codec:
    """Encodes values and decodes them to one declared type.

    Attributes:
        typed: Whether a type was declared; otherwise blobs decode to plain data.
    """

    __slots__ = ("_from_json", "_from_msgpack", "_proven", "typed")

    def __init__(self, type_: Any = ...) -> None:
        """Build a codec.

        Args:
            type_: The declared type; `...`, `Any`, `object` or a missing annotation: none. `None` is a type.

        Raises:
            CodecError: Nothing can be decoded to this type (`codec.type`).
        """
        self.typed = not any(type_ is none for none in (..., Any, object, inspect.Parameter.empty))
        self._proven = True
        wanted = type_ if self.typed else Any
        try:
            self._from_msgpack = msgspec.msgpack.Decoder(wanted, dec_hook=_dec_hook).decode
            self._from_json = msgspec.json.Decoder(wanted, dec_hook=_dec_hook).decode
        except Exception as error:
            adapter = _pydantic_adapter(type_)
            if adapter is None:
                raise CodecError(
                    f"values cannot be decoded to the declared type: {error}",
                    "declare a type msgspec can decode; in a union, Structs with tags",
                    code="codec.type",
                ) from error
            self._from_msgpack = lambda body: adapter(_decode_msgpack(body))
            self._from_json = lambda body: adapter(_decode_json(body))
            self._proven = False

    def encode(self, value: object) -> bytes:
        """Encode a value as MessagePack; whether it fits the declared type shows when it is decoded.

        Raises:
            CodecError: The value cannot be encoded (`codec.encode`).
        """
        try:
            blob = _MSGPACK_PREFIX + _pack(value)
        except Exception as error:  # noqa: BLE001 - hooks run users' code
            raise _not_encoded(error) from None
        if not self._proven and self.decode(blob) != value:
            # Such a union has no tag, so only trying tells whether the same member comes back.
            raise CodecError(
                "the value does not come back the same through its declared union",
                "give the members of the union a field that tells them apart",
                code="codec.encode",
            )
        return blob

    def decode(self, blob: bytes) -> Any:
        """Decode a blob to the declared type.

        Raises:
            CodecError: It is malformed, or what it holds does not fit the type (`codec.decode`).
        """
        try:
            form = blob[0]
            body = blob[1:] if len(blob) <= _COPY_BYTES_MAX else memoryview(blob)[1:]
            if form == _MSGPACK:
                return self._from_msgpack(body)
            if form == _JSON:
                return self._from_json(body)
        except Exception as error:  # noqa: BLE001 - hooks and constructors run users' code
            raise _not_decoded(error) from None
        raise CodecError("the blob cannot be decoded: its format byte is unknown", code="codec.decode")


def codec(type_: Any = ..., /) -> Codec:
    """Return the codec of a declared type, made once.

    Raises:
        CodecError: Nothing can be decoded to this type (`codec.type`).
    """
    try:
        return _cached(type_)
    except TypeError:  # unhashable, such as an Annotated with a list
        return Codec(type_)


@functools.lru_cache(maxsize=4096)
def _cached(type_: Any) -> Codec:
    return Codec(type_)


def encode(value: object) -> bytes:
    """Encode a value as a MessagePack blob.

    Raises:
        CodecError: The value cannot be encoded (`codec.encode`).
    """
    try:
        return _MSGPACK_PREFIX + _pack(value)
    except Exception as error:  # noqa: BLE001 - hooks run users' code
        raise _not_encoded(error) from None


def decode(blob: bytes) -> Any:
    """Decode a blob to plain data.

    Raises:
        CodecError: It is malformed (`codec.decode`).
    """
    return _PLAIN.decode(blob)


def json_blob(text: str | bytes) -> bytes:
    """Make a blob of a JSON text, kept as it is.

    Raises:
        CodecError: It is not JSON, or holds a number that no blob can (`codec.decode`).
    """
    try:
        body = text.encode() if isinstance(text, str) else bytes(text)
        _pack(msgspec.json.decode(body))  # integers beyond 64 bits are JSON, but not ours
    except Exception as error:  # noqa: BLE001 - RecursionError and kin
        raise _not_decoded(error) from None
    return _JSON_PREFIX + body


def to_json(blob: bytes) -> str:
    """Show a blob as JSON, for people: bytes become base64, NaN null, odd keys text.

    Raises:
        CodecError: It is malformed (`codec.decode`).
    """
    value = decode(blob)
    try:
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except Exception:  # noqa: BLE001 - keys that JSON cannot have
        return msgspec.json.encode(_showable(value), enc_hook=repr).decode()


def _showable(value: object) -> object:
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): _showable(inner) for key, inner in value.items()}
    return [_showable(inner) for inner in value] if isinstance(value, list) else value


# --- what msgspec leaves to us -----------------------------------------------------------------------


def _enc_hook(value: Any) -> Any:
    """Turn what msgspec does not know into what it knows."""
    # Subclasses of scalars: msgspec takes exact types only.
    for scalar, plain in _SCALAR_BASES:
        if isinstance(value, scalar):
            return plain(value)
    if _is_pydantic(type(value)):
        # By field name: an alias may differ between reading and writing.
        return value.model_dump(mode="python", by_alias=False, round_trip=True)
    if type(value).__module__ in _URL_MODULES and type(value).__name__.endswith(("Url", "Dsn")):
        return str(value)
    raise TypeError(f"Encoding objects of type {type(value).__qualname__} is unsupported")


def _dec_hook(type_: Any, value: Any) -> Any:
    """Turn plain data into what msgspec does not know."""
    if isinstance(type_, type):
        if _is_pydantic(type_):
            model: Any = type_
            return model.model_validate(value, strict=False, **_names_accepted())
        if isinstance(value, type_):
            return value
        for scalar, _ in _SCALAR_BASES:
            if issubclass(type_, scalar) and isinstance(value, scalar):
                return type_(value)
    raise TypeError("Type has no decoding")


_URL_MODULES = ("pydantic.networks", "pydantic_core._pydantic_core")
_SCALAR_BASES: tuple[tuple[type[Any], Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, lambda value: bytes(memoryview(value))),
)


def _is_pydantic(type_: type[Any]) -> bool:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(type_, pydantic.BaseModel)


@functools.cache
def _names_accepted() -> dict[str, bool]:
    """Ask pydantic to take fields by their name whatever their alias; before 2.11 it cannot be asked."""
    version = tuple(int(part) for part in sys.modules["pydantic"].VERSION.split(".")[:2])
    return {"by_alias": True, "by_name": True} if version >= (2, 11) else {}


def _pydantic_adapter(type_: Any) -> Callable[[Any], Any] | None:
    """What decodes a union of models with other types, which msgspec does not."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not any(isinstance(part, type) and _is_pydantic(part) for part in _parts(type_)):
        return None
    try:
        validate = pydantic.TypeAdapter(type_).validate_python
        return functools.partial(validate, strict=False, **_names_accepted())
    except Exception:  # noqa: BLE001 - whatever the reason, msgspec's own error is the one to show
        return None


def _parts(type_: Any) -> Iterable[Any]:
    arguments = getattr(type_, "__args__", ())
    yield type_
    for argument in arguments if isinstance(arguments, tuple) else ():
        yield from _parts(argument)


_pack = msgspec.msgpack.Encoder(enc_hook=_enc_hook).encode
_decode_msgpack = msgspec.msgpack.Decoder().decode
_decode_json = msgspec.json.Decoder().decode
_PLAIN = Codec()


# --- errors that tell no secrets ---------------------------------------------------------------------

# Messages of msgspec that name types, fields and places, never values. Anything else might quote one.
_HARMLESS = re.compile(
    r"(Expected `[^`]*`( of length [^`]*|( matching| multiple of| [<>=]+)[^`]*)?(, got [`\w ]+)?"
    r"|Object missing required field `[^`]*`"
    r"|Encoding objects of type [\w.<>]+ is unsupported"
    r"|Input data was truncated"
    r"|Type has no decoding"
    r"|(MessagePack data|JSON) is malformed: [\w ,]+( \(byte \d+\))?)"
    r"( - at `[\w$.\[\]]*`)?"
)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or holds itself"
    if isinstance(error, OverflowError):
        return "a number or date is out of range; integers have 64 bits at most"
    if isinstance(error, UnicodeEncodeError):
        return "a text holds a lone surrogate"
    if isinstance(error, UnicodeDecodeError):
        return "a text is not UTF-8"
    if isinstance(error, IndexError):
        return "the blob is empty"
    text = str(error)
    if isinstance(error, TypeError | msgspec.MsgspecError) and _HARMLESS.fullmatch(text):
        return text
    if text.startswith("Invalid enum value"):
        return "a value is none of the enum's or literal's"
    return f"{type(error).__name__} (details are withheld, they may quote the value)"


def _not_encoded(error: Exception, argument: str = "") -> CodecError:
    what = f"argument {argument!r}" if argument else "the value"
    return CodecError(f"{what} cannot be encoded: {_reason(error)}", _HINT, code="codec.encode", argument=argument)


def _not_decoded(error: Exception) -> CodecError:
    return CodecError(f"the blob cannot be decoded: {_reason(error)}", code="codec.decode")


# --- canonical bytes ---------------------------------------------------------------------------------

_FLAT = frozenset((str, int, float, bool, type(None), bytes))
_ATOMS = _FLAT | {bytearray, memoryview, datetime, date, time, timedelta, Decimal, UUID}
_TEXT = frozenset((str,))
_pack_sorted = msgspec.msgpack.Encoder(order="deterministic").encode


def canonical(arguments: Mapping[str, object], /) -> bytes:
    """Return the canonical MessagePack of arguments: a map from parameter to value.

    Integers are as short as can be, floats have 64 bits, maps are sorted by key (text by its UTF-8
    bytes and first, other keys by their encoding), sets by the encoding of their elements.

    Raises:
        CodecError: An argument cannot be encoded; `argument` names it (`codec.encode`).
    """
    try:
        if type(arguments) is dict and (
            _FLAT.issuperset(map(type, arguments.values())) or all(map(_is_plain, arguments.values()))
        ):
            return _pack_sorted(arguments)
        return _canonical_map(arguments)
    except Exception as error:  # noqa: BLE001 - attribute access and hooks run users' code
        for name, value in arguments.items():
            try:
                _canonical(value)
            except Exception as cause:  # noqa: BLE001 - as above
                raise _not_encoded(cause, name) from None
        raise _not_encoded(error) from None


def _is_plain(value: Any) -> bool:
    """Whether msgspec's own sorting is canonical for it: no set, no key but text, no object."""
    kind = type(value)
    if kind in _FLAT:
        return True
    if kind is list or kind is tuple:
        return all(map(_is_plain, value))
    return kind is dict and _TEXT.issuperset(map(type, value)) and all(map(_is_plain, value.values()))


def _canonical(value: object) -> bytes:
    if type(value) in _ATOMS:
        return _pack(value)
    match value:
        case Enum():
            return _canonical(value.value)
        case list() | tuple():
            return _head(0x90, 0xDC, len(value)) + b"".join(map(_canonical, value))
        case dict():
            return _canonical_map(value)
        case AbstractSet():
            return _head(0x90, 0xDC, len(value)) + b"".join(sorted(map(_canonical, value)))
        case msgspec.Raw() | msgspec.msgpack.Ext():
            return _pack(value)
    return _canonical(_unfold(value))


def _canonical_map(value: Mapping[Any, object]) -> bytes:
    pairs = [(_canonical(key), _canonical(inner)) for key, inner in value.items()]
    # Keys that are equal only once encoded (a UUID and its text) leave the order to their values.
    pairs.sort(key=lambda pair: (*_map_order(pair[0]), pair[1]))
    return _head(0x80, 0xDE, len(pairs)) + b"".join(key + inner for key, inner in pairs)


def _map_order(key: bytes) -> tuple[bool, bytes]:
    """Text first, by its UTF-8 bytes without the header that holds the length; the rest by encoding."""
    head = key[0]
    if 0xA0 <= head <= 0xBF:
        return False, key[1:]
    if 0xD9 <= head <= 0xDB:
        return False, key[1 + (1 << head - 0xD9) :]
    return True, key


def _head(short: int, long: int, count: int) -> bytes:
    """The header of an array or a map, as short as can be."""
    if count < 16:
        return bytes((short | count,))
    if count < 1 << 16:
        return bytes((long,)) + count.to_bytes(2, "big")
    return bytes((long + 1,)) + count.to_bytes(4, "big")


def _unfold(value: Any) -> object:
    """Open an object by one level, into what msgspec would encode it as."""
    if isinstance(value, msgspec.Struct):
        return _unfold_struct(value)
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    elif hasattr(type(value), "__attrs_attrs__"):
        names = [attribute.name for attribute in type(value).__attrs_attrs__]
    else:
        return _enc_hook(value)
    members = ((name, getattr(value, name)) for name in names)
    return {name: member for name, member in members if member is not msgspec.UNSET}


def _unfold_struct(value: msgspec.Struct) -> object:
    config = value.__struct_config__
    values = [getattr(value, name) for name in value.__struct_fields__]
    if config.array_like:
        return values if config.tag is None else [config.tag, *values]
    members = dict(zip(value.__struct_encode_fields__, values, strict=True))
    if config.omit_defaults:
        present = msgspec.msgpack.decode(_pack(value), type=dict[str, msgspec.Raw])
        members = {name: member for name, member in members.items() if name in present}
    if config.tag_field is not None:
        members[config.tag_field] = config.tag
    return {name: member for name, member in members.items() if member is not msgspec.UNSET}
