"""What a client does with a request that must take effect once: keys, hops, answers, pauses."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.errors import ConfigError
from holdfast.idempotency import errors
from holdfast.idempotency.answers import SITUATIONS
from holdfast.idempotency.retry import (
    FREE_RETRIES,
    MOMENTARY,
    RAISED,
    RETRIED,
    Again,
    Answer,
    Budget,
    Call,
    Failure,
    RetryPolicy,
    Sending,
    Stop,
    decide,
    decode_key,
    encode_key,
    expired,
    fate,
    is_problem,
    is_small,
    keeps_key,
    leaves_doubt,
    problem_code,
    read_answer,
    read_date,
    refusal,
    takes_key,
)

NOW = 1_800_000_000_000_000
SECOND = 1_000_000
FIRST = Sending(attempt=1, resendable=True, elapsed=0, keep_until=NOW + 3600 * SECOND)
HERE = ("https", "api.example", None)


def decided(
    ended: Answer | Failure, *, sending: Sending = FIRST, policy: RetryPolicy | None = None, jitter: float = 0.5
) -> Again | Stop:
    return decide(policy or RetryPolicy(), sending, ended, now=NOW, jitter=jitter)


# Keys


@pytest.mark.parametrize(("method", "takes"), [("POST", True), ("PUT", True), ("PATCH", True), ("DELETE", True),
                                               ("GET", False), ("HEAD", False), ("OPTIONS", False)])  # fmt: skip
def test_methods_that_change_something_take_a_key(method: str, takes: bool) -> None:
    assert takes_key(method) is takes


@pytest.mark.parametrize(
    ("minted", "method", "origin", "keeps"),
    [
        (True, "POST", HERE, True),
        (True, "GET", HERE, False),
        (True, "POST", ("https", "other.example", None), False),
        (True, "POST", ("http", "api.example", None), False),
        (True, "POST", ("https", "api.example", 8443), False),
        (False, "GET", ("https", "other.example", None), True),
    ],
)
def test_a_minted_key_stays_at_its_origin_and_with_its_method(
    minted: bool, method: str, origin: tuple[str, str, int | None], keeps: bool
) -> None:
    call = Call("k", minted, "POST", HERE, NOW, NOW + 1)
    assert keeps_key(call, method, origin) is keeps


@pytest.mark.parametrize(
    ("key", "bare", "quoted"),
    [
        ("abc", "abc", '"abc"'),
        ("two words", '"two words"', '"two words"'),
        ('say "hi" \\', '"say \\"hi\\" \\\\"', '"say \\"hi\\" \\\\"'),
        ("a,b", '"a,b"', '"a,b"'),
        ("a;b", '"a;b"', '"a;b"'),
        (":a", '":a"', '":a"'),
        ("?1", '"?1"', '"?1"'),
        ("!#$%&'()*+-./09:<=>?@AZ[]^_`az{|}~", "!#$%&'()*+-./09:<=>?@AZ[]^_`az{|}~", None),
    ],
)
def test_a_key_is_sent_bare_where_it_can_be_and_quoted_where_it_must(key: str, bare: str, quoted: str | None) -> None:
    assert encode_key(key, quoted=False) == bare
    assert encode_key(key, quoted=True) == (quoted or f'"{key}"')


@pytest.mark.parametrize("key", ["", " secret", "secret ", "secrét", "sec\tret", "secret\n", "x" * 256])
def test_what_cannot_be_a_key_is_refused_before_it_is_sent(key: str) -> None:
    with pytest.raises(errors.KeyInvalid) as caught:
        encode_key(key, quoted=True)
    assert not key.strip() or key.strip() not in caught.value.message + caught.value.hint


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255), st.booleans())
def test_a_key_is_read_back_as_it_was(key: str, quoted: bool) -> None:
    assert decode_key(encode_key(key, quoted=quoted)) == key


def test_a_callers_bare_key_is_itself() -> None:
    assert decode_key("abc") == "abc"
    assert decode_key('"') == '"'


# Reading answers


@pytest.mark.parametrize(
    "text", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_the_three_forms_of_http_dates_are_read(text: str) -> None:
    assert read_date(text) == 784_111_777 * SECOND


@pytest.mark.parametrize("text", ["", "soon", "Sun, 99 Nov 1994 08:49:37 GMT", "Fri, 01 Jan 99999 00:00:00 GMT"])
def test_what_is_no_date_is_none(text: str) -> None:
    assert read_date(text) is None


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        (b"2", 2 * SECOND),
        (b" 0 ", 0),
        (b"Sun, 06 Nov 1994 08:49:37 GMT", 0),
        (b"Fri, 15 Jan 2027 08:00:05 GMT", 5 * SECOND),
        (b"-1", None),
        (b"1.5", None),
        (b"\xb2", None),
        (b"soon", None),
        (b"9" * 400, int("9" * 12) * SECOND),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: bytes, wait: int | None) -> None:
    assert datetime.fromtimestamp(NOW / SECOND, UTC) == datetime(2027, 1, 15, 8, tzinfo=UTC)
    assert read_answer(503, [(b"Retry-After", value)], now=NOW).retry_after == wait


def test_of_several_values_the_most_patient_and_the_most_forgetful_count() -> None:
    lines = [(b"retry-after", b"1"), (b"Retry-After", b"3"), (b"retry-after", b"x")]
    lines += [
        (b"Idempotency-Expires", b"Fri, 15 Jan 2027 09:00:00 GMT"),
        (b"idempotency-expires", b"Fri, 15 Jan 2027 08:30:00 GMT"),
        (b"idempotency-expires", b"never"),
    ]
    assert read_answer(409, lines, now=NOW) == Answer(409, False, 3 * SECOND, NOW + 1800 * SECOND)


@pytest.mark.parametrize(
    ("name", "value", "replayed"),
    [
        (b"Idempotency-Replayed", b"true", True),
        (b"idempotent-replayed", b" TRUE ", True),
        (b"Idempotency-Replayed", b"false", False),
        (b"Idempotency-Replayed", b"?1", False),
        (b"X-Replayed", b"true", False),
    ],
)
def test_the_marker_of_a_replay_is_read_in_any_case(name: bytes, value: bytes, replayed: bool) -> None:
    assert read_answer(200, [(name, value)], now=NOW).replayed is replayed


@pytest.mark.parametrize(
    ("status", "kind", "may_be"),
    [
        (409, "application/problem+json", True),
        (503, "Application/Problem+JSON; charset=utf-8", True),
        (200, "application/problem+json", False),
        (409, "application/json", False),
        (409, "", False),
    ],
)
def test_a_problem_document_is_known_by_its_type(status: int, kind: str, may_be: bool) -> None:
    assert is_problem(status, kind) is may_be


@pytest.mark.parametrize(
    ("length", "may_be"), [("", True), ("x", True), ("0", True), ("65535", True), ("65536", False), ("9" * 99, False)]
)
def test_a_document_that_says_it_is_too_large_is_not_looked_at(length: str, may_be: bool) -> None:
    assert is_problem(409, "application/problem+json", length) is may_be


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"type": "urn:holdfast:idempotency:in_flight", "code": "in_flight"}, "in_flight"),
        ({"type": "https://help.example/in_flight", "code": "in_flight"}, "in_flight"),
        ({"code": "in_flight"}, "in_flight"),
        ({"type": "about:blank", "code": "in_flight"}, "in_flight"),
        ({"type": "https://shop.example/stock", "code": "in_flight"}, None),
        ({"type": 7, "code": "in_flight"}, None),
        ({"type": "urn:holdfast:idempotency:in_flight"}, None),
        ({"code": 7}, None),
        (["in_flight"], None),
    ],
)
def test_a_code_counts_if_the_type_does_not_contradict_it(document: object, code: str | None) -> None:
    assert problem_code(json.dumps(document).encode()) == code


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_has_no_code(body: bytes) -> None:
    assert problem_code(body) is None


# Again, or not


@pytest.mark.parametrize("status", sorted(RETRIED))
def test_a_status_that_passes_is_tried_again(status: int) -> None:
    assert isinstance(decided(Answer(status)), Again)
    assert decided(Answer(status, replayed=True)) == Stop()


@pytest.mark.parametrize("status", sorted(set(range(200, 600)) - RETRIED - {409}))
def test_every_other_status_is_final(status: int) -> None:
    assert decided(Answer(status)) == Stop()
    assert decided(Answer(status, retry_after=SECOND)) == Stop()


@pytest.mark.parametrize("status", [409, 423, 400, 422, 503])
def test_a_call_in_flight_is_asked_again_at_any_status(status: int) -> None:
    assert isinstance(decided(Answer(status, code="in_flight")), Again)


@pytest.mark.parametrize("code", sorted(RAISED - {"in_flight"}))
@pytest.mark.parametrize("status", [409, 412, 422, 429, 503])
def test_what_the_server_knows_for_good_is_final_at_any_status(status: int, code: str) -> None:
    assert decided(Answer(status, code=code, retry_after=SECOND)) == Stop()


def test_a_409_of_others_is_tried_again_if_it_says_when() -> None:
    assert decided(Answer(409)) == Stop()
    assert decided(Answer(409, retry_after=2 * SECOND)) == Again(2 * SECOND)
    assert decided(Answer(409, retry_after=2 * SECOND, code="stock_locked")) == Again(2 * SECOND)


@pytest.mark.parametrize("sent", [True, False])
def test_a_failure_is_tried_again(sent: bool) -> None:
    assert isinstance(decided(Failure(sent)), Again)


def test_without_a_key_or_a_body_that_can_be_sent_again_there_is_one_attempt() -> None:
    assert decided(Failure(sent=False), sending=Sending(1, False, 0, NOW + 3600 * SECOND)) == Stop()


def test_attempts_are_counted_with_the_first() -> None:
    policy = RetryPolicy(attempts_max=3)
    assert isinstance(decided(Answer(503), sending=Sending(2, True, 0, FIRST.keep_until), policy=policy), Again)
    assert decided(Answer(503), sending=Sending(3, True, 0, FIRST.keep_until), policy=policy) == Stop()


@pytest.mark.parametrize(("attempt", "limit"), [(1, 200_000), (2, 400_000), (3, 800_000), (7, 10 * SECOND)])
def test_a_pause_is_a_random_part_of_a_doubling_limit(attempt: int, limit: int) -> None:
    policy = RetryPolicy(attempts_max=100)
    sending = Sending(attempt, True, 0, FIRST.keep_until)
    for jitter in (0.0, 0.25, math.nextafter(1, 0)):
        assert decided(Answer(503), sending=sending, policy=policy, jitter=jitter) == Again(int(jitter * limit))


def test_many_attempts_do_not_make_the_limit_overflow() -> None:
    policy = RetryPolicy(attempts_max=10**6)
    sending = Sending(10**5, True, 0, FIRST.keep_until)
    assert decided(Failure(sent=True), sending=sending, policy=policy) == Again(5 * SECOND)


def test_no_attempt_comes_before_retry_after() -> None:
    assert decided(Answer(429, retry_after=2 * SECOND), jitter=0) == Again(2 * SECOND)
    assert decided(Answer(429, retry_after=1000), jitter=0.5) == Again(100_000)


def test_too_long_a_retry_after_ends_the_call() -> None:
    policy = RetryPolicy(deadline=timedelta(hours=1))
    assert decided(Answer(503, retry_after=60 * SECOND), policy=policy) == Again(60 * SECOND)
    assert decided(Answer(503, retry_after=60 * SECOND + 1), policy=policy) == Stop()


def test_no_attempt_begins_past_the_deadline() -> None:
    late = Sending(1, True, 59 * SECOND, FIRST.keep_until)
    assert decided(Answer(503, retry_after=SECOND), sending=late) == Again(SECOND)
    assert decided(Answer(503, retry_after=SECOND + 1), sending=late) == Stop()


def test_no_attempt_begins_when_the_server_may_have_forgotten() -> None:
    assert decided(Answer(503, retry_after=SECOND), sending=Sending(1, True, 0, NOW + SECOND + 1)) == Again(SECOND)
    assert decided(Answer(503, retry_after=SECOND), sending=Sending(1, True, 0, NOW + SECOND)) == Stop()


def test_retries_are_a_share_of_the_calls_after_the_first_ten() -> None:
    budget = Budget(0.2)
    budget.begin()
    assert sum(budget.spend() for _ in range(100)) == FREE_RETRIES + 1
    for _ in range(9):
        budget.begin()
    assert [budget.spend() for _ in range(2)] == [True, False]
    assert (budget.calls, budget.retries) == (10, 12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts_max": 0},
        {"deadline": timedelta(seconds=-1)},
        {"backoff": timedelta(seconds=-1)},
        {"backoff_max": timedelta(seconds=-1)},
        {"retry_after_max": timedelta(seconds=-1)},
        {"budget": -0.1},
        {"budget": math.nan},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RetryPolicy(**wrong)


# What an answer means for the call


@pytest.mark.parametrize(
    ("ended", "doubt"),
    [
        (Failure(sent=True), True),
        (Failure(sent=False), False),
        (Answer(200), True),
        (Answer(500), True),
        (Answer(503), True),
        (Answer(429), False),
        (Answer(307), False),
        (Answer(303), True),
        (Answer(409), False),
        (Answer(409, replayed=True), True),
        (Answer(409, code="in_flight"), True),
        (Answer(409, code="outcome_unknown"), True),
        (Answer(412, code="key_window_passed"), True),
        (Answer(422, code="key_reused"), False),
        (Answer(422), True),
    ],
)
def test_doubt_is_what_an_attempt_may_have_done_unseen(ended: Answer | Failure, doubt: bool) -> None:
    assert leaves_doubt(ended) is doubt


@pytest.mark.parametrize("doubtful", [False, True])
@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (Answer(201), "settled"),
        (Answer(303), "settled"),
        (Answer(404), "settled"),
        (Answer(422), "settled"),
        (Answer(500, replayed=True), "settled"),
        (Answer(401, replayed=True), "settled"),
        (Answer(409, replayed=True, code="executed"), "settled"),
        (Answer(409, code="executed"), "settled"),
        (Answer(500), "open"),
        (Answer(501), "open"),
        (Answer(409, code="in_flight"), "open"),
        (Answer(409, code="outcome_unknown"), "open"),
        (Answer(412, code="key_window_passed"), "open"),
        (Answer(422, code="key_reused"), "refused"),
        *((Answer(status), "refused") for status in sorted(MOMENTARY)),
    ],
)
def test_an_answer_settles_a_call_or_refuses_it_or_leaves_it_open(answer: Answer, ends: str, doubtful: bool) -> None:
    assert fate(answer, doubtful=doubtful) == ("open" if doubtful and ends == "refused" else ends)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("key_reused", errors.KeyReused),
        ("outcome_unknown", errors.OutcomeUnknown),
        ("executed", errors.AlreadyExecuted),
        ("in_flight", errors.KeyInFlight),
        ("key_window_passed", errors.KeyWindowPassed),
    ],
)
def test_answers_that_speak_of_the_key_are_raised(code: str, kind: type[errors.IdempotencyError]) -> None:
    error = refusal(Answer(409, code=code, retry_after=SECOND + 1))
    assert type(error) is kind
    assert (error.code, error.retry_after) == (f"idempotency.{code}", 2)
    error = refusal(Answer(409, code=code))
    assert error is not None
    assert error.retry_after is None


def test_every_raised_code_is_one_of_the_table() -> None:
    assert set(SITUATIONS) >= RAISED


@pytest.mark.parametrize("code", [None, "key_missing", "stock_locked"])
def test_other_answers_are_returned(code: str | None) -> None:
    assert refusal(Answer(409, code=code)) is None


def test_a_call_that_is_too_old_has_an_error_of_its_own() -> None:
    assert expired().code == "idempotency.key_window_passed"


@pytest.mark.parametrize(
    ("length", "small"),
    [("", False), ("0", False), ("1", True), ("65535", True), ("65536", False), ("9" * 5000, False), ("-1", False)],
)
def test_a_small_body_is_read_with_its_head(length: str, small: bool) -> None:
    assert is_small(length) is small
