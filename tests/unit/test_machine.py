"""The rules of durable execution, one by one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.execution import machine
from holdfast.execution.effects import (
    Retry,
    Verdict,
    fail,
    happened,
    not_happened,
    reconcile,
    rerun,
    rerun_with_key,
    unknown,
)
from holdfast.execution.effects import skip as skip_policy
from holdfast.execution.machine import (
    FAILED,
    OPENED,
    OUTCOME,
    Again,
    Ambiguous,
    Ask,
    Assume,
    Blocked,
    Conflict,
    Due,
    Earlier,
    Fresh,
    Held,
    InFlight,
    Past,
    Probe,
    Proceed,
    Record,
    Replay,
    Settled,
)


def record(
    part: int, attempt: int = 1, outcome: str | None = None, *, due_at: int | None = None, seq: int = 1
) -> Record:
    return Record(
        idx=0, part=part, attempt=attempt, shape=b"s", outcome=outcome, payload=None, kind="step", name="pay",
        effect="exactly_once", effect_kind="money", policy="fail", key=b"k", carried_from=None, due_at=due_at, seq=seq,
    )  # fmt: skip


@dataclass
class Row:
    status: str = "running"
    queue: str | None = None
    waiting_on: str | None = None
    owner_id: str | None = None
    fence: int = 3
    kind: str = "turn"
    input_hash: bytes = b"h"


def admit(row: Row, *, dead: bool = False, kind: str = "turn", hash_: bytes | None = b"h") -> object:
    return machine.admit(row, owner_dead=dead, asked_kind=kind, asked_hash=hash_)


@pytest.mark.parametrize(
    ("row", "dead", "answer"),
    [
        (Row(status="pending"), False, Proceed(3)),
        (Row(status="pending", queue="q"), False, InFlight("queued")),
        (Row(status="running", owner_id="o"), False, InFlight("owned")),
        (Row(status="running", owner_id="o"), True, Proceed(3)),
        (Row(status="waiting", waiting_on="retry"), False, Proceed(3)),
        (Row(status="waiting", waiting_on="retry", owner_id="o"), False, InFlight("owned")),
        (Row(status="waiting", waiting_on="paused"), False, InFlight("paused")),
        (Row(status="needs_decision"), False, Blocked("needs_decision")),
        (Row(status="completed"), False, Replay("completed")),
        (Row(status="failed"), False, Replay("failed")),
        (Row(status="aborted"), False, Replay("aborted")),
        (Row(status="canceled"), False, Replay("canceled")),
    ],
)
def test_admission_follows_the_status_found(row: Row, dead: bool, answer: object) -> None:
    assert admit(row, dead=dead) == answer


@pytest.mark.parametrize("status", sorted(machine.TRANSITIONS.keys() - {""}))
def test_another_kind_or_input_conflicts_whatever_the_status(status: str) -> None:
    assert admit(Row(status=status), kind="other") == Conflict("kind")
    assert admit(Row(status=status), hash_=b"other") == Conflict("input")


def test_no_input_asked_accepts_any() -> None:
    assert admit(Row(status="pending"), hash_=None) == Proceed(3)


def test_terminal_states_other_than_failed_and_aborted_lead_nowhere() -> None:
    for status in machine.TERMINAL - {"failed", "aborted"}:
        assert machine.TRANSITIONS[status] == frozenset()


def test_a_position_without_records_is_fresh() -> None:
    assert machine.judge([]) == Fresh()


def test_an_outcome_settles_whatever_else_stands_there() -> None:
    outcome = record(OUTCOME, 2, "value")
    assert machine.judge([record(OPENED, 1), record(FAILED, 1), record(OPENED, 2), outcome]) == Settled(outcome)


def test_an_intent_without_outcome_is_ambiguous_at_its_latest_attempt() -> None:
    latest = record(OPENED, 2)
    assert machine.judge([record(OPENED, 1), latest]) == Ambiguous(2, latest)
    assert machine.judge([latest, record(OPENED, 1)]) == Ambiguous(2, latest)
    assert machine.judge([record(OPENED, 1), record(FAILED, 1), latest]) == Ambiguous(2, latest)


def test_a_failed_attempt_makes_the_next_one_due() -> None:
    assert machine.judge([record(FAILED, 1, due_at=9), record(FAILED, 2, due_at=17)]) == Due(3, 17)
    assert machine.judge([record(FAILED, 2, due_at=17), record(FAILED, 1, due_at=9)]) == Due(3, 17)
    assert machine.judge([record(OPENED, 1), record(FAILED, 1)]) == Due(2, None)


def test_a_position_held_for_a_decision_waits_until_it_is_taken() -> None:
    held = record(OPENED, 0)
    assert machine.judge([held]) == Held(held)
    assert machine.judge([held, record(FAILED, 0)]) == Due(1, None)
    assert machine.judge([held, record(FAILED, 0), record(OPENED, 1)]) == Ambiguous(1, record(OPENED, 1))


parts = st.lists(
    st.builds(
        record,
        st.sampled_from([OPENED, FAILED, OUTCOME]),
        st.integers(0, 4),
        st.sampled_from([None, "value", "failed"]),
    ),
    max_size=6,
)


@given(parts, st.randoms())
def test_the_order_of_records_does_not_matter(records: list[Record], shuffle: object) -> None:
    outcomes = [r for r in records if r.part == OUTCOME]
    unique = {(r.part, r.attempt): r for r in records if r.part != OUTCOME}
    records = [*unique.values(), *outcomes[:1]]
    shuffled = records.copy()
    shuffle.shuffle(shuffled)
    assert machine.judge(records) == machine.judge(shuffled)


def test_attempts_and_reruns_are_counted_from_the_records() -> None:
    assert machine.attempts([]) == 0
    assert machine.attempts([record(OPENED, 1), record(OPENED, 3), record(FAILED, 2)]) == 3
    assert machine.reruns([]) == 0
    assert machine.reruns([record(OPENED, 1)]) == 0
    assert machine.reruns([record(OPENED, 1), record(OPENED, 2), record(OPENED, 3)]) == 2
    assert machine.reruns([record(OPENED, 1), record(FAILED, 1), record(OPENED, 2)]) == 0


def test_a_step_that_was_rearmed_has_all_its_tries_again() -> None:
    failures = [record(FAILED, 1, due_at=5), record(FAILED, 2, due_at=6), record(OPENED, 3)]
    assert machine.tries([]) == 0
    assert machine.tries(failures) == 2
    assert machine.tries([*failures, record(FAILED, 3), record(FAILED, 4, due_at=9)]) == 1


def resolve(policy: object, reruns: int = 0, verdict: Verdict | None = None) -> object:
    return machine.resolve(policy, reruns=reruns, reruns_max=2, verdict=verdict)


def test_skip_never_runs_again() -> None:
    assert resolve(skip_policy("n/a"), reruns=99) == Assume("n/a", None, "policy")


def test_fail_asks() -> None:
    assert resolve(fail()) == Ask("ambiguous")


def test_rerun_policies_run_again_until_the_limit() -> None:
    for policy in (rerun(), rerun_with_key()):
        assert resolve(policy, reruns=1) == Again()
        assert resolve(policy, reruns=2) == Ask("reruns_exhausted")


def test_reconcile_asks_the_other_side_first() -> None:
    policy = reconcile(lambda handle: unknown())
    assert resolve(policy) == Probe(policy)
    assert resolve(policy, verdict=happened(5)) == Assume(5, None, "probe")
    assert resolve(policy, verdict=not_happened()) == Again()
    assert resolve(policy, verdict=unknown()) == Ask("probe_unknown")
    assert resolve(policy, reruns=2) == Ask("reruns_exhausted")


def test_an_abandoned_intent_cannot_run_again() -> None:
    assert machine.abandoned(skip_policy(1)) == Assume(1, None, "policy")
    for policy in (fail(), rerun(), rerun_with_key(), reconcile(lambda handle: unknown())):
        assert machine.abandoned(policy) == Ask("abandoned")


def test_the_last_attempt_has_no_next() -> None:
    retry = Retry(max_attempts=2)
    assert machine.pause_before_next(retry, 1, ValueError(), 0.5) == pytest.approx(0.1)
    assert machine.pause_before_next(retry, 2, ValueError(), 0.5) is None


def test_give_up_on_beats_retry_on() -> None:
    retry = Retry(max_attempts=9, retry_on=(Exception,), give_up_on=(KeyError,))
    assert machine.pause_before_next(retry, 1, KeyError(), 0.5) is None
    assert machine.pause_before_next(retry, 1, ValueError(), 0.5) is not None
    only = Retry(max_attempts=9, retry_on=(OSError,))
    assert machine.pause_before_next(only, 1, ValueError(), 0.5) is None


@given(st.integers(1, 999), st.floats(0, 1, exclude_max=True), st.floats(1, 1e6))
def test_a_pause_lies_between_nothing_and_its_limit(attempt: int, draw: float, factor: float) -> None:
    retry = Retry(max_attempts=1000, initial=timedelta(seconds=1), factor=factor, maximum=timedelta(seconds=7))
    pause = machine.pause_before_next(retry, attempt, ValueError(), draw)
    assert pause is not None
    assert 0 <= pause <= min(7.0, 1.0 * factor ** min(attempt - 1, 1) if attempt <= 2 else 7.0)


def marked(error: Exception, position: str) -> Exception:
    setattr(error, machine.POSITION_MARK, position)
    return error


def test_step_failures_are_found_in_cause_context_and_groups() -> None:
    cause = marked(ValueError(), "1")
    context = marked(KeyError(), "2.0")
    grouped = marked(OSError(), "3")
    try:
        try:
            raise context
        except KeyError:
            raise RuntimeError("outer") from cause
    except RuntimeError as error:
        outer = error
    tree = ExceptionGroup("all", [outer, ExceptionGroup("inner", [grouped, marked(OSError(), "3")])])
    assert set(machine.failed_positions(tree)) == {"1", "2.0", "3"}


def test_a_cycle_in_the_exception_tree_ends() -> None:
    one, two = marked(ValueError(), "1"), ValueError()
    one.__cause__, two.__cause__ = two, one
    assert machine.failed_positions(two) == ("1",)


def earlier(key: bytes, name: str, *records: Record, effect: str = "exactly_once") -> Earlier:
    return Earlier(key, name, effect, "money", 1, records)


def test_an_earlier_effect_is_spent_unless_it_failed() -> None:
    for outcome in ("value", "assumed", "no_value"):
        assert earlier(b"k", "pay", record(OUTCOME, 1, outcome)).spent
    assert not earlier(b"k", "pay", record(OPENED, 1), record(OUTCOME, 1, "failed")).spent
    assert earlier(b"k", "pay", record(OPENED, 1)).spent
    assert not earlier(b"k", "pay", record(OPENED, 1), record(FAILED, 1)).spent


def test_unclaimed_effects_are_those_nobody_asked_for_or_took_over() -> None:
    old = earlier(b"old", "pay", record(OUTCOME, 1, "value", seq=7))
    idle = earlier(b"idle", "read", record(OUTCOME, 1, "value", seq=8), effect="at_least_once")
    failed = earlier(b"failed", "pay", record(OUTCOME, 1, "failed", seq=9))
    past = Past({each.key: each for each in (old, idle, failed)}, set(), set())
    assert past.unclaimed() == [old]
    assert past.shifted("pay") == old
    assert past.shifted("other") is None
    past.asked.add(b"old")
    assert past.unclaimed() == []
    past.asked.clear()
    past.claim(old)
    assert past.shifted("pay") is None


def test_a_report_shows_both_sides() -> None:
    stored = machine.describe("step", "pay", "exactly_once", b"\xab" * 32)
    asked = machine.describe("promise", "ok", None, b"\xcd" * 32)
    text = machine.report("turn-42", 1, "3", stored, asked)
    assert "turn-42" in text
    assert "step 'pay' exactly_once [abababababababab]" in text
    assert "promise 'ok' [cdcdcdcdcdcdcdcd]" in text
    assert "the program ended before it" in machine.report("turn-42", 1, "3", stored, None)
    assert "nothing" in machine.report("turn-42", 1, "3", None, asked)
