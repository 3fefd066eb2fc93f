"""Errors of the lifecycle slice: their tree, codes, messages, and surviving a trip through pickle and copy."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest

from holdfast.core.errors import HoldfastError
from holdfast.lifecycle import errors
from holdfast.lifecycle.errors import (
    ChainBroken,
    EmptyField,
    LifecycleError,
    ReceiptError,
    RouteError,
    SubprocessError,
    TelemetryError,
    TransportError,
    ValidationError,
)

BRANCHES = {
    "LifecycleError", "ValidationError", "RouteError", "TransportError", "SubprocessError", "ReceiptError",
    "TelemetryError", "HookError", "ContinuationError",
}  # fmt: skip

SAMPLES: list[LifecycleError] = [
    errors.AdapterIdNotFound("kodex"),
    errors.AdapterVersionMismatch("codex", "9.9.9", "0.1.0"),
    errors.ChainBroken('["run","r"]', 3, "rcp-3", "body_changed"),
    errors.ContinuationConflict("thread", "plan", 0, 2),
    errors.ContinuationRefused("no"),
    errors.EmptyField("request.event_id"),
    errors.EmptySentinel("request.event_id"),
    errors.EventInFlight(1_778_100_000_000_000),
    errors.HookProtocol("no session id"),
    errors.InvalidEventEnvelope("no"),
    errors.InvalidFrameContext("no"),
    errors.InvalidManifest("no"),
    errors.InvalidObservation("no"),
    errors.InvalidPayload("no"),
    errors.InvalidPayloadRef(2, "empty"),
    errors.InvalidReceipt("no"),
    errors.InvalidRequest("no"),
    errors.InvalidResponse("no"),
    errors.NonZeroExit(3, None, "boom\n"),
    errors.OutputTooLarge(1_048_576),
    errors.ReceiptConflict("0123456789abcdef", "rcp-1", ["status", "warnings"]),
    errors.ReceiptEmittedNotEmittable(),
    errors.ReceiptEmittedRejected("no"),
    errors.ReceiptInvalid(errors.EmptyField("receipt.client_id")),
    errors.SchemaVersionMismatch(["lifeloop.v0.1"], "lifeloop.v0"),
    errors.SettingsChanged("no"),
    errors.SettingsUnreadable("no"),
    errors.SubprocessInvalidResponse("no"),
    errors.SubprocessParseResponse("no"),
    errors.SubprocessReadResponse("no"),
    errors.SubprocessSerializeRequest("no"),
    errors.SubprocessSpawn("no"),
    errors.SubprocessTimeout("no"),
    errors.SubprocessWriteRequest("no"),
    errors.TelemetryInternal("no"),
    errors.TelemetryUnavailable("no"),
    errors.TransportInternal("no"),
    errors.TransportIo("no"),
    errors.TransportTimeout(),
    errors.UndecodableDocument("no"),
    errors.UndecodableHook("no"),
    errors.UnknownEnumName("request.integration_mode", "telepathy"),
    errors.UnknownEventName("frame.flarbed"),
]


def leaves() -> dict[str, type[LifecycleError]]:
    found = {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, LifecycleError) and not name.startswith("_")
    }
    return {name: value for name, value in found.items() if name not in BRANCHES}


def test_every_leaf_is_sampled_and_exported() -> None:
    assert {type(sample).__name__ for sample in SAMPLES} == set(leaves())
    assert set(leaves()) | BRANCHES <= set(errors.__all__)


def test_a_code_is_the_name_without_its_branch() -> None:
    for name, leaf in leaves().items():
        own = name
        for branch in ("Subprocess", "Transport", "Telemetry", "Receipt"):
            if name.startswith(branch) and name not in {
                "TelemetryUnavailable", "TelemetryInternal", "ReceiptEmittedNotEmittable", "ReceiptEmittedRejected",
                "SubprocessTimeout", "SubprocessInvalidResponse",
            }:  # fmt: skip
                own = name.removeprefix(branch)
        assert leaf.code == "lifecycle." + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", own).lower()


@pytest.mark.parametrize("error", SAMPLES, ids=lambda each: type(each).__name__)
def test_an_error_survives_pickling_and_copying(error: LifecycleError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own bytes
        assert type(twin) is type(error)
        assert (twin.code, twin.message, twin.hint, str(twin)) == (error.code, error.message, error.hint, str(error))
        assert set(vars(twin)) == set(vars(error))
    assert isinstance(error, HoldfastError)
    assert str(error)


def test_branches_hold_their_leaves() -> None:
    for name, leaf in leaves().items():
        branches = [branch for branch in leaf.__mro__ if branch.__name__ in BRANCHES - {"LifecycleError"}]
        assert len(branches) == {
            "SchemaVersionMismatch": 2, "InvalidFrameContext": 2, "ChainBroken": 0, "EventInFlight": 0,
        }.get(name, 1), name  # fmt: skip


def test_shared_leaves_can_be_caught_as_either() -> None:
    for kind in (ValidationError, RouteError):
        with pytest.raises(kind):
            raise errors.InvalidFrameContext("half a frame")
        with pytest.raises(kind):
            raise errors.SchemaVersionMismatch(["a"], "b")


def test_messages_show_eight_characters_of_a_key() -> None:
    error = errors.ReceiptConflict("0123456789abcdef", "rcp-1", ["status"])
    assert "duplicate_id_conflict" in str(error)
    assert "01234567…" in str(error)
    assert "89ab" not in str(error)
    assert (error.key, error.stored_receipt_id, error.fields) == ("0123456789abcdef", "rcp-1", ("status",))
    assert "key 01234567 and" in str(errors.ReceiptConflict("01234567", "rcp-1", ["status"]))


def test_messages_cut_what_a_document_said() -> None:
    long = "x" * 10_000
    for error in (
        errors.AdapterIdNotFound(long),
        errors.AdapterVersionMismatch("codex", long, "0.1.0"),
        errors.SchemaVersionMismatch(["a"], long),
        errors.UnknownEventName(long),
        errors.ChainBroken(long, 1, long, "missing_row"),
    ):
        assert len(str(error)) < 400
        assert "…" in str(error)
    assert errors.quoted("short") == "short"


def test_a_transport_error_has_a_json_form() -> None:
    for kind, leaf in {
        "io": errors.TransportIo,
        "timeout": errors.TransportTimeout,
        "internal": errors.TransportInternal,
    }.items():
        error = errors.transport_error(kind, "broken pipe")
        assert type(error) is leaf
        assert error.to_json() == {"kind": kind, "detail": "broken pipe"}
        assert str(error).endswith(": broken pipe")
        assert isinstance(error, TransportError)
    assert errors.transport_error("timeout").to_json() == {"kind": "timeout"}
    assert str(errors.TransportTimeout()) == "the client did not answer in time"
    with pytest.raises(errors.UnknownEnumName, match="unknown variant `pigeon`"):
        errors.transport_error("pigeon")


def test_an_exit_names_code_or_signal_and_the_end_of_stderr() -> None:
    assert str(errors.NonZeroExit(3, None, " boom\n")) == "the client's program ended with exit code 3: boom"
    assert str(errors.NonZeroExit(None, 9)) == "the client's program was ended by signal 9"
    assert isinstance(errors.NonZeroExit(3, None), SubprocessError)


def test_a_broken_chain_names_the_receipt_if_one_is_to_blame() -> None:
    assert str(ChainBroken("c", 2, "rcp-2", "body_changed")) == "chain c is broken at 2 (receipt rcp-2): body_changed"
    assert str(ChainBroken("c", 2, "", "head_mismatch")) == "chain c is broken at 2: head_mismatch"


def test_an_invalid_receipt_keeps_its_cause() -> None:
    cause = EmptyField("receipt.client_id")
    error = errors.ReceiptInvalid(cause)
    assert error.cause is cause
    assert isinstance(error, ReceiptError)
    assert str(cause) in str(error)


def test_a_hook_without_a_session_is_a_matter_of_telemetry() -> None:
    assert isinstance(errors.HookProtocol("no session id"), TelemetryError)
