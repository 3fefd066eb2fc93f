"""Every failure has its class and every class its retry, the same in every process."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from tests.flow.commandline import ROOT

from holdfast.core import errors as core
from holdfast.lifecycle import errors
from holdfast.lifecycle.enums import FAILURE_CLASSES, NEGOTIATION_OUTCOMES, RETRY_CLASSES, FailureClass, RetryClass
from holdfast.lifecycle.machine import default_retry, failure_of, project

RETRIES: dict[FailureClass, RetryClass] = {
    "adapter_unavailable": "retry_after_reconfigure",
    "capability_unsupported": "do_not_retry",
    "capability_degraded": "retry_after_reread",
    "placement_unavailable": "retry_after_reconfigure",
    "payload_too_large": "do_not_retry",
    "payload_rejected": "do_not_retry",
    "identity_unavailable": "retry_after_reconfigure",
    "transport_error": "safe_retry",
    "timeout": "safe_retry",
    "operator_required": "retry_after_operator",
    "state_conflict": "retry_after_reread",
    "invalid_request": "do_not_retry",
    "internal_error": "retry_after_reread",
}

CLASSES: list[tuple[BaseException, FailureClass]] = [
    (errors.TransportIo("broken pipe"), "transport_error"),
    (errors.TransportTimeout(), "timeout"),
    (errors.TransportInternal("it raised"), "internal_error"),
    (errors.AdapterIdNotFound("x"), "adapter_unavailable"),
    (errors.AdapterVersionMismatch("x", "2", "1"), "adapter_unavailable"),
    (errors.EmptySentinel("request.event_id"), "invalid_request"),
    (errors.UnknownEventName("x"), "invalid_request"),
    (errors.UnknownEnumName("request.integration_mode", "x"), "invalid_request"),
    (errors.InvalidPayloadRef(2, "x"), "invalid_request"),
    (errors.InvalidEventEnvelope("x"), "invalid_request"),
    (errors.SchemaVersionMismatch(("a",), "b"), "invalid_request"),
    (errors.InvalidFrameContext("x"), "invalid_request"),
    (errors.UndecodableDocument("x"), "invalid_request"),
    (errors.EmptyField("x"), "invalid_request"),
    (errors.InvalidReceipt("x"), "invalid_request"),
    (errors.SubprocessSpawn("x"), "transport_error"),
    (errors.SubprocessWriteRequest("x"), "transport_error"),
    (errors.SubprocessReadResponse("x"), "transport_error"),
    (errors.NonZeroExit(3, None, "no"), "transport_error"),
    (errors.SubprocessTimeout("x"), "timeout"),
    (errors.SubprocessSerializeRequest("x"), "internal_error"),
    (errors.SubprocessParseResponse("x"), "invalid_request"),
    (errors.SubprocessInvalidResponse("x"), "invalid_request"),
    (errors.ReceiptEmittedRejected("x"), "invalid_request"),
    (errors.OutputTooLarge(1), "invalid_request"),
    (errors.ReceiptConflict("key", "rcp-1", ["status"]), "state_conflict"),
    (errors.ReceiptEmittedNotEmittable(), "invalid_request"),
    (errors.ReceiptInvalid(errors.InvalidReceipt("x")), "invalid_request"),
    (errors.TelemetryUnavailable("x"), "capability_degraded"),
    (errors.HookProtocol("x"), "invalid_request"),
    (errors.TelemetryInternal("x"), "internal_error"),
    (errors.UndecodableHook("x"), "internal_error"),
    (errors.SettingsUnreadable("x"), "internal_error"),
    (errors.ContinuationRefused("x"), "internal_error"),
    (errors.ContinuationConflict("thread", "name", 2, 1), "internal_error"),
    (errors.EventInFlight(1), "internal_error"),
    (errors.ChainBroken("c", 1, "rcp-1", "body_changed"), "internal_error"),
    (core.Busy("x"), "state_conflict"),
    (core.Unavailable("x"), "state_conflict"),
    (core.Conflict("x"), "state_conflict"),
    (core.SchemaMismatch("x"), "internal_error"),
    (core.Closed("x"), "internal_error"),
    (core.ConfigError("x"), "internal_error"),
    (TimeoutError(), "internal_error"),
    (ZeroDivisionError(), "internal_error"),
    (asyncio.CancelledError(), "internal_error"),
    (ExceptionGroup("x", [errors.TransportTimeout()]), "internal_error"),
]


def test_every_class_has_the_retry_of_the_contract() -> None:
    """LA-47."""
    assert {failure: default_retry(failure) for failure in FAILURE_CLASSES} == RETRIES
    assert set(RETRIES.values()) == set(RETRY_CLASSES)


@pytest.mark.parametrize(("error", "failure"), CLASSES, ids=lambda each: type(each).__name__ if each else "")
def test_an_error_has_its_class_and_the_default_retry_of_it(error: BaseException, failure: FailureClass) -> None:
    assert failure_of(error) == (failure, default_retry(failure))


def test_every_error_of_the_slice_is_tried_here_or_stands_in_the_row_of_its_branch() -> None:
    leaves, unseen = set(), [errors.LifecycleError]
    while unseen:
        below = [kind for kind in unseen.pop().__subclasses__() if kind.__module__.startswith("holdfast.")]
        unseen += below
        leaves.update(kind for kind in below if not kind.__subclasses__())
    tried = {type(error) for error, _ in CLASSES}
    of_one_row = (errors.ValidationError, errors.RouteError, errors.HookError)
    untried = leaves - tried
    assert {leaf for leaf in untried if not leaf.__name__.startswith("_") and not issubclass(leaf, of_one_row)} == set()


def test_the_class_of_an_error_is_the_same_in_another_process() -> None:
    script = (
        "from tests.unit import test_lifecycle_failures as t; print([t.failure_of(error) for error, _ in t.CLASSES])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": "src"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str([failure_of(error) for error, _ in CLASSES])


def test_an_error_that_lies_about_itself_has_a_class_too() -> None:
    class Liar(Exception):
        @property
        def __class__(self) -> type:  # what isinstance would ask
            raise RuntimeError

    assert failure_of(Liar()) == ("internal_error", "retry_after_reread")


@pytest.mark.parametrize("error", [error for error, _ in CLASSES if not isinstance(error, ExceptionGroup)], ids=repr)
def test_a_subclass_has_the_class_of_its_base(error: BaseException) -> None:
    kind = type("Own", (type(error),), {})
    assert failure_of(kind.__new__(kind)) == failure_of(error)


@pytest.mark.parametrize("failure", [None, *FAILURE_CLASSES])
def test_an_outcome_stands_for_the_failure_of_the_contract(failure: FailureClass | None) -> None:
    expected: FailureClass = failure or "capability_unsupported"
    assert project("unsupported", failure) == (expected, default_retry(expected))
    assert project("requires_operator", failure) == ("operator_required", "retry_after_operator")
    assert project("degraded", failure) is None
    assert project("satisfied", failure) is None
    assert len(NEGOTIATION_OUTCOMES) == 4
