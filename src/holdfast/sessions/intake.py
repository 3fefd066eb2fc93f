"""What is posted to be captured: one call, a list of them, or the reference's own form, as `Call`s. Pure.

A call is JSON whose bodies are JSON too, kept as the very bytes that were sent, or base64. What a member may be is
decided here; whose session it is, in `envelope`.

Invariants:
    - The bodies of a call are the bytes that its sender had.
    - Every element of a list is read from its own bytes: what is wrong with one is its own.
    - Members that nobody knows are kept, and change nothing but the fingerprint.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, cast
from uuid import UUID

import msgspec

from holdfast.sessions import envelope, headers, identity, instants, jcs, tokens
from holdfast.sessions.errors import InvalidField, MalformedJson, NumberRange, TooLarge
from holdfast.sessions.identity import Captured
from holdfast.sessions.jcs import Json
from holdfast.sessions.limits import (
    CWD_BYTES_MAX,
    DEPTH_MAX,
    ID_BYTES_MAX,
    METADATA_BYTES_MAX,
    TAG_BYTES_MAX,
    TAGS_MAX,
    TOKENS_MAX,
)
from holdfast.sessions.values import (
    COLUMNS,
    Block,
    Call,
    Envelope,
    Message,
    Reduced,
    Upstream,
    Usage,
    block_of,
    plain,
)

__all__ = ["Sent", "batch", "capture_id", "reread", "sent_of", "single"]

_PROVIDER = re.compile(r"[a-z0-9_.-]{1,64}", re.ASCII)
_BODY_MEMBERS = frozenset(("base64", "content_type", "content_encoding"))
_REFERENCE = frozenset(("meta", "raw_response", "raw_response_encoding", "raw_response_withheld"))
_OUTCOMES = ("complete", "incomplete", "aborted", "error")
_MESSAGE, _COLON = b'"message"', re.compile(rb"[ \t\r\n]*:")
_USD_MAX = Decimal(9_000_000)
_BODIES = frozenset(("request", "response", "raw_response"))


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A call as it was posted.

    Attributes:
        call: What it says.
        told: Everything that was sent but the bodies, for the fingerprint and the ledger.
        captured_at: As it was sent, for the capture id.
        request_id: The reference's name of the call; empty where there is none.
        flags: What was cut off, emptied or replaced.
    """

    call: Call
    told: Mapping[str, Json]
    captured_at: Json = None
    request_id: str = ""
    flags: frozenset[str] = frozenset()


def spoken_for(sent: Sent, auth_subject: str) -> Sent:
    """Return a call with the subject that a trusted proxy names, where it names none itself."""
    session = sent.call.session or Envelope(harness_id=identity.UNKNOWN)
    if not auth_subject or session.auth_subject:
        return sent
    said = sent.told.get("session") or {}
    told = {**sent.told, "session": {**said, "auth_subject": auth_subject}}
    call = replace(sent.call, session=replace(session, auth_subject=auth_subject))
    return msgspec.structs.replace(sent, told=told, call=call)


def capture_id(sent: Sent, header: str, *, org: UUID) -> tuple[str, bool]:
    """Return the capture id of a call, and whether it is derived from the content.

    Raises:
        InvalidField: A given id is malformed, ours, or differs from the header's.
    """
    call, session = sent.call, sent.call.session or Envelope()
    captured = Captured(
        org=org,
        harness_id=session.harness_id,
        harness_session_id=session.harness_session_id,
        provider=call.provider,
        captured_at=sent.captured_at,
        request=call.request,
        response=call.response,
    )
    return identity.capture_id(call.capture_id, header, sent.request_id, captured)


# --- lists --------------------------------------------------------------------------------------------


def batch(data: bytes, *, items_max: int, lines: bool = False) -> list[bytes]:
    """Return the elements of a list of calls, each as its own bytes.

    Args:
        data: `{"items": […]}`, `{"turns": […]}`, or one JSON value to a line.
        items_max: How many there may be.
        lines: Whether the content type says that it is by lines.

    Raises:
        MalformedJson: It is no such list, or an empty one.
        TooLarge: There are more elements.
    """
    if lines:
        found = [line for line in data.split(b"\n") if line.strip()]
    else:
        given = jcs.members(data, depth_max=DEPTH_MAX + 2)
        holder = given.get("items", given.get("turns"))
        if holder is None:
            raise MalformedJson("a batch has a member items or turns", field="/items")
        found = jcs.elements(holder, depth_max=DEPTH_MAX + 1)
    if not found:
        raise MalformedJson("a batch holds at least one call")
    if len(found) > items_max:
        raise TooLarge(f"a batch holds {items_max} calls at most, not {len(found)}", limit="batch_items_max")
    return found


