"""What readers are shown, as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from holdfast.sessions.reports import DeleteReport
from holdfast.sessions.values import Block, CostLine, Message
from holdfast.sessions.views import Branches, Fork, Leaf, document


def test_what_is_shown_has_instants_and_amounts_as_text_and_null_for_what_is_absent() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    shown = document({"at": at, "usd": Decimal("1E-12"), "none": None, "all": (1, [True, "x"])})
    assert shown == {
        "at": "2026-01-02T03:04:05.000006Z",
        "usd": "0.000000000001",
        "none": None,
        "all": [1, [True, "x"]],
    }


def test_objects_are_shown_by_their_members() -> None:
    block = Block("text", text="hi")
    assert document(block) == {"type": "text", "text": "hi"}
    assert document(Message("user", (block,))) == {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    assert document(CostLine("input", 3, Decimal(2), None)) == {"what": "input", "count": 3, "rate": "2", "usd": None}
    branches = Branches(forks=(Fork("a", ("b", "c")),), leaves=(Leaf("b", ("a", "b")),))
    assert document(branches) == {
        "forks": [{"hash": "a", "children": ["b", "c"]}],
        "leaves": [{"hash": "b", "path": ["a", "b"]}],
        "truncated": False,
    }


def test_reports_of_operators_are_shown_alike() -> None:
    report = DeleteReport("ses_1", events=3, turns=2, moved=1)
    assert document(report) == {"session_id": "ses_1", "events": 3, "turns": 2, "moved": 1}
