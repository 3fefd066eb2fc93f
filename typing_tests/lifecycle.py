"""What a checker infers of `holdfast.lifecycle`: documents, rules, the router, the records. Checked, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, assert_never, assert_type

import holdfast
from holdfast.lifecycle import (
    EVENTS,
    LABELS,
    AcceptablePlacement,
    AdapterIdNotFound,
    AdapterManifest,
    AdapterRole,
    AdapterVersionMismatch,
    Ambiguous,
    Annotations,
    Callback,
    CallbackRequest,
    CallbackResponse,
    CapabilityRequirement,
    ChainBreak,
    ChainBroken,
    Chosen,
    Client,
    Command,
    Conformance,
    Continuation,
    ContinuationConflict,
    ContinuationError,
    ContinuationRefused,
    Continuations,
    DerivedStatus,
    Dispatched,
    DispatchEnvelope,
    Document,
    EmptyField,
    EmptySentinel,
    EventClaim,
    EventInFlight,
    Failed,
    FailureClass,
    FieldDiff,
    FrameClass,
    FrameContext,
    HookError,
    HookProtocol,
    IntegrationMode,
    InvalidEventEnvelope,
    InvalidFrameContext,
    InvalidManifest,
    InvalidObservation,
    InvalidPayload,
    InvalidPayloadRef,
    InvalidReceipt,
    InvalidRequest,
    InvalidResponse,
    KnownDegradation,
    LifecycleConfig,
    LifecycleError,
    LifecycleEventKind,
    LifecycleReceipt,
    ManifestPlacementClass,
    NegotiatedPlan,
    NegotiationOutcome,
    NonZeroExit,
    OutputTooLarge,
    PayloadEnvelope,
    PayloadPolicy,
    PayloadReceipt,
    PayloadRef,
    PayloadTooLarge,
    PlacementClaim,
    PlacementClass,
    PlacementDecision,
    PlacementOutcome,
    PlacementRejection,
    PressureObservation,
    ReceiptClaims,
    ReceiptConflict,
    ReceiptContext,
    ReceiptEmittedNotEmittable,
    ReceiptEmittedRejected,
    ReceiptError,
    ReceiptInvalid,
    ReceiptKey,
    ReceiptStatus,
    Registry,
    Renewal,
    ReplayMode,
    RequirementLevel,
    Reset,
    RetryClass,
    RouteError,
    Router,
    RoutingPlan,
    SchemaVersionMismatch,
    SettingsChanged,
    SettingsUnreadable,
    Skipped,
    SubprocessError,
    SubprocessInvalidResponse,
    SubprocessParseResponse,
    SubprocessReadResponse,
    SubprocessSerializeRequest,
    SubprocessSpawn,
    SubprocessTimeout,
    SubprocessWriteRequest,
    SupportState,
    TelemetryError,
    TelemetryInternal,
    TelemetryUnavailable,
    TransportError,
    TransportInternal,
    TransportIo,
    TransportTimeout,
    UndecodableDocument,
    UndecodableHook,
    UnknownEnumName,
    UnknownEventName,
    Unsupported,
    ValidationError,
    annotate,
    compare,
    decode,
    default_retry,
    derive,
    derive_status,
    drop_continuation,
    drop_thread,
    encode,
    failure_of,
    get_continuation,
    link,
    list_continuations,
    negotiate,
    place,
    project,
    put_continuation,
    route,
    run_hook,
    snapshot,
    synthesize,
    validate,
)
from holdfast.lifecycle.continuation import Blob, Kept
from holdfast.lifecycle.ledger import (
    CHANNEL,
    Claim,
    Claimed,
    Close,
    Conflict,
    Draft,
    Emit,
    Entry,
    Gap,
    Identity,
    InFlight,
    Inserted,
    IntentId,
    Lease,
    Lost,
    Origin,
    Pending,
    Proceed,
    Pruned,
    Put,
    Recorded,
    Replay,
    ReplayCounts,
    Replayed,
    Settle,
    Settled,
    Stored,
    Verified,
    claim,
    claim_key,
    emit,
    expire,
    export,
    find,
    gaps,
    get,
    intent_id,
    list_receipts,
    next_sequence,
    peek_sequence,
    pending,
    prune,
    put,
    raise_gaps,
    record,
    record_one,
    recover,
    renew,
    replay,
    settle,
    show,
    verify,
    verify_file,
)
from holdfast.store import Tx

VALIDATION: list[type[ValidationError]] = [
    EmptyField, InvalidFrameContext, InvalidManifest, InvalidObservation, InvalidPayload, InvalidReceipt,
    InvalidRequest, InvalidResponse, SchemaVersionMismatch, UndecodableDocument,
]  # fmt: skip
ROUTING: list[type[RouteError]] = [
    AdapterIdNotFound, AdapterVersionMismatch, EmptySentinel, InvalidEventEnvelope, InvalidFrameContext,
    InvalidPayloadRef, SchemaVersionMismatch, UnknownEnumName, UnknownEventName,
]  # fmt: skip
ASKING: list[type[TransportError]] = [TransportInternal, TransportIo, TransportTimeout]
PROGRAMS: list[type[SubprocessError]] = [
    NonZeroExit, OutputTooLarge, ReceiptEmittedRejected, SubprocessInvalidResponse, SubprocessParseResponse,
    SubprocessReadResponse, SubprocessSerializeRequest, SubprocessSpawn, SubprocessTimeout, SubprocessWriteRequest,
]  # fmt: skip
RECORDING: list[type[ReceiptError]] = [ReceiptConflict, ReceiptEmittedNotEmittable, ReceiptInvalid]
OBSERVING: list[type[TelemetryError]] = [HookProtocol, TelemetryInternal, TelemetryUnavailable]
HOOKS: list[type[HookError]] = [SettingsChanged, SettingsUnreadable, UndecodableHook]
OTHERS: list[type[LifecycleError]] = [ChainBroken, EventInFlight]


def words_are_literals(manifest: AdapterManifest, receipt: LifecycleReceipt) -> None:
    """A word that is not of its set is a mistake that a checker finds."""
    assert_type(manifest.role, AdapterRole)
    assert_type(manifest.integration_modes, tuple[IntegrationMode, ...])
    assert_type(manifest.lifecycle_events, dict[LifecycleEventKind, EventClaim])
    assert_type(manifest.placement, dict[ManifestPlacementClass, PlacementClaim])
    assert_type(manifest.receipts, ReceiptClaims)
    assert_type(manifest.renewal, Renewal | None)
    assert_type(manifest.known_degradations, tuple[KnownDegradation, ...])
    assert_type(receipt.status, ReceiptStatus)
    assert_type(receipt.payload_receipts, tuple[PayloadReceipt, ...])
    assert_type((receipt.failure_class, receipt.retry_class), tuple[FailureClass | None, RetryClass | None])
    assert_type(EVENTS[0], LifecycleEventKind)
    assert_type(Registry.builtin().list()[0].conformance, Conformance)
    LABELS.index("lifeloop.v0.3")


def choices(ambiguous: Ambiguous) -> Literal["close", "rerun"]:
    """What becomes of a call whose caller died."""
    return ambiguous


def renewal(found: Renewal) -> None:
    """Its parts say how well."""
    assert_type(found.reset, Reset)
    assert_type(found.continuation, Continuation)
    assert_type(found.reset.native, SupportState)


def documents(data: bytes, document: Document) -> None:
    """A document is read as what was asked for."""
    assert_type(decode(data, CallbackRequest), CallbackRequest)
    assert_type(decode(data.decode(), DispatchEnvelope), DispatchEnvelope)
    assert_type(decode(data, PressureObservation).used_tokens, int | None)
    assert_type(encode(document), bytes)
    validate(document)
    frame = FrameContext(frame_id="frm-1", frame_class="top_level")
    assert_type(frame.frame_class, FrameClass)
    assert_type(PayloadRef(payload_id="p", payload_kind="k").byte_size, int | None)
    FrameContext("frm-1", "top_level")  # type: ignore[call-arg]  # fields are named


def rules(
    request: CallbackRequest, payload: PayloadEnvelope, context: ReceiptContext, answer: CallbackResponse
) -> None:
    """Each rule gives what the next one takes."""
    plan = route(request, Registry.builtin())
    assert_type(plan, RoutingPlan)
    need = CapabilityRequirement(capability="receipts.native", level="required", desired="native")
    assert_type(need.level, RequirementLevel)
    negotiated = negotiate(plan, [need], [payload], now_epoch_s=0, policy=PayloadPolicy(integrity="strict"))
    assert_type(negotiated, NegotiatedPlan)
    assert_type(negotiated.outcome, NegotiationOutcome)
    assert_type(negotiated.blocks_dispatch, bool)
    assert_type(derive_status(negotiated, answer), DerivedStatus)
    receipt = synthesize(negotiated, None, context, sequence=1)
    assert_type(receipt, LifecycleReceipt)
    assert_type(annotate(negotiated, answer, context, dispatched=True), Annotations)
    mode: ReplayMode = "strict"
    assert_type(compare(receipt, receipt, mode), tuple[FieldDiff, ...])
    assert_type(link(b"", index=1, recorded_at=0, body=b"", annotations=b""), bytes)
    assert_type(default_retry("timeout"), RetryClass)
    assert_type(failure_of(ValueError()), tuple[FailureClass, RetryClass])
    assert_type(project("satisfied", None), tuple[FailureClass, RetryClass] | None)


def placement(payload: PayloadEnvelope, manifest: AdapterManifest) -> PlacementClass | FailureClass | None:
    """A decision is one of three, a rejection one of two."""
    wanted: AcceptablePlacement = payload.acceptable_placements[0]
    assert_type(wanted.placement, PlacementClass)
    found: PlacementDecision = place(payload, manifest, label="lifeloop.v0.3", now_epoch_s=0)
    rejection: PlacementRejection = found.rejected[0]
    match rejection:
        case Unsupported():
            assert_type(rejection.manifest_support, SupportState)
        case PayloadTooLarge():
            assert_type(rejection.max_bytes, int)
        case _:
            assert_never(rejection)
    match found:
        case Chosen():
            return found.chosen
        case Failed():
            return found.failure_class
        case Skipped():
            return None
        case _:
            assert_never(found)


def outcome_of(receipt: PayloadReceipt) -> PlacementOutcome:
    """What became of a payload."""
    return receipt.status


async def answering(request: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> CallbackResponse:
    """A client."""
    return CallbackResponse(schema_version=request.schema_version, status="delivered")


def plain(request: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> CallbackResponse:
    """A client that runs in a thread."""
    return CallbackResponse(schema_version=request.schema_version, status="delivered")


async def routing(hf: holdfast.Holdfast, request: CallbackRequest, context: ReceiptContext) -> None:
    """A router takes callables and programs, and says what became of the event."""
    heard: list[LifecycleReceipt] = []
    clients: list[Callback | Command | None] = [answering, plain, Command(("client",), timedelta(seconds=5)), None]
    async with Router(hf.database, registry=Registry.builtin(), clock=hf.database.clock, ambiguous="rerun") as router:
        assert_type(router, Router)
        for client in clients:
            found = await router.dispatch(request, client=client, context=context)
            assert_type(found, Dispatched)
            assert_type(found.outcome, Inserted | Replayed)
            assert_type(found.annotations, Annotations | None)
            assert_type(found.error, Exception | None)
        assert_type(await router.emit(request, None, context), LifecycleReceipt)
        assert_type(await router.recover(), list[LifecycleReceipt])
        stop = router.subscribe(heard.append)
        assert_type(stop(), None)
        await router.dispatch(request, client="client", context=context)  # type: ignore[arg-type]  # a name is no program
    Router(hf.database, registry=Registry.builtin())  # type: ignore[call-arg]  # time is the ledger's


def settings() -> None:
    """What a user says of hooks."""
    config = LifecycleConfig.load(Path("holdfast.toml"))
    assert_type(config, LifecycleConfig)
    assert_type(config.bound("claude", "session.started"), tuple[Client, ...])
    assert_type(config.chain_key(), bytes | None)
    assert_type(config.on_error, Literal["open", "closed"])
    LifecycleConfig(on_error="ajar")  # type: ignore[arg-type]  # choices are literals


async def recording(tx: Tx, negotiated: NegotiatedPlan, context: ReceiptContext, receipt: LifecycleReceipt) -> None:
    """Everything that is recorded says how that ended."""
    recorded = await emit(tx, negotiated, None, context, mode="strict", now=0)
    assert_type(recorded, Recorded)
    match recorded:
        case Inserted() | Replayed():
            assert_type(recorded.receipt, LifecycleReceipt)
            assert_type(recorded.stored, Stored)
        case Conflict():
            assert_type(recorded.error(), ReceiptConflict)
        case _:
            assert_never(recorded)
    key = ReceiptKey("client", "claude", "key")
    origin: Origin = "replay"
    assert_type(await put(tx, key, receipt, mode="semantic", now=0, origin=origin), Recorded)
    entries: list[Entry] = [Emit(Draft(negotiated, None, context), "strict"), Put(None, receipt, "strict")]
    assert_type(await record(tx, entries, now=0), list[Any | LifecycleError])
    assert_type(await record_one(tx, entries[0], now=0), Any)


async def calling(tx: Tx, negotiated: NegotiatedPlan, context: ReceiptContext) -> None:
    """A claim is one of four, and is settled under its fence."""
    lease = Lease("owner", 1)
    found: Claimed = await claim(tx, negotiated, context, lease, mode="strict", now=0)
    match found:
        case Proceed():
            assert_type(await renew(tx, found.intent, found.fence, 2), bool)
            settled: Settled = await settle(tx, found.intent, found.fence, Draft(negotiated, None, context), now=0)
            assert_type(settled, Inserted | Lost)
        case Replay():
            assert_type(found.stored.response, CallbackResponse | None)
        case InFlight():
            assert_type(found.until, int)
        case Conflict():
            assert_type(found.fields, tuple[FieldDiff, ...])
        case _:
            assert_never(found)
    name = claim_key(context, negotiated.plan)
    intent: IntentId = intent_id("client", "claude", name)
    draft = Draft(negotiated, None, context)
    entries: list[Entry] = [Claim(negotiated, context, lease, mode="strict"), Settle(intent, 1, draft)]
    assert_type(Close, type[Close])
    assert_type(await record(tx, entries, now=0), list[Any | LifecycleError])
    assert_type(await pending(tx), list[Pending])
    assert_type(await expire(tx, "owner"), int)
    assert_type(await recover(tx, now=0, intent=intent), list[LifecycleReceipt])


async def looking(tx: Tx, hf: holdfast.Holdfast) -> None:
    """What is there, and whether it is whole."""
    identity: Identity = ("client", "claude", None, "rcp-1")
    assert_type(await get(tx, ReceiptKey("client", "claude", "key")), LifecycleReceipt | None)
    assert_type(await find(tx, identity), Stored | None)
    assert_type(await show(tx, "rcp-1"), list[Stored])
    assert_type(await list_receipts(tx, run_id="run-1"), list[Stored])
    assert_type((await peek_sequence(tx, "run-1"), await next_sequence(tx, "run-1", now=0)), tuple[int, int])
    assert_type(await gaps(tx), list[Gap])
    assert_type(await raise_gaps(tx, now=0), list[LifecycleReceipt])
    whole = await verify(tx)
    assert_type(whole, Verified | ChainBroken)
    if isinstance(whole, ChainBroken):
        assert_type(whole.why, ChainBreak)
    assert_type(export(tx), AsyncIterator[bytes])
    assert_type(verify_file([b""]), Verified | ChainBroken)
    assert_type(await replay(tx, [b""], now=0), ReplayCounts)
    assert_type(await prune(tx, before=0, now=0), Pruned)
    assert_type(await hf.database.wait(CHANNEL, 1.0), bool)


async def hooks(hf: holdfast.Holdfast) -> None:
    """Calls of harnesses, and what was only kept of them."""
    config = LifecycleConfig()
    database = hf.database
    reply = await run_hook("claude", b"{}", event_hint="Stop", config=config, database=database, clock=database.clock)
    assert_type((reply.stdout, reply.stderr, reply.exit_code), tuple[bytes, str, int])
    assert_type(await derive(database, config=config, call_clients=False), int)


async def continuations(tx: Tx, hf: holdfast.Holdfast) -> None:
    """What clients want to find again, and how full a context is."""
    kept = Continuations(hf.database)
    assert_type(await kept.put("thread", "name", b"", ttl=timedelta(days=1), if_version=0), int)
    found = await kept.get("thread", "name")
    if found is not None:
        assert_type((found.body, found.entry.version, found.entry.digest), tuple[bytes, int, bytes])
    assert_type((await kept.list())[0].expires_at, int)
    assert_type((await kept.drop("thread", "name"), await kept.drop_thread("thread")), tuple[bool, int])
    try:
        assert_type(await put_continuation(tx, "thread", "name", b"", now=0), int)
    except ContinuationConflict as conflict:
        assert_type((conflict.expected, conflict.found), tuple[int, int])
    except ContinuationRefused as refused:
        assert_type(refused.detail, str)
    except ContinuationError as error:
        assert_type(error.code, str)
    assert_type(await get_continuation(tx, "thread", "name", now=0), Blob | None)
    assert_type(await list_continuations(tx, now=0), list[Kept])
    assert_type(await drop_continuation(tx, "thread", "name", now=0), bool)
    assert_type(await drop_thread(tx, "thread", now=0), int)
    assert_type(snapshot("claude", Path(), None, now=0, windows={}), PressureObservation | None)
