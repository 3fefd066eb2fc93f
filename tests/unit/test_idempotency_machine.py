"""The ways of a key's record, cell by cell, and the laws that hold over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.idempotency import machine
from holdfast.idempotency.machine import (
    Claim,
    Column,
    DecideOutcome,
    DecideRerun,
    Event,
    ForceExpire,
    ForceRelease,
    MarkIrreversible,
    MarkUnknown,
    Prune,
    Release,
    Renew,
    Settle,
    Sweep,
    asks_attach,
    classify,
    classify_end,
    column,
    expired,
    lapsed,
    retry_after,
    transition,
    unknown_reason,
)
from holdfast.idempotency.rules import RouteRule
from holdfast.idempotency.values import (
    Absent,
    Completed,
    Conflict,
    Decision,
    InFlight,
    KeyRecord,
    Lapse,
    Mode,
    Principal,
    Proceed,
    Replay,
    Rerun,
    Running,
    State,
    Tombstone,
    Undecided,
)

NOW, TTL = 1_000_000, 500_000
THEIRS, OURS = b"their claim", b"our claim"
PRINT, OTHER_PRINT = b"f" * 32, b"g" * 32
FENCE, NEXT = 7, 12
ANSWER = Completed(201, [(b"location", b"/orders/1")], b"made")
BURIED = Tombstone(200, [], "stream", 10)
FOUND = Completed(200, [], b"found")


def reserved(**changes: object) -> KeyRecord:
    made = KeyRecord(
        key_id=b"k" * 16, scope_id=b"s" * 16, record_id=b"r" * 16, state=State.RESERVED, fingerprint=PRINT,
        method="POST", route="/orders", fence=FENCE, claim_id=THEIRS, owner="them", lease_until=NOW + 10,
        created_at=NOW - 200, claimed_at=NOW - 100, expires_at=NOW - 100 + TTL, attempt=3, on_lapse="rerun",
    )  # fmt: skip
    return replace(made, **changes)


def settled(outcome: Completed | Tombstone) -> KeyRecord:
    record, accepted = transition(reserved(), Settle(fence=FENCE, outcome=outcome, expires_at=NOW + TTL), now=NOW)
    assert accepted is True
    assert record is not None
    return record


RECORDS: dict[Column, KeyRecord | None] = {
    "absent": None,
    "live": reserved(),
    "lapsed": reserved(lease_until=NOW),
    "completed": settled(ANSWER),
    "tombstone": settled(BURIED),
    "unknown": reserved(state=State.UNKNOWN, reason="raised", expires_at=None),
    "released": reserved(state=State.RELEASED),
}
COLUMNS: tuple[Column, ...] = get_args(Column)


def claim(**changes: object) -> Claim:
    asked = Claim(
        key_id=b"K" * 16, scope_id=b"S" * 16, record_id=b"R" * 16, fingerprint=PRINT, claim_id=OURS, owner="us",
        method="PUT", route="/o", fence=NEXT, lease_until=NOW + 30, expires_at=NOW + 30 + TTL, on_lapse="rerun",
        first_sent_at=NOW - 5,
    )  # fmt: skip
    return replace(asked, **changes)


WRITES = Renew | MarkIrreversible | Settle | Release | MarkUnknown

# --- every cell -------------------------------------------------------------------------------------

T, F = True, False
KEEP = "unchanged"
STATES = {"completed": State.COMPLETED, "tombstone": State.TOMBSTONE, "unknown": State.UNKNOWN}
P1, P4 = Proceed(NEXT, 1, b"R" * 16), Proceed(NEXT, 4, b"r" * 16)


@dataclass(frozen=True)
class Cell:
    """What an event makes of a record: its state (`-` deleted), who holds the fence, and the answer."""

    state: str
    fence: int
    answer: object


def same(answer: object) -> Cell:
    return Cell(KEEP, FENCE, answer)


FLIGHT = InFlight(NOW + 10, NOW - 100)
REFUSED = dict.fromkeys(COLUMNS, same(F))
REPLAYED = {name: same("replay") for name in ("completed", "tombstone")}
UNKNOWN = same(Conflict("unknown"))
RERUN = Cell("reserved", NEXT, P4)
FREED = Cell("released", NEXT, T)
GONE = Cell("-", 0, T)

TABLE: dict[str, tuple[Event, dict[Column, Cell]]] = {
    "claim, same fingerprint": (
        claim(),
        {"absent": Cell("reserved", NEXT, P1), "live": same(FLIGHT), "lapsed": RERUN, **REPLAYED, "unknown": UNKNOWN,
         "released": RERUN},
    ),
    "claim, other fingerprint": (
        claim(fingerprint=OTHER_PRINT),
        {**dict.fromkeys(COLUMNS, same(Conflict("reused"))), "absent": Cell("reserved", NEXT, P1),
         "released": Cell("reserved", NEXT, P1)},
    ),
    "claim, quota reached": (
        claim(quota_reached=True),
        {"absent": same(Conflict("quota")), "live": same(FLIGHT), "lapsed": same(Conflict("quota")), **REPLAYED,
         "unknown": UNKNOWN, "released": same(Conflict("quota"))},
    ),
    "claim, other fingerprint, quota reached": (
        claim(fingerprint=OTHER_PRINT, quota_reached=True),
        {**dict.fromkeys(COLUMNS, same(Conflict("reused"))), "absent": same(Conflict("quota")),
         "released": same(Conflict("quota"))},
    ),
    "renew": (
        Renew(fence=FENCE, lease_until=NOW + 99),
        {**REFUSED, "live": Cell("reserved", FENCE, T), "lapsed": Cell("reserved", FENCE, T)},
    ),
    "mark_irreversible": (
        MarkIrreversible(fence=FENCE),
        {**REFUSED, "live": Cell("reserved", FENCE, T), "lapsed": Cell("reserved", FENCE, T)},
    ),
    "settle completed": (
        Settle(fence=FENCE, outcome=FOUND, expires_at=NOW + 1),
        {**dict.fromkeys(COLUMNS, Cell("completed", FENCE, T)), "completed": same(T), "tombstone": same(T),
         "absent": same(F), "released": same(F)},
    ),
    "settle tombstone": (
        Settle(fence=FENCE, outcome=BURIED, expires_at=NOW + 1),
        {**dict.fromkeys(COLUMNS, Cell("tombstone", FENCE, T)), "completed": same(T), "tombstone": same(T),
         "absent": same(F), "released": same(F)},
    ),
    "release": (
        Release(fence=FENCE, expires_at=NOW + 1),
        {**REFUSED, "live": Cell("released", FENCE, T), "lapsed": Cell("released", FENCE, T), "released": same(T)},
    ),
    "ambiguous": (
        MarkUnknown(fence=FENCE, reason="5xx"),
        {**REFUSED, "live": Cell("unknown", FENCE, T), "lapsed": Cell("unknown", FENCE, T), "unknown": same(T)},
    ),
    "operator release": (
        ForceRelease(fence=NEXT),
        {**REFUSED, "live": FREED, "lapsed": FREED, "unknown": FREED},
    ),
    "operator expire": (
        ForceExpire(fence=NEXT),
        {**REFUSED, **{name: Cell("absent", NEXT, T) for name in ("completed", "tombstone", "released")}},
    ),
    "decide rerun": (
        DecideRerun(fence=NEXT),
        {**REFUSED, "lapsed": FREED, "unknown": FREED},
    ),
    "decide result": (
        DecideOutcome(FOUND, fence=NEXT),
        {**REFUSED, "lapsed": Cell("completed", NEXT, T), "unknown": Cell("completed", NEXT, T)},
    ),
    "decide tombstone": (
        DecideOutcome(Tombstone(200, [], "decided"), fence=NEXT),
        {**REFUSED, "lapsed": Cell("tombstone", NEXT, T), "unknown": Cell("tombstone", NEXT, T)},
    ),
    "sweep": (Sweep(fence=NEXT), REFUSED),
    "sweep, reconciled with an outcome": (
        Sweep(fence=NEXT, reconciled=FOUND),
        {**REFUSED, "unknown": Cell("completed", NEXT, T)},
    ),
    "sweep, reconciled with a rerun": (Sweep(fence=NEXT, reconciled=Rerun()), {**REFUSED, "unknown": FREED}),
    "sweep, undecided": (Sweep(fence=NEXT, reconciled=Undecided()), REFUSED),
    "prune": (Prune(), REFUSED),
}  # fmt: skip


def cells() -> Iterator[object]:
    for row, (event, answers) in TABLE.items():
        assert set(answers) == set(COLUMNS), row
        for name in COLUMNS:
            yield pytest.param(name, event, answers[name], id=f"{row} of {name}")


def state_of(record: KeyRecord | None) -> str:
    name = column(record, now=NOW)
    return "reserved" if name in ("live", "lapsed") else name


@pytest.mark.parametrize(("name", "event", "cell"), list(cells()))
def test_the_table_holds(name: Column, event: Event, cell: Cell) -> None:
    record = RECORDS[name]
    after, answer = transition(record, event, now=NOW)
    assert answer == (Replay(record) if cell.answer == "replay" and record is not None else cell.answer)
    if cell.state == KEEP:
        assert after is record
    else:
        assert after is not None
        assert (state_of(after), after.fence) == (cell.state, cell.fence)


@pytest.mark.parametrize("name", [name for name in COLUMNS if name != "absent"])
@pytest.mark.parametrize("event", [event for event, _ in TABLE.values() if isinstance(event, WRITES)])
def test_a_write_under_a_stale_fence_changes_nothing(name: Column, event: Event) -> None:
    for fence in (FENCE - 1, FENCE + 1):
        assert transition(RECORDS[name], replace(event, fence=fence), now=NOW) == (RECORDS[name], False)


@pytest.mark.parametrize("name", COLUMNS)
def test_retention_deletes_all_but_the_unknown_and_the_live(name: Column) -> None:
    record = RECORDS[name]
    old = record and replace(record, expires_at=record.expires_at and NOW)
    kept = name in ("live", "unknown")
    assert transition(old, Prune(), now=NOW) == (old if kept else None, not kept and old is not None)


@pytest.mark.parametrize(("row", "event"), [(row, event) for row, (event, _) in TABLE.items()])
@pytest.mark.parametrize("name", ["lapsed", "completed", "tombstone", "released"])
def test_past_its_retention_a_record_is_absent(name: Column, row: str, event: Event) -> None:
    record = RECORDS[name]
    assert record is not None
    old = replace(record, expires_at=NOW)
    assert column(old, now=NOW) == "absent"
    after, answer = transition(old, event, now=NOW)
    expected = TABLE[row][1]["absent"]
    if isinstance(event, Prune):
        assert (after, answer) == (None, True)
        return
    assert answer == expected.answer
    if isinstance(answer, Proceed):
        assert after is not None
        assert (after.record_id, after.attempt, after.created_at) == (b"R" * 16, 1, NOW)
    else:
        assert after is old


# --- claims -----------------------------------------------------------------------------------------


def proceed(record: KeyRecord | None, event: Claim) -> KeyRecord:
    after, decision = transition(record, event, now=NOW)
    assert isinstance(decision, Proceed)
    assert after is not None
    assert (decision.fence, decision.attempt, decision.record_id) == (after.fence, after.attempt, after.record_id)
    return after


def test_a_first_claim_makes_the_record() -> None:
    made = proceed(None, claim(mode="execution", irreversible=True))
    assert made == KeyRecord(
        key_id=b"K" * 16, scope_id=b"S" * 16, record_id=b"R" * 16, state=State.RESERVED, fingerprint=PRINT,
        method="PUT", route="/o", fence=NEXT, claim_id=OURS, attempt=1, owner="us", lease_until=NOW + 30,
        mode="execution", on_lapse="rerun", irreversible=True, execution_id=f"idem_{(b'R' * 16).hex()}",
        created_at=NOW, claimed_at=NOW, expires_at=NOW + 30 + TTL, first_sent_at=NOW - 5,
    )  # fmt: skip


def test_a_first_claim_takes_the_fence_it_is_given() -> None:
    assert proceed(None, claim(fence=1)).fence == 1


@pytest.mark.parametrize("name", ["lapsed", "released"])
def test_the_next_attempt_goes_on_with_the_same_operation(name: Column) -> None:
    record = RECORDS[name]
    assert record is not None
    again = proceed(replace(record, irreversible=name == "released"), claim(mode="execution"))
    assert (again.record_id, again.attempt, again.created_at) == (b"r" * 16, 4, NOW - 200)
    assert (again.key_id, again.scope_id) == (b"k" * 16, b"s" * 16)
    assert (again.claim_id, again.owner, again.claimed_at, again.irreversible) == (OURS, "us", NOW, False)
    assert again.execution_id == f"idem_{(b'r' * 16).hex()}"


def test_only_a_lapsed_claim_is_reclaimed() -> None:
    reclaimed = {}
    for name in ("absent", "lapsed", "released"):
        _, decision = transition(RECORDS[name], claim(), now=NOW)
        assert isinstance(decision, Proceed)
        reclaimed[name] = decision.reclaimed
    assert reclaimed == {"absent": False, "lapsed": True, "released": False}


def test_another_request_on_a_released_key_is_another_operation() -> None:
    other = proceed(RECORDS["released"], claim(fingerprint=OTHER_PRINT))
    assert (other.record_id, other.attempt, other.created_at) == (b"R" * 16, 1, NOW)
    assert (other.key_id, other.scope_id) == (b"k" * 16, b"s" * 16)


@pytest.mark.parametrize("name", ["live", "lapsed"])
def test_repeating_a_claim_returns_the_same_proceed(name: Column) -> None:
    """HX-11, HA-33: also when the quota is reached by then, for this is the claim that is counted."""
    event = claim(claim_id=THEIRS, quota_reached=True)
    assert transition(RECORDS[name], event, now=NOW) == (RECORDS[name], Proceed(FENCE, 3, b"r" * 16))


@pytest.mark.parametrize("name", ["completed", "unknown", "released"])
def test_a_claim_that_is_over_is_no_longer_repeated(name: Column) -> None:
    _, decision = transition(RECORDS[name], claim(claim_id=THEIRS), now=NOW)
    assert decision != Proceed(FENCE, 3, b"r" * 16)


def test_a_record_of_other_rules_of_fingerprints_is_no_match() -> None:
    assert transition(RECORDS["live"], claim(fp_version=2), now=NOW)[1] == Conflict("reused")


def test_a_dead_owner_lapses_at_once() -> None:
    assert transition(RECORDS["live"], claim(owner_dead=True), now=NOW)[1] == P4
    assert transition(RECORDS["live"], DecideRerun(owner_dead=True), now=NOW)[1] is True
    assert transition(RECORDS["live"], DecideOutcome(FOUND, owner_dead=True), now=NOW)[1] is True
    in_doubt = reserved(on_lapse="ambiguous")
    after, changed = transition(in_doubt, Sweep(owner_dead=True), now=NOW)
    assert (state_of(after), changed) == ("unknown", True)


def test_a_fence_never_falls_however_little_the_event_offers() -> None:
    for event in (claim(fence=0), ForceRelease(), DecideRerun(), DecideOutcome(FOUND)):
        after, _ = transition(RECORDS["lapsed"], event, now=NOW)
        assert after is not None
        assert after.fence == FENCE + 1


# --- lapses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "on_lapse", "irreversible", "attached", "decision"),
    [
        ("separate", "rerun", False, None, P4),
        ("separate", "rerun", True, None, Conflict("unknown")),
        ("separate", "ambiguous", False, None, Conflict("unknown")),
        ("transaction", "rerun", False, None, Conflict("unknown")),
        ("execution", "ambiguous", False, None, InFlight(NOW, NOW - 100)),
        ("execution", "ambiguous", False, Running(), InFlight(NOW, NOW - 100)),
        ("execution", "ambiguous", True, Running(), InFlight(NOW, NOW - 100)),
        ("execution", "ambiguous", False, Absent(), P4),
        ("execution", "ambiguous", True, Absent(), Conflict("unknown")),
        ("execution", "ambiguous", True, FOUND, "replay"),
    ],
)
def test_a_lapse_means_what_the_record_says(
    mode: Mode, on_lapse: Lapse, irreversible: bool, attached: Running | Completed | Absent | None, decision: object
) -> None:
    """HX-71, HX-77. The policy is the record's, whatever the rule of the next request says."""
    record = reserved(lease_until=NOW, mode=mode, on_lapse=on_lapse, irreversible=irreversible)
    after, got = transition(record, claim(attached=attached, mode="separate", on_lapse="rerun"), now=NOW)
    assert got == (Replay(after) if decision == "replay" and after is not None else decision)
    swept, changed = transition(record, Sweep(attached=attached), now=NOW)
    if isinstance(got, Conflict):
        assert after is not None
        assert (after.state, after.reason, after.expires_at, after.fence) == (State.UNKNOWN, "lapsed", None, FENCE)
        assert (swept, changed) == (after, True)
    elif isinstance(got, Replay):
        assert (got.record.outcome, got.record.fence, got.record.expires_at) == (FOUND, NEXT, claim().expires_at)
        assert (state_of(swept), changed) == ("completed", True)
    else:
        assert (swept is record, changed) == (True, False)


