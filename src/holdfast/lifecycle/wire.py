"""The bytes of documents: reading what others wrote, writing what they will read.

Order of validation: a JSON object within the limits, then label, shape and empty texts (`shapes`), then the rules
between fields (`rules`).

Invariants:
    - Whatever the bytes, reading them gives a document or a `ValidationError`.
    - `decode(encode(x)) == x` for every document that `validate` accepts, and encoding what was decoded gives
      the same bytes from then on.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, TypeVar

import msgspec

from holdfast.lifecycle import rules, shapes, soundness
from holdfast.lifecycle.documents import Document
from holdfast.lifecycle.errors import UndecodableDocument

__all__ = [
    "DEPTH_MAX", "DOCUMENT_BYTES_MAX", "decode", "decode_value", "encode", "parse", "restore", "too_deep", "validate",
]  # fmt: skip

T = TypeVar("T", bound=msgspec.Struct)

DOCUMENT_BYTES_MAX: Final = 16 * 1024 * 1024
"""The largest document, as bytes of UTF-8."""

DEPTH_MAX: Final = 64
"""How deep objects and arrays may be nested, the document itself being the first."""

_PARSE_ERRORS = (msgspec.MsgspecError, UnicodeError, RecursionError)
_ENCODE_ERRORS = (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError)


def decode(data: bytes | str, kind: type[T]) -> T:
    """Read a document from JSON.

    Args:
        data: The JSON text.
        kind: The Struct of the document.

    Raises:
        ValidationError: It is no such document; `UndecodableDocument` when it is no JSON object at all.
    """
    raw = _bytes(data)
    value = parse(raw)
    # What opens so few objects and arrays cannot be nested deeper, whatever is text of it.
    shallow = raw.count(b"{") + raw.count(b"[") <= DEPTH_MAX
    return _decoded(value, kind, len(raw), shallow=shallow)


def decode_value(value: object, kind: type[T]) -> T:
    """Read a document from what `parse` made of its JSON, or of JSON that it is a part of.

    Raises:
        ValidationError: It is no such document.
    """
    return _decoded(value, kind, None)


def encode(document: Document) -> bytes:
    """Write a document as compact JSON, its fields in the order of the contract.

    Nothing is checked: a document that breaks a rule is written as it is.

    Raises:
        ValidationError: It holds something that JSON cannot.
    """
    try:
        return msgspec.json.encode(document)
    except _ENCODE_ERRORS:
        raise shapes.blame(type(document))("the document holds a value that JSON cannot") from None


def validate(document: Document) -> None:
    """Check a document that was made in the program as if it had been read.

    Raises:
        ValidationError: It breaks a rule, or would not come back the same from its own JSON.
    """
    if soundness.is_sound(document):
        rules.check(document)
        return
    kind = type(document)
    if decode(encode(document), kind) != document:
        raise shapes.blame(kind)("the document holds a value that JSON changes")


def restore(data: bytes, kind: type[T]) -> T:
    """Read a document that `encode` wrote, without checking it again.

    Raises:
        UndecodableDocument: These are not such bytes.
    """
    try:
        document: T = _decoder(kind).decode(data)
    except _PARSE_ERRORS:
        raise UndecodableDocument(f"these bytes are no {kind.__name__} that we wrote") from None
    return document


def parse(data: bytes | str) -> Any:
    """Parse JSON within the limit of a document's size. Of equal keys in an object the last one counts.

    Raises:
        UndecodableDocument: It is too large, or no JSON; or it holds numbers or texts beyond what JSON is good for.
    """
    raw = _bytes(data)
    if len(raw) > DOCUMENT_BYTES_MAX:
        raise UndecodableDocument(f"the document has {len(raw)} bytes, more than {DOCUMENT_BYTES_MAX}")
    try:
        return msgspec.json.decode(raw)
    except RecursionError:
        raise UndecodableDocument(_TOO_DEEP) from None
    except _PARSE_ERRORS as error:
        said = str(error).removeprefix("JSON is malformed: ") if raw.strip() else "it is empty"
        raise UndecodableDocument(f"the input is no JSON: {said}") from None


_TOO_DEEP = f"the document is nested deeper than {DEPTH_MAX} levels"


def _bytes(data: bytes | str) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return data.encode()
    except UnicodeEncodeError:
        raise UndecodableDocument("the input is no text: it has half of a surrogate pair") from None


def _decoded(value: object, kind: type[T], bytes_count: int | None, *, shallow: bool = False) -> T:
    if type(value) is not dict:
        raise UndecodableDocument("the input is JSON, but no object")
    if not shallow and too_deep(value):
        raise UndecodableDocument(_TOO_DEEP)
    document = shapes.read(value, kind, bytes_count=bytes_count)
    rules.check(document)
    return document


def too_deep(value: object) -> bool:
    """Say whether what `parse` returned is nested deeper than a document may be."""
    level: list[Any] = [value]
    for _ in range(DEPTH_MAX):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return False
    return True


@cache
def _decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(kind)
