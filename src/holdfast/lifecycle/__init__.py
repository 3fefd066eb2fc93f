"""One vocabulary of events for coding agents' harnesses, with receipts that nobody can change unseen.

    from holdfast.lifecycle import CallbackRequest, Registry, decode, route

    request = decode(data, CallbackRequest)
    plan = route(request, Registry.builtin())

What lies in the ledger is in `holdfast.lifecycle.ledger`, the harnesses are in `holdfast.lifecycle.harness`, and
`hooks`, `install`, `telemetry` and `continuation` are modules of their own. Names are loaded on first use, so that
importing the package costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what `typing` says too; this package is imported where `typing` would cost too much
if TYPE_CHECKING:
    from typing import Any

    from holdfast.lifecycle.config import Client as Client
    from holdfast.lifecycle.config import LifecycleConfig as LifecycleConfig
    from holdfast.lifecycle.continuation import Continuations as Continuations
    from holdfast.lifecycle.continuation import drop_continuation as drop_continuation
    from holdfast.lifecycle.continuation import drop_thread as drop_thread
    from holdfast.lifecycle.continuation import get_continuation as get_continuation
    from holdfast.lifecycle.continuation import list_continuations as list_continuations
    from holdfast.lifecycle.continuation import put_continuation as put_continuation
    from holdfast.lifecycle.dispatch import Command as Command
    from holdfast.lifecycle.documents import AcceptablePlacement as AcceptablePlacement
    from holdfast.lifecycle.documents import AdapterManifest as AdapterManifest
    from holdfast.lifecycle.documents import CallbackRequest as CallbackRequest
    from holdfast.lifecycle.documents import CallbackResponse as CallbackResponse
    from holdfast.lifecycle.documents import CapabilityRequirement as CapabilityRequirement
    from holdfast.lifecycle.documents import Chosen as Chosen
    from holdfast.lifecycle.documents import Continuation as Continuation
    from holdfast.lifecycle.documents import DispatchEnvelope as DispatchEnvelope
    from holdfast.lifecycle.documents import Document as Document
    from holdfast.lifecycle.documents import EventClaim as EventClaim
    from holdfast.lifecycle.documents import Failed as Failed
    from holdfast.lifecycle.documents import FrameContext as FrameContext
    from holdfast.lifecycle.documents import KnownDegradation as KnownDegradation
    from holdfast.lifecycle.documents import LifecycleReceipt as LifecycleReceipt
    from holdfast.lifecycle.documents import NegotiatedPlan as NegotiatedPlan
    from holdfast.lifecycle.documents import PayloadEnvelope as PayloadEnvelope
    from holdfast.lifecycle.documents import PayloadReceipt as PayloadReceipt
    from holdfast.lifecycle.documents import PayloadRef as PayloadRef
    from holdfast.lifecycle.documents import PayloadTooLarge as PayloadTooLarge
    from holdfast.lifecycle.documents import PlacementClaim as PlacementClaim
    from holdfast.lifecycle.documents import PlacementDecision as PlacementDecision
    from holdfast.lifecycle.documents import PlacementRejection as PlacementRejection
    from holdfast.lifecycle.documents import PressureObservation as PressureObservation
    from holdfast.lifecycle.documents import ReceiptClaims as ReceiptClaims
    from holdfast.lifecycle.documents import ReceiptContext as ReceiptContext
    from holdfast.lifecycle.documents import ReceiptKey as ReceiptKey
    from holdfast.lifecycle.documents import Renewal as Renewal
    from holdfast.lifecycle.documents import Reset as Reset
    from holdfast.lifecycle.documents import RoutingPlan as RoutingPlan
    from holdfast.lifecycle.documents import Skipped as Skipped
    from holdfast.lifecycle.documents import Unsupported as Unsupported
    from holdfast.lifecycle.enums import EVENTS as EVENTS
    from holdfast.lifecycle.enums import AdapterRole as AdapterRole
    from holdfast.lifecycle.enums import Ambiguous as Ambiguous
    from holdfast.lifecycle.enums import Conformance as Conformance
    from holdfast.lifecycle.enums import FailureClass as FailureClass
    from holdfast.lifecycle.enums import FrameClass as FrameClass
    from holdfast.lifecycle.enums import IntegrationMode as IntegrationMode
    from holdfast.lifecycle.enums import LifecycleEventKind as LifecycleEventKind
    from holdfast.lifecycle.enums import ManifestPlacementClass as ManifestPlacementClass
    from holdfast.lifecycle.enums import NegotiationOutcome as NegotiationOutcome
    from holdfast.lifecycle.enums import PlacementClass as PlacementClass
    from holdfast.lifecycle.enums import PlacementOutcome as PlacementOutcome
    from holdfast.lifecycle.enums import ReceiptStatus as ReceiptStatus
    from holdfast.lifecycle.enums import ReplayMode as ReplayMode
    from holdfast.lifecycle.enums import RequirementLevel as RequirementLevel
    from holdfast.lifecycle.enums import RetryClass as RetryClass
    from holdfast.lifecycle.enums import SupportState as SupportState
    from holdfast.lifecycle.errors import AdapterIdNotFound as AdapterIdNotFound
    from holdfast.lifecycle.errors import AdapterVersionMismatch as AdapterVersionMismatch
    from holdfast.lifecycle.errors import ChainBreak as ChainBreak
    from holdfast.lifecycle.errors import ChainBroken as ChainBroken
    from holdfast.lifecycle.errors import ContinuationConflict as ContinuationConflict
    from holdfast.lifecycle.errors import ContinuationError as ContinuationError
    from holdfast.lifecycle.errors import ContinuationRefused as ContinuationRefused
    from holdfast.lifecycle.errors import EmptyField as EmptyField
    from holdfast.lifecycle.errors import EmptySentinel as EmptySentinel
    from holdfast.lifecycle.errors import EventInFlight as EventInFlight
    from holdfast.lifecycle.errors import HookError as HookError
    from holdfast.lifecycle.errors import HookProtocol as HookProtocol
    from holdfast.lifecycle.errors import InvalidEventEnvelope as InvalidEventEnvelope
    from holdfast.lifecycle.errors import InvalidFrameContext as InvalidFrameContext
    from holdfast.lifecycle.errors import InvalidManifest as InvalidManifest
    from holdfast.lifecycle.errors import InvalidObservation as InvalidObservation
    from holdfast.lifecycle.errors import InvalidPayload as InvalidPayload
    from holdfast.lifecycle.errors import InvalidPayloadRef as InvalidPayloadRef
    from holdfast.lifecycle.errors import InvalidReceipt as InvalidReceipt
    from holdfast.lifecycle.errors import InvalidRequest as InvalidRequest
    from holdfast.lifecycle.errors import InvalidResponse as InvalidResponse
    from holdfast.lifecycle.errors import LifecycleError as LifecycleError
    from holdfast.lifecycle.errors import NonZeroExit as NonZeroExit
    from holdfast.lifecycle.errors import OutputTooLarge as OutputTooLarge
    from holdfast.lifecycle.errors import ReceiptConflict as ReceiptConflict
    from holdfast.lifecycle.errors import ReceiptEmittedNotEmittable as ReceiptEmittedNotEmittable
    from holdfast.lifecycle.errors import ReceiptEmittedRejected as ReceiptEmittedRejected
    from holdfast.lifecycle.errors import ReceiptError as ReceiptError
    from holdfast.lifecycle.errors import ReceiptInvalid as ReceiptInvalid
    from holdfast.lifecycle.errors import RouteError as RouteError
    from holdfast.lifecycle.errors import SchemaVersionMismatch as SchemaVersionMismatch
    from holdfast.lifecycle.errors import SettingsChanged as SettingsChanged
    from holdfast.lifecycle.errors import SettingsUnreadable as SettingsUnreadable
    from holdfast.lifecycle.errors import SubprocessError as SubprocessError
    from holdfast.lifecycle.errors import SubprocessInvalidResponse as SubprocessInvalidResponse
    from holdfast.lifecycle.errors import SubprocessParseResponse as SubprocessParseResponse
    from holdfast.lifecycle.errors import SubprocessReadResponse as SubprocessReadResponse
    from holdfast.lifecycle.errors import SubprocessSerializeRequest as SubprocessSerializeRequest
    from holdfast.lifecycle.errors import SubprocessSpawn as SubprocessSpawn
    from holdfast.lifecycle.errors import SubprocessTimeout as SubprocessTimeout
    from holdfast.lifecycle.errors import SubprocessWriteRequest as SubprocessWriteRequest
    from holdfast.lifecycle.errors import TelemetryError as TelemetryError
    from holdfast.lifecycle.errors import TelemetryInternal as TelemetryInternal
    from holdfast.lifecycle.errors import TelemetryUnavailable as TelemetryUnavailable
    from holdfast.lifecycle.errors import TransportError as TransportError
    from holdfast.lifecycle.errors import TransportInternal as TransportInternal
    from holdfast.lifecycle.errors import TransportIo as TransportIo
    from holdfast.lifecycle.errors import TransportTimeout as TransportTimeout
    from holdfast.lifecycle.errors import UndecodableDocument as UndecodableDocument
    from holdfast.lifecycle.errors import UndecodableHook as UndecodableHook
    from holdfast.lifecycle.errors import UnknownEnumName as UnknownEnumName
    from holdfast.lifecycle.errors import UnknownEventName as UnknownEventName
    from holdfast.lifecycle.errors import ValidationError as ValidationError
    from holdfast.lifecycle.failures import default_retry as default_retry
    from holdfast.lifecycle.failures import failure_of as failure_of
    from holdfast.lifecycle.failures import project as project
    from holdfast.lifecycle.hooks import derive as derive
    from holdfast.lifecycle.hooks import run_hook as run_hook
    from holdfast.lifecycle.labels import LABELS as LABELS
    from holdfast.lifecycle.machine import Annotations as Annotations
    from holdfast.lifecycle.machine import DerivedStatus as DerivedStatus
    from holdfast.lifecycle.machine import FieldDiff as FieldDiff
    from holdfast.lifecycle.machine import PayloadPolicy as PayloadPolicy
    from holdfast.lifecycle.machine import annotate as annotate
    from holdfast.lifecycle.machine import compare as compare
    from holdfast.lifecycle.machine import derive_status as derive_status
    from holdfast.lifecycle.machine import link as link
    from holdfast.lifecycle.machine import negotiate as negotiate
    from holdfast.lifecycle.machine import place as place
    from holdfast.lifecycle.machine import route as route
    from holdfast.lifecycle.machine import synthesize as synthesize
    from holdfast.lifecycle.manifest import Registry as Registry
    from holdfast.lifecycle.router import Callback as Callback
    from holdfast.lifecycle.router import Dispatched as Dispatched
    from holdfast.lifecycle.router import Router as Router
    from holdfast.lifecycle.telemetry import snapshot as snapshot
    from holdfast.lifecycle.wire import decode as decode
    from holdfast.lifecycle.wire import encode as encode
    from holdfast.lifecycle.wire import validate as validate

_HOMES = {
    "config": ("Client", "LifecycleConfig"),
    "continuation": (
        "Continuations", "drop_continuation", "drop_thread", "get_continuation", "list_continuations",
        "put_continuation",
    ),
    "dispatch": ("Command",),
    "documents": (
        "AcceptablePlacement", "AdapterManifest", "CallbackRequest", "CallbackResponse",
        "CapabilityRequirement", "Chosen", "Continuation", "DispatchEnvelope", "Document", "EventClaim",
        "Failed", "FrameContext", "KnownDegradation", "LifecycleReceipt", "NegotiatedPlan", "PayloadEnvelope",
        "PayloadReceipt", "PayloadRef", "PayloadTooLarge", "PlacementClaim", "PlacementDecision",
        "PlacementRejection", "PressureObservation", "ReceiptClaims", "ReceiptContext", "ReceiptKey", "Renewal",
        "Reset", "RoutingPlan", "Skipped", "Unsupported",
    ),
    "enums": (
        "AdapterRole", "Ambiguous", "Conformance", "EVENTS", "FailureClass", "FrameClass", "IntegrationMode",
        "LifecycleEventKind", "ManifestPlacementClass", "NegotiationOutcome", "PlacementClass",
        "PlacementOutcome", "ReceiptStatus", "ReplayMode", "RequirementLevel", "RetryClass", "SupportState",
    ),
    "errors": (
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
    ),
    "failures": ("default_retry", "failure_of", "project"),
    "hooks": ("derive", "run_hook"),
    "labels": ("LABELS",),
    "machine": (
        "Annotations", "DerivedStatus", "FieldDiff", "PayloadPolicy", "annotate", "compare", "derive_status",
        "link", "negotiate", "place", "route", "synthesize",
    ),
    "manifest": ("Registry",),
    "router": ("Callback", "Dispatched", "Router"),
    "telemetry": ("snapshot",),
    "wire": ("decode", "encode", "validate"),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'holdfast.lifecycle' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"holdfast.lifecycle.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