@pytest.mark.parametrize(
    ("attached", "decision"),
    [(None, InFlight), (Absent(), Conflict), (FOUND, Replay)],
    ids=["running", "absent", "done"],
)
def test_an_execution_is_asked_for_before_the_quota(attached: Completed | Absent | None, decision: type) -> None:
    record = reserved(lease_until=NOW, mode="execution")
    assert isinstance(transition(record, claim(quota_reached=True, attached=attached), now=NOW)[1], decision)


def test_only_a_lapsed_execution_of_the_same_request_is_asked_for() -> None:
    record = reserved(mode="execution", lease_until=NOW)
    assert asks_attach(record, PRINT, now=NOW)
    assert not asks_attach(record, OTHER_PRINT, now=NOW)
    assert not asks_attach(replace(record, mode="separate"), PRINT, now=NOW)
    assert not asks_attach(record, PRINT, now=NOW - 1)
    assert asks_attach(record, PRINT, now=NOW - 1, owner_dead=True)


# --- writes -----------------------------------------------------------------------------------------


def test_a_renewal_moves_the_lease() -> None:
    after, _ = transition(RECORDS["lapsed"], Renew(fence=FENCE, lease_until=NOW + 99), now=NOW)
    assert after == reserved(lease_until=NOW + 99)
    assert not lapsed(after, now=NOW)


