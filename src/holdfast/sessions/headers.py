"""What the headers of a captured call say of who made it, and which headers are kept. Pure.

For each field the first header that has a value counts: ours, the reference's, then what the harness itself sends.
Headers are as they are on the wire: texts whose characters are bytes.

Invariants:
    - No header that carries a credential is ever kept.
    - Who a caller claims to be counts only where the peer that says so is trusted.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import unquote_to_bytes

from holdfast.sessions import envelope, jcs
from holdfast.sessions.errors import MalformedJson, NumberRange
from holdfast.sessions.jcs import Json
from holdfast.sessions.limits import (
    HEADER_METADATA_BYTES_MAX,
    HEADER_SET_BYTES_MAX,
    ID_BYTES_MAX,
    TAG_BYTES_MAX,
    TAGS_MAX,
)
from holdfast.sessions.values import Envelope

__all__ = ["CREDENTIALS", "Identity", "identity", "kept", "without_secrets"]

CREDENTIALS = frozenset(
    (
        "authorization", "proxy-authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "set-cookie",
        "x-paper-auth",
    )
)  # fmt: skip
"""Headers that carry a credential."""

_SECRET_QUERY = frozenset(("key", "api_key", "token", "access_token", "sig"))
_KEPT = frozenset(
    (
        "content-type", "content-encoding", "user-agent", "retry-after", "date", "server-timing", "traceparent",
        "traceresponse", "request-id", "x-request-id", "openai-request-id", "x-claude-code-session-id",
        "x-claude-code-agent-id", "session-id", "thread-id",
    )
)  # fmt: skip
_KEPT_PREFIXES = ("anthropic-", "openai-", "x-stainless-", "x-holdfast-", "x-tapes-")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_AGENT = re.compile(r"(claude-cli|codex[^\s/]*)/(\S+)", re.IGNORECASE)
_FIELDS = (
    ("harness_id", "harness-id"),
    ("harness_session_id", "harness-session-id"),
    ("harness_version", "harness-version"),
    ("parent_harness_session_id", "parent-harness-session-id"),
)
_CAPTURES = ("full", "metadata", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who made a call, as its headers tell.

    Attributes:
        flags: What was cut off, emptied or dropped.
    """

    envelope: Envelope
    thread_id: str = ""
    agent_name: str = ""
    tags: frozenset[str] = frozenset()
    capture: Literal["full", "metadata", "off"] = "full"
    flags: frozenset[str] = frozenset()


class _Headers:
    """The headers by lower-case name, empty ones left out; of several the first."""

    def __init__(self, given: Iterable[tuple[str, str]]) -> None:
        self._first: dict[str, str] = {}
        for name, value in given:
            if value:
                self._first.setdefault(name.lower(), value)

    def __call__(self, *names: str) -> str:
        return next((self._first[name] for name in names if name in self._first), "")

    def weight(self) -> int:
        return sum(len(name) + len(value) for name, value in self._first.items() if name.startswith(_IDENTITY))


_IDENTITY = ("x-holdfast-", "x-tapes-")


def identity(headers: Sequence[tuple[str, str]], *, trusted: bool) -> Identity:
    """Return who made a call.

    Args:
        headers: Of the request, in order.
        trusted: Whether they come from a peer that may speak for others.

    Raises:
        InvalidField: A field breaks its rule, so that the call cannot be recorded.
    """
    of = _Headers(headers)
    flags: set[str] = set()
    given: dict[str, Json] = {field: _ours(of, name) for field, name in _FIELDS}
    given["cwd"], given["name"] = _path(_ours(of, "cwd")), _path(_ours(of, "session-name"))
    _from_harness(of, given)
    given["parent_harness_id"] = of("x-holdfast-parent-harness-id")
    if not given["parent_harness_session_id"]:
        # Half a parent is none; a header, unlike a body, is dropped.
        del given["parent_harness_session_id"], given["parent_harness_id"]
    given |= _metadata(of, flags)
    if of.weight() > HEADER_SET_BYTES_MAX:
        flags.add("identity_headers_too_large")
        given.pop("harness_metadata", None)
        given["cwd"] = given["name"] = ""
    if trusted:
        given["org_id"], given["auth_subject"] = of("x-paper-auth-org-id"), of("x-paper-auth-subject")
    capture = of("x-holdfast-capture").lower()
    found = envelope.checked(given, flags, org=None)
    return Identity(
        envelope=found,
        thread_id=_short(_thread(of), flags),
        agent_name=_short(_ours(of, "agent-name"), flags),
        tags=_tags(of("x-holdfast-tags"), flags),
        capture=cast("Literal['full', 'metadata', 'off']", capture) if capture in _CAPTURES else "full",
        flags=frozenset(flags),
    )


