"""Which evidences are one turn, and what turns make of a session."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.sessions_data import evidence, used

from holdfast.sessions import jcs
from holdfast.sessions.evidence import RANKS, Evidence, SessionRow, TurnFacts, join_key
from holdfast.sessions.turns import fold, merge, partition, refold

KEY = ("claude", "s")


def cells(*evidences: Evidence) -> set[frozenset[str]]:
    """The partition, by capture ids."""
    return {frozenset(each.capture_id for each in cell) for cell in partition(evidences)}


def parts(*groups: str) -> set[frozenset[str]]:
    return {frozenset(group) for group in groups}


# --- partition


def test_every_request_seen_on_the_wire_is_a_turn() -> None:
    """SA-5, SA-62."""
    same = {"message_id": "m"}
    assert cells(
        evidence("a", 1, **same),
        evidence("b", 2, **same),
        evidence("c", 3, request_id="r", **same),
        evidence("d", 4, request_id="r", **same),
        evidence("e", 5, request_id="q", **same),
    ) == parts("a", "b", "cd", "e")


def test_other_views_join_their_request_or_the_first() -> None:
    """SA-47."""
    same = {"message_id": "m"}
    assert cells(
        evidence("a", 3, request_id="r", **same),
        evidence("b", 4, request_id="q", **same),
        evidence("c", 1, rank=2, request_id="q", **same),
        evidence("d", 2, rank=3, **same),
        evidence("e", 9, rank=1, request_id="z", **same),
    ) == parts("ade", "bc")
    assert cells(evidence("c", 1, rank=2, **same), evidence("d", 2, rank=3, request_id="x", **same)) == parts("cd")
    assert cells(evidence("a", 1, **same), evidence("b", 1, message_id="m", provider="openai")) == parts("a", "b")


def test_views_without_a_message_id_are_paired_first_with_first() -> None:
    key = {"join_key": "k"}
    assert cells(
        evidence("a", 5, **key),
        evidence("b", 1, message_id="m", **key),
        evidence("c", 2, rank=2, **key),
        evidence("d", 3, rank=2, **key),
        evidence("e", 4, rank=2, **key),
        evidence("f", 9, rank=1, **key),
        evidence("g", 1, rank=2, join_key="other"),
        evidence("h", 1, rank=2),
        evidence("i", 1, rank=2, message_id="n", **key),
    ) == parts("bcf", "ad", "e", "g", "h", "i")


WORDS = st.sampled_from(["", "x", "y"])


@st.composite
def sets_of_evidence(draw: st.DrawFn) -> list[Evidence]:
    count = draw(st.integers(0, 7))
    return [
        evidence(
            str(index),
            draw(st.integers(0, 3)),
            seq=index,
            rank=draw(st.integers(0, 3)),
            message_id=draw(WORDS),
            request_id=draw(WORDS),
            join_key=draw(st.sampled_from([None, "k", "l"])),
        )
        for index in range(count)
    ]


@given(sets_of_evidence(), st.randoms(use_true_random=False))
def test_a_partition_is_a_function_of_the_set(evidences: list[Evidence], chance: random.Random) -> None:
    found = partition(evidences)
    assert sorted(each.capture_id for cell in found for each in cell) == sorted(each.capture_id for each in evidences)
    shuffled = list(evidences)
    chance.shuffle(shuffled)
    assert cells(*shuffled) == cells(*evidences)
    for cell in found:
        assert list(cell) == sorted(cell, key=lambda each: (each.rank, each.mark))


def test_a_join_key_needs_an_answer() -> None:
    assert join_key(KEY, "", "", used(1, 2)) is None
    keys = {join_key(KEY, "", "h", used(1, 2)), join_key(KEY, "", "h", None), join_key(KEY, "t", "h", used(1, 2))}
    assert len(keys) == 3
    assert RANKS["wire"] == RANKS["sdk"] == 0


# --- merge


def turn(*evidences: Evidence) -> TurnFacts:
    [cell] = partition(evidences)
    return merge(cell)


def test_a_turn_takes_each_field_from_the_first_that_says_it() -> None:
    found = turn(
        evidence(
            "w",
            5,
            seq=2,
            message_id="m",
            status="incomplete",
            error_type="oversize",
            model="",
            tags=("b",),
            flags=("x",),
            usage=used(1),
            usage_state="partial",
            upstream_status=200,
            started_at=0,
        ),
        evidence(
            "t",
            9,
            seq=1,
            rank=2,
            message_id="m",
            model="late",
            name="n",
            tags=("a", "b"),
            usage=used(5, 5),
            usage_state="measured",
            raw_usage={"a": 1},
            root_hash="r",
            chain_length=2,
            response_hash="h",
            first_text="hi",
            error_type="x",
            started_at=3,
            parent_harness_session_id="p",
            parent_harness_id="h",
            harness_metadata={"k": 1},
        ),
    )
    assert (found.captured_at, found.capture_id, found.mark) == (5, "w", (5, "w", ""))
    assert found.turn_id == b"t".rjust(16, b"\0")
    assert (found.status, found.error_type, found.upstream_status) == ("incomplete", "oversize", 200)
    assert (found.model, found.name, found.tags, found.flags, found.started_at) == ("late", "n", ("a", "b"), ("x",), 0)
    assert (found.usage, found.usage_state, found.raw_usage) == (used(5, 5), "measured", {"a": 1})
    assert (found.usage_event, found.evidence_count) == (b"t".rjust(16, b"\0"), 2)
    assert (found.root_hash, found.chain_length, found.response_hash, found.first_text) == ("r", 2, "h", "hi")
    assert (found.parent_harness_id, found.parent_harness_session_id, found.harness_metadata) == ("h", "p", {"k": 1})
    assert (found.provider, found.message_id, found.key) == ("anthropic", "m", KEY)


@pytest.mark.parametrize(
    ("states", "counted"), [(("partial", "provided"), 1), (("missing", "none"), 1), (("missing", "missing"), 0)]
)
def test_the_usage_that_counts_is_the_best_known(states: tuple[Any, Any], counted: int) -> None:
    found = turn(
        *(evidence(str(n), n, message_id="m", request_id="r", usage_state=state) for n, state in enumerate(states))
    )
    assert found.usage_event == str(counted).encode().rjust(16, b"\0")


def test_a_turn_belongs_to_the_session_that_was_named() -> None:
    made = evidence("a", 1, message_id="m", harness_session_id="syn-1", synthetic=True)
    named = evidence("b", 2, rank=2, message_id="m", harness_session_id="real")
    assert (turn(made, named).key, turn(made, named).synthetic) == (("claude", "real"), False)
    assert (turn(made).key, turn(made).synthetic) == (("claude", "syn-1"), True)


def test_a_turn_of_a_segment_has_an_id_of_its_own() -> None:
    first, second = (turn(evidence("a", 1, rank=2, evidence_key=key, message_id=key)) for key in ("m1", "m2"))
    assert first.turn_id != second.turn_id


# --- fold


def facts(capture_id: str, at: int = 1, /, **more: Any) -> TurnFacts:
    usage_state = more.pop("usage_state", "measured" if "usage" in more else "missing")
    cost = {key: more.pop(key) for key in ("cost_pusd", "cost_state") if key in more}
    return msgspec.structs.replace(turn(evidence(capture_id, at, usage_state=usage_state, **more)), **cost)


TURNS = [
    facts(
        "a",
        5,
        name="first",
        model="m",
        usage=used(10, 2, reasoning=None),
        cost_pusd=7,
        cost_state="priced",
        started_at=3,
        first_text="hi",
        auth_subject="u",
    ),
    facts(
        "b",
        2,
        name="second",
        cwd="/b",
        usage=used(1),
        usage_state="partial",
        cost_pusd=1,
        cost_state="partial",
        harness_metadata={"k": 1, "l": 1},
    ),
    facts(
        "c",
        9,
        status="failed",
        model="m",
        ended_at=20,
        cost_state="unbilled",
        cost_pusd=0,
        usage_state="none",
        harness_metadata={"k": 2},
    ),
    facts("d", 1, model="n", thread_id="t", first_text="no", auth_subject="v", parent_harness_session_id="p"),
    facts(
        "e",
        4,
        call_kind="title",
        first_text="no",
        cost_state="provided",
        cost_pusd=5,
        auth_subject="u",
        parent_harness_session_id="q",
        parent_harness_id="x",
    ),
]


def folded(turns: list[TurnFacts]) -> SessionRow:
    row: SessionRow | None = None
    for each in turns:
        row = fold(row, None, each)
        assert row is not None
    assert row is not None
    return row


def bytes_of(row: SessionRow | None) -> bytes:
    return jcs.write(msgspec.to_builtins(row))


def test_a_session_is_what_its_turns_make_of_it() -> None:
    row = folded(TURNS)
    assert (row.turn_count, row.failed_turn_count, row.unmeasured_turn_count) == (5, 1, 3)
    assert (row.cost_pusd, row.unpriced_turn_count, row.partial_turn_count, row.provided_turn_count) == (13, 1, 1, 1)
    assert row.tokens == {"input": (2, 11), "output": (1, 2)}
    assert row.models == {"m": 2, "n": 1}
    assert (row.started_at, row.last_seen_at) == (1, 20)
    assert (row.name, row.cwd, row.first_text, row.harness_metadata) == ("first", "/b", "hi", {"k": 2, "l": 1})
    assert (row.auth_subject, row.seen["auth_subject"]) == ("v", (((1, "d", ""), "v"), ((4, "e", ""), "u")))
    assert row.seen["parent"] == (((1, "d", ""), ["", "p"]), ((4, "e", ""), ["x", "q"]))


@given(st.permutations(TURNS))
def test_the_order_of_turns_leaves_no_trace(turns: list[TurnFacts]) -> None:
    """SX-3."""
    row = bytes_of(folded(TURNS))
    assert bytes_of(folded(turns)) == row
    assert bytes_of(refold(KEY, turns)) == row


def test_a_turn_that_gains_something_moves_the_sums_by_the_difference() -> None:
    before = folded(TURNS)
    gained = msgspec.structs.replace(
        TURNS[1], usage=used(1, 9), usage_state="measured", model="m", first_text="later", started_at=1
    )
    after = fold(before, TURNS[1], gained)
    assert bytes_of(after) == bytes_of(refold(KEY, [TURNS[0], gained, *TURNS[2:]]))
    assert after is not None
    assert (after.turn_count, after.tokens["output"], after.models) == (5, (2, 11), {"m": 3, "n": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"captured_at": 6},
        {"first_text": "other"},
        {"started_at": 4},
        {"harness_session_id": "t"},
        {"auth_subject": ""},
    ],
)
def test_what_cannot_be_taken_back_by_difference_asks_for_all_turns(change: dict[str, Any]) -> None:
    assert fold(folded(TURNS), TURNS[0], msgspec.structs.replace(TURNS[0], **change)) is None


def test_a_turn_that_goes_asks_for_all_that_stay() -> None:
    assert fold(folded(TURNS), TURNS[0], None) is None
    assert fold(None, None, None) is None
    assert refold(KEY, []) is None
    assert folded(TURNS) == fold(folded(TURNS), None, None)
    emptied = fold(folded([TURNS[3]]), TURNS[3], msgspec.structs.replace(TURNS[3], model=""))
    assert emptied is not None
    assert emptied.models == {}


def test_too_much_metadata_is_dropped_by_name_once_all_is_known() -> None:
    heavy = [facts(name, at, harness_metadata={name: "x" * 30_000}, name="n") for at, name in enumerate("cab")]
    row = fold(fold(None, None, heavy[0]), None, heavy[1])
    assert row is not None
    assert fold(row, None, heavy[2]) is None
    whole = refold(KEY, heavy)
    assert whole is not None
    assert bytes_of(whole) == bytes_of(refold(KEY, reversed(heavy)))
    assert (sorted(whole.harness_metadata), whole.metadata_cut) == (["a", "b"], True)
    assert "harness_metadata/c" not in whole.marks
    assert "name" in whole.marks
    assert fold(whole, None, facts("z", 9)) is None


def test_only_so_many_disagreeing_values_are_kept() -> None:
    many = [facts(f"{at:03}", at, auth_subject=f"u{at}") for at in range(40)]
    row = folded(many)
    assert [value for _, value in row.seen["auth_subject"]] == [f"u{at}" for at in range(33)]
    assert bytes_of(folded(list(reversed(many)))) == bytes_of(row)