def test_a_mark_is_kept_and_turns_a_release_into_doubt() -> None:
    """HX-89: whatever released it, the effect may be there."""
    marked, _ = transition(RECORDS["live"], MarkIrreversible(fence=FENCE), now=NOW)
    assert marked == reserved(irreversible=True)
    after, accepted = transition(marked, Release(fence=FENCE, expires_at=NOW + 1), now=NOW)
    assert after is not None
    assert (after.state, after.reason, after.expires_at, accepted) == (State.UNKNOWN, "raised", None, True)


def test_a_settle_keeps_the_outcome_and_forgets_the_doubt() -> None:
    answered, _ = transition(RECORDS["unknown"], Settle(fence=FENCE, outcome=ANSWER, expires_at=NOW + 9), now=NOW)
    assert answered is not None
    assert (answered.outcome, answered.status, answered.body_bytes, answered.reason) == (ANSWER, 201, 4, None)
    assert (answered.settled_at, answered.expires_at) == (NOW, NOW + 9)
    buried, _ = transition(RECORDS["live"], Settle(fence=FENCE, outcome=BURIED, expires_at=NOW + 9), now=NOW)
    assert buried is not None
    assert (buried.outcome, buried.status, buried.body_bytes, buried.reason) == (BURIED, 200, 10, "stream")


