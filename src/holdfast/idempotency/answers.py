"""Say in HTTP what was decided: the stored response again, or a problem document.

This module hides the table of codes: each has one status, one title, one class of errors, and one text
that says what happened and what to do. Middleware, client and reference all read it here.

Invariants:
    - Codes never change their meaning; a profile changes statuses only.
    - Every refusal is an RFC 9457 document that no cache may keep.
    - No document holds a key, a principal or a payload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, assert_never

import msgspec

from holdfast.idempotency import errors
from holdfast.idempotency import headers as fields
from holdfast.idempotency.errors import IdempotencyError
from holdfast.idempotency.rules import PROFILES, IdempotencyConfig
from holdfast.idempotency.values import (
    Completed,
    Conflict,
    Decision,
    Headers,
    InFlight,
    Proceed,
    Replay,
    Tombstone,
    TombstoneReason,
)

__all__ = ["SITUATIONS", "Refusal", "Situation", "answer", "first_run", "marker", "status_of"]

_SLICE: Final = "idempotency."


@dataclass(frozen=True, slots=True)
class Situation:
    """One row of the table.

    Attributes:
        code: Stable, and without its slice.
        status: Under the profile `draft`.
        title: Fixed, for people.
        detail: What happened and what to do, where a refusal says nothing more exact.
        error: What it is to a client, or a function; None if nothing is raised for it.
        retry_after: Seconds where the answer says when to come back, and the caller does not know better.
    """

    code: str
    status: int
    title: str
    detail: str
    error: type[IdempotencyError] | None = None
    retry_after: int | None = None


SITUATIONS: Final[Mapping[str, Situation]] = {
    each.code: each
    for each in (
        Situation(
            "executed",
            409,
            "The request was executed; its answer is not kept",
            "The operation took place and will not run again. Read its result where Location says, or ask for it.",
            errors.AlreadyExecuted,
        ),
        Situation(
            "in_flight",
            409,
            "A request with this key is running",
            "Send the same request again after the time Retry-After says.",
            errors.KeyInFlight,
            retry_after=1,
        ),
        Situation(
            "outcome_unknown",
            409,
            "The outcome of an earlier request is unknown",
            "An earlier request with this key may have taken effect, and a retry will not run before somebody decides. "
            "Ask the operator, and name key_ref.",
            errors.OutcomeUnknown,
        ),
        Situation(
            "key_reused",
            422,
            "The key was used for another request",
            "A key stands for one request. Repeat the first request unchanged, or use a new key.",
            errors.KeyReused,
        ),
        Situation(
            "key_missing",
            400,
            "The request has no idempotency key",
            "This operation requires one. Send a new key with every new request, and the same key with its retries.",
            errors.KeyMissing,
        ),
        Situation(
            "key_invalid",
            400,
            "The idempotency key is malformed",
            "Send one line with one key that this operation accepts.",
            errors.KeyInvalid,
        ),
        Situation(
            "key_forbidden",
            400,
            "This operation takes no idempotency key",
            "Send the request without a key.",
            errors.KeyInvalid,
        ),
        Situation(
            "body_not_canonical",
            400,
            "The body has no canonical form",
            "Send a body that is well-formed for its content type.",
            errors.RequestInvalid,
        ),
        Situation(
            "first_sent_invalid",
            400,
            "Idempotency-First-Sent is not a usable date",
            "Send one HTTP date, not in the future, or leave the field out.",
            errors.RequestInvalid,
        ),
        Situation(
            "identity_unproven",
            403,
            "It is not proven who asks",
            "An idempotency key belongs to a caller. Send valid credentials.",
            errors.IdentityUnproven,
        ),
        Situation(
            "replay_forbidden",
            403,
            "This caller may not see the outcome",
            "The request was executed earlier, and its outcome is closed to these credentials.",
            errors.IdentityUnproven,
        ),
        Situation(
            "body_timeout",
            408,
            "The body took too long",
            "Nothing ran. Send the same request again.",
            errors.RequestInvalid,
        ),
        Situation(
            "key_window_passed",
            412,
            "The retry comes too late",
            "The request was first sent longer ago than outcomes are kept, so nobody can tell whether it ran. "
            "Look for its effect before you send it with a new key.",
            errors.KeyWindowPassed,
        ),
        Situation(
            "request_too_large",
            413,
            "The body is too large",
            "A request with a key may hold limit_bytes. Send a smaller body.",
            errors.RequestTooLarge,
        ),
        Situation(
            "quota_exceeded",
            429,
            "Too many keys",
            "This caller has reached a quota for keys. Wait for requests that are under way, then send it again.",
            errors.QuotaExceeded,
            retry_after=1,
        ),
        Situation(
            "record_unreadable",
            500,
            "The recorded outcome cannot be read",
            "An earlier request with this key was recorded, and the record is damaged. It will not run again. "
            "Ask the operator, and name key_ref.",
            errors.RecordUnreadable,
        ),
        Situation(
            "transaction_misused",
            500,
            "The handler ended the transaction itself",
            "The operation may have taken place; a retry will not run.",
            errors.TransactionMisused,
        ),
        Situation(
            "record_newer",
            503,
            "The recorded outcome is of a newer version",
            "Another version of this service recorded it. Send the same request again.",
            errors.RecordUnreadable,
            retry_after=5,
        ),
        Situation(
            "store_unavailable",
            503,
            "Idempotency keys cannot be checked just now",
            "Nothing ran. Send the same request again.",
            errors.StoreUnavailable,
            retry_after=1,
        ),
        Situation(
            "store_busy",
            503,
            "The database is busy",
            "Nothing ran. Send the same request again.",
            errors.StoreUnavailable,
            retry_after=1,
        ),
        Situation(
            "overloaded",
            503,
            "Too many request bodies are being held",
            "Nothing ran. Send the same request again.",
            errors.StoreUnavailable,
            retry_after=1,
        ),
        Situation(
            "handler_timeout",
            504,
            "The operation took too long",
            "It was stopped and may have taken effect in part. Send the same request again to learn what became of it.",
            errors.HandlerTimeout,
        ),
        Situation(
            "handler_failed",
            500,
            "The operation failed",
            "It failed without an answer, and this is its recorded outcome. A retry will not run.",
        ),
    )
}
"""Every code, in the order of the reference."""

_CONFLICTS: Final = {
    "reused": "key_reused",
    "unknown": "outcome_unknown",
    "quota": "quota_exceeded",
    "unreadable": "record_unreadable",
    "newer": "record_newer",
}
_REASONS: Final[Mapping[TombstoneReason, str]] = {
    "stream": "its answer was a stream",
    "oversize": "its answer was too large to keep",
    "truncated": "its answer broke off",
    "message": "its answer was of a kind that cannot be kept",
    "upgrade": "it changed the protocol of its connection",
    "set_cookie": "its answer held cookies",
    "redaction": "nothing of its answer may be kept",
    "handler_commit": "it ended its transaction itself",
    "decided": "an operator said so",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is not run.

    Attributes:
        code: A code of the table, without its slice.
        key_ref: The key's reference, once the principal is known.
        detail: What happened and what to do; None: the code's own text.
        retry_after: Seconds until trying again makes sense; None: the code's own.
        limit_bytes: Of `request_too_large`: what would have been accepted.
        quota: Of `quota_exceeded`: the cap that was reached.
    """

    code: str
    key_ref: str | None = None
    detail: str | None = None
    retry_after: int | None = None
    limit_bytes: int | None = None
    quota: int | None = None

    def __post_init__(self) -> None:
        if self.code not in SITUATIONS:
            raise ValueError(f"{self.code!r} is no code of a refusal")

    @classmethod
    def of(cls, error: IdempotencyError, **known: Any) -> Refusal:
        """Return the refusal an error stands for, with its message. `known`: further attributes.

        Only the application raises that a caller is unproven, and its message may name the caller; so
        that one is not told.
        """
        detail = None
        if not isinstance(error, errors.IdentityUnproven):
            detail = " ".join(f"{text[:1].upper()}{text[1:]}." for text in (error.message, error.hint) if text)
        return cls(error.code.removeprefix(_SLICE), detail=detail, retry_after=error.retry_after, **known)