def _ours(of: _Headers, name: str) -> str:
    return of(*(prefix + name for prefix in _IDENTITY))


def _from_harness(of: _Headers, given: dict[str, Json]) -> None:
    """Fill in what the harness says of itself."""
    agent = _AGENT.match(of("user-agent"))
    if agent is not None:
        own = "claude" if agent[1].lower() == "claude-cli" else "codex"
        given["harness_id"] = given["harness_id"] or own
        if given["harness_id"] == own:
            given["harness_version"] = given["harness_version"] or agent[2]
    session = of("x-claude-code-session-id") or (of("session-id") if given["harness_id"] == "codex" else "")
    given["harness_session_id"] = given["harness_session_id"] or session


def _thread(of: _Headers) -> str:
    said = _ours(of, "thread-id") or of("x-claude-code-agent-id")
    if said:
        return said
    thread, session = of("thread-id"), of("session-id")
    return thread if thread and session and thread != session else ""


def _path(value: str) -> str:
    """Undo percent-encoding as in a path segment; a malformed one leaves the value as it is."""
    raw = _bytes(value)
    return jcs.text(raw if _BAD_ESCAPE.search(value) else unquote_to_bytes(raw))


def _bytes(value: str) -> bytes:
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:  # somebody decoded it already
        return value.encode("utf-8", "replace")


def _short(value: str, flags: set[str]) -> str:
    text = jcs.scrub(jcs.text(_bytes(value)))
    if len(text.encode()) > ID_BYTES_MAX:
        flags.add("identity_dropped")
        return ""
    return text


def _metadata(of: _Headers, flags: set[str]) -> dict[str, Json]:
    coded = _ours(of, "harness-metadata")
    if not coded:
        return {}
    try:
        if "=" in coded:
            raise ValueError  # noqa: TRY301 - every way of being undecodable is told alike
        raw = base64.b64decode(_bytes(coded) + b"=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        value = jcs.read(raw)
    except (ValueError, binascii.Error, MalformedJson, NumberRange):
        flags.add("metadata_undecodable")
        return {}
    if len(raw) > HEADER_METADATA_BYTES_MAX:
        flags.add("metadata_too_large")
        return {}
    return {"harness_metadata": value}


def _tags(value: str, flags: set[str]) -> frozenset[str]:
    found = [tag for part in value.split(",") if (tag := jcs.scrub(jcs.text(_bytes(part.strip()))))]
    fitting = [tag for tag in found if len(tag.encode()) <= TAG_BYTES_MAX][:TAGS_MAX]
    if len(fitting) < len(found):
        flags.add("tags_dropped")
    return frozenset(fitting)


# --- what is kept -------------------------------------------------------------------------------------


def kept(headers: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Return the headers that are recorded, by lower-case name."""
    for name, value in headers:
        low = name.lower()
        if low in CREDENTIALS:
            continue
        if low in _KEPT or low.startswith(_KEPT_PREFIXES) or "ratelimit" in low:
            yield low, value


def without_secrets(target: str) -> str:
    """Return a path and query with the values of query members left out that carry credentials."""
    path, mark, query = target.partition("?")
    if not mark:
        return path
    return path + mark + "&".join(_masked(pair) for pair in query.split("&"))


def _masked(pair: str) -> str:
    name, mark, _ = pair.partition("=")
    plain = jcs.text(unquote_to_bytes(name)).lower()
    return name + mark if plain in _SECRET_QUERY else pair