def test_doubt_keeps_its_reason_and_does_not_expire() -> None:
    after, _ = transition(RECORDS["live"], MarkUnknown(fence=FENCE, reason="timeout"), now=NOW)
    assert after is not None
    assert (after.reason, after.expires_at) == ("timeout", None)
    assert not expired(after, now=NOW + 10**15)


@pytest.mark.parametrize(
    ("name", "given", "until"),
    [("lapsed", None, NOW + TTL), ("unknown", None, NOW + machine.RETENTION), ("lapsed", 5, 5), ("unknown", 5, 5)],
)
def test_a_decision_keeps_the_retention_it_is_given_or_the_claim_had(
    name: Column, given: int | None, until: int
) -> None:
    for event in (ForceRelease(expires_at=given), DecideRerun(expires_at=given), DecideOutcome(FOUND, 0, given)):
        after, _ = transition(RECORDS[name], event, now=NOW)
        assert after is not None
        assert after.expires_at == until


def test_an_alias_has_no_state() -> None:
    with pytest.raises(ValueError, match="alias"):
        column(reserved(state=State.ALIAS), now=NOW)


def test_a_live_lease_never_expires() -> None:
    record = reserved(lease_until=NOW + 1, expires_at=NOW - 1)
    assert not expired(record, now=NOW)
    assert expired(record, now=NOW + 1)
    assert expired(record, now=NOW, owner_dead=True)