# --- one call -----------------------------------------------------------------------------------------


class _Body(msgspec.Struct, frozen=True):
    data: bytes
    content_type: str = ""
    content_encoding: str = ""


def single(data: bytes, *, org: UUID, depth_max: int = DEPTH_MAX) -> Sent:
    """Read one call.

    Args:
        data: Its JSON, without content coding.
        org: The credential's.
        depth_max: How deep it may nest.

    Raises:
        MalformedJson: It is no JSON object, or nests too deep.
        InvalidField: A member breaks its rule.
        OrgMismatch: It names another org.
    """
    members = jcs.members(data, depth_max=depth_max)
    flags: set[str] = set() if jcs.is_storable(data) else {"scrubbed"}
    told = _told(members)
    answer = _reduced_form(members.get("response"))
    if answer is not None:
        told["response"] = answer
    if told.get("capture") == "metadata":
        _silence(told)
    if answer is None and _REFERENCE.isdisjoint(members):
        given: Mapping[str, Json] = told
        request, response = _body(members, "request", told), _body(members, "response", told)
    else:
        given = _translated(told)
        request, response = _body(members, "request", told), _raw_response(members, told)
    metadata = _choice(given, "capture", ("full", "metadata")) == "metadata"
    if request is None and not metadata:
        raise InvalidField("a call has a request", 'or says "capture": "metadata"', field="/request")
    call = _call(given, None if metadata else request, None if metadata else response, flags, org)
    return Sent(
        call=call,
        told=told,
        captured_at=given.get("captured_at"),
        request_id=_text(given, "request_id", METADATA_BYTES_MAX, flags) if given is not told else "",
        flags=frozenset(flags),
    )


def _call(given: Mapping[str, Json], request: _Body | None, response: _Body | None, flags: set[str], org: UUID) -> Call:
    provider = _text(given, "provider", ID_BYTES_MAX, flags)
    if not _PROVIDER.fullmatch(provider):
        raise InvalidField("provider is 1 to 64 of a-z 0-9 _ . -", field="/provider")
    asked, answered = request or _Body(b""), response or _Body(b"")
    metadata = given.get("capture") == "metadata"
    return Call(
        provider,
        None if request is None else request.data,
        None if response is None else response.data,
        capture_id=_text(given, "capture_id", METADATA_BYTES_MAX, flags),
        source=cast("Any", _choice(given, "source", ("wire", "sdk"))),
        endpoint=_text(given, "endpoint", CWD_BYTES_MAX, flags),
        request_type=asked.content_type,
        request_encoding=asked.content_encoding,
        response_type=answered.content_type,
        response_encoding=answered.content_encoding,
        captured_at=_instant(given, "captured_at"),
        started_at=_instant(given, "started_at"),
        ended_at=_instant(given, "ended_at"),
        upstream=_upstream(_part(given, "upstream"), flags),
        session=envelope.checked(_part(given, "session") or {}, flags, org=org),
        thread_id=_text(given, "thread_id", ID_BYTES_MAX, flags),
        parent_tool_use_id=_text(given, "parent_tool_use_id", ID_BYTES_MAX, flags),
        agent_name=_text(given, "agent_name", ID_BYTES_MAX, flags),
        reduced=_reduced(_part(given, "reduced"), flags, silent=metadata) if response is None else None,
        usage=_usage(_part(given, "usage")),
        cost_usd=_cost(_part(given, "cost")),
        tags=_tags(given, flags),
        capture="metadata" if metadata else "full",
    )


def _told(members: Mapping[str, bytes]) -> dict[str, Json]:
    """Return what was sent but the bodies: of headers those that may be kept, of addresses no credential."""
    told = _values({name: raw for name, raw in members.items() if name not in _BODIES})
    upstream = told.get("upstream")
    if isinstance(upstream, dict) and isinstance(upstream.get("headers"), dict):
        told["upstream"] = {**upstream, "headers": _headers(upstream["headers"])}
    _hide(told, "endpoint")
    if isinstance(meta := told.get("meta"), dict):
        told["meta"] = meta = dict(meta)
        _hide(meta, "endpoint")
        _hide(meta, "path")
    return told


def _values(members: Mapping[str, bytes]) -> dict[str, Json]:
    """Read members, in one go where nothing is wrong with any."""
    try:
        values = jcs.read(b"[%b]" % b",".join(members.values()), depth_max=DEPTH_MAX + 1)
    except NumberRange:
        values = [_value(name, raw) for name, raw in members.items()]
    return dict(zip(members, values, strict=True))