def answer(
    outcome: Decision | Refusal,
    config: IdempotencyConfig,
    *,
    retry_after: int | None = None,
    key_ref: str | None = None,
) -> Completed:
    """Return the response to a request that does not run.

    Args:
        outcome: What was decided; not `Proceed`, which has its answer from the handler.
        config: Names the profile and the addresses of documents.
        retry_after: Whole seconds, for the codes that say when to come back.
        key_ref: The key's reference; a replay and a refusal know their own.

    Raises:
        ValueError: `outcome` is `Proceed`, or a replay of a record without outcome.
    """
    match outcome:
        case Replay(record):
            match record.outcome:
                case Completed() as kept:
                    return fields.replay(kept, marker(config))
                case Tombstone() as kept:
                    return _executed(kept, config, record.key_ref)
            raise ValueError("the record has no outcome")
        case InFlight():
            refusal = Refusal("in_flight", key_ref=key_ref)
        case Conflict(why):
            quota = config.in_flight_max if why == "quota" else None
            refusal = Refusal(_CONFLICTS[why], key_ref=key_ref, quota=quota)
        case Refusal():
            refusal = outcome
        case Proceed():
            raise ValueError("what proceeds is answered by its handler")
        case _:  # pragma: no cover - the union is closed
            assert_never(outcome)
    members = {"limit_bytes": refusal.limit_bytes, "quota": refusal.quota}
    return _problem(refusal, config, members, retry_after=retry_after)