# --- laws over all histories ------------------------------------------------------------------------

instants = st.integers(0, 50)
outcomes = st.sampled_from([ANSWER, BURIED, FOUND])
fences = st.integers(0, 12)
until = st.integers(0, 80)
attached = st.sampled_from([None, Running(), Absent(), FOUND])
claims = st.builds(
    claim, fingerprint=st.sampled_from([PRINT, OTHER_PRINT]), claim_id=st.binary(min_size=2, max_size=2), fence=fences,
    lease_until=until, expires_at=until, mode=st.sampled_from(get_args(Mode)),
    on_lapse=st.sampled_from(get_args(Lapse)), quota_reached=st.booleans(), owner_dead=st.booleans(), attached=attached,
)  # fmt: skip
writes = st.one_of(
    st.builds(Renew, fence=fences, lease_until=until),
    st.builds(MarkIrreversible, fence=fences),
    st.builds(Settle, fence=fences, outcome=outcomes, expires_at=until),
    st.builds(Release, fence=fences, expires_at=until),
    st.builds(MarkUnknown, fence=fences, reason=st.sampled_from(["5xx", "raised", "timeout"])),
)
forced = st.one_of(
    st.builds(ForceRelease, fence=fences),
    st.builds(ForceExpire, fence=fences),
    st.builds(DecideRerun, fence=fences, owner_dead=st.booleans()),
    st.builds(DecideOutcome, outcomes, fence=fences),
)
sweeps = st.builds(
    Sweep, fence=fences, attached=attached, reconciled=st.sampled_from([None, Rerun(), Undecided(), FOUND]),
    owner_dead=st.booleans(),
)  # fmt: skip
events = st.one_of(claims, writes, forced, sweeps, st.just(Prune()))
histories = st.lists(st.tuples(instants, events, st.booleans()), min_size=1, max_size=12)


