"""What a checker infers of `holdfast.sessions`: taking calls in, reading, prices, errors. Checked, never run."""

from __future__ import annotations

from decimal import Decimal
from typing import assert_never, assert_type
from uuid import UUID

import holdfast
from holdfast.sessions import (
    LOCAL,
    Ancestry,
    Archive,
    Attributed,
    AttributedSession,
    AttributedTurn,
    Attribution,
    AttributionRefused,
    AttributionReport,
    Block,
    Branches,
    Call,
    CaptureConflict,
    CapturedEvent,
    CardSource,
    ChainBroken,
    Classify,
    Cost,
    CostLine,
    CursorMismatch,
    DeadLetter,
    DeleteReport,
    Denied,
    Derive,
    DeriveReport,
    Difference,
    DiskFull,
    Duplicate,
    Envelope,
    Event,
    Forbidden,
    Fork,
    GenaiPrices,
    ImportCorrupt,
    InvalidCall,
    InvalidField,
    InvalidQuery,
    InvalidQuestion,
    Leaf,
    MalformedJson,
    Message,
    Moment,
    Node,
    NodeCorrupt,
    NoPriceSource,
    NotFound,
    NotNow,
    NumberRange,
    OrgMismatch,
    Outcome,
    PackReport,
    Page,
    Parent,
    ParentHint,
    PastRetention,
    Payload,
    Place,
    PriceQuery,
    Prices,
    PriceSource,
    Principal,
    RateCard,
    RawBody,
    Redact,
    RedactRule,
    Reduced,
    Refused,
    RepriceReport,
    Retention,
    SaturatedBytes,
    SaturatedItems,
    Seen,
    Selector,
    Session,
    SessionDeleted,
    SessionError,
    SessionFilters,
    SessionRef,
    SessionsConfig,
    SessionTotals,
    SpoolFull,
    StatsRow,
    Stopping,
    Stored,
    StoreUnavailable,
    Thread,
    Tokens,
    TooLarge,
    Total,
    TotalTokens,
    Tree,
    TreeNode,
    Turn,
    TurnCost,
    TurnFilters,
    Unauthenticated,
    UndecodableBody,
    Underivable,
    UnknownProvider,
    UnsupportedEncoding,
    UnsupportedMediaType,
    Upstream,
    Usage,
    Violation,
)


class Flat:
    """A source of prices of one's own."""

    def quote(self, query: PriceQuery) -> Cost | None:
        assert_type(query.usage, Usage)
        line = CostLine("input", query.usage.input or 0, Decimal(1), Decimal(1))
        return Cost(Decimal(1), "priced", "flat", (line,))


async def take_in(hf: holdfast.Holdfast) -> None:
    source: PriceSource = Flat()
    config = SessionsConfig(
        derive=Derive(workers=1),
        prices=Prices(package=False),
        redact=Redact(rules=(RedactRule(name="badge", pattern="B-[0-9]{6}"),)),
        retention=Retention(days=30),
        classify=(Classify(kind="nightly", agent_name="cron"),),
    )
    card = RateCard(id="c", provider="p", model="m", per_million={"input": Decimal(3)})
    assert_type(CardSource([card]).quote(PriceQuery(provider="p", model="m", started_at=0, usage=Usage())), Cost | None)
    assert_type(GenaiPrices().quote(PriceQuery(provider="p", model="m", started_at=0, usage=Usage())), Cost | None)
    who = Principal(UUID(int=1), frozenset({"ingest"}))
    answer = Reduced(model="m", message=Message("assistant", (Block("text", text="hi"),)))
    call = Call("anthropic", b"{}", session=Envelope(harness_id="claude"), upstream=Upstream(200), reduced=answer)
    async with Archive(hf.database, config=config, prices=source) as archive:
        taken = await archive.ingest(call, principal=who)
        match taken:
            case Stored():
                assert_type(taken.session_id, str | None)
            case Duplicate():
                assert_type(taken.event_id, str)
            case Refused():
                assert_type(taken.code, str)
            case other:
                assert_never(other)
        assert_type(await archive.ingest_many([call]), list[Stored | Duplicate | Refused])
        assert_type(await archive.receive(b"{}"), Stored | Duplicate)
        assert_type(await archive.receive_many([b"{}"]), list[Stored | Duplicate | SessionError])
        assert_type(await archive.derive(), DeriveReport)