def _value(name: str, raw: bytes) -> Json:
    try:
        return jcs.read(raw)
    except NumberRange as error:
        raise InvalidField(str(error), field=f"/{name}") from None


def _hide(given: dict[str, Json], name: str) -> None:
    """Leave out of an address what its query says of credentials."""
    if isinstance(address := given.get(name), str):
        given[name] = headers.without_secrets(address)


def _headers(given: Mapping[str, Json]) -> dict[str, str]:
    return dict(headers.kept((name, value) for name, value in given.items() if isinstance(value, str)))


def _body(members: Mapping[str, bytes], name: str, told: dict[str, Json]) -> _Body | None:
    """Return a body: the bytes of a JSON value as they were sent, or what base64 stands for."""
    raw = members.get(name)
    if raw is None or raw == b"null":
        return None
    if raw[:1] != b"{" or b'"base64"' not in raw:
        return _Body(raw, "application/json")
    form = set(jcs.names(raw))
    if not form <= _BODY_MEMBERS or "base64" not in form:
        return _Body(raw, "application/json")
    value = jcs.read(raw)
    kind, coding = value.get("content_type"), value.get("content_encoding")
    for member, text in (("content_type", kind), ("content_encoding", coding)):
        if not isinstance(text, str | None) or len(text or "") > ID_BYTES_MAX:
            raise InvalidField(f"{member} is no short text", field=f"/{name}/{member}")
    told[name] = {member: text for member, text in value.items() if member != "base64"}
    return _Body(_unpacked(value["base64"], f"/{name}/base64"), kind or "", coding or "")


def _unpacked(value: Json, at: str) -> bytes:
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise InvalidField("the body is not base64", field=at) from None


# --- calls that are stored, and calls of a program ----------------------------------------------------


def reread(told: Mapping[str, Json], request: bytes | None, response: bytes | None, *, org: UUID) -> Call:
    """Return a call from what the ledger keeps of it: what was told, and the bodies."""
    asked = _typed(request, told.get("request"))
    if _REFERENCE.isdisjoint(told) and not _is_reduced(told.get("response")):
        return _call(told, asked, _typed(response, told.get("response")), set(), org)
    answered = None if response is None else _Body(response, "", told.get("raw_response_encoding") or "")
    return _call(_translated(told), asked, answered, set(), org)


def _typed(data: bytes | None, form: Json) -> _Body | None:
    if data is None:
        return None
    if not isinstance(form, dict):
        return _Body(data, "application/json")
    return _Body(data, form.get("content_type") or "", form.get("content_encoding") or "")


def sent_of(call: Call, *, org: UUID) -> Sent:
    """Return a program's call as one that was posted, its members checked by the same rules.

    Raises:
        InvalidField: A member breaks its rule.
        OrgMismatch: It names another org.
    """
    flags: set[str] = set()
    told = _as_told(call)
    metadata = call.capture == "metadata"
    if call.request is None and not metadata:
        raise InvalidField("a call has a request", "or capture only its metadata", field="/request")
    request = None if metadata else _typed(call.request, told["request"])
    response = None if metadata else _typed(call.response, told["response"])
    checked = _call(told, request, response, flags, org)
    return Sent(call=checked, told=told, captured_at=told.get("captured_at"), flags=frozenset(flags))


def _as_told(call: Call) -> dict[str, Json]:
    """Return what a program says of a call as if it had been posted; what it does not say is left out."""
    told: dict[str, Json] = {
        "request": {"content_type": call.request_type, "content_encoding": call.request_encoding},
        "response": {"content_type": call.response_type, "content_encoding": call.response_encoding},
    }
    for name in ("provider", "capture_id", "source", "endpoint", "thread_id", "parent_tool_use_id", "agent_name"):
        told[name] = getattr(call, name)
    for name in ("captured_at", "started_at", "ended_at"):
        when = getattr(call, name)
        told[name] = None if when is None else instants.micros(when, f"/{name}")
    if call.upstream is not None:
        told["upstream"] = _upstream_told(call.upstream)
    if call.session is not None:
        told["session"] = {name: value for name, value in asdict(call.session).items() if value}
    if call.reduced is not None:
        told["reduced"] = _reduced_told(call.reduced)
        if call.capture == "metadata":
            _silence(told)
    told["usage"] = None if call.usage is None else plain(call.usage)
    told["cost"] = None if call.cost_usd is None else {"usd": str(call.cost_usd)}
    told["tags"], told["capture"] = sorted(call.tags), call.capture
    _hide(told, "endpoint")
    return {name: value for name, value in told.items() if value not in (None, "", [])}