@dataclass(frozen=True)
class Step:
    """One event of a history: before, what happened, after, and what was answered."""

    now: int
    before: KeyRecord | None
    event: Event
    after: KeyRecord | None
    answer: Decision | bool


def played(history: list[tuple[int, Event, bool]]) -> Iterator[Step]:
    """Play a history; half of the writes are made under the fence of the moment. Clocks may run backwards."""
    record: KeyRecord | None = None
    for now, event, by_owner in history:
        if (
            by_owner
            and record is not None
            and isinstance(event, Renew | MarkIrreversible | Settle | Release | MarkUnknown)
        ):
            event = replace(event, fence=record.fence)
        after, answer = transition(record, event, now=now)
        yield Step(now, record, event, after, answer)
        record = after


@given(histories)
def test_fences_only_rise_while_a_record_lives(history: list[tuple[int, Event, bool]]) -> None:
    for step in played(history):
        if step.before is not None and step.after is not None:
            assert step.after.fence >= step.before.fence
            if isinstance(step.answer, Proceed) and step.after is not step.before:
                assert step.after.fence > step.before.fence


@given(histories)
def test_a_settled_outcome_changes_only_by_an_operator_or_by_expiry(history: list[tuple[int, Event, bool]]) -> None:
    for step in played(history):
        known = step.before is not None and column(step.before, now=step.now) in ("completed", "tombstone")
        if known and not isinstance(step.event, ForceExpire):
            assert step.after is step.before


@given(histories)
def test_another_fingerprint_never_sees_waits_for_or_joins_a_record(history: list[tuple[int, Event, bool]]) -> None:
    for step in played(history):
        if not isinstance(step.event, Claim) or step.before is None:
            continue
        where = column(step.before, now=step.now, owner_dead=step.event.owner_dead)
        repeated = step.event.claim_id == step.before.claim_id
        if step.event.fingerprint != step.before.fingerprint and where not in ("absent", "released") and not repeated:
            assert step.answer == Conflict("reused")
            assert step.after is step.before