async def read(archive: Archive, session: SessionRef, payload: Payload) -> None:
    page = await archive.list(SessionFilters(model="m"), principal=LOCAL)
    assert_type(page, Page[Session])
    for each in page.items:
        assert_type(each.cost, Total)
        assert_type(each.parent, Parent)
        assert_type(each.outcome, Outcome | None)
        assert_type(each.parent.hint, ParentHint | None)
        assert_type(each.tokens, TotalTokens)
    async for turn in archive.turns(session, payload=payload):
        assert_type(turn, Turn)
        assert_type(turn.cost, TurnCost)
        assert_type(turn.evidence, tuple[Seen, ...])
        assert_type(turn.messages, tuple[Node, ...] | None)
    assert_type(await archive.raw("turn_", "request"), RawBody | None)
    assert_type(await archive.stats(group_by="day"), list[StatsRow])
    tree = await archive.tree(session)
    assert_type(tree, Tree | None)
    if tree is not None:
        assert_type(tree.descendants, tuple[TreeNode, ...])
        assert_type(tree.threads, tuple[Thread, ...])
    async for turn in archive.turns(session):
        assert_type(turn.tokens, Tokens)
    assert_type(await archive.page(session), Page[Turn] | None)
    assert_type(await archive.moments(session), tuple[list[Moment], bool] | None)
    assert_type(await archive.events(state="dead"), Page[Event])
    assert_type(await archive.event("cap_"), CapturedEvent | None)
    assert_type(await archive.node("0" * 64), Node | None)
    assert_type(await archive.ancestry("0" * 64), Ancestry | None)
    assert_type(await archive.difference(session, "0" * 64, "1" * 64), Difference | None)
    branches = await archive.branches(session)
    assert_type(branches, Branches | None)
    if branches is not None:
        assert_type(branches.forks, tuple[Fork, ...])
        assert_type(branches.leaves, tuple[Leaf, ...])


async def operate(archive: Archive) -> None:
    assert_type(await archive.rename("ses_", None), Session)
    assert_type(await archive.delete(("claude", "s"), reason="asked"), DeleteReport)
    assert_type(await archive.undelete_key(("claude", "s")), bool)
    assert_type(await archive.pack(dry_run=True), PackReport)
    assert_type(await archive.verify(), list[Violation])
    assert_type(await archive.projection_hash(), str)
    assert_type(await archive.rebuild(), DeriveReport)


def fail(error: SessionError) -> None:
    assert_type(error.bare_code, str)
    if isinstance(error, InvalidCall):
        assert_type(error.field, str)
    if isinstance(error, NotNow):
        assert_type(error.retry_after, float)


async def repairing(archive: Archive) -> None:
    report = await archive.attribute(
        Selector(session=("claude", "s"), thread_id=""), Attribution(harness_session_id="t"), reason="r"
    )
    assert_type(report, AttributionReport)
    assert_type(report.turns, tuple[AttributedTurn, ...])
    assert_type(report.turns[0].before, Place | None)
    assert_type(report.sessions, tuple[AttributedSession, ...])
    assert_type(report.sessions[0].after, SessionTotals | None)
    assert_type(await archive.undo_attribution(report.attribution_id), AttributionReport)
    assert_type(await archive.attributions(), list[Attributed])
    assert_type(await archive.reprice(TurnFilters(model="m"), reason="r", dry_run=False), RepriceReport)
    assert_type(await archive.rebuild(dry_run=True), DeriveReport)


ERRORS: tuple[type[SessionError], ...] = (
    AttributionRefused,
    CaptureConflict,
    ChainBroken,
    CursorMismatch,
    DeadLetter,
    Denied,
    DiskFull,
    Forbidden,
    ImportCorrupt,
    InvalidCall,
    InvalidField,
    InvalidQuery,
    InvalidQuestion,
    MalformedJson,
    NoPriceSource,
    NodeCorrupt,
    NotFound,
    NotNow,
    NumberRange,
    OrgMismatch,
    PastRetention,
    SaturatedBytes,
    SaturatedItems,
    SessionDeleted,
    SessionError,
    SpoolFull,
    Stopping,
    StoreUnavailable,
    TooLarge,
    Unauthenticated,
    UndecodableBody,
    Underivable,
    UnknownProvider,
    UnsupportedEncoding,
    UnsupportedMediaType,
)
