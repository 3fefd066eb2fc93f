"""Which receipts are the same, and what ties them together."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.unit.plans import context, negotiated, payload, request, response

from holdfast.lifecycle.documents import LifecycleReceipt, PayloadReceipt
from holdfast.lifecycle.machine import (
    FieldDiff,
    canonical,
    chain_id,
    compare,
    full_digest,
    genesis,
    link,
    request_digest,
    semantic_digest,
    synthesize,
)

RECEIPT = synthesize(negotiated(), response(), context(), sequence=3)
OF_ONE_TRY = ("receipt_id", "at_epoch_s", "sequence")
CHANGES: dict[str, Any] = {
    "schema_version": "lifeloop.v0.2",
    "receipt_id": "rcp-2",
    "idempotency_key": None,
    "client_id": "other",
    "adapter_id": "codex",
    "invocation_id": "inv-2",
    "event": "session.ended",
    "event_id": "evt-2",
    "sequence": 4,
    "parent_receipt_id": "rcp-0",
    "integration_mode": "manual_skill",
    "status": "failed",
    "at_epoch_s": 1,
    "harness_session_id": None,
    "harness_run_id": "run-2",
    "harness_task_id": "task-1",
    "payload_receipts": (
        PayloadReceipt(payload_id="a", payload_kind="k", placement="receipt_only", status="delivered", byte_size=1),
    ),
    "telemetry_summary": {"a": 1},
    "capability_degradations": ({"capability": "session_rename"},),
    "failure_class": "timeout",
    "retry_class": "safe_retry",
    "warnings": ({"code": "a"},),
}


def test_every_field_of_a_receipt_is_changed_below() -> None:
    assert list(CHANGES) == list(LifecycleReceipt.__struct_fields__)


@pytest.mark.parametrize("field", CHANGES)
def test_one_field_makes_another_receipt_unless_it_is_of_one_try(field: str) -> None:
    """LX-33, LX-34."""
    other = replace(RECEIPT, **{field: CHANGES[field]})
    assert [diff.name for diff in compare(RECEIPT, other, "strict")] == [field]
    assert [diff.name for diff in compare(RECEIPT, other, "semantic")] == ([] if field in OF_ONE_TRY else [field])
    assert full_digest(other) != full_digest(RECEIPT)
    assert (semantic_digest(other) == semantic_digest(RECEIPT)) == (field in OF_ONE_TRY)


def test_a_difference_shows_short_values_and_digests_of_the_rest() -> None:
    long, large = "x" * 198, "y" * 199
    assert compare(RECEIPT, replace(RECEIPT, sequence=None), "strict") == (FieldDiff("sequence", 3, None),)
    assert compare(RECEIPT, replace(RECEIPT, event_id=long), "strict") == (FieldDiff("event_id", "evt-1", long),)
    digest = f"blake3:{blake3(canonical(large)).hexdigest()}"
    assert compare(RECEIPT, replace(RECEIPT, event_id=large), "strict") == (FieldDiff("event_id", "evt-1", digest),)
    for name in ("telemetry_summary", "capability_degradations", "warnings"):
        (diff,) = compare(RECEIPT, replace(RECEIPT, **{name: CHANGES[name]}), "strict")
        assert diff.stored == f"blake3:{blake3(canonical(getattr(RECEIPT, name))).hexdigest()}"
        assert diff.offered == f"blake3:{blake3(canonical(CHANGES[name])).hexdigest()}"
    (diff,) = compare(RECEIPT, replace(RECEIPT, payload_receipts=CHANGES["payload_receipts"]), "strict")
    assert diff.stored == []
    assert diff.offered[0]["payload_id"] == "a"


def test_open_objects_are_equal_as_json_values() -> None:
    first = replace(RECEIPT, telemetry_summary={"a": 1, "b": {"c": [1.5, None], "d": True}})
    turned = replace(RECEIPT, telemetry_summary={"b": {"d": True, "c": [1.5, None]}, "a": 1})
    assert compare(first, turned, "strict") == ()
    assert full_digest(first) == full_digest(turned)
    values: list[Any] = [1, 1.0, "1", True, [1], None, 10**30, 10**30 + 1]
    for number, one in enumerate(values):
        for another in values[number + 1 :]:
            pair = [replace(RECEIPT, warnings=({"a": each},)) for each in (one, another)]
            assert [diff.name for diff in compare(*pair, "semantic")] == ["warnings"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
receipts = st.builds(
    lambda changes, summary: replace(RECEIPT, telemetry_summary=summary, **changes),
    st.fixed_dictionaries(
        {},
        optional={
            "receipt_id": st.sampled_from(["rcp-1", "rcp-2"]),
            "sequence": st.none() | st.integers(1, 3),
            "at_epoch_s": st.integers(0, 2),
            "status": st.sampled_from(["observed", "skipped"]),
            "harness_run_id": st.none() | st.just("run-1"),
        },
    ),
    st.dictionaries(st.sampled_from(["a", "b"]), json_values, max_size=2),
)


@given(receipts, receipts)
def test_receipts_are_the_same_exactly_when_their_digests_are(one: LifecycleReceipt, another: LifecycleReceipt) -> None:
    assert compare(one, one, "strict") == ()
    assert compare(one, one, "semantic") == ()
    restored = msgspec.json.decode(msgspec.json.encode(one), type=LifecycleReceipt)
    assert compare(one, restored, "strict") == ()
    assert (compare(one, another, "strict") == ()) == (full_digest(one) == full_digest(another))
    assert (compare(one, another, "semantic") == ()) == (semantic_digest(one) == semantic_digest(another))
    forth = {diff.name: (diff.stored, diff.offered) for diff in compare(one, another, "strict")}
    back = {diff.name: (diff.offered, diff.stored) for diff in compare(another, one, "strict")}
    assert forth == back


# --- claims -------------------------------------------------------------------------------------------

PAYLOAD = payload(("receipt_only", "optional"))


@pytest.mark.parametrize(
    "changes", [{"sequence": 9}, {"metadata": {"a": 1}}, {"capability_snapshot_ref": "snap-1"}], ids=str
)
def test_what_changes_from_try_to_try_does_not_make_another_request(changes: dict[str, Any]) -> None:
    """LX-40."""
    assert request_digest(request(**changes), [PAYLOAD]) == request_digest(request(), [PAYLOAD])


def test_everything_else_of_a_request_and_its_payloads_makes_another() -> None:
    asked = [
        (request(), [PAYLOAD]),
        (request(), []),
        (request(), [PAYLOAD, PAYLOAD]),
        (request(event_id="evt-2"), [PAYLOAD]),
        (request(harness_run_id=None), [PAYLOAD]),
        (request(idempotency_key="idem-2"), [PAYLOAD]),
        (request(), [replace(PAYLOAD, payload_id="pay-2")]),
        (request(), [replace(PAYLOAD, body="other")]),
        (request(), [replace(PAYLOAD, body=None, body_ref="hello")]),
    ]
    digests = {request_digest(*each) for each in asked}
    assert len(digests) == len(asked)
    assert {len(each) for each in digests} == {32}


# --- chains -------------------------------------------------------------------------------------------


def test_a_chain_is_named_by_its_run_or_by_client_and_adapter() -> None:
    assert chain_id('r"1', "ccd", "codex") == '["run","r\\"1"]'
    assert chain_id(None, "ccd", "codex") == '["loose","ccd","codex"]'
    assert chain_id("", "ccd", "codex") == '["run",""]'


def test_the_hashes_are_those_of_the_contract() -> None:
    """LX-38, written down byte by byte."""
    start = genesis('["run","r1"]')
    assert start == blake3(b'holdfast.chain.v1\x00["run","r1"]').digest()
    written = (
        b"holdfast.receipt.v1\x00"
        + start
        + b"\x00\x00\x00\x00\x00\x00\x00\x01"
        + (1_778_100_000_000_000).to_bytes(8, "big")
        + b"\x00\x00\x00\x00\x00\x00\x00\x04body"
        + b"\x00\x00\x00\x00\x00\x00\x00\x02{}"
    )
    made = {"index": 1, "recorded_at": 1_778_100_000_000_000, "body": b"body", "annotations": b"{}"}
    assert link(start, **made) == blake3(written).digest()
    key = bytes(range(32))
    assert genesis('["run","r1"]', key=key) == blake3(b'holdfast.chain.v1\x00["run","r1"]', key=key).digest()
    assert link(start, **made, key=key) == blake3(written, key=key).digest()


@given(
    st.binary(min_size=32, max_size=32),
    st.integers(1, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.binary(min_size=1, max_size=40),
    st.binary(min_size=1, max_size=40),
    st.none() | st.binary(min_size=32, max_size=32),
    st.data(),
)
def test_any_byte_that_changes_changes_the_link(
    previous: bytes, index: int, at: int, body: bytes, notes: bytes, key: bytes | None, data: Any
) -> None:
    made = {"previous": previous, "body": body, "annotations": notes}
    whole = link(**made, index=index, recorded_at=at, key=key)
    assert whole == link(**made, index=index, recorded_at=at, key=key)
    assert len(whole) == 32
    name = data.draw(st.sampled_from(sorted(made)))
    place = data.draw(st.integers(0, len(made[name]) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(made[name])
    changed[place] ^= flip
    assert link(**{**made, name: bytes(changed)}, index=index, recorded_at=at, key=key) != whole
    assert link(**made, index=index - 1, recorded_at=at, key=key) != whole
    assert link(**made, index=index, recorded_at=at ^ 1, key=key) != whole
    # A byte that moves from the body to the annotations is a change too.
    moved = {**made, "body": body[:-1], "annotations": body[-1:] + notes}
    assert link(**moved, index=index, recorded_at=at, key=key) != whole
