"""Verdicts on fixtures: what passes, what fails, and why."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.lifecycle_documents import FULL_MANIFEST, payload, receipt, request

from holdfast.lifecycle.conformance import Verdict, judge

OBSERVATION = {"adapter_id": "codex", "observed_at_epoch_s": 1778100050, "context_used_pct": 31}
EMPTY = "empty sentinel string in field `request.event_id`"


def verdict(kind: object, data: object, expect: object = "valid", **more: Any) -> Verdict:
    return judge("f.json", json.dumps({"kind": kind, "expect": expect, "data": data, **more}).encode())


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("callback_request", request()),
        ("payload_envelope", payload()),
        ("lifecycle_receipt", receipt()),
        ("adapter_manifest", FULL_MANIFEST),
        ("pressure_observation", OBSERVATION),
        ("failure_mapping", {"failure_class": "timeout", "expected_retry_class": "safe_retry"}),
        (
            "failure_mapping",
            {
                "failure_class": "internal_error",
                "expected_retry_class": "retry_after_reread",
                "transport_example": {"kind": "internal"},
            },
        ),
        ("capability_negotiation", {"outcome": "degraded", "expected": None}),
        (
            "capability_negotiation",
            {
                "outcome": "unsupported",
                "failure_class": "payload_too_large",
                "expected": {"failure_class": "payload_too_large", "retry_class": "do_not_retry"},
            },
        ),
        (
            "client_class",
            {"client_id": "ccd", "payload_kinds": ["instruction_frame"], "example_payload": payload()},
        ),
    ],
)
def test_what_we_agree_with_passes_and_fails_when_an_error_is_expected(kind: str, data: dict[str, Any]) -> None:
    assert verdict(kind, data) == Verdict("f.json", kind, "valid", "pass")
    flipped = verdict(kind, data, "invalid")
    assert flipped.verdict == "fail"
    assert flipped.error == "the data is valid, though the fixture expects an error"


@pytest.mark.parametrize(
    ("kind", "data", "error"),
    [
        ("callback_request", request(event_id=""), EMPTY),
        ("callback_request", None, "no object"),
        ("failure_mapping", [], "`data` is no object"),
        ("failure_mapping", {"failure_class": "tired"}, "unknown variant `tired` in field `failure_class`"),
        ("failure_mapping", {"failure_class": 7}, "unknown variant `7` in field `failure_class`"),
        (
            "failure_mapping",
            {"failure_class": "timeout", "expected_retry_class": "do_not_retry"},
            "the retry class of `timeout` is safe_retry, not do_not_retry",
        ),
        (
            "failure_mapping",
            {
                "failure_class": "timeout",
                "expected_retry_class": "safe_retry",
                "transport_example": {"kind": "io", "detail": "broken pipe"},
            },
            "the failure class of transport error `io` is transport_error, not timeout",
        ),
        (
            "failure_mapping",
            {"failure_class": "timeout", "expected_retry_class": "safe_retry", "transport_example": {}},
            "unknown variant `None` in field `kind`",
        ),
        ("capability_negotiation", {"outcome": "fine"}, "unknown variant `fine` in field `outcome`"),
        (
            "capability_negotiation",
            {"outcome": "requires_operator", "expected": None},
            "what `requires_operator` projects to is ('operator_required', 'retry_after_operator'), not None",
        ),
        ("capability_negotiation", {"outcome": "satisfied", "expected": "x"}, "`expected` is no object"),
        (
            "client_class",
            {"client_id": "other", "payload_kinds": ["instruction_frame"], "example_payload": payload()},
            "the client of the example payload is ccd, not other",
        ),
        (
            "client_class",
            {"client_id": "ccd", "payload_kinds": ["audit_record"], "example_payload": payload()},
            "payload kind `instruction_frame` is not listed",
        ),
        ("client_class", {"client_id": "ccd", "payload_kinds": 1, "example_payload": payload()}, "not listed"),
        ("client_class", {"client_id": "ccd"}, "no object"),
    ],
)
def test_what_we_do_not_agree_with_fails_and_passes_when_that_error_is_expected(
    kind: str, data: object, error: str
) -> None:
    failed = verdict(kind, data)
    assert failed.verdict == "fail"
    assert error in (failed.error or "")
    assert verdict(kind, data, "invalid", expect_error=error).verdict == "pass"
    assert verdict(kind, data, "invalid").verdict == "pass"
    other = verdict(kind, data, "invalid", expect_error="another error")
    assert other.verdict == "fail"
    assert error in (other.error or "")


def test_a_bare_request_is_a_fixture_that_expects_to_be_valid() -> None:
    bare = judge("f.json", json.dumps(request()).encode())
    assert bare == Verdict("f.json", "callback_request", "valid", "pass")
    wrong = judge("f.json", json.dumps(request(event_id="")).encode())
    assert wrong == Verdict("f.json", "callback_request", "valid", "fail", EMPTY)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"x"', b"\xff", b"{} {}"])
def test_a_file_that_is_no_fixture_fails(data: bytes) -> None:
    found = judge("f.json", data)
    assert (found.kind, found.expect, found.verdict) == (None, None, "fail")
    assert found.error


@pytest.mark.parametrize("kind", [None, 1, "", "poem", ["callback_request"]])
def test_an_unknown_kind_fails(kind: object) -> None:
    found = verdict(kind, request())
    assert found.verdict == "fail"
    assert "unknown kind" in (found.error or "")


@pytest.mark.parametrize("expect", [None, True, "", "Valid", "maybe"])
def test_an_unknown_expectation_fails(expect: object) -> None:
    found = verdict("callback_request", request(), expect)
    assert found.verdict == "fail"
    assert "unknown expectation" in (found.error or "")


def test_an_object_without_kind_that_is_no_request_fails() -> None:
    found = judge("f.json", json.dumps(receipt(event_id="e")).replace('"event"', '"occasion"').encode())
    assert found.verdict == "fail"
