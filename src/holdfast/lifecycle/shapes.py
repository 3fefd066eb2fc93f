"""From parsed JSON to a document, or to the one thing that is said to be wrong with it.

The shape of a document is read off its Struct once, as a tree of readers. One pass of the tree meets every problem
there is, in field order, and keeps the one that comes first in the order of the contract: label, missing key,
unknown field, wrong type, unknown variant, empty text. So the verdict depends on nothing but the document.

Invariants:
    - Reading ends in a document whose every field holds what it may, or in one `ValidationError`.
    - What a message repeats of a document are names of fields and words of closed sets, cut to a length.
"""

from __future__ import annotations

import builtins
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Final, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from holdfast.lifecycle.documents import (
    AdapterManifest,
    CallbackRequest,
    CallbackResponse,
    CapabilityRequirement,
    DispatchEnvelope,
    FrameContext,
    Labels,
    LifecycleReceipt,
    MayBeEmpty,
    NegotiatedPlan,
    Open,
    PayloadEnvelope,
    PayloadReceipt,
    PressureObservation,
    ReceiptContext,
    RoutingPlan,
    Variants,
    Words,
)
from holdfast.lifecycle.errors import (
    EmptyField,
    InvalidFrameContext,
    InvalidManifest,
    InvalidObservation,
    InvalidPayload,
    InvalidReceipt,
    InvalidRequest,
    InvalidResponse,
    SchemaVersionMismatch,
    ValidationError,
    quoted,
)
from holdfast.lifecycle.labels import LABELS, NEWEST

__all__ = ["Hint", "blame", "read", "unfold"]

D = TypeVar("D", bound=msgspec.Struct)

Blame: TypeAlias = Callable[[str], ValidationError]

# The order of the contract, which decides between problems.
_LABEL, _MISSING, _UNKNOWN, _TYPE, _VARIANT, _EMPTY, _NONE = range(7)

_ROOTS: Final[dict[type, str]] = {
    DispatchEnvelope: "envelope",
    CallbackRequest: "request",
    CallbackResponse: "response",
    PayloadEnvelope: "payload",
    LifecycleReceipt: "receipt",
    AdapterManifest: "manifest",
    PressureObservation: "observation",
    CapabilityRequirement: "requirement",
    ReceiptContext: "context",
    FrameContext: "frame_context",
    RoutingPlan: "plan",
    NegotiatedPlan: "negotiated",
}
_WHOLE = frozenset({CallbackRequest, CallbackResponse, PayloadEnvelope, AdapterManifest})
"""Documents whose fields are named from their own root, wherever they are."""

_BLAMES: Final[dict[type, Blame]] = {
    CallbackResponse: InvalidResponse,
    PayloadEnvelope: InvalidPayload,
    LifecycleReceipt: InvalidReceipt,
    PayloadReceipt: InvalidReceipt,
    ReceiptContext: InvalidReceipt,
    AdapterManifest: InvalidManifest,
    PressureObservation: InvalidObservation,
    FrameContext: InvalidFrameContext,
}
_LABEL_FIELDS = ("schema_version", "contract_version")

_TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number that is no integer",
    str: "a string",
    list: "an array",
    dict: "an object",
}

Reader: TypeAlias = Callable[["_Walk", Any, str, str], Any]
"""Reads a value, given the path of what holds it and its key there."""


def read(value: object, kind: type[D], *, bytes_count: int | None = None) -> D:
    """Read a parsed JSON value as a document; fields are not compared with each other.

    Args:
        value: What a JSON parser made of the document.
        kind: The document's Struct.
        bytes_count: The size of the document, if it is known: a part cannot be larger.

    Raises:
        ValidationError: The first problem in the order of the contract.
    """
    walk = _Walk(blame(kind), bytes_count)
    document = _struct(kind)(walk, value, "", _ROOTS.get(kind, kind.__name__))
    if walk.problem is not None:
        raise walk.problem
    result: D = document
    return result


def blame(kind: type) -> Blame:
    """Return the error for a document of this kind that breaks its shape."""
    return _BLAMES.get(kind, InvalidRequest)


