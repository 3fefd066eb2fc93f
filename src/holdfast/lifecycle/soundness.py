"""Recognise documents, made in the program, whose JSON is certain to be read as just them. Pure.

Checking such a document by writing and reading it costs more than making it. Most hold nothing but short plain texts,
words and numbers, and that can be seen by looking. Where it cannot, the answer is no, and the document has to be read:
nothing is refused here.

Invariants:
    - What is called sound, `wire` reads from its JSON as an equal document, up to the rules between fields.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from functools import cache
from typing import Any, Final, TypeAlias, get_args, get_origin, get_type_hints

import msgspec

from holdfast.lifecycle.documents import (
    CallbackRequest,
    CallbackResponse,
    DispatchEnvelope,
    FrameContext,
    Labels,
    LifecycleReceipt,
    MayBeEmpty,
    Open,
    Variants,
    Words,
)
from holdfast.lifecycle.labels import LABELS
from holdfast.lifecycle.shapes import Hint, unfold

__all__ = ["is_sound"]

Check: TypeAlias = Callable[[Any], bool]

TEXT_CHARS_MAX: Final = 64 * 1024
"""Longer texts are read: so no document comes near the limit of its size unseen."""

NESTED_MAX: Final = 32
"""An open object that begins more objects and arrays is read, for it might be nested too deep."""

_LABEL_FIELD: Final = "schema_version"
_KINDS: Final = frozenset({CallbackRequest, CallbackResponse, DispatchEnvelope, FrameContext, LifecycleReceipt})
"""Documents that are made for every event, and what is in them."""


def is_sound(document: msgspec.Struct) -> bool:
    """Say whether a document certainly comes back from its JSON; False: it has to be read to know."""
    kind = type(document)
    if kind not in _KINDS:
        return False
    for name, nullable, check in _checks(kind):
        value = getattr(document, name)
        if value is None:
            if not nullable:
                return False
        elif not check(value):
            return False
    # All documents of a dispatch carry one label; with payloads it is read.
    return not isinstance(document, DispatchEnvelope) or document.request.schema_version == document.schema_version


@cache
def _checks(kind: type[msgspec.Struct]) -> tuple[tuple[str, bool, Check], ...]:
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for name in kind.__struct_fields__:
        hint = unfold(hints[name])
        found.append((name, hint.nullable, _is_label if name == _LABEL_FIELD else _check(hint)))
    return tuple(found)


def _check(hint: Hint) -> Check:
    kind = hint.members[0]
    # A field of more kinds than one, or with words or labels of its own, would have to be judged as `shapes` does.
    assert len(hint.members) == 1
    assert not any(hint.noted(each) is not None for each in (Labels, MayBeEmpty, Variants, Words))
    if kind is int:
        return _within(next(each for each in hint.extras if isinstance(each, msgspec.Meta)))
    if kind is str:
        return _is_name
    arguments = get_args(kind)
    if get_origin(kind) is typing.Literal:
        return _one_of(frozenset(arguments))
    if get_origin(kind) is dict and arguments[1] is Any:
        opened = hint.noted(Open) or Open()
        return _open(opened.bytes_max or TEXT_CHARS_MAX) if opened.known is None else _empty(dict)
    if (origin := get_origin(kind)) in (tuple, dict):
        return _empty(origin)
    return lambda value: type(value) is kind and is_sound(value)


def _empty(kind: type) -> Check:
    return lambda value: type(value) is kind and not value


def _is_name(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= TEXT_CHARS_MAX and value.isascii()


def _is_label(value: Any) -> bool:
    return type(value) is str and value in LABELS


def _one_of(words: frozenset[str]) -> Check:
    return lambda value: type(value) is str and value in words


def _within(bounds: msgspec.Meta) -> Check:
    low, high = bounds.ge, bounds.le
    assert isinstance(low, int)
    assert isinstance(high, int)
    return lambda value: type(value) is int and low <= value <= high


def _open(bytes_max: int) -> Check:
    def check(value: Any) -> bool:
        if type(value) is not dict:
            return False
        if not value:
            return True
        try:
            raw = msgspec.json.encode(value)
            if len(raw) > bytes_max or raw.count(b"{") + raw.count(b"[") > NESTED_MAX:
                return False
            return bool(msgspec.json.decode(raw) == value)
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError):
            return False

    return check
