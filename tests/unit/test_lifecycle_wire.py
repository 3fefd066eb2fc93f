"""Documents of the lifecycle contract: what is read, what is refused and in which words, what is written."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.lifecycle_documents import (
    ABSENT,
    FULL_MANIFEST,
    anything,
    changed,
    envelope,
    json_values,
    manifest,
    payload,
    payload_receipt,
    receipt,
    request,
    response,
)

from holdfast.lifecycle import documents, enums, errors, labels
from holdfast.lifecycle.documents import (
    AdapterManifest,
    CallbackRequest,
    CallbackResponse,
    CapabilityRequirement,
    Chosen,
    DispatchEnvelope,
    FrameContext,
    LifecycleReceipt,
    NegotiatedPlan,
    PayloadEnvelope,
    PayloadReceipt,
    PressureObservation,
    ReceiptContext,
)
from holdfast.lifecycle.wire import (
    DEPTH_MAX,
    DOCUMENT_BYTES_MAX,
    decode,
    decode_value,
    encode,
    parse,
    restore,
    validate,
)

V01, V02, V03 = labels.LABELS
BIGGEST = 2**63 - 1


def refusal(value: object, kind: type[Any]) -> errors.ValidationError:
    """The error that reading a document ends in."""
    with pytest.raises(errors.ValidationError) as refused:
        decode(json.dumps(value), kind)
    return refused.value


def said(value: object, kind: type[Any]) -> str:
    return str(refusal(value, kind))


# -- events and words


def test_every_event_parses_and_prints_back() -> None:
    """LA-1."""
    assert len(enums.EVENTS) == 14
    for event in enums.EVENTS:
        asked = request(event=event, frame_context={"frame_id": "f", "frame_class": "top_level"})
        assert json.loads(encode(decode(json.dumps(asked), CallbackRequest)))["event"] == event


def test_an_unknown_event_is_an_unknown_variant() -> None:
    """LA-2."""
    error = refusal(request(event="frame.flarbed"), CallbackRequest)
    assert str(error) == "unknown variant `frame.flarbed` in field `request.event`"
    assert error.code == "lifecycle.invalid_request"


def test_a_word_of_a_closed_set_is_exact() -> None:
    for wrong in ("Session.Started", "session.started ", "", "session"):
        assert said(request(event=wrong), CallbackRequest) == f"unknown variant `{wrong}` in field `request.event`"
    assert "field `request.event`: expected a string, found an integer" in said(request(event=1), CallbackRequest)


def test_a_long_unknown_word_is_cut_in_the_message() -> None:
    text = said(request(event="x" * 5000), CallbackRequest)
    assert len(text) < 200
    assert "x…`" in text


def test_a_capability_is_one_of_those_that_have_a_name() -> None:
    wanted = {"capability": "lifecycle_event:frame.ended", "level": "required", "desired": "native"}
    assert decode_value(wanted, CapabilityRequirement).capability == "lifecycle_event:frame.ended"
    for wrong in ("lifecycle_event:frame.flarbed", "telepathy", ""):
        assert said({**wanted, "capability": wrong}, CapabilityRequirement) == (
            f"unknown variant `{wrong}` in field `requirement.capability`"
        )
    assert "expected a string, found null" in said({**wanted, "capability": None}, CapabilityRequirement)
    assert "`unavailable`" in said({**wanted, "desired": "unavailable"}, CapabilityRequirement)


# -- labels


@pytest.mark.parametrize("label", labels.LABELS)
def test_every_known_label_is_accepted(label: str) -> None:
    """LA-3."""
    assert decode_value(request(schema_version=label), CallbackRequest).schema_version == label
    assert decode_value(receipt(schema_version=label), LifecycleReceipt).schema_version == label
    assert decode_value(manifest(contract_version=label), AdapterManifest).contract_version == label


@pytest.mark.parametrize("label", ["lifeloop.v0", "lifeloop.v0.10", "Lifeloop.v0.1", " lifeloop.v0.1", ""])
def test_an_unknown_label_names_what_was_expected_and_found(label: str) -> None:
    """LA-3."""
    expected = f"schema_version mismatch: expected one of lifeloop.v0.1, lifeloop.v0.2, lifeloop.v0.3, found {label}"
    error = refusal(request(schema_version=label), CallbackRequest)
    assert isinstance(error, errors.SchemaVersionMismatch)
    assert str(error) == expected
    assert (error.expected, error.found) == (labels.LABELS, label)
    assert said(manifest(contract_version=label), AdapterManifest) == expected


def test_a_label_is_judged_before_all_else() -> None:
    wrong = {"schema_version": "lifeloop.v9", "event": 1, "adapter_id": ""}
    assert "schema_version mismatch" in said(wrong, CallbackRequest)


def test_a_missing_label_is_a_missing_field_and_a_number_is_a_wrong_type() -> None:
    assert said(request(schema_version=ABSENT), CallbackRequest) == "missing field `request.schema_version`"
    assert "`request.schema_version`: expected a string" in said(request(schema_version=2), CallbackRequest)


def test_one_dispatch_carries_one_label_which_is_the_requests() -> None:
    mismatches = [
        (envelope(schema_version=V03), DispatchEnvelope, V02, V03),
        (envelope(request=request(schema_version=V01)), DispatchEnvelope, V01, V02),
        (envelope(payloads=[payload(), payload(schema_version=V01)]), DispatchEnvelope, V02, V01),
        (response(client_payloads=[payload(schema_version=V03)]), CallbackResponse, V02, V03),
    ]
    for value, kind, expected, found in mismatches:
        assert said(value, kind) == f"schema_version mismatch: expected {expected}, found {found}"
    assert "one of" in said(envelope(request=request(schema_version="lifeloop.v0")), DispatchEnvelope)


def test_labels_agree_or_name_both() -> None:
    labels.agree(V01, V01)
    with pytest.raises(errors.RouteError, match=r"expected lifeloop\.v0\.1, found lifeloop\.v0\.2"):
        labels.agree(V01, V02)
    assert labels.require(V03) == V03
    with pytest.raises(errors.SchemaVersionMismatch, match="found lifeloop"):
        labels.require("lifeloop.v1")


def test_only_the_newest_label_skips_what_does_not_fit() -> None:
    assert [labels.skips_what_does_not_fit(label) for label in labels.LABELS] == [False, False, True]


def test_renewal_exists_from_the_second_label_on() -> None:
    """LA-10."""
    renewal = FULL_MANIFEST["renewal"]
    for label in (V02, V03):
        assert decode_value(manifest(contract_version=label, renewal=renewal), AdapterManifest).renewal is not None
    text = said(manifest(contract_version=V01, renewal=renewal), AdapterManifest)
    assert text == "unknown field `manifest.renewal` in lifeloop.v0.1"
    assert decode_value(manifest(contract_version=V01, renewal=None), AdapterManifest).renewal is None


def test_known_degradations_end_with_the_second_label() -> None:
    """LA-10."""
    known = FULL_MANIFEST["known_degradations"]
    for label in (V01, V02):
        read = decode_value(manifest(contract_version=label, known_degradations=known), AdapterManifest)
        assert read.known_degradations[0].current_support == "partial"
    text = said(manifest(contract_version=V03, known_degradations=known), AdapterManifest)
    assert text == "unknown field `manifest.known_degradations` in lifeloop.v0.3"


def test_redaction_is_carried_unread_and_then_ignored() -> None:
    for redaction in ({"any": [1, None]}, "x", 0, False, []):
        for label in (V01, V02):
            read = decode_value(payload(schema_version=label, redaction=redaction), PayloadEnvelope)
            assert json.loads(encode(read))["redaction"] == redaction
        read = decode_value(payload(schema_version=V03, redaction=redaction), PayloadEnvelope)
        assert b"redaction" not in encode(read)


def test_a_skipped_placement_is_a_word_of_the_newest_label() -> None:
    skipped = [payload_receipt(), payload_receipt(status="skipped")]
    assert decode_value(receipt(schema_version=V03, payload_receipts=skipped), LifecycleReceipt)
    for label in (V01, V02):
        text = said(receipt(schema_version=label, payload_receipts=skipped), LifecycleReceipt)
        assert text == "unknown variant `skipped` in field `receipt.payload_receipts[1].status`"
    assert decode_value(payload_receipt(status="skipped"), PayloadReceipt).status == "skipped"


# -- presence, types, limits


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (request(), CallbackRequest),
        (payload(), PayloadEnvelope),
        (response(), CallbackResponse),
        (envelope(payloads=ABSENT), DispatchEnvelope),
        (receipt(), LifecycleReceipt),
        (manifest(), AdapterManifest),
        ({"adapter_id": "codex", "observed_at_epoch_s": 1, "context_used_pct": 31}, PressureObservation),
        ({"client_id": "ccd", "receipt_id": "r", "at_epoch_s": 1}, ReceiptContext),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_every_required_field_is_required(value: dict[str, Any], kind: type[Any]) -> None:
    assert decode_value(value, kind)
    for name in value:
        if name in ("body",):
            continue
        text = said(changed(value, **{name: ABSENT}), kind)
        assert text.startswith("missing field `"), text
        assert text.endswith(f".{name}`")


def test_a_receipt_needs_its_key_though_it_may_be_null() -> None:
    """LA-7."""
    assert said(receipt(idempotency_key=ABSENT), LifecycleReceipt) == "missing field `receipt.idempotency_key`"
    assert decode_value(receipt(idempotency_key=None), LifecycleReceipt).idempotency_key is None
    assert decode_value(receipt(idempotency_key="k"), LifecycleReceipt).idempotency_key == "k"


def test_null_reads_as_absent_only_where_a_field_may_be_absent() -> None:
    nulls = dict.fromkeys(
        ["harness_session_id", "frame_context", "payload_refs", "sequence", "idempotency_key", "metadata"]
    )
    assert decode_value(request(**nulls), CallbackRequest) == decode_value(request(), CallbackRequest)
    assert "`request.event_id`: expected a string, found null" in said(request(event_id=None), CallbackRequest)
    assert "`receipt.status`: expected a string, found null" in said(receipt(status=None), LifecycleReceipt)


@pytest.mark.parametrize("wrong", [True, False, 1.0, -1, 2**63, 10**40, "1", [], {}])
def test_a_sequence_is_an_integer_that_a_ledger_can_hold(wrong: object) -> None:
    """LA-12."""
    text = said(request(sequence=wrong), CallbackRequest)
    assert "field `request.sequence`" in text
    assert f"an integer from 0 to {BIGGEST}" in text
    assert "`receipt.sequence`" in said(receipt(sequence=wrong), LifecycleReceipt)


def test_the_bounds_of_a_sequence_are_accepted() -> None:
    for sequence in (0, 1, BIGGEST):
        assert decode_value(request(sequence=sequence), CallbackRequest).sequence == sequence


def test_numbers_are_judged_as_they_are_written() -> None:
    text = json.dumps(request()).replace("}", ', "sequence": 1e2}')
    with pytest.raises(errors.InvalidRequest, match="found a number that is no integer"):
        decode(text, CallbackRequest)


@pytest.mark.parametrize(("field", "wrong"), [("context_used_pct", 101), ("context_used_pct", -1), ("used_tokens", -1)])
def test_an_observation_has_bounds(field: str, wrong: int) -> None:
    seen = {"adapter_id": "codex", "observed_at_epoch_s": 1, "context_used_pct": 100}
    assert decode_value(seen, PressureObservation).context_used_pct == 100
    assert isinstance(refusal({**seen, field: wrong}, PressureObservation), errors.InvalidObservation)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (request(metadata=[]), CallbackRequest, "`request.metadata`: expected an object, found an array"),
        (request(payload_refs={}), CallbackRequest, "`request.payload_refs`: expected an array, found an object"),
        (request(payload_refs=[None]), CallbackRequest, "`request.payload_refs[0]`: expected an object, found null"),
        (request(frame_context="f"), CallbackRequest, "`request.frame_context`: expected an object, found a string"),
        (payload(body=1), PayloadEnvelope, "`payload.body`: expected a string, found an integer"),
        (manifest(placement=[]), AdapterManifest, "`manifest.placement`: expected an object, found an array"),
        (response(warnings=["x"]), CallbackResponse, "`response.warnings[0]`: expected an object, found a string"),
        (
            manifest(receipts={"native": 0, "lifeloop_synthesized": True, "receipt_ledger": "native"}),
            AdapterManifest,
            "`manifest.receipts.native`: expected a boolean, found an integer",
        ),
        (
            manifest(placement={"pre_session": {"support": "native", "max_bytes": 1.5}}),
            AdapterManifest,
            "`manifest.placement[pre_session].max_bytes`: expected an integer",
        ),
        (
            manifest(context_pressure={"support": "native", "evidence": 1}),
            AdapterManifest,
            "`manifest.context_pressure.evidence`: expected a string, found an integer",
        ),
    ],
)
def test_a_wrong_type_names_field_and_types(value: dict[str, Any], kind: type[Any], text: str) -> None:
    assert f"wrong type in field {text}" in said(value, kind)


def test_a_value_that_no_parser_makes_is_refused_too() -> None:
    with pytest.raises(errors.InvalidRequest, match="found something else"):
        decode_value(request(event_id=b"x"), CallbackRequest)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (
            manifest(lifecycle_events={"frame.flarbed": {"support": "native"}}),
            AdapterManifest,
            "unknown variant `frame.flarbed` in field `manifest.lifecycle_events`",
        ),
        (
            manifest(placement={"pre_session": {"support": "super"}}),
            AdapterManifest,
            "unknown variant `super` in field `manifest.placement[pre_session].support`",
        ),
        (
            manifest(context_pressure={"support": "super"}),
            AdapterManifest,
            "unknown variant `super` in field `manifest.context_pressure.support`",
        ),
        (
            manifest(integration_modes=["native_hook", "x"]),
            AdapterManifest,
            "unknown variant `x` in field `manifest.integration_modes[1]`",
        ),
        (manifest(context_pressure={}), AdapterManifest, "missing field `manifest.context_pressure.support`"),
        (
            manifest(session_identity={"harness_session_id": "native", "harness_run_id": "native"}),
            AdapterManifest,
            "missing field `manifest.session_identity.harness_task_id`",
        ),
        (
            manifest(telemetry_sources=[{"source": "", "support": "native"}]),
            AdapterManifest,
            "empty sentinel string in field `manifest.telemetry_sources[0].source`",
        ),
    ],
)
def test_what_is_nested_is_named_by_its_path(value: dict[str, Any], kind: type[Any], text: str) -> None:
    assert said(value, kind) == text


def test_a_missing_field_comes_before_a_limit() -> None:
    assert said(request(sequence=-1, event_id=ABSENT), CallbackRequest) == "missing field `request.event_id`"


def test_lists_have_limits() -> None:
    refs = [{"payload_id": str(number), "payload_kind": "k"} for number in range(documents.PAYLOAD_REFS_MAX + 1)]
    assert decode_value(request(payload_refs=refs[:-1]), CallbackRequest)
    assert "at most 1000 items, found 1001" in said(request(payload_refs=refs), CallbackRequest)
    bodies = [payload(payload_id=str(number)) for number in range(documents.PAYLOADS_MAX + 1)]
    assert decode_value(envelope(payloads=bodies[:-1]), DispatchEnvelope)
    assert "`envelope.payloads` is beyond its limit: at most 64" in said(envelope(payloads=bodies), DispatchEnvelope)
    assert "`response.client_payloads`" in said(response(client_payloads=bodies), CallbackResponse)


def test_metadata_has_a_limit() -> None:
    fits = {"k": "x" * (documents.METADATA_BYTES_MAX - len('{"k":""}'))}
    assert decode(json.dumps(request(metadata=fits)), CallbackRequest).metadata == fits
    beyond = request(metadata={"k": fits["k"] + "x"})
    assert "`request.metadata` is beyond its limit: at most 65536 bytes" in said(beyond, CallbackRequest)
    with pytest.raises(errors.InvalidPayload, match="found 65537"):
        decode_value(payload(metadata=beyond["metadata"]), PayloadEnvelope)
    assert decode_value(request(metadata={"k": 1}), CallbackRequest).metadata == {"k": 1}


# -- unknown fields


def test_unknown_fields_are_refused_on_receipts_and_manifests_at_every_depth() -> None:
    """LA-8."""
    claims = {"native": True, "lifeloop_synthesized": True, "receipt_ledger": "native"}
    refused = [
        (receipt(flarb=1), LifecycleReceipt, "receipt.flarb"),
        (receipt(payload_receipts=[payload_receipt(flarb=1)]), LifecycleReceipt, "receipt.payload_receipts[0].flarb"),
        (manifest(flarb=1), AdapterManifest, "manifest.flarb"),
        (manifest(receipts={**claims, "flarb": 1}), AdapterManifest, "manifest.receipts.flarb"),
        (
            manifest(lifecycle_events={"frame.ended": {"support": "native", "flarb": 1}}),
            AdapterManifest,
            "manifest.lifecycle_events[frame.ended].flarb",
        ),
    ]
    for value, kind, field in refused:
        assert said(value, kind) == f"unknown field `{field}`"


def test_unknown_fields_are_ignored_elsewhere() -> None:
    """LA-8."""
    frame = {"frame_id": "f", "frame_class": "top_level"}
    noisy = request(flarb=1, frame_context={**frame, "flarb": 2}, payload_refs=[])
    assert decode_value(noisy, CallbackRequest) == decode_value(request(frame_context=frame), CallbackRequest)
    assert decode_value(payload(flarb=1), PayloadEnvelope) == decode_value(payload(), PayloadEnvelope)
    assert decode_value(response(flarb=1), CallbackResponse) == decode_value(response(), CallbackResponse)


def test_open_objects_carry_what_nobody_knows() -> None:
    """LA-8."""
    strange = {"zz": None, "a": [1, 1.5, {"": ""}], "code": "", "big": 2**70}
    carried = receipt(warnings=[strange], capability_degradations=[strange], telemetry_summary=strange)
    written = json.loads(encode(decode(json.dumps(carried), LifecycleReceipt)))
    assert written["warnings"] == written["capability_degradations"] == [strange]
    assert written["telemetry_summary"] == strange
    read = decode_value(FULL_MANIFEST, AdapterManifest)
    assert json.loads(encode(read)) == FULL_MANIFEST
    assert read.context_pressure["since"] == "1.2"


def test_of_duplicate_keys_the_last_wins() -> None:
    text = json.dumps(request()).replace("{", '{"event_id": "", "event_id": "first", ', 1)
    assert decode(text, CallbackRequest).event_id == "evt-1"


# -- empty texts


def test_an_empty_text_is_named_by_its_field() -> None:
    """LA-4."""
    error = refusal(request(invocation_id=""), CallbackRequest)
    assert str(error) == "empty sentinel string in field `request.invocation_id`"
    assert isinstance(error, errors.EmptyField)
    assert error.field == "request.invocation_id"
    assert said(payload(payload_kind=""), PayloadEnvelope) == "empty sentinel string in field `payload.payload_kind`"


@pytest.mark.parametrize(
    ("value", "kind", "field"),
    [
        (request(harness_task_id=""), CallbackRequest, "request.harness_task_id"),
        (request(idempotency_key=""), CallbackRequest, "request.idempotency_key"),
        (
            request(payload_refs=[{"payload_id": "", "payload_kind": ""}]),
            CallbackRequest,
            "request.payload_refs[0].payload_id",
        ),
        (
            request(frame_context={"frame_id": "", "frame_class": "top_level"}),
            CallbackRequest,
            "request.frame_context.frame_id",
        ),
        (payload(body=ABSENT, body_ref=""), PayloadEnvelope, "payload.body_ref"),
        (response(receipt_refs=["a", ""]), CallbackResponse, "response.receipt_refs[1]"),
        (receipt(parent_receipt_id=""), LifecycleReceipt, "receipt.parent_receipt_id"),
        (
            receipt(payload_receipts=[payload_receipt(), payload_receipt(), payload_receipt(payload_id="")]),
            LifecycleReceipt,
            "receipt.payload_receipts[2].payload_id",
        ),
        (manifest(display_name=""), AdapterManifest, "manifest.display_name"),
        (manifest(failure_modes=[""]), AdapterManifest, "manifest.failure_modes[0]"),
        (
            manifest(context_pressure={"support": "native", "evidence": ""}),
            AdapterManifest,
            "manifest.context_pressure.evidence",
        ),
        (
            {"adapter_id": "", "observed_at_epoch_s": 1, "context_used_pct": 1},
            PressureObservation,
            "observation.adapter_id",
        ),
    ],
)
def test_no_named_text_is_empty(value: dict[str, Any], kind: type[Any], field: str) -> None:
    assert said(value, kind) == f"empty sentinel string in field `{field}`"


def test_an_empty_body_is_a_body() -> None:
    read = decode_value(payload(body="", byte_size=0), PayloadEnvelope)
    assert read.body == ""
    assert b'"body":""' in encode(read)


def test_blank_text_says_something() -> None:
    assert decode_value(request(event_id=" ", adapter_id="\t"), CallbackRequest).event_id == " "


def test_inside_an_envelope_documents_keep_their_own_names() -> None:
    assert said(envelope(request=request(invocation_id="")), DispatchEnvelope) == (
        "empty sentinel string in field `request.invocation_id`"
    )
    assert said(envelope(payloads=[payload(), payload(payload_kind="")]), DispatchEnvelope) == (
        "empty sentinel string in field `payload.payload_kind` of `envelope.payloads[1]`"
    )
    assert said(response(client_payloads=[payload(format=1)]), CallbackResponse) == (
        "wrong type in field `payload.format` of `response.client_payloads[0]`: expected a string, found an integer"
    )


def test_the_first_problem_in_the_order_of_the_contract_wins() -> None:
    problems: list[tuple[dict[str, Any], str]] = [
        ({"schema_version": "lifeloop.v0"}, "schema_version mismatch"),
        ({"at_epoch_s": ABSENT}, "missing field `receipt.at_epoch_s`"),
        ({"flarb": 1}, "unknown field `receipt.flarb`"),
        ({"warnings": 1}, "wrong type in field `receipt.warnings`"),
        ({"status": "x"}, "unknown variant `x` in field `receipt.status`"),
        ({"client_id": "", "adapter_id": ""}, "empty sentinel string in field `receipt.client_id`"),
        ({"event": "receipt.emitted", "failure_class": "timeout"}, "must not itself produce a receipt"),
        ({"failure_class": "timeout"}, "has no `failure_class`"),
    ]
    value = receipt()
    for change, text in reversed(problems):
        value = changed(value, **change)
        assert text in said(value, LifecycleReceipt)


# -- input that is no document


@pytest.mark.parametrize(
    "data",
    [
        "", " ", "nope", "{", '{"a":1} x', "[1]", '"x"', "1", "null", "NaN", "{'a':1}", '{"a":1e400}',
        '{"a":"\\ud800"}', b"\xff{}", b'{"a":"\xff"}', "\ud800", b"\xef\xbb\xbf{}",
        '{"a":' + "9" * 5000 + "}", "[" * 100_000,
    ],
    ids=lambda data: repr(data[:9]),
)  # fmt: skip
def test_what_is_no_json_object_is_unreadable(data: bytes | str) -> None:
    with pytest.raises(errors.UndecodableDocument) as refused:
        decode(data, CallbackRequest)
    assert refused.value.code == "lifecycle.undecodable_document"
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(("data", "said"), [(b" \n", "it is empty"), (b"junk", "invalid character (byte 0)")])
def test_what_is_unreadable_says_why(data: bytes, said: str) -> None:
    with pytest.raises(errors.UndecodableDocument, match=re.escape(f"the input is no JSON: {said}")):
        decode(data, CallbackRequest)


def test_a_document_has_a_largest_size() -> None:
    text = json.dumps(payload())
    padded = text + " " * (DOCUMENT_BYTES_MAX - len(text))
    assert decode(padded, PayloadEnvelope) == decode(text.encode(), PayloadEnvelope)
    with pytest.raises(errors.UndecodableDocument, match="more than 16777216"):
        decode(padded + " ", PayloadEnvelope)


def test_nesting_has_a_limit() -> None:
    def nested(depth: int) -> str:
        return '{"x":' * (depth - 1) + "{}" + "}" * (depth - 1)

    with pytest.raises(errors.InvalidRequest, match="missing field"):
        decode(nested(DEPTH_MAX), CallbackRequest)
    for depth in (DEPTH_MAX + 1, 100_000):
        with pytest.raises(errors.UndecodableDocument, match="deeper than 64 levels"):
            decode(nested(depth), CallbackRequest)
    with pytest.raises(errors.UndecodableDocument, match="deeper"):
        decode('{"x":' + "[" * DEPTH_MAX + "]" * DEPTH_MAX + "}", CallbackRequest)


def test_parsing_alone_takes_any_json() -> None:
    assert parse("[1]") == [1]
    assert parse(b'"x"') == "x"


# -- output


def test_output_is_compact_and_in_the_order_of_the_contract() -> None:
    asked = request(
        schema_version=V02, metadata={"b": 1, "a": 2}, harness_run_id="r", payload_refs=[], sequence=0, flarb=1
    )
    backwards = dict(reversed(asked.items()))
    assert encode(decode(json.dumps(backwards), CallbackRequest)) == (
        b'{"schema_version":"lifeloop.v0.2","event":"session.started","event_id":"evt-1","adapter_id":"codex",'
        b'"adapter_version":"0.1.0","integration_mode":"native_hook","invocation_id":"inv-1","harness_run_id":"r",'
        b'"sequence":0,"metadata":{"b":1,"a":2}}'
    )


def test_what_is_unset_is_left_out_and_an_unset_failure_is_null() -> None:
    """LA-9."""
    written = json.loads(encode(decode_value(receipt(), LifecycleReceipt)))
    assert not {"harness_session_id", "harness_run_id", "harness_task_id", "warnings", "payload_receipts"} & set(
        written
    )
    assert (written["failure_class"], written["retry_class"]) == (None, None)
    assert list(written)[-2:] == ["failure_class", "retry_class"]
    assert (written["idempotency_key"], written["sequence"], written["parent_receipt_id"]) == (None, None, None)


def test_text_is_written_as_utf_8() -> None:
    assert "grün…😀".encode() in encode(decode_value(payload(body="grün…😀"), PayloadEnvelope))


def test_the_declared_size_of_a_body_is_not_compared_with_it() -> None:
    assert decode_value(payload(body="x" * 20, byte_size=21), PayloadEnvelope).byte_size == 21


@given(anything)
def test_a_document_comes_back_from_its_bytes(document: documents.Document) -> None:
    kind = type(document)
    data = encode(document)
    assert decode(data, kind) == document
    assert encode(decode(data, kind)) == data
    assert restore(data, kind) == document
    validate(document)


@given(anything, st.data())
def test_a_changed_document_is_read_or_refused(document: documents.Document, data: st.DataObject) -> None:
    """Whatever somebody puts where: a document or a `ValidationError`, and what was read is stable."""
    value = json.loads(encode(document))
    inside, name = value, data.draw(st.sampled_from(sorted(value)))
    while isinstance(inside[name], dict) and inside[name] and data.draw(st.booleans()):
        inside = inside[name]
        name = data.draw(st.sampled_from(sorted(inside)))
    inside[data.draw(st.just(name) | st.text(max_size=5))] = data.draw(json_values)
    _read_or_refused(json.dumps(value), type(document))


@given(json_values, st.sampled_from([CallbackRequest, LifecycleReceipt, AdapterManifest, NegotiatedPlan, Chosen]))
def test_any_json_is_read_or_refused(value: object, kind: type[Any]) -> None:
    _read_or_refused(json.dumps(value), kind)


@given(st.binary(max_size=30) | st.text(max_size=30))
def test_any_bytes_are_read_or_refused(data: bytes | str) -> None:
    _read_or_refused(data, CallbackRequest)


def _read_or_refused(data: bytes | str, kind: type[Any]) -> None:
    refused = None
    try:
        read = decode(data, kind)
    except errors.ValidationError as error:
        refused = error
    if refused is not None:
        with pytest.raises(type(refused), match=re.escape(str(refused))):
            decode(data, kind)
        return
    written = encode(read)
    assert decode(written, kind) == read
    assert encode(decode(written, kind)) == written


# -- documents made in the program


def made(**changes: Any) -> CallbackRequest:
    """A request made without reading it."""
    fields: dict[str, Any] = {**request(), **changes}
    return CallbackRequest(**fields)


def test_validating_says_what_reading_would_say() -> None:
    validate(made())
    with pytest.raises(errors.InvalidRequest, match="unknown variant `frame"):
        validate(made(event="frame.flarbed"))
    with pytest.raises(errors.EmptyField, match=r"request\.event_id"):
        validate(made(event_id=""))
    with pytest.raises(errors.SchemaVersionMismatch):
        validate(made(schema_version="lifeloop.v0"))


@pytest.mark.parametrize("value", [math.nan, b"x", (1,), {1: 2}])
def test_validating_refuses_what_json_would_change(value: object) -> None:
    with pytest.raises(errors.InvalidRequest, match="a value that JSON changes"):
        validate(made(metadata={"k": value}))


@pytest.mark.parametrize("value", ["\ud800", object(), 10**5000], ids=["half a pair", "object", "digits"])
def test_what_json_cannot_hold_is_not_written(value: object) -> None:
    with pytest.raises(errors.InvalidRequest, match="a value that JSON cannot"):
        encode(made(metadata={"k": value}))


def test_what_holds_itself_is_not_written() -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    with pytest.raises(errors.InvalidRequest, match="a value that JSON cannot"):
        encode(made(metadata=loop))


def test_restoring_refuses_bytes_of_another_kind() -> None:
    with pytest.raises(errors.UndecodableDocument, match="no LifecycleReceipt that we wrote"):
        restore(encode(made()), LifecycleReceipt)
    with pytest.raises(errors.UndecodableDocument):
        restore(b"\xff", CallbackRequest)


def test_a_plan_blocks_when_nobody_may_be_called() -> None:
    plan = documents.RoutingPlan(
        schema_version=V02,
        event="session.started",
        event_id="e",
        invocation_id="i",
        adapter=decode_value(manifest(), AdapterManifest),
        integration_mode="native_hook",
    )
    blocked = [NegotiatedPlan(plan=plan, outcome=outcome).blocks_dispatch for outcome in enums.NEGOTIATION_OUTCOMES]
    assert blocked == [True, True, False, False]


def test_a_plan_keeps_its_manifest_under_the_manifests_own_label() -> None:
    adapter = decode_value(manifest(contract_version=V01, known_degradations=[]), AdapterManifest)
    plan = documents.RoutingPlan(
        schema_version=V03,
        event="session.started",
        event_id="e",
        invocation_id="i",
        adapter=adapter,
        integration_mode="native_hook",
    )
    validate(plan)
    with pytest.raises(errors.InvalidManifest, match=r"missing field `manifest\.role`"):
        decode_value(changed(json.loads(encode(plan)), adapter=manifest(role=ABSENT)), documents.RoutingPlan)


def test_a_decision_says_which_one_it_is() -> None:
    plan = documents.RoutingPlan(
        schema_version=V03,
        event="session.started",
        event_id="e",
        invocation_id="i",
        adapter=decode_value(manifest(), AdapterManifest),
        integration_mode="native_hook",
    )
    value = json.loads(encode(NegotiatedPlan(plan=plan, outcome="satisfied")))
    skipped = {"decision": "skipped", "payload_id": "p", "payload_kind": "k", "byte_size": 1}
    read = decode_value({**value, "placement_decisions": [skipped]}, NegotiatedPlan)
    assert read.placement_decisions == (documents.Skipped(payload_id="p", payload_kind="k", byte_size=1),)
    wrong: list[tuple[object, str]] = [
        (1, "expected an object, found an integer"),
        (changed(skipped, decision=ABSENT), "missing field `negotiated.placement_decisions[0].decision`"),
        (changed(skipped, decision=1), "expected a string, found an integer"),
        (changed(skipped, decision="lost"), "unknown variant `lost`"),
    ]
    for decision, text in wrong:
        assert text in said({**value, "placement_decisions": [decision]}, NegotiatedPlan)


def test_our_own_open_objects_have_their_keys_in_order() -> None:
    assert documents.warning("c", "m") == {"code": "c", "message": "m"}
    assert list(documents.warning("c", "m", capability="x")) == ["code", "message", "capability"]
    assert documents.degradation("x", "native", "manual") == {
        "capability": "x",
        "previous_support": "native",
        "current_support": "manual",
    }
    whole = documents.degradation("x", "native", "manual", evidence="e", retry_class="do_not_retry")
    assert list(whole)[3:] == ["evidence", "retry_class"]


def test_a_frame_context_alone_is_a_document() -> None:
    assert decode_value({"frame_id": "f", "frame_class": "subcall"}, FrameContext).frame_class == "subcall"
    assert said({"frame_id": "f"}, FrameContext) == "missing field `frame_context.frame_class`"


def test_documents_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        made().event_id = "other"


def test_every_struct_of_the_contract_can_be_decoded() -> None:
    for name in documents.__all__:
        kind = getattr(documents, name)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            msgspec.json.Decoder(kind)