def _reduced_told(reduced: Reduced) -> dict[str, Json]:
    message = reduced.message or Message("assistant")
    return {
        "model": reduced.model,
        "message": {"role": message.role, "content": [plain(block) for block in message.content]},
        "stop_reason": reduced.stop_reason,
        "usage": None if reduced.usage is None else plain(reduced.usage),
    }


def _upstream_told(upstream: Upstream) -> dict[str, Json]:
    first, whole = upstream.time_to_first_token, upstream.duration
    return {
        "status": upstream.status,
        "outcome": upstream.outcome,
        "error_type": upstream.error_type,
        "request_id": upstream.request_id,
        "headers": dict(headers.kept(upstream.headers.items())),
        "time_to_first_token_ms": None if first is None else first // timedelta(milliseconds=1),
        "duration_ms": None if whole is None else whole // timedelta(milliseconds=1),
    }


# --- members ------------------------------------------------------------------------------------------


def _text(given: Mapping[str, Json], name: str, bytes_max: int, flags: set[str]) -> str:
    return envelope.limited(given, name, bytes_max, flags, "")


def _part(given: Mapping[str, Json], name: str) -> dict[str, Json] | None:
    value = given.get(name)
    if value is None or isinstance(value, dict):
        return value
    raise InvalidField(f"{name} is no object", field=f"/{name}")


def _choice(given: Mapping[str, Json], name: str, allowed: tuple[str, ...]) -> str:
    value = given.get(name)
    if value is None:
        return allowed[0]
    if value not in allowed:
        raise InvalidField(f"{name} is one of {', '.join(allowed)}", field=f"/{name}")
    return cast("str", value)