@given(histories)
def test_nobody_else_runs_while_a_lease_lives_or_after_doubt(history: list[tuple[int, Event, bool]]) -> None:
    for step in played(history):
        if not isinstance(step.event, Claim) or step.before is None:
            continue
        where = column(step.before, now=step.now, owner_dead=step.event.owner_dead)
        if where in ("live", "unknown") and step.event.claim_id != step.before.claim_id:
            assert not isinstance(step.answer, Proceed)
        if isinstance(step.answer, Proceed) and step.after is not step.before and where == "lapsed":
            assert not step.before.irreversible


@given(histories)
def test_what_is_refused_changes_nothing(history: list[tuple[int, Event, bool]]) -> None:
    for step in played(history):
        if step.answer is False:
            assert step.after is step.before


@given(histories)
def test_attempts_of_one_operation_count_up(history: list[tuple[int, Event, bool]]) -> None:
    for step in played(history):
        if isinstance(step.answer, Proceed) and step.after is not None and step.after is not step.before:
            goes_on = step.before is not None and step.after.attempt > 1
            if goes_on and step.before is not None:
                assert step.after.attempt == step.before.attempt + 1
                assert (step.after.record_id, step.after.fingerprint) == (
                    step.before.record_id,
                    step.before.fingerprint,
                )


@given(histories)
def test_state_and_columns_agree(history: list[tuple[int, Event, bool]]) -> None:
    for step in played(history):
        record = step.after
        if record is None:
            continue
        assert (record.outcome is not None) == (record.state in (State.COMPLETED, State.TOMBSTONE))
        assert (record.expires_at is None) == (record.state is State.UNKNOWN)
        assert (record.settled_at is not None) == (record.outcome is not None)
        assert (record.execution_id is not None) == (record.mode == "execution")


# --- what an outcome becomes ------------------------------------------------------------------------

NOT_NOW = [401, 403, 407, 408, 409, 413, 421, 423, 425, 428, 429, 431]
DETERMINISTIC = [200, 201, 204, 301, 303, 304, 400, 402, 404, 405, 410, 412, 415, 418, 422, 451]


@pytest.mark.parametrize("status", DETERMINISTIC)
def test_an_answer_about_the_request_is_stored(status: int) -> None:
    for rule in (RouteRule(), RouteRule(irreversible=True)):
        for irreversible in (False, True):
            assert classify(status, rule, irreversible=irreversible) == "store"


@pytest.mark.parametrize("status", NOT_NOW)
def test_an_answer_about_the_moment_is_released_unless_the_attempt_is_marked(status: int) -> None:
    for rule in (RouteRule(), RouteRule(irreversible=True)):
        assert classify(status, rule, irreversible=False) == "release"
        assert classify(status, rule, irreversible=True) == "store"


def test_every_4xx_is_one_or_the_other() -> None:
    released = [s for s in range(400, 500) if classify(s, RouteRule(), irreversible=False) == "release"]
    assert released == NOT_NOW


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 599])
def test_a_5xx_goes_by_its_policy(status: int) -> None:
    def of(rule: RouteRule, *, marked: bool = False) -> str:
        return classify(status, rule, irreversible=marked)

    assert of(RouteRule()) == "release"
    assert of(RouteRule(on_5xx="freeze")) == "store"
    assert of(RouteRule(on_5xx="ambiguous")) == "unknown"
    assert of(RouteRule(irreversible=True)) == "unknown"
    assert of(RouteRule(on_5xx="freeze"), marked=True) == "unknown"


def test_statuses_override_the_table_the_most_specific_first() -> None:
    rule = RouteRule(statuses={409: "store", "4xx": "release", "5xx": "unknown", 503: "release"})
    answers = {status: classify(status, rule, irreversible=False) for status in (200, 404, 409, 500, 503)}
    assert answers == {200: "store", 404: "release", 409: "store", 500: "unknown", 503: "release"}
    assert classify(404, rule, irreversible=True) == "release"


