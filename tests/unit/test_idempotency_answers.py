"""The table of answers: statuses, documents, and what they do not say."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from holdfast.idempotency import errors
from holdfast.idempotency.answers import (
    SITUATIONS,
    Refusal,
    answer,
    first_run,
    marker,
    status_of,
)
from holdfast.idempotency.rules import CODES, PROFILES, IdempotencyConfig
from holdfast.idempotency.values import (
    Completed,
    Conflict,
    InFlight,
    KeyRecord,
    Outcome,
    Proceed,
    Replay,
    State,
    Tombstone,
    TombstoneReason,
)

SECRETS = [bytes(range(32))]
REF = "d10a46632f2b"


def config(**settings: Any) -> IdempotencyConfig:
    return IdempotencyConfig(principal=lambda scope: "user-1", secrets=SECRETS, **settings)


def record(outcome: Outcome | None) -> KeyRecord:
    return KeyRecord(
        key_id=bytes.fromhex(REF + "00" * 10), scope_id=b"s" * 16, record_id=b"r" * 16, state=State.COMPLETED,
        fingerprint=b"f" * 32, method="POST", route="*", fence=1, claim_id=b"c" * 16, owner="o", lease_until=0,
        created_at=0, claimed_at=0, expires_at=1, outcome=outcome,
    )  # fmt: skip


def document(response: Completed) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(response.body)
    return found


def values(response: Completed, name: bytes) -> list[bytes]:
    return [value for field, value in response.headers if field == name]


TABLE = {
    "executed": (409, errors.AlreadyExecuted),
    "in_flight": (409, errors.KeyInFlight),
    "outcome_unknown": (409, errors.OutcomeUnknown),
    "key_reused": (422, errors.KeyReused),
    "key_missing": (400, errors.KeyMissing),
    "key_invalid": (400, errors.KeyInvalid),
    "key_forbidden": (400, errors.KeyInvalid),
    "body_not_canonical": (400, errors.RequestInvalid),
    "first_sent_invalid": (400, errors.RequestInvalid),
    "identity_unproven": (403, errors.IdentityUnproven),
    "replay_forbidden": (403, errors.IdentityUnproven),
    "body_timeout": (408, errors.RequestInvalid),
    "key_window_passed": (412, errors.KeyWindowPassed),
    "request_too_large": (413, errors.RequestTooLarge),
    "quota_exceeded": (429, errors.QuotaExceeded),
    "record_unreadable": (500, errors.RecordUnreadable),
    "transaction_misused": (500, errors.TransactionMisused),
    "record_newer": (503, errors.RecordUnreadable),
    "store_unavailable": (503, errors.StoreUnavailable),
    "store_busy": (503, errors.StoreUnavailable),
    "overloaded": (503, errors.StoreUnavailable),
    "handler_timeout": (504, errors.HandlerTimeout),
    "handler_failed": (500, None),
}
WAITING = {"in_flight", "quota_exceeded", "record_newer", "store_unavailable", "store_busy", "overloaded"}


def test_the_table_is_the_published_one() -> None:
    assert {code: (each.status, each.error) for code, each in SITUATIONS.items()} == TABLE
    assert {each.code for each in SITUATIONS.values() if each.retry_after is not None} == WAITING


def test_a_profile_may_change_every_code_that_is_answered() -> None:
    """What misuses its transaction is raised to the server, not answered."""
    assert SITUATIONS.keys() - {"transaction_misused"} == CODES


@pytest.mark.parametrize("code", TABLE)
def test_a_code_is_raised_as_its_class(code: str) -> None:
    assert SITUATIONS[code].error is TABLE[code][1]


@pytest.mark.parametrize("code", TABLE)
def test_a_refusal_is_a_problem_document_that_no_cache_keeps(code: str) -> None:
    response = answer(Refusal(code, key_ref=REF), config(), retry_after=7)
    told = document(response)
    assert response.status == told["status"] == TABLE[code][0]
    assert told["type"] == f"urn:holdfast:idempotency:{code}"
    assert (told["code"], told["title"], told["key_ref"]) == (code, SITUATIONS[code].title, REF)
    assert told["detail"] == SITUATIONS[code].detail
    assert told.get("retry_after") == (7 if code in WAITING else None)
    assert values(response, b"retry-after") == ([b"7"] if code in WAITING else [])
    assert values(response, b"content-type") == [b"application/problem+json"]
    assert values(response, b"content-length") == [b"%d" % len(response.body)]
    assert values(response, b"cache-control") == [b"no-store"]
    assert values(response, b"link") == [
        b'<https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>; rel="describedby"'
    ]
    assert values(response, b"connection") == ([b"close"] if code == "body_timeout" else [])
    assert values(response, b"www-authenticate") == values(response, b"idempotency-replayed") == []


def test_addresses_of_documents_are_the_applications() -> None:
    response = answer(
        Refusal("key_missing"), config(problem_base="https://x.test/problems/", help_url="https://x.test/help")
    )
    assert document(response)["type"] == "https://x.test/problems/key_missing"
    assert values(response, b"link") == [b'<https://x.test/help>; rel="describedby"']


def test_what_is_not_known_is_not_told() -> None:
    told = document(answer(Refusal("key_missing"), config()))
    assert list(told) == ["type", "title", "status", "detail", "code"]


@pytest.mark.parametrize(
    ("given", "own", "told"), [(None, None, 1), (9, None, 9), (None, 4, 4), (9, 4, 9), (0, None, 1), (-3, None, 1)]
)
def test_when_to_come_back_is_at_least_a_second(given: int | None, own: int | None, told: int) -> None:
    response = answer(Refusal("store_unavailable", retry_after=own), config(), retry_after=given)
    assert document(response)["retry_after"] == told
    assert values(response, b"retry-after") == [b"%d" % told]


def test_limits_are_told() -> None:
    assert document(answer(Refusal("request_too_large", limit_bytes=5), config()))["limit_bytes"] == 5
    assert document(answer(Refusal("quota_exceeded", quota=3), config()))["quota"] == 3


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (InFlight(until=2, since=1), "in_flight"),
        (Conflict("reused"), "key_reused"),
        (Conflict("unknown"), "outcome_unknown"),
        (Conflict("quota"), "quota_exceeded"),
        (Conflict("unreadable"), "record_unreadable"),
        (Conflict("newer"), "record_newer"),
    ],
)
def test_a_decision_is_answered_with_its_code(outcome: Any, code: str) -> None:
    told = document(answer(outcome, config(in_flight_max=42), key_ref=REF))
    assert (told["code"], told["key_ref"]) == (code, REF)
    assert told.get("quota") == (42 if code == "quota_exceeded" else None)


def test_what_proceeds_has_no_answer() -> None:
    with pytest.raises(ValueError, match="its handler"):
        answer(Proceed(fence=1, attempt=1, record_id=b"r" * 16), config())
    with pytest.raises(ValueError, match="no outcome"):
        answer(Replay(record(None)), config())


def test_a_refusal_has_a_code_of_the_table() -> None:
    with pytest.raises(ValueError, match="no code"):
        Refusal("teapot")


# -- replays


def test_a_completed_outcome_is_sent_again() -> None:
    kept = Completed(201, [(b"location", b"/1"), (b"content-type", b"text/plain")], b"made")
    assert answer(Replay(record(kept)), config()) == Completed(
        201,
        [
            (b"location", b"/1"),
            (b"content-type", b"text/plain"),
            (b"content-length", b"4"),
            (b"idempotency-replayed", b"true"),
        ],
        b"made",
    )


def test_a_tombstone_is_answered_with_what_is_left() -> None:
    kept = Tombstone(201, [(b"location", b"/1"), (b"etag", b'"1"'), (b"content-type", b"text/plain")], "oversize", 9)
    response = answer(Replay(record(kept)), config())
    told = document(response)
    assert (response.status, told["code"], told["key_ref"]) == (409, "executed", REF)
    assert (told["executed_status"], told["reason"]) == (201, "oversize")
    assert "too large to keep" in told["detail"]
    assert values(response, b"location") == [b"/1"]
    assert values(response, b"etag") == [b'"1"']
    assert values(response, b"content-type") == [b"application/problem+json"]
    assert values(response, b"idempotency-replayed") == [b"true"]


@pytest.mark.parametrize("reason", get_args(TombstoneReason))
def test_every_reason_is_told_in_words(reason: Any) -> None:
    told = document(answer(Replay(record(Tombstone(200, [], reason))), config()))
    assert told["detail"].startswith(SITUATIONS["executed"].detail + " The answer is not kept because ")


# -- profiles


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_changes_statuses_and_nothing_else(profile: Any) -> None:
    for code in TABLE:
        status = PROFILES[profile].get(code, TABLE[code][0])
        response = answer(Refusal(code), config(profile=profile))
        assert response.status == document(response)["status"] == status == status_of(code, config(profile=profile))
        assert document(response)["code"] == code


def test_a_mapping_is_a_profile_too() -> None:
    assert answer(Refusal("key_reused"), config(profile={"key_reused": 409})).status == 409
    assert answer(Refusal("key_missing"), config(profile={"key_reused": 409})).status == 400


def test_one_profile_has_its_own_marker() -> None:
    assert marker(config(profile="stripe")) == b"idempotent-replayed"
    assert marker(config()) == marker(config(profile={})) == b"idempotency-replayed"
    response = answer(Replay(record(Completed(200, [], b""))), config(profile="stripe"))
    assert values(response, b"idempotent-replayed") == [b"true"]


def test_an_unproven_caller_is_challenged_where_a_challenge_is_named() -> None:
    challenged = config(challenge='Bearer realm="a"')
    response = answer(Refusal("identity_unproven"), challenged)
    assert response.status == document(response)["status"] == 401
    assert values(response, b"www-authenticate") == [b'Bearer realm="a"']
    for other in (answer(Refusal("replay_forbidden"), challenged), answer(Refusal("identity_unproven"), config())):
        assert other.status == 403
        assert values(other, b"www-authenticate") == []
    chosen = answer(Refusal("identity_unproven"), config(challenge="Bearer", profile={"identity_unproven": 404}))
    assert (chosen.status, values(chosen, b"www-authenticate")) == (404, [])


# -- errors as refusals


def test_an_error_is_refused_with_its_own_words() -> None:
    refusal = Refusal.of(errors.KeyInvalid("the key is blank", "send one"), key_ref=REF)
    assert refusal == Refusal("key_invalid", detail="The key is blank. Send one.", key_ref=REF)
    assert document(answer(refusal, config()))["detail"] == "The key is blank. Send one."
    assert Refusal.of(errors.KeyMissing("no key")).detail == "No key."


def test_an_errors_code_and_time_go_with_it() -> None:
    error = errors.StoreUnavailable("busy", code="idempotency.store_busy", retry_after=3)
    assert Refusal.of(error) == Refusal("store_busy", detail="Busy.", retry_after=3)
    assert Refusal.of(errors.RequestTooLarge("large"), limit_bytes=5).limit_bytes == 5


def test_what_an_application_says_of_a_caller_is_not_told() -> None:
    refusal = Refusal.of(errors.IdentityUnproven("bob@example.com is locked out"))
    assert b"bob" not in answer(refusal, config()).body


# -- first runs

OWN = [
    (b"Idempotency-Replayed", b"true"),
    (b"etag", b'"1"'),
    (b"idempotent-replayed", b"true"),
    (b"idempotency-control", b"no-store"),
]


def test_a_handlers_own_marker_and_control_do_not_go_out() -> None:
    assert first_run(OWN, config(), key="k", expires_at=1) == [(b"etag", b'"1"')]


def test_a_first_run_says_what_the_settings_ask_for() -> None:
    loud = config(mark_first=True, echo_key=True, expires_header=True)
    assert first_run(OWN, loud, key='a"b', expires_at=784111777_000_000) == [
        (b"etag", b'"1"'),
        (b"idempotency-replayed", b"false"),
        (b"idempotency-key", b'"a\\"b"'),
        (b"idempotency-expires", b"Sun, 06 Nov 1994 08:49:37 GMT"),
    ]
    assert first_run([(b"Idempotency-Key", b"x")], loud) == [
        (b"Idempotency-Key", b"x"),
        (b"idempotency-replayed", b"false"),
    ]
    assert first_run([(b"Idempotency-Key", b"x")], loud, key="k")[-1] == (b"idempotency-key", b'"k"')