def _instant(given: Mapping[str, Json], name: str) -> datetime | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        value = instants.parse(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _MICROS_MAX:
        raise InvalidField(f"{name} is no instant: RFC 3339, or microseconds", field=f"/{name}")
    return instants.moment(value)


_MICROS_MAX = 62_135_596_800_000_000
"""As far from 1970 as a datetime reaches on both sides."""


def _upstream(given: dict[str, Json] | None, flags: set[str]) -> Upstream | None:
    if given is None:
        return None
    status = _count(given, "status", "/upstream", 999)
    return Upstream(
        status=status or 0,
        outcome=cast("Any", _choice(given, "outcome", _OUTCOMES)),
        error_type=envelope.limited(given, "error_type", ID_BYTES_MAX, flags, "/upstream"),
        request_id=envelope.limited(given, "request_id", ID_BYTES_MAX, flags, "/upstream"),
        headers=_headers(told) if (told := _part(given, "headers")) else {},
        time_to_first_token=_span(given, "time_to_first_token_ms"),
        duration=_span(given, "duration_ms"),
    )


def _span(given: Mapping[str, Json], name: str) -> timedelta | None:
    ms = _count(given, name, "/upstream", _SPAN_MS_MAX)
    return None if ms is None else timedelta(milliseconds=ms)


_SPAN_MS_MAX = 365 * 86_400_000
"""A call that takes longer than a year is a wrong clock."""


def _count(given: Mapping[str, Json], name: str, at: str, most: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidField(f"{name} is no whole number from 0 to {most}", field=f"{at}/{name}")
    return value


def _usage(given: dict[str, Json] | None) -> Usage | None:
    """Read counts that the caller vouches for: a wrong one is refused, not left out."""
    if given is None:
        return None
    tools = _part(given, "server_tools") or {}
    return Usage(
        **{column: _count(given, column, "/usage", TOKENS_MAX) for column in COLUMNS},
        server_tools={name: _count(tools, name, "/usage/server_tools", TOKENS_MAX) or 0 for name in tools},
        service_tier=envelope.limited(given, "service_tier", ID_BYTES_MAX, set(), "/usage"),
    )


def _cost(given: dict[str, Json] | None) -> Decimal | None:
    if given is None:
        return None
    text = given.get("usd")
    try:
        usd = Decimal(text) if isinstance(text, str) else Decimal("NaN")
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or not 0 <= usd <= _USD_MAX:
        raise InvalidField("usd is no decimal, written as text, from 0 to nine million", field="/cost/usd")
    return usd


def _tags(given: Mapping[str, Json], flags: set[str]) -> frozenset[str]:
    value = given.get("tags")
    if value is None:
        return frozenset()
    if not isinstance(value, list) or len(value) > TAGS_MAX:
        raise InvalidField(f"tags is a list of {TAGS_MAX} at most", field="/tags", limit="tags")
    return frozenset(
        envelope.limited({str(index): tag or ""}, str(index), TAG_BYTES_MAX, flags, "/tags")
        for index, tag in enumerate(value)
    ) - {""}


# --- answers without their bytes ----------------------------------------------------------------------


def _silence(told: dict[str, Json]) -> None:
    """Leave out of answers in the form of blocks what was said: model, stop reason and usage stay."""
    for name in ("reduced", "response"):
        answer = told.get(name)
        if isinstance(answer, dict) and isinstance(message := answer.get("message"), dict):
            told[name] = {**answer, "message": {"role": message.get("role"), "content": []}}


def _reduced(given: dict[str, Json] | None, flags: set[str], *, silent: bool) -> Reduced | None:
    if given is None:
        return None
    message = _part(given, "message") or {}
    usage = _part(given, "usage")
    blocks = message.get("content")
    if not isinstance(blocks, list | None):
        raise InvalidField("content is no list of blocks", field="/reduced/message/content")
    said = Message(
        envelope.limited(message, "role", ID_BYTES_MAX, flags, "/reduced/message") or "assistant",
        tuple(_block(block, f"/reduced/message/content/{index}") for index, block in enumerate(blocks or [])),
    )
    return Reduced(
        model=envelope.limited(given, "model", ID_BYTES_MAX, flags, "/reduced"),
        message=None if silent else said,
        stop_reason=envelope.limited(given, "stop_reason", ID_BYTES_MAX, flags, "/reduced"),
        usage=None if usage is None else tokens.given(usage, flags),
    )


def _block(value: Json, at: str) -> Block:
    try:
        if isinstance(value, dict):
            return block_of(value)
    except ValueError:
        pass
    raise InvalidField("this is no block", field=at) from None


# --- the reference's form -----------------------------------------------------------------------------


def _reduced_form(raw: bytes | None) -> dict[str, Json] | None:
    """Return an answer in the form of blocks, where the response is one."""
    if raw is None or raw[:1] != b"{" or not _names_message(raw):
        return None
    try:
        value = jcs.read(raw)
    except NumberRange:
        return None
    return cast("dict[str, Json]", value) if _is_reduced(value) else None


def _names_message(raw: bytes) -> bool:
    """Say whether JSON may have a member `message`; as a value, which most answers have it as, it does not count."""
    at = raw.find(_MESSAGE)
    while at >= 0:
        if _COLON.match(raw, at := at + len(_MESSAGE)):
            return True
        at = raw.find(_MESSAGE, at)
    return False


def _is_reduced(value: Json) -> bool:
    message = value.get("message") if isinstance(value, dict) else None
    return (
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), list)
    )


def _raw_response(members: Mapping[str, bytes], told: dict[str, Json]) -> _Body | None:
    coding = told.get("raw_response_encoding") or ""
    if not isinstance(coding, str) or len(coding) > ID_BYTES_MAX:
        raise InvalidField("raw_response_encoding is no short text", field="/raw_response_encoding")
    told["raw_response_encoding"] = coding  # from which the form is known again
    raw = members.get("raw_response")
    if raw is None or raw in (b"null", b'""'):
        return None
    return _Body(_unpacked(_lenient(raw), "/raw_response"), "", coding)


def _lenient(raw: bytes) -> Json:
    return jcs.read(raw) if raw[:1] == b'"' else None


def _translated(told: Mapping[str, Json]) -> dict[str, Json]:
    """Return a call of the reference by our names; what it says by our names too counts first."""
    meta = _part(told, "meta") or {}
    elapsed = meta.get("elapsed_seconds")
    timed = isinstance(elapsed, int | float) and not isinstance(elapsed, bool) and 0 <= elapsed * 1000 <= _SPAN_MS_MAX
    upstream = {
        "status": meta.get("upstream_status"),
        "request_id": meta.get("upstream_request_id"),
        "duration_ms": round(elapsed * 1000) if timed and elapsed is not None else None,
    }
    known = {
        "request_id": meta.get("request_id"),
        "thread_id": meta.get("thread_id"),
        "endpoint": meta.get("endpoint") or meta.get("path"),
        "captured_at": meta.get("captured_at") or meta.get("ts_request"),
        "started_at": meta.get("ts_request"),
        "upstream": upstream,
        "reduced": told.get("response"),
    }
    return known | {name: value for name, value in told.items() if value is not None and name != "request_id"}
