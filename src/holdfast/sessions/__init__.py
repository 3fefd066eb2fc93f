"""Agent conversations, captured exactly once: raw events, the turns, nodes and totals that follow from them.

    from holdfast.sessions import Archive, Call

    async with holdfast.open("agent.db") as hf, Archive(hf.database) as archive:
        stored = await archive.ingest(Call("anthropic", request, response))

Names are loaded on first use: the slice needs the extra `sessions`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from holdfast.sessions.archive.reading import Ancestry as Ancestry
    from holdfast.sessions.archive.reading import Difference as Difference
    from holdfast.sessions.asking import Payload as Payload
    from holdfast.sessions.asking import RawBody as RawBody
    from holdfast.sessions.config import Classify as Classify
    from holdfast.sessions.config import Derive as Derive
    from holdfast.sessions.config import Prices as Prices
    from holdfast.sessions.config import Redact as Redact
    from holdfast.sessions.config import RedactRule as RedactRule
    from holdfast.sessions.config import Retention as Retention
    from holdfast.sessions.config import SessionsConfig as SessionsConfig
    from holdfast.sessions.deriver import DeriveReport as DeriveReport
    from holdfast.sessions.errors import AttributionRefused as AttributionRefused
    from holdfast.sessions.errors import CaptureConflict as CaptureConflict
    from holdfast.sessions.errors import ChainBroken as ChainBroken
    from holdfast.sessions.errors import CursorMismatch as CursorMismatch
    from holdfast.sessions.errors import DeadLetter as DeadLetter
    from holdfast.sessions.errors import Denied as Denied
    from holdfast.sessions.errors import DiskFull as DiskFull
    from holdfast.sessions.errors import Forbidden as Forbidden
    from holdfast.sessions.errors import ImportCorrupt as ImportCorrupt
    from holdfast.sessions.errors import InvalidCall as InvalidCall
    from holdfast.sessions.errors import InvalidField as InvalidField
    from holdfast.sessions.errors import InvalidQuery as InvalidQuery
    from holdfast.sessions.errors import InvalidQuestion as InvalidQuestion
    from holdfast.sessions.errors import MalformedJson as MalformedJson
    from holdfast.sessions.errors import NodeCorrupt as NodeCorrupt
    from holdfast.sessions.errors import NoPriceSource as NoPriceSource
    from holdfast.sessions.errors import NotFound as NotFound
    from holdfast.sessions.errors import NotNow as NotNow
    from holdfast.sessions.errors import NumberRange as NumberRange
    from holdfast.sessions.errors import OrgMismatch as OrgMismatch
    from holdfast.sessions.errors import PastRetention as PastRetention
    from holdfast.sessions.errors import SaturatedBytes as SaturatedBytes
    from holdfast.sessions.errors import SaturatedItems as SaturatedItems
    from holdfast.sessions.errors import SessionDeleted as SessionDeleted
    from holdfast.sessions.errors import SessionError as SessionError
    from holdfast.sessions.errors import SpoolFull as SpoolFull
    from holdfast.sessions.errors import Stopping as Stopping
    from holdfast.sessions.errors import StoreUnavailable as StoreUnavailable
    from holdfast.sessions.errors import TooLarge as TooLarge
    from holdfast.sessions.errors import Unauthenticated as Unauthenticated
    from holdfast.sessions.errors import UndecodableBody as UndecodableBody
    from holdfast.sessions.errors import Underivable as Underivable
    from holdfast.sessions.errors import UnknownProvider as UnknownProvider
    from holdfast.sessions.errors import UnsupportedEncoding as UnsupportedEncoding
    from holdfast.sessions.errors import UnsupportedMediaType as UnsupportedMediaType
    from holdfast.sessions.facade import Archive as Archive
    from holdfast.sessions.overlays import Attribution as Attribution
    from holdfast.sessions.packer import PackReport as PackReport
    from holdfast.sessions.prices import GenaiPrices as GenaiPrices
    from holdfast.sessions.pricing import CardSource as CardSource
    from holdfast.sessions.pricing import PriceQuery as PriceQuery
    from holdfast.sessions.pricing import PriceSource as PriceSource
    from holdfast.sessions.pricing import RateCard as RateCard
    from holdfast.sessions.repairing import Violation as Violation
    from holdfast.sessions.reports import Attributed as Attributed
    from holdfast.sessions.reports import AttributedSession as AttributedSession
    from holdfast.sessions.reports import AttributedTurn as AttributedTurn
    from holdfast.sessions.reports import AttributionReport as AttributionReport
    from holdfast.sessions.reports import DeleteReport as DeleteReport
    from holdfast.sessions.reports import Place as Place
    from holdfast.sessions.reports import RepriceReport as RepriceReport
    from holdfast.sessions.reports import Selector as Selector
    from holdfast.sessions.reports import SessionRef as SessionRef
    from holdfast.sessions.reports import SessionTotals as SessionTotals
    from holdfast.sessions.reports import TurnFilters as TurnFilters
    from holdfast.sessions.values import LOCAL as LOCAL
    from holdfast.sessions.values import Block as Block
    from holdfast.sessions.values import Call as Call
    from holdfast.sessions.values import Cost as Cost
    from holdfast.sessions.values import CostLine as CostLine
    from holdfast.sessions.values import Duplicate as Duplicate
    from holdfast.sessions.values import Envelope as Envelope
    from holdfast.sessions.values import Message as Message
    from holdfast.sessions.values import Principal as Principal
    from holdfast.sessions.values import Reduced as Reduced
    from holdfast.sessions.values import Refused as Refused
    from holdfast.sessions.values import Stored as Stored
    from holdfast.sessions.values import Upstream as Upstream
    from holdfast.sessions.values import Usage as Usage
    from holdfast.sessions.views import Branches as Branches
    from holdfast.sessions.views import CapturedEvent as CapturedEvent
    from holdfast.sessions.views import Event as Event
    from holdfast.sessions.views import Fork as Fork
    from holdfast.sessions.views import Leaf as Leaf
    from holdfast.sessions.views import Moment as Moment
    from holdfast.sessions.views import Node as Node
    from holdfast.sessions.views import Outcome as Outcome
    from holdfast.sessions.views import Page as Page
    from holdfast.sessions.views import Parent as Parent
    from holdfast.sessions.views import ParentHint as ParentHint
    from holdfast.sessions.views import Seen as Seen
    from holdfast.sessions.views import Session as Session
    from holdfast.sessions.views import SessionFilters as SessionFilters
    from holdfast.sessions.views import StatsRow as StatsRow
    from holdfast.sessions.views import Thread as Thread
    from holdfast.sessions.views import Tokens as Tokens
    from holdfast.sessions.views import Total as Total
    from holdfast.sessions.views import TotalTokens as TotalTokens
    from holdfast.sessions.views import Tree as Tree
    from holdfast.sessions.views import TreeNode as TreeNode
    from holdfast.sessions.views import Turn as Turn
    from holdfast.sessions.views import TurnCost as TurnCost

_HOMES = {
    "archive.reading": ("Ancestry", "Difference"),
    "config": ("Classify", "Derive", "Prices", "Redact", "RedactRule", "Retention", "SessionsConfig"),
    "deriver": ("DeriveReport",),
    "errors": (
        "AttributionRefused", "CaptureConflict", "ChainBroken", "CursorMismatch", "DeadLetter", "Denied",
        "DiskFull", "Forbidden", "ImportCorrupt", "InvalidCall", "InvalidField", "InvalidQuery",
        "InvalidQuestion", "MalformedJson", "NoPriceSource", "NodeCorrupt", "NotFound", "NotNow",
        "NumberRange", "OrgMismatch", "PastRetention", "SaturatedBytes", "SaturatedItems", "SessionDeleted",
        "SessionError", "SpoolFull", "Stopping", "StoreUnavailable", "TooLarge", "Unauthenticated",
        "UndecodableBody", "Underivable", "UnknownProvider", "UnsupportedEncoding", "UnsupportedMediaType",
    ),
    "asking": ("Payload", "RawBody"),
    "facade": ("Archive",),
    "overlays": ("Attribution",),
    "repairing": ("Violation",),
    "reports": (
        "Attributed", "AttributedSession", "AttributedTurn", "AttributionReport", "DeleteReport", "Place",
        "RepriceReport", "Selector", "SessionRef", "SessionTotals", "TurnFilters",
    ),
    "packer": ("PackReport",),
    "prices": ("GenaiPrices",),
    "pricing": ("CardSource", "PriceQuery", "PriceSource", "RateCard"),
    "values": (
        "Block", "Call", "Cost", "CostLine", "Duplicate", "Envelope", "LOCAL", "Message", "Principal",
        "Reduced", "Refused", "Stored", "Upstream", "Usage",
    ),
    "views": (
        "Branches", "CapturedEvent", "Event", "Fork", "Leaf", "Moment", "Node", "Outcome", "Page", "Parent",
        "ParentHint", "Seen", "Session", "SessionFilters", "StatsRow", "Thread", "Tokens", "Total", "TotalTokens",
        "Tree", "TreeNode", "Turn", "TurnCost",
    ),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'holdfast.sessions' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"holdfast.sessions.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
