"""The errors of the lifecycle slice.

    HoldfastError
    └── LifecycleError
        ├── ValidationError    a document that is not one
        │       EmptyField, SchemaVersionMismatch, InvalidFrameContext, InvalidManifest, InvalidObservation,
        │       InvalidPayload, InvalidReceipt, InvalidRequest, InvalidResponse, UndecodableDocument
        ├── RouteError         a request that finds no adapter
        │       AdapterIdNotFound, AdapterVersionMismatch, EmptySentinel, InvalidEventEnvelope,
        │       InvalidFrameContext, InvalidPayloadRef, SchemaVersionMismatch, UnknownEnumName, UnknownEventName
        ├── TransportError     a client that could not be asked
        │       TransportInternal, TransportIo, TransportTimeout
        ├── SubprocessError    a client's program that did not answer as it should
        │       NonZeroExit, OutputTooLarge, ReceiptEmittedRejected, SubprocessInvalidResponse,
        │       SubprocessParseResponse, SubprocessReadResponse, SubprocessSerializeRequest, SubprocessSpawn,
        │       SubprocessTimeout, SubprocessWriteRequest
        ├── ReceiptError       a receipt that is not recorded
        │       ReceiptConflict, ReceiptEmittedNotEmittable, ReceiptInvalid
        ├── TelemetryError     nothing was observed
        │       HookProtocol, TelemetryInternal, TelemetryUnavailable
        ├── HookError          a harness's hook or its settings
        │       SettingsChanged, SettingsUnreadable, UndecodableHook
        ├── ContinuationError  a continuation that is not kept
        │       ContinuationConflict, ContinuationRefused
        ├── ChainBroken
        └── EventInFlight

A leaf's code is `lifecycle.` and its name in snake case, without the branch it begins with where that leaves a code
that no other leaf has: `TransportTimeout` is `lifecycle.timeout`, and `SubprocessTimeout` keeps its whole name.

Invariants:
    - A message names fields, events, adapters and ids, and of a key its first eight characters; never a payload.
    - What a document said is quoted up to `QUOTED_MAX` characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

from holdfast.core.errors import CodedError

__all__ = [
    "AdapterIdNotFound", "AdapterVersionMismatch", "ChainBreak", "ChainBroken", "ContinuationConflict",
    "ContinuationError", "ContinuationRefused", "EmptyField", "EmptySentinel", "EventInFlight", "HookError",
    "HookProtocol", "InvalidEventEnvelope", "InvalidFrameContext", "InvalidManifest", "InvalidObservation",
    "InvalidPayload", "InvalidPayloadRef", "InvalidReceipt", "InvalidRequest", "InvalidResponse",
    "LifecycleError", "NonZeroExit", "OutputTooLarge", "ReceiptConflict", "ReceiptEmittedNotEmittable",
    "ReceiptEmittedRejected", "ReceiptError", "ReceiptInvalid", "RouteError", "SchemaVersionMismatch",
    "SettingsChanged", "SettingsUnreadable", "SubprocessError", "SubprocessInvalidResponse",
    "SubprocessParseResponse", "SubprocessReadResponse", "SubprocessSerializeRequest", "SubprocessSpawn",
    "SubprocessTimeout", "SubprocessWriteRequest", "TelemetryError", "TelemetryInternal",
    "TelemetryUnavailable", "TransportError", "TransportInternal", "TransportIo", "TransportTimeout",
    "UndecodableDocument", "UndecodableHook", "UnknownEnumName", "UnknownEventName", "ValidationError",
    "quoted", "transport_error",
]  # fmt: skip

QUOTED_MAX = 100
"""How many characters of a document's text a message repeats: enough for every word of the contract."""

KEY_SHOWN = 8
"""How many characters of a key a message shows."""

ChainBreak: TypeAlias = Literal[
    "body_changed",
    "annotations_changed",
    "column_mismatch",
    "body_invalid",
    "missing_row",
    "head_mismatch",
    "counter_below_sequence",
    "orphan_intent",
]
"""What can be wrong with a chain of receipts."""


def quoted(text: str) -> str:
    """Return what a message may repeat of a text."""
    return text if len(text) <= QUOTED_MAX else text[: QUOTED_MAX - 1] + "…"


class LifecycleError(CodedError):
    """The root of what the lifecycle slice raises."""

    code = "lifecycle.error"


class _Detailed(LifecycleError):
    """An error that is one sentence.

    Attributes:
        detail: The sentence.
    """

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__(detail, hint)
        self.detail = detail