class _Walk:
    """One document being read: where we are in it, and the worst found so far.

    Attributes:
        problem: What is wrong, as far as we are.
        label: The label of the document we are in; None where none has been met.
        blame: Makes the error of the document we are in.
        within: Which of several documents we are in, for messages.
        bytes_count: The size of the whole, if known.
    """

    __slots__ = ("_rank", "blame", "bytes_count", "label", "problem", "within")

    def __init__(self, blame: Blame, bytes_count: int | None) -> None:
        self.problem: ValidationError | None = None
        self.label: str | None = None
        self.blame = blame
        self.within = ""
        self.bytes_count = bytes_count
        self._rank = _NONE

    def mislabeled(self, expected: tuple[str, ...], found: str) -> None:
        if self._counts(_LABEL):
            self.problem = SchemaVersionMismatch(expected, found)

    def knows(self, labels: tuple[str, ...]) -> bool:
        """Say whether something of these labels exists in the document we are in."""
        return (self.label or NEWEST) in labels

    def missing(self, field: str) -> None:
        if self._counts(_MISSING):
            self.problem = self.blame(f"missing field `{field}`{self.within}")

    def unknown(self, field: str, label: str = "") -> None:
        if self._counts(_UNKNOWN):
            self.problem = self.blame(f"unknown field `{quoted(field)}`{self.within}{label and f' in {label}'}")

    def beyond(self, field: str, limit: str) -> None:
        if self._counts(_TYPE):
            self.problem = self.blame(f"field `{field}`{self.within} is beyond its limit: {limit}")

    def mistyped(self, field: str, expected: str, value: object) -> None:
        if self._counts(_TYPE):
            found = _TYPE_NAMES.get(type(value), "something else")
            self.problem = self.blame(f"wrong type in field `{field}`{self.within}: expected {expected}, found {found}")

    def variant(self, field: str, received: str) -> None:
        if self._counts(_VARIANT):
            self.problem = self.blame(f"unknown variant `{quoted(received)}` in field `{field}`{self.within}")

    def empty(self, field: str) -> None:
        if self._counts(_EMPTY):
            self.problem = EmptyField(field, within=self.within)

    def _counts(self, rank: int) -> bool:
        """Note a problem's rank; say whether it comes before those met so far."""
        if rank >= self._rank:
            return False
        self._rank = rank
        return True


# --- values -------------------------------------------------------------------------------------------


def _any(walk: _Walk, value: Any, path: str, key: str) -> Any:
    return value


def _flag(walk: _Walk, value: Any, path: str, key: str) -> Any:
    if type(value) is not bool:
        walk.mistyped(path + key, "a boolean", value)
    return value


def _text(walk: _Walk, value: Any, path: str, key: str) -> Any:
    if type(value) is not str:
        walk.mistyped(path + key, "a string", value)
    return value


def _name(walk: _Walk, value: Any, path: str, key: str) -> Any:
    if type(value) is not str:
        walk.mistyped(path + key, "a string", value)
    elif not value:
        walk.empty(path + key)
    return value


def _integer(bounds: msgspec.Meta) -> Reader:
    low, high = bounds.ge, bounds.le
    assert isinstance(low, int)
    assert isinstance(high, int)
    expected = f"an integer from {low} to {high}"

    def reader(walk: _Walk, value: Any, path: str, key: str) -> Any:
        if type(value) is not int:
            walk.mistyped(path + key, expected, value)
        elif not low <= value <= high:
            walk.beyond(path + key, expected)
        return value

    return reader


def _word(words: frozenset[str], narrowed: Variants | None) -> Reader:
    def reader(walk: _Walk, value: Any, path: str, key: str) -> Any:
        if type(value) is not str:
            walk.mistyped(path + key, "a string", value)
        elif value not in words or (narrowed is not None and value == narrowed.word and not walk.knows(narrowed.names)):
            walk.variant(path + key, value)
        return value

    return reader


def _list(item: Reader, most: int | None) -> Reader:
    def reader(walk: _Walk, value: Any, path: str, key: str) -> Any:
        if type(value) is not list:
            walk.mistyped(path + key, "an array", value)
            return value
        if most is not None and len(value) > most:
            walk.beyond(path + key, f"at most {most} items, found {len(value)}")
        place = path + key
        return tuple([item(walk, each, place, f"[{index}]") for index, each in enumerate(value)])

    return reader


