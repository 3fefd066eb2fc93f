"""A document that looks sound is one that reading its JSON gives back; what is not plain is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.unit import lifecycle_documents as made
from tests.unit.plans import payload, request, response

from holdfast.lifecycle import rules, wire
from holdfast.lifecycle.documents import DispatchEnvelope, FrameContext, LifecycleReceipt
from holdfast.lifecycle.errors import ValidationError
from holdfast.lifecycle.soundness import is_sound

RECEIPT = wire.decode_value(made.receipt(payload_receipts=[], harness_run_id="run-1", sequence=3), LifecycleReceipt)
FRAME = FrameContext(frame_id="frm-1", frame_class="top_level")
ENVELOPE = DispatchEnvelope(schema_version="lifeloop.v0.3", request=request())

ODD: list[Any] = [
    None, True, 0, 1, -1, 2**63 - 1, 2**63, 1.0, "", "x", "\x00", "\ud800", "é", "frame.flarbed", "x" * 70_000, b"x",
    [], ["x"], (), ("x",), {}, {"a": 1}, {"a": 1.5}, {1: "a"}, {"a": (1,)}, {"a": float("nan")}, {"a": b"x"},
    {"a": object()}, {"a": "x" * 70_000}, {"a": [[[[]]]]}, FRAME, FrameContext(frame_id="", frame_class="subcall"),
    object(),
    "lifeloop.v0.2", "lifeloop.v9", "receipt.emitted", "failed", "timeout", "safe_retry", request(frame_context=FRAME),
]  # fmt: skip


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"a": found}
    return found


def refused(check: Callable[[], object]) -> tuple[type, str] | None:
    """What a check says against a document."""
    try:
        check()
    except ValidationError as error:
        return type(error), error.message
    return None


def comes_back(document: Any) -> bool:
    """Whether reading its JSON says just what the rules between its fields say, and gives an equal document."""
    found: list[Any] = []
    read = refused(lambda: found.append(wire.decode(wire.encode(document), type(document))))
    return read == refused(lambda: rules.check(document)) and found in ([], [document])


@pytest.mark.parametrize("document", [request(), response(), RECEIPT, FRAME, ENVELOPE])
def test_what_is_made_for_every_event_is_seen_to_be_sound(document: msgspec.Struct) -> None:
    assert is_sound(document)
    assert comes_back(document)


def test_metadata_is_looked_into() -> None:
    assert is_sound(request(metadata={"a": [1, {"b": None}], "c": 1.5}))
    assert not is_sound(request(metadata=nested(40)))
    assert not is_sound(request(metadata={"a": (1,)}))


@pytest.mark.parametrize("whole", [request(frame_context=FRAME), response(), RECEIPT, FRAME, ENVELOPE])
def test_no_odd_value_of_any_field_is_called_sound_that_is_not(whole: msgspec.Struct) -> None:
    for name in whole.__struct_fields__:
        for value in ODD:
            document = replace(whole, **{name: value})
            if is_sound(document):
                assert comes_back(document), (name, value)


def test_documents_of_one_dispatch_carry_one_label() -> None:
    assert not is_sound(replace(ENVELOPE, schema_version="lifeloop.v0.2"))
    assert not is_sound(replace(ENVELOPE, payloads=(payload(("receipt_only", "optional")),)))
    assert not is_sound(payload(("receipt_only", "optional")))


@settings(max_examples=60, deadline=None)
@given(document=st.one_of(made.requests(), made.responses(), made.receipts(), made.envelopes()))
def test_what_is_sound_comes_back_from_its_json(document: Any) -> None:
    if is_sound(document):
        assert comes_back(document)