# --- documents ----------------------------------------------------------------------------------------


class ValidationError(LifecycleError):
    """A document does not follow the contract."""

    code = "lifecycle.validation"


class RouteError(LifecycleError):
    """A request cannot be routed."""

    code = "lifecycle.route"


class UndecodableDocument(_Detailed, ValidationError):
    """The input is no JSON object, or larger or deeper than any document may be."""

    code = "lifecycle.undecodable_document"


class EmptyField(ValidationError):
    """A text that must say something is empty.

    Attributes:
        field: The field, by its path from the document's root.
    """

    code = "lifecycle.empty_field"

    def __init__(self, field: str, *, within: str = "") -> None:
        super().__init__(f"empty sentinel string in field `{field}`{within}")
        self.field = field


class SchemaVersionMismatch(ValidationError, RouteError):
    """A document names a label that is unknown, or not the one of its dispatch.

    Attributes:
        expected: The labels that would have done.
        found: The one that is there.
    """

    code = "lifecycle.schema_version_mismatch"

    def __init__(self, expected: Sequence[str], found: str) -> None:
        wanted = expected[0] if len(expected) == 1 else f"one of {', '.join(expected)}"
        super().__init__(f"schema_version mismatch: expected {wanted}, found {quoted(found)}")
        self.expected = tuple(expected)
        self.found = found


class InvalidFrameContext(_Detailed, ValidationError, RouteError):
    """An event has no frame, half of one, or one that contradicts itself."""

    code = "lifecycle.invalid_frame_context"


class InvalidPayload(_Detailed, ValidationError):
    """A payload envelope breaks a rule."""

    code = "lifecycle.invalid_payload"


class InvalidReceipt(_Detailed, ValidationError):
    """A receipt breaks a rule."""

    code = "lifecycle.invalid_receipt"


class InvalidRequest(_Detailed, ValidationError):
    """A request, or the envelope it came in, breaks a rule."""

    code = "lifecycle.invalid_request"


class InvalidResponse(_Detailed, ValidationError):
    """A response breaks a rule."""

    code = "lifecycle.invalid_response"


class InvalidManifest(_Detailed, ValidationError):
    """A manifest breaks a rule."""

    code = "lifecycle.invalid_manifest"


class InvalidObservation(_Detailed, ValidationError):
    """An observation breaks a rule."""

    code = "lifecycle.invalid_observation"


# --- routing ------------------------------------------------------------------------------------------


class EmptySentinel(RouteError):
    """An identifier of the request is empty.

    Attributes:
        field: The field, by its path from the document's root.
    """

    code = "lifecycle.empty_sentinel"

    def __init__(self, field: str) -> None:
        super().__init__(f"empty sentinel string in field `{field}`")
        self.field = field


class UnknownEnumName(RouteError):
    """A field holds a word that its closed set lacks.

    Attributes:
        field: The field, by its path from the document's root.
        received: The word.
    """

    code = "lifecycle.unknown_enum_name"

    def __init__(self, field: str, received: str) -> None:
        super().__init__(f"unknown variant `{quoted(received)}` in field `{field}`")
        self.field = field
        self.received = received


class UnknownEventName(UnknownEnumName):
    """The request is about an event that does not exist."""

    code = "lifecycle.unknown_event_name"

    def __init__(self, received: str) -> None:
        super().__init__("request.event", received)


class InvalidPayloadRef(RouteError):
    """One of the request's references breaks a rule.

    Attributes:
        index: Which one, from 0.
        detail: The rule.
    """

    code = "lifecycle.invalid_payload_ref"

    def __init__(self, index: int, detail: str) -> None:
        super().__init__(f"request.payload_refs[{index}]: {detail}")
        self.index = index
        self.detail = detail


class InvalidEventEnvelope(_Detailed, RouteError):
    """The request breaks a rule that belongs to no single field."""

    code = "lifecycle.invalid_event_envelope"


class AdapterIdNotFound(RouteError):
    """No adapter of this id is registered.

    Attributes:
        adapter_id: The id, as it was asked for.
    """

    code = "lifecycle.adapter_id_not_found"

    def __init__(self, adapter_id: str) -> None:
        super().__init__(
            f"no adapter `{quoted(adapter_id)}` is registered", "`holdfast manifest list` shows those that are"
        )
        self.adapter_id = adapter_id


