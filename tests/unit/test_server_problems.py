"""Which status an error has over HTTP, and what is said of it."""

from __future__ import annotations

import pytest

import holdfast as durable
from holdfast.core.errors import Busy, CodecError, ConfigError, HoldfastError, LimitError, Unavailable
from holdfast.server.problems import problem_of, status_of
from holdfast.sessions import errors as sessions

SESSIONS = {
    "malformed_json": 400, "invalid_field": 400, "undecodable_body": 400, "cursor_mismatch": 400, "invalid_query": 400,
    "unauthenticated": 401, "forbidden": 403, "org_mismatch": 403, "not_found": 404, "capture_conflict": 409,
    "session_deleted": 410, "past_retention": 410, "too_large": 413, "unsupported_media_type": 415,
    "unsupported_encoding": 415, "saturated_items": 429, "saturated_bytes": 429, "store_unavailable": 503,
    "disk_full": 503, "stopping": 503,
}  # fmt: skip


@pytest.mark.parametrize(("code", "status"), SESSIONS.items())
def test_a_code_of_captured_calls_has_its_status(code: str, status: int) -> None:
    assert status_of(f"sessions.{code}") == status


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (durable.UnknownExecution("no"), 404, "unknown_execution"),
        (durable.NoDecisionOpen("no"), 409, "no_decision_open"),
        (ConfigError("no"), 422, "invalid"),
        (CodecError("no"), 422, "decode"),
        (LimitError("no", limit="note_chars", maximum=1, actual=2), 413, "exceeded"),
        (Unavailable("no"), 503, "unavailable"),
        (Busy("no"), 503, "busy"),
        (HoldfastError("elsewhere.odd", "no"), 500, "odd"),
    ],
    ids=lambda value: getattr(value, "code", str(value)),
)
def test_an_error_keeps_its_code_and_tells_its_slice(error: HoldfastError, status: int, code: str) -> None:
    told = problem_of(error)
    assert (told.status, told.code) == (status, code)
    assert told.type == f"urn:holdfast:{error.code.replace('.', ':')}"


def test_a_limit_and_a_field_are_named() -> None:
    assert problem_of(LimitError("no", limit="note_chars", maximum=1, actual=2)).limit == "note_chars"
    assert problem_of(sessions.InvalidField("no", field="/provider")).field == "/provider"


def test_of_an_error_that_is_not_ours_only_that_it_happened_is_told() -> None:
    told = problem_of(ValueError("hfk_secret"))
    assert (told.status, told.code) == (500, "internal")
    assert "hfk_secret" not in f"{told}"