def _map(words: frozenset[str], item: Reader) -> Reader:
    def reader(walk: _Walk, value: Any, path: str, key: str) -> Any:
        if type(value) is not dict:
            walk.mistyped(path + key, "an object", value)
            return value
        for word in value:
            if word not in words:
                walk.variant(path + key, word)
        place = path + key
        return {word: item(walk, each, place, f"[{word}]") for word, each in value.items() if word in words}

    return reader


def _open(known: type[msgspec.Struct] | None, bytes_max: int | None) -> Reader:
    shape = _NOTHING if known is None else _shape(known)

    def reader(walk: _Walk, value: Any, path: str, key: str) -> Any:
        if type(value) is not dict:
            walk.mistyped(path + key, "an object", value)
            return value
        if bytes_max is not None and value and (walk.bytes_count is None or walk.bytes_count > bytes_max):
            count = len(msgspec.json.encode(value))
            if count > bytes_max:
                walk.beyond(path + key, f"at most {bytes_max} bytes, found {count}")
        _members(walk, shape, value, path + key)
        return value

    return reader


# --- objects ------------------------------------------------------------------------------------------


_Field: TypeAlias = tuple[str, str, bool, bool, tuple[str, ...], Reader]
"""A field of a Struct: its name, its name as the end of a path, whether it must be present, whether null is a value of
it (in a field that may be absent, null reads as absent), the labels it exists in, and what reads it."""


class _Shape(msgspec.Struct, frozen=True):
    """What an object of a Struct may hold.

    Attributes:
        fields: Its fields in their order.
        names: Their names.
        required: The names of those that must be present.
        limited: Name, end of path and labels of those that not every label knows.
    """

    fields: tuple[_Field, ...]
    names: frozenset[str]
    required: frozenset[str]
    limited: tuple[tuple[str, str, tuple[str, ...]], ...]


@cache
def _shape(kind: type[msgspec.Struct]) -> _Shape:
    hints = get_type_hints(kind, include_extras=True)
    fields: list[_Field] = []
    for field in msgspec.structs.fields(kind):
        hint = unfold(hints[field.name])
        limited = hint.noted(Labels)
        labels = LABELS if limited is None else limited.names
        fields.append((field.name, f".{field.name}", field.required, hint.nullable, labels, _reader(hint)))
    return _Shape(
        fields=tuple(fields),
        names=frozenset(field[0] for field in fields),
        required=frozenset(field[0] for field in fields if field[2]),
        limited=tuple((name, key, labels) for name, key, _, _, labels, _ in fields if labels is not LABELS),
    )


_NOTHING: Final = _Shape(fields=(), names=frozenset(), required=frozenset(), limited=())


def _members(walk: _Walk, shape: _Shape, value: dict[str, Any], path: str) -> dict[str, Any]:
    """Read the fields of an object, as the keyword arguments of its Struct."""
    if not value.keys() >= shape.required:
        for name, key, required, *_ in shape.fields:
            if required and name not in value:
                walk.missing(path + key)
    found = {}
    get = value.get
    for name, key, required, nullable, labels, reader in shape.fields:
        each = get(name)
        if each is None:
            if required and name in value:
                found[name] = None if nullable else reader(walk, None, path, key)
        elif labels is LABELS or walk.knows(labels):
            # Most fields are names, and most names are right.
            sound = reader is _name and type(each) is str and each
            found[name] = each if sound else reader(walk, each, path, key)
    return found


@cache
def _struct(kind: type[msgspec.Struct]) -> Reader:
    shape = _shape(kind)
    strict = kind.__struct_config__.forbid_unknown_fields
    labelled = next((name for name in _LABEL_FIELDS if name in shape.names), None)
    own_blame = _BLAMES.get(kind)

    def reader(walk: _Walk, value: Any, path: str, key: str) -> Any:
        place = path + key
        if type(value) is not dict:
            walk.mistyped(place, "an object", value)
            return None
        outer = walk.label, walk.blame, walk.within
        if path and kind in _WHOLE:
            walk.within = f" of `{place}`" if key.endswith("]") else ""
            place = _ROOTS[kind]
        if own_blame is not None and walk.blame is not InvalidResponse:
            walk.blame = own_blame
        if labelled is not None:
            _enter(walk, value.get(labelled), kind)
        if strict:
            _refuse(walk, shape, value, place)
        found = _members(walk, shape, value, place)
        walk.label, walk.blame, walk.within = outer
        return kind(**found) if walk.problem is None else None

    return reader