class AdapterVersionMismatch(RouteError):
    """The adapter is registered in another version.

    Attributes:
        adapter_id: The id, as it was asked for.
        requested: The version that was asked for.
        registered: The version that is registered.
    """

    code = "lifecycle.adapter_version_mismatch"

    def __init__(self, adapter_id: str, requested: str, registered: str) -> None:
        super().__init__(
            f"adapter `{quoted(adapter_id)}` is registered as version {registered}, not {quoted(requested)}"
        )
        self.adapter_id, self.requested, self.registered = adapter_id, requested, registered


# --- calling clients ----------------------------------------------------------------------------------


class TransportError(LifecycleError):
    """A client could not be asked, or its answer not be had.

    Attributes:
        kind: Which leaf it is, in its JSON form.
        detail: What happened; may be empty.
    """

    code = "lifecycle.transport"
    kind: ClassVar[Literal["io", "timeout", "internal"]]
    what: ClassVar[str]

    def __init__(self, detail: str = "") -> None:
        super().__init__(f"{self.what}: {detail}" if detail else self.what)
        self.detail = detail

    def to_json(self) -> dict[str, str]:
        """Return the error in its JSON form."""
        return {"kind": self.kind} | ({"detail": self.detail} if self.detail else {})


class TransportIo(TransportError):
    """The connection to the client broke."""

    code = "lifecycle.io"
    kind = "io"
    what = "the client could not be reached"


class TransportTimeout(TransportError):
    """The client did not answer in time."""

    code = "lifecycle.timeout"
    kind = "timeout"
    what = "the client did not answer in time"


class TransportInternal(TransportError):
    """The client raised instead of answering."""

    code = "lifecycle.internal"
    kind = "internal"
    what = "the client failed"


def transport_error(kind: str, detail: str = "") -> TransportError:
    """Return the error of a JSON form.

    Raises:
        UnknownEnumName: There is no such kind.
    """
    for leaf in (TransportIo, TransportTimeout, TransportInternal):
        if leaf.kind == kind:
            return leaf(detail)
    raise UnknownEnumName("kind", kind)


class SubprocessError(_Detailed):
    """A client's program did not answer as it should."""

    code = "lifecycle.subprocess"


class ReceiptEmittedRejected(SubprocessError):
    """`receipt.emitted` is never dispatched."""

    code = "lifecycle.receipt_emitted_rejected"


class SubprocessSpawn(SubprocessError):
    """The program could not be started."""

    code = "lifecycle.spawn"


class SubprocessWriteRequest(SubprocessError):
    """The program did not take its input."""

    code = "lifecycle.write_request"


class SubprocessSerializeRequest(SubprocessError):
    """The request could not be written as JSON."""

    code = "lifecycle.serialize_request"


class SubprocessReadResponse(SubprocessError):
    """The program's output could not be read."""

    code = "lifecycle.read_response"


class SubprocessParseResponse(SubprocessError):
    """The program's output is not one JSON document."""

    code = "lifecycle.parse_response"


class SubprocessInvalidResponse(SubprocessError):
    """The program's output is no valid response."""

    code = "lifecycle.subprocess_invalid_response"


class SubprocessTimeout(SubprocessError):
    """The program did not end in time, and was killed."""

    code = "lifecycle.subprocess_timeout"


class NonZeroExit(SubprocessError):
    """The program ended with a failure of its own.

    Attributes:
        exit_code: Its exit code; None when a signal ended it.
        signal: The signal's number; None when it ended by itself.
        stderr_tail: The end of what it wrote on standard error.
    """

    code = "lifecycle.non_zero_exit"

    def __init__(self, exit_code: int | None, signal: int | None, stderr_tail: str = "") -> None:
        how = f"ended with exit code {exit_code}" if signal is None else f"was ended by signal {signal}"
        how = f"the client's program {how}"
        super().__init__(f"{how}: {stderr_tail.strip()}" if stderr_tail.strip() else how)
        self.exit_code = exit_code
        self.signal = signal
        self.stderr_tail = stderr_tail


class OutputTooLarge(SubprocessError):
    """The program wrote more than is read, and was killed.

    Attributes:
        bytes_max: How much is read.
    """

    code = "lifecycle.output_too_large"

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"the client's program wrote more than {bytes_max} bytes")
        self.bytes_max = bytes_max


# --- receipts -----------------------------------------------------------------------------------------


class ReceiptError(LifecycleError):
    """A receipt was not recorded."""

    code = "lifecycle.receipt"