def _executed(kept: Tombstone, config: IdempotencyConfig, key_ref: str) -> Completed:
    why = f"The answer is not kept because {_REASONS[kept.reason]}."
    problem = _problem(
        Refusal("executed", key_ref=key_ref, detail=f"{SITUATIONS['executed'].detail} {why}"),
        config,
        {"executed_status": kept.status, "reason": kept.reason},
    )
    problem.headers.extend(field for field in kept.headers if field[0] in (b"location", b"etag"))
    problem.headers.append((marker(config), b"true"))
    return problem


def _problem(
    refusal: Refusal, config: IdempotencyConfig, members: Mapping[str, Any], *, retry_after: int | None = None
) -> Completed:
    situation = SITUATIONS[refusal.code]
    status = status_of(refusal.code, config)
    wait = None
    if situation.retry_after is not None:
        given = retry_after if retry_after is not None else refusal.retry_after
        wait = max(1, given) if given is not None else situation.retry_after
    document = {
        "type": config.problem_base + refusal.code,
        "title": situation.title,
        "status": status,
        "detail": refusal.detail or situation.detail,
        "code": refusal.code,
        "key_ref": refusal.key_ref,
        "retry_after": wait,
        **members,
    }
    body = msgspec.json.encode({name: value for name, value in document.items() if value is not None})
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"link", b'<%b>; rel="describedby"' % config.help_url.encode()),
    ]
    if wait is not None:
        headers.append((b"retry-after", b"%d" % wait))
    if status == 401 and config.challenge is not None:
        headers.append((b"www-authenticate", config.challenge.encode()))
    if refusal.code == "body_timeout":
        headers.append((b"connection", b"close"))
    return Completed(status, headers, body)


def status_of(code: str, config: IdempotencyConfig) -> int:
    """Return the status a code is answered with: the profile's, else the table's.

    An unproven caller is answered 401 where a challenge can be named, for a 401 must carry one.
    """
    profile = PROFILES[config.profile] if isinstance(config.profile, str) else config.profile
    if code in profile:
        return profile[code]
    if code == "identity_unproven" and config.challenge is not None:
        return 401
    return SITUATIONS[code].status


def marker(config: IdempotencyConfig) -> bytes:
    """Return the name of the field that marks a replay."""
    return fields.MARKER_STRIPE if config.profile == "stripe" else fields.MARKER


def first_run(
    headers: Headers, config: IdempotencyConfig, *, key: str | None = None, expires_at: int | None = None
) -> Headers:
    """Return the headers of a handler's own response as they are sent.

    A marker and an `Idempotency-Control` of the handler's are taken out; the marker, the key and the
    expiry are put in where the settings ask for them.

    Args:
        headers: The handler's.
        config: The settings.
        key: The key as the client meant it; None: not to be echoed.
        expires_at: When the key is new again; None: the outcome is not kept.
    """
    added: Headers = []
    if config.mark_first:
        added.append((marker(config), b"false"))
    if config.echo_key and key is not None:
        added.append((b"idempotency-key", fields.sf_string(key)))
    if config.expires_header and expires_at is not None:
        added.append((b"idempotency-expires", fields.imf_date(expires_at)))
    if not added:
        return [field for field in headers if field[0].lower() not in fields.OURS]
    return fields.without(headers, *fields.OURS, *(name for name, _ in added)) + added