def _enter(walk: _Walk, label: object, kind: type) -> None:
    """Go on under the label of the document we enter; all documents of a dispatch carry the request's."""
    if type(label) is not str:
        return
    if label not in LABELS:
        walk.mislabeled(LABELS, label)
    elif walk.label is None or kind is AdapterManifest:
        walk.label = label
    elif label != walk.label:
        expected, found = (label, walk.label) if kind is CallbackRequest else (walk.label, label)
        walk.mislabeled((expected,), found)


def _refuse(walk: _Walk, shape: _Shape, value: dict[str, Any], place: str) -> None:
    if not shape.names.issuperset(value):
        for name in value:
            if name not in shape.names:
                walk.unknown(f"{place}.{name}")
    for name, key, labels in shape.limited:
        if value.get(name) is not None and not walk.knows(labels):
            walk.unknown(place + key, walk.label or NEWEST)


def _union(kinds: tuple[Any, ...]) -> Reader:
    tag_field = kinds[0].__struct_config__.tag_field
    readers = {kind.__struct_config__.tag: _struct(kind) for kind in kinds}

    def reader(walk: _Walk, value: Any, path: str, key: str) -> Any:
        place = path + key
        if type(value) is not dict:
            walk.mistyped(place, "an object", value)
        elif tag_field not in value:
            walk.missing(f"{place}.{tag_field}")
        elif type(tag := value[tag_field]) is not str:
            walk.mistyped(f"{place}.{tag_field}", "a string", tag)
        elif tag not in readers:
            walk.variant(f"{place}.{tag_field}", tag)
        else:
            return readers[tag](walk, value, path, key)
        return None

    return reader


# --- types --------------------------------------------------------------------------------------------


class Hint(msgspec.Struct, frozen=True):
    """A type without its wrapping.

    Attributes:
        members: The types it may be, None aside.
        extras: What is annotated.
        nullable: Whether it may be None.
    """

    members: tuple[Any, ...]
    extras: tuple[Any, ...] = ()
    nullable: bool = False

    def noted(self, kind: type[D]) -> D | None:
        """Return the annotation of a kind, if there is one."""
        return next((each for each in self.extras if isinstance(each, kind)), None)


def unfold(hint: Any) -> Hint:
    """Take the wrapping off a type."""
    origin = get_origin(hint)
    if origin is Annotated:
        inner = unfold(get_args(hint)[0])
        return Hint(inner.members, (*hint.__metadata__, *inner.extras), inner.nullable)
    if origin in (Union, types.UnionType):
        members = tuple(each for each in get_args(hint) if each is not type(None))
        inner = unfold(members[0]) if len(members) == 1 else Hint(members)
        return Hint(inner.members, inner.extras, len(members) < len(get_args(hint)))
    return Hint((hint,))


_PLAIN: Final[dict[Any, Reader]] = {Any: _any, bool: _flag}


def _reader(hint: Hint) -> Reader:
    if len(hint.members) > 1:
        return _union(hint.members)
    kind = hint.members[0]
    meta = next((each for each in hint.extras if isinstance(each, msgspec.Meta)), msgspec.Meta())
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind is int:
        return _integer(meta)
    if kind is str:
        words = hint.noted(Words)
        if words is not None:
            return _word(frozenset(words.words), None)
        return _name if hint.noted(MayBeEmpty) is None else _text
    arguments = get_args(kind)
    match get_origin(kind):
        case typing.Literal:
            return _word(frozenset(arguments), hint.noted(Variants))
        case builtins.tuple:
            return _list(_reader(unfold(arguments[0])), meta.max_length)
        case builtins.dict if arguments[1] is Any:
            opened = hint.noted(Open) or Open()
            return _open(opened.known, opened.bytes_max)
        case builtins.dict:
            return _map(frozenset(get_args(arguments[0])), _reader(unfold(arguments[1])))
    return _struct(kind)