class ReceiptEmittedNotEmittable(ReceiptError):
    """`receipt.emitted` tells of receipts, and has none of its own."""

    code = "lifecycle.receipt_emitted_not_emittable"

    def __init__(self) -> None:
        super().__init__("receipt.emitted is a notification event and must not itself produce a receipt")


class ReceiptConflict(ReceiptError):
    """Another receipt is stored under the same key.

    Attributes:
        key: The idempotency key, or the receipt's id where it has no key.
        stored_receipt_id: The receipt that is stored.
        fields: The fields in which the two differ.
    """

    code = "lifecycle.conflict"

    def __init__(self, key: str, stored_receipt_id: str, fields: Sequence[str]) -> None:
        shown = key if len(key) <= KEY_SHOWN else key[:KEY_SHOWN] + "…"
        super().__init__(
            f"duplicate_id_conflict: receipt {quoted(stored_receipt_id)} is stored under key {shown} and differs "
            f"in {', '.join(fields)}",
            "replay in mode semantic, if only ids, clock or sequence differ; otherwise use another key",
        )
        self.key = key
        self.stored_receipt_id = stored_receipt_id
        self.fields = tuple(fields)


class ReceiptInvalid(ReceiptError):
    """The receipt breaks a rule of the contract.

    Attributes:
        cause: The rule.
    """

    code = "lifecycle.invalid"

    def __init__(self, cause: ValidationError) -> None:
        super().__init__(f"the receipt is invalid: {cause}")
        self.cause = cause


# --- telemetry, hooks, ledger -------------------------------------------------------------------------


class TelemetryError(_Detailed):
    """Nothing was observed."""

    code = "lifecycle.telemetry"


class TelemetryUnavailable(TelemetryError):
    """There is nothing to read, or nothing fresh."""

    code = "lifecycle.telemetry_unavailable"


class HookProtocol(TelemetryError):
    """A hook call lacks what every call of its harness has."""

    code = "lifecycle.hook_protocol"


class TelemetryInternal(TelemetryError):
    """Reading failed in a way that it should not."""

    code = "lifecycle.telemetry_internal"


class HookError(_Detailed):
    """A harness's hook, or the settings it is configured in, cannot be worked with."""

    code = "lifecycle.hook"


class UndecodableHook(HookError):
    """A hook's input cannot be read."""

    code = "lifecycle.undecodable_hook"


class SettingsUnreadable(HookError):
    """A harness's settings file cannot be understood, so it is left alone."""

    code = "lifecycle.settings_unreadable"


class SettingsChanged(HookError):
    """A harness's settings file kept changing while it was being changed."""

    code = "lifecycle.settings_changed"


class ContinuationError(LifecycleError):
    """A continuation was not kept."""

    code = "lifecycle.continuation"


class ContinuationRefused(_Detailed, ContinuationError):
    """Its name cannot be one, it is too large, or would be kept for too long."""

    code = "lifecycle.continuation_refused"


class ContinuationConflict(ContinuationError):
    """It is `thread`'s `name` in version `found`, not `expected` as was to be replaced; 0: there is none."""

    code = "lifecycle.continuation_conflict"

    def __init__(self, thread: str, name: str, expected: int, found: int) -> None:
        there = f"is there in version {found}" if found else "is not there"
        wanted = f"version {expected}" if expected else "none"
        shown = f"continuation {quoted(name)} of {quoted(thread)}"
        super().__init__(f"{shown} {there}; {wanted} was expected", "read it again, and decide anew")
        self.thread, self.name, self.expected, self.found = thread, name, expected, found


class EventInFlight(LifecycleError):
    """Somebody else is calling the client about this event.

    Attributes:
        until: When their lease ends, in microseconds of the epoch.
    """

    code = "lifecycle.event_in_flight"

    def __init__(self, until: int) -> None:
        super().__init__("another process is calling the client about this event", "try again when it has answered")
        self.until = until


class ChainBroken(LifecycleError):
    """A chain of receipts is not what it was when they were recorded.

    Attributes:
        chain: The chain's id.
        index: The place in the chain, from 1.
        receipt_id: The first bad receipt; empty where none is to blame.
        why: What is wrong.
    """

    code = "lifecycle.chain_broken"

    def __init__(self, chain: str, index: int, receipt_id: str, why: ChainBreak) -> None:
        named = f" (receipt {quoted(receipt_id)})" if receipt_id else ""
        super().__init__(f"chain {quoted(chain)} is broken at {index}{named}: {why}")
        self.chain, self.index, self.receipt_id, self.why = chain, index, receipt_id, why
