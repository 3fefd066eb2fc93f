"""What a recorded fixture of the contract says, and whether we agree.

A fixture is an object with a `kind`, an expectation and `data`; a bare callback request is a fixture too, expected
to be valid. Kinds of documents are decoded under the label they name. The other kinds ask what a failure means, how
a negotiation ends, and whether a client's example keeps to what the client says of itself.

Invariants:
    - Every input has a verdict: what cannot be read, or is of no known kind, fails.
    - A fixture that expects an error passes only with that error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import msgspec

from holdfast.lifecycle import enums, wire
from holdfast.lifecycle.documents import (
    AdapterManifest,
    CallbackRequest,
    LifecycleReceipt,
    PayloadEnvelope,
    PressureObservation,
)
from holdfast.lifecycle.errors import LifecycleError, ValidationError, quoted, transport_error
from holdfast.lifecycle.failures import default_retry, failure_of, project

__all__ = ["Verdict", "judge"]

W = TypeVar("W", bound=str)

_REQUEST = "callback_request"
_DOCUMENTS: dict[str, type[msgspec.Struct]] = {
    _REQUEST: CallbackRequest,
    "payload_envelope": PayloadEnvelope,
    "lifecycle_receipt": LifecycleReceipt,
    "adapter_manifest": AdapterManifest,
    "pressure_observation": PressureObservation,
}


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether we agree with a fixture.

    Attributes:
        file: The fixture's name.
        kind: What it is of; None where it says nothing that can be understood.
        expect: What it expects; None likewise.
        verdict: `pass` or `fail`.
        error: What was found wrong, with the data or with the fixture.
    """

    file: str
    kind: str | None
    expect: str | None
    verdict: Literal["pass", "fail"]
    error: str | None = None


class _Mismatch(LifecycleError):
    """The data says something else than we do."""


def judge(file: str, data: bytes) -> Verdict:
    """Say whether we agree with a fixture.

    Args:
        file: Its name, for the verdict.
        data: Its content.
    """
    try:
        fixture = wire.parse(data)
    except ValidationError as error:
        return Verdict(file, None, None, "fail", str(error))
    if not isinstance(fixture, dict):
        return Verdict(file, None, None, "fail", "the fixture is no object")
    if "kind" not in fixture and "schema_version" in fixture and "event" in fixture:
        fixture = {"kind": _REQUEST, "expect": "valid", "data": fixture}
    kind, expect = _text(fixture.get("kind")), _text(fixture.get("expect"))
    check = _check(kind)
    if check is None or expect not in ("valid", "invalid"):
        what = f"kind `{kind}`" if check is None else f"expectation `{expect}`"
        return Verdict(file, kind, expect, "fail", f"the fixture has the unknown {what}")
    try:
        check(fixture.get("data"))
    except LifecycleError as error:
        expected = expect == "invalid" and str(fixture.get("expect_error", "")) in str(error)
        return Verdict(file, kind, expect, "pass" if expected else "fail", str(error))
    if expect == "invalid":
        return Verdict(file, kind, expect, "fail", "the data is valid, though the fixture expects an error")
    return Verdict(file, kind, expect, "pass")


def _text(value: object) -> str | None:
    return quoted(value) if isinstance(value, str) else None


def _check(kind: str | None) -> Callable[[Any], None] | None:
    if kind in _DOCUMENTS:
        document = _DOCUMENTS[kind]
        return lambda data: _check_document(data, document)
    return {
        "failure_mapping": _check_failure,
        "capability_negotiation": _check_negotiation,
        "client_class": _check_client,
    }.get(kind or "")


def _check_document(data: object, kind: type[msgspec.Struct]) -> None:
    wire.decode_value(data, kind)


def _check_failure(data: object) -> None:
    fields = _object(data, "data")
    failure = _word(fields, "failure_class", enums.FAILURE_CLASSES)
    retry = _word(fields, "expected_retry_class", enums.RETRY_CLASSES)
    _agree(f"the retry class of `{failure}`", default_retry(failure), retry)
    if fields.get("transport_example") is None:
        return
    example = _object(fields["transport_example"], "transport_example")
    error = transport_error(str(example.get("kind")), str(example.get("detail", "")))
    _agree(f"the failure class of transport error `{error.kind}`", failure_of(error)[0], failure)


def _check_negotiation(data: object) -> None:
    fields = _object(data, "data")
    outcome = _word(fields, "outcome", enums.NEGOTIATION_OUTCOMES)
    failure = None
    if fields.get("failure_class") is not None:
        failure = _word(fields, "failure_class", enums.FAILURE_CLASSES)
    wanted = None
    if fields.get("expected") is not None:
        pair = _object(fields["expected"], "expected")
        wanted = (
            _word(pair, "failure_class", enums.FAILURE_CLASSES),
            _word(pair, "retry_class", enums.RETRY_CLASSES),
        )
    _agree(f"what `{outcome}` projects to", project(outcome, failure), wanted)


def _check_client(data: object) -> None:
    fields = _object(data, "data")
    payload = wire.decode_value(fields.get("example_payload"), PayloadEnvelope)
    _agree("the client of the example payload", payload.client_id, fields.get("client_id"))
    kinds = fields.get("payload_kinds")
    if not isinstance(kinds, list) or payload.payload_kind not in kinds:
        raise _Mismatch(f"payload kind `{quoted(payload.payload_kind)}` is not listed in `payload_kinds`")


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Mismatch(f"`{name}` is no object")
    return value


def _word(fields: dict[str, Any], name: str, words: tuple[W, ...]) -> W:
    for word in words:
        if fields.get(name) == word:
            return word
    raise _Mismatch(f"unknown variant `{quoted(str(fields.get(name)))}` in field `{name}`")


def _agree(what: str, ours: object, theirs: object) -> None:
    if ours != theirs:
        raise _Mismatch(f"{what} is {ours}, not {quoted(str(theirs))}")
