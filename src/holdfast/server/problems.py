"""What goes wrong, said in HTTP: one problem document (RFC 9457) for every error.

This module hides which status an error of ours has. A document carries the error's code without its slice, which
is in `type`; what the framework refuses by itself gets codes of the same kind.

Invariants:
    - A code has one status, wherever it comes from.
    - A document says what our own messages say, and of errors that are not ours only that they happened.
    - No cache keeps one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from holdfast.core.errors import HoldfastError
from holdfast.sessions.errors import SessionError
from holdfast.sessions.metrics import METRICS

__all__ = ["MEDIA_TYPE", "Problem", "Refusal", "answer", "problem_of", "status_of"]

MEDIA_TYPE: Final = "application/problem+json"

_log = logging.getLogger("holdfast.server")

STATUSES: Final[Mapping[str, int]] = {
    "sessions.unauthenticated": 401,
    "sessions.forbidden": 403,
    "sessions.org_mismatch": 403,
    "sessions.not_found": 404,
    "sessions.capture_conflict": 409,
    "sessions.attribution_refused": 409,
    "sessions.dead_letter": 409,
    "sessions.session_deleted": 410,
    "sessions.past_retention": 410,
    "sessions.too_large": 413,
    "sessions.unsupported_media_type": 415,
    "sessions.unsupported_encoding": 415,
    "sessions.number_range": 422,
    "sessions.unknown_provider": 422,
    "sessions.no_price_source": 422,
    "sessions.saturated_items": 429,
    "sessions.saturated_bytes": 429,
    "sessions.chain_broken": 500,
    "sessions.node_corrupt": 500,
    "sessions.store_unavailable": 503,
    "sessions.disk_full": 503,
    "sessions.stopping": 503,
    "sessions.spool_full": 503,
    "sessions.": 400,
    "durable.unknown_execution": 404,
    "durable.unknown_kind": 404,
    "durable.disabled": 503,
    "durable.journal_unavailable": 503,
    "durable.integrity": 500,
    "durable.": 409,
    "idempotency.key_not_found": 404,
    "idempotency.store_unavailable": 503,
    "idempotency.record_unreadable": 500,
    "idempotency.": 409,
    "config.reason_required": 400,
    "config.": 422,
    "codec.": 422,
    "limit.": 413,
    "server.lagging": 503,
    "store.": 503,
}
"""The status of a code, or of all that begin so; the longest that fits counts."""

_FRAMEWORK: Final = {400: "invalid_field", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
_RETRY_S = 1.0


class Problem(msgspec.Struct, omit_defaults=True, frozen=True):
    """A problem document.

    Attributes:
        type: A URN that names slice and code.
        title: The code in words.
        status: The answer's.
        code: Stable, and without its slice.
        detail: What happened, and to what.
        hint: What to do next.
        field: JSON pointer of the member to blame, or the name of a parameter.
        limit: Name of the limit that was exceeded.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str = ""
    field: str = ""
    limit: str = ""


class Refusal(HoldfastError):
    """What a route refuses of its own accord, where no slice has an error for it."""


def status_of(code: str) -> int:
    """Return the status of an error's code."""
    known = [prefix for prefix in STATUSES if code == prefix or (prefix.endswith(".") and code.startswith(prefix))]
    return STATUSES[max(known, key=len)] if known else 500


def problem_of(error: Exception) -> Problem:
    """Say an error as a problem document."""
    if isinstance(error, HoldfastError):
        limit = str(getattr(error, "limit", ""))
        field = str(getattr(error, "field", ""))
        return _problem(error.code, status_of(error.code), error.message, error.hint, field=field, limit=limit)
    if isinstance(error, ValidationException):
        return _invalid(error)
    if isinstance(error, HTTPException) and error.status_code < 500:
        # A plain 400 is what the framework makes of a body that it cannot read.
        code = "malformed_json" if type(error).__name__ == "ClientException" else _FRAMEWORK.get(error.status_code)
        return _problem(f"server.{code or 'refused'}", error.status_code, error.detail, "")
    return _problem("server.internal", 500, "the server has failed, and its log says in what", "")


def _problem(code: str, status: int, detail: str, hint: str, **more: str) -> Problem:
    slice_name, _, bare = code.partition(".")
    title = bare.replace("_", " ").capitalize()
    return Problem(f"urn:holdfast:{slice_name}:{bare}", title, status, bare, detail, hint, **more)


def _invalid(error: ValidationException) -> Problem:
    """Say which parameter or member is wrong; the framework lists them all, and the first one will do."""
    said: list[Any] = error.extra if isinstance(error.extra, list) else []
    first: Mapping[str, Any] = said[0] if said and isinstance(said[0], dict) else {}
    name, source = str(first.get("key", "")), str(getattr(first.get("source"), "value", first.get("source", "")))
    pointer = name if source in ("query", "path", "header") else "".join(f"/{part}" for part in name.split(".") if part)
    return _problem(
        "server.invalid_field", 400, str(first.get("message", "the request breaks a rule")), "correct it", field=pointer
    )


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer a request whose handling raised: the application's one handler of exceptions."""
    problem = problem_of(error)
    if problem.code == "internal" or problem.status == 500:
        # Messages of others may quote values; the traceback is for debugging only.
        shown = error.code if isinstance(error, HoldfastError) else type(error).__qualname__
        _log.error("a request failed: %s", shown, exc_info=error if _log.isEnabledFor(logging.DEBUG) else None)
    if not (isinstance(error, SessionError) and request.scope.get("state", {}).get("counted")):
        METRICS.rejected.add(1, problem.code)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    headers["cache-control"] = "no-store"
    if problem.status in (429, 503):
        headers["retry-after"] = str(max(1, math.ceil(getattr(error, "retry_after", _RETRY_S))))
    if problem.status == 401:
        headers["www-authenticate"] = 'Bearer realm="holdfast"'
    if problem.status == 413:
        headers["connection"] = "close"  # what was not read would be taken for the next request
    return Response(msgspec.json.encode(problem), status_code=problem.status, media_type=MEDIA_TYPE, headers=headers)
