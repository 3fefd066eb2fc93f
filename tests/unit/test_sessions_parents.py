"""Forks: what becomes of a hint, whatever came first."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.sessions import parents
from holdfast.sessions.parents import Hint, ParentLink, placeholders, resolve_parents
from holdfast.sessions.values import SessionKey

CHILD = ("claude", "c")


def hint(parent: str, harness: str = "", at: int = 1) -> Hint:
    return Hint(harness, parent, (at, f"{at}", ""))


@pytest.mark.parametrize(
    ("given_hint", "real", "deleted", "link"),
    [
        (hint("c"), [], [], ParentLink("rejected_self")),
        (hint("c", "claude"), [], [], ParentLink("rejected_self")),
        (hint("c", "codex"), [("codex", "c")], [], ParentLink("resolved", ("codex", "c"))),
        (hint("p"), [("claude", "p"), ("codex", "p")], [], ParentLink("resolved", ("claude", "p"))),
        (hint("p", "codex"), [("claude", "p")], [], ParentLink("pending", ("codex", "p"))),
        (hint("p"), [], [("claude", "p")], ParentLink("deleted")),
        (hint("p"), [("codex", "p")], [], ParentLink("resolved", ("codex", "p"))),
        (hint("p"), [("codex", "p"), ("pi", "p")], [], ParentLink("ambiguous")),
        (hint("p"), [("codex", "q")], [], ParentLink("pending", ("claude", "p"), assumed=True)),
    ],
)
def test_a_hint_leads_where_the_table_says(
    given_hint: Hint, real: list[SessionKey], deleted: list[SessionKey], link: ParentLink
) -> None:
    """SA-12, SA-13, SA-14, SA-16, SA-20."""
    assert resolve_parents({CHILD: given_hint}, real, deleted) == {CHILD: link}
    assert placeholders({CHILD: link}, real) == ({link.parent} if link.state == "pending" else set())


def test_of_a_cycle_the_latest_hint_gives_way() -> None:
    """SA-16."""
    real = [("h", name) for name in "abc"]
    hints = {("h", "a"): hint("b", at=3), ("h", "b"): hint("c", at=1), ("h", "c"): hint("a", at=2)}
    for order in itertools.permutations(hints.items()):
        links = resolve_parents(dict(order), real)
        assert {key[1]: link.state for key, link in links.items()} == {
            "a": "rejected_cycle",
            "b": "resolved",
            "c": "resolved",
        }
        assert not links["h", "a"].too_deep


def test_many_children_share_one_placeholder() -> None:
    """SA-15."""
    links = resolve_parents({("h", str(n)): hint("p", at=n) for n in range(20)}, [])
    assert placeholders(links, []) == {("h", "p")}


def test_links_beyond_what_can_be_followed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parents, "PARENTS_MAX", 3)
    hints = {("h", str(n)): hint(str(n - 1), at=n) for n in range(1, 7)}
    links = resolve_parents(hints, [("h", str(n)) for n in range(7)])
    assert [links["h", str(n)].state for n in range(1, 7)] == ["resolved"] * 3 + ["rejected_cycle"] + ["resolved"] * 2
    assert links["h", "4"].too_deep


def test_long_chains_are_followed_in_no_time() -> None:
    hints = {("h", str(n)): hint(str(n - 1), at=n) for n in range(1, 5000)}
    links = resolve_parents(hints, [("h", str(n)) for n in range(5000)])
    assert {link.state for link in links.values()} == {"resolved"}


@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.sampled_from("abcdef"), st.integers(0, 9)), max_size=6))
def test_links_are_a_forest_in_any_order(wanted: dict[str, tuple[str, int]]) -> None:
    hints = {("h", child): Hint("", parent, (at, child, "")) for child, (parent, at) in wanted.items()}
    real = [("h", name) for name in "abcdef"]
    links = resolve_parents(hints, real)
    assert resolve_parents(dict(reversed(hints.items())), real[::-1]) == links
    for child in links:
        at: SessionKey | None = child
        for _ in range(8):
            link = links.get(at) if at is not None else None
            at = None if link is None else link.parent
        assert at is None