@pytest.mark.parametrize(
    ("rule", "before", "after"),
    [
        (RouteRule(), "release", {200: "truncated", 404: "truncated", 409: "release", 500: "release"}),
        (RouteRule(on_5xx="freeze"), "freeze", {200: "truncated", 409: "release", 500: "truncated"}),
        (RouteRule(on_5xx="ambiguous"), "unknown", {200: "truncated", 409: "release", 500: "unknown"}),
        (RouteRule(irreversible=True), "unknown", {200: "truncated", 409: "release", 500: "unknown"}),
    ],
    ids=["default", "freeze", "ambiguous", "irreversible route"],
)
def test_a_handler_that_does_not_finish(rule: RouteRule, before: str, after: dict[int, str]) -> None:
    assert classify_end(None, rule, irreversible=False) == before
    assert {status: classify_end(status, rule, irreversible=False) for status in after} == after


@pytest.mark.parametrize("rule", [RouteRule(), RouteRule(on_5xx="freeze")])
def test_a_marked_attempt_that_does_not_finish_is_never_released(rule: RouteRule) -> None:
    ends = {status: classify_end(status, rule, irreversible=True) for status in (None, 200, 409, 503)}
    assert ends == {None: "unknown", 200: "truncated", 409: "truncated", 503: "unknown"}


def test_doubt_has_a_reason() -> None:
    assert unknown_reason("answered", 500) == "5xx"
    assert unknown_reason("raised", None) == "raised"
    assert unknown_reason("raised", 200) == "raised"
    assert unknown_reason("raised", 502) == "5xx"
    assert unknown_reason("timeout", None) == "timeout"


# --- when to ask again ------------------------------------------------------------------------------

SECOND = 1_000_000


def wait(*, until: int, since: int = 0, now: int = 0, p90: int | None = None, jitter: float = 0.0) -> int:
    return retry_after(until=until, since=since, now=now, p90_us=p90, lease=timedelta(seconds=30), jitter=jitter)


def test_a_duplicate_comes_back_when_the_lease_ends_or_the_handler_is_usually_done() -> None:
    assert wait(until=10 * SECOND) == 10
    assert wait(until=10 * SECOND, p90=4 * SECOND) == 4
    assert wait(until=10 * SECOND, p90=40 * SECOND) == 10
    assert wait(until=10 * SECOND, now=3 * SECOND, p90=4 * SECOND) == 1
    assert wait(until=10 * SECOND, now=9 * SECOND, p90=4 * SECOND) == 1
    assert wait(until=10 * SECOND + 1) == 11


def test_jitter_adds_up_to_a_fifth_and_no_wait_is_longer_than_the_lease() -> None:
    assert wait(until=10 * SECOND, jitter=0.5) == 11
    assert wait(until=29 * SECOND, jitter=0.99) == 30
    assert wait(until=90 * SECOND) == 30
    assert retry_after(until=9 * SECOND, since=0, now=0, p90_us=None, lease=timedelta(seconds=1.9), jitter=0) == 1


@given(
    until=st.integers(-(10**9), 10**12), since=st.integers(-(10**9), 10**9), now=st.integers(0, 10**9),
    p90=st.none() | st.integers(0, 10**10), jitter=st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_a_wait_is_a_whole_number_of_seconds_within_the_lease(
    until: int, since: int, now: int, p90: int | None, jitter: float
) -> None:
    assert 1 <= wait(until=until, since=since, now=now, p90=p90, jitter=jitter) <= 30


# --- the module's face ------------------------------------------------------------------------------


def test_the_pure_functions_of_the_slice_are_found_in_one_place() -> None:
    promised = {
        "answer", "canonical_json", "classify", "decode_headers", "derived_key", "encode_headers", "filter_headers",
        "fingerprint", "key_id", "parse_key", "record_id", "retry_after", "scope_id", "transition",
    }  # fmt: skip
    assert promised <= set(machine.__all__)
    assert all(callable(getattr(machine, name)) for name in promised)
    assert machine.scope_id(bytes(range(32)), Principal("user-1", "acme")).hex() == "0c70cef1933ccab97ea0ec6e60c60485"


def test_every_event_has_a_row_in_this_table() -> None:
    assert {type(event) for event, _ in TABLE.values()} == set(get_args(machine.Event))
