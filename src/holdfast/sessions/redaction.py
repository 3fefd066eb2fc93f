"""Take secrets out of a call before anything of it is kept. Pure.

The rules run on what was told and on the bodies without their codings. A body in which nothing was found stays the
very bytes that were sent; one in which something was found is kept decoded. What no rule finds in the bytes may show
in the text that they stand for, where a stream has cut it or JSON has escaped it: such a body is dropped, and what it
says is kept instead, redacted.

Invariants:
    - What is kept reads back as a call.
    - A call in which nothing was found is kept as it came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast
from uuid import UUID

import msgspec

from holdfast.sessions import codings, intake, jcs, providers
from holdfast.sessions.codings import CodingError
from holdfast.sessions.errors import InvalidField, SessionError
from holdfast.sessions.intake import Sent
from holdfast.sessions.jcs import Json
from holdfast.sessions.redact import Rules, may_hide, may_hold, redact
from holdfast.sessions.values import Call, Facts, plain

__all__ = ["DROPPED", "Kept", "kept"]

DROPPED = "raw_dropped_redaction"
"""The flag of a call of which a body was dropped."""

SILENT_BYTES_MAX = 256 * 1024
"""Bodies beyond this are looked through one by one: to look at all at once takes another copy of them."""


class Kept(msgspec.Struct, frozen=True):
    """What may be kept of a call.

    Attributes:
        sent: The call without what was found.
        told: What was told, as it is stored.
        counts: How often each rule found something.
    """

    sent: Sent
    told: bytes
    counts: Mapping[str, int]


def kept(sent: Sent, using: Rules, key: bytes, *, org: UUID, written: bytes | None = None) -> Kept:
    """Return what may be kept of a call.

    Args:
        sent: The call.
        using: The rules.
        key: The installation's secret.
        org: The credential's.
        written: The canonical JSON of what was told, where somebody has written it already.

    Raises:
        InvalidField: Without its secret, a member does not keep its rule any more.
    """
    if written is None:
        written = jcs.write(cast("Json", sent.told))
    if not using.patterns or (using.ours and _is_silent(sent.call, written, using)):
        return Kept(sent, written, {})
    work = _Work(sent, using, key)
    work.request()
    work.response()
    told = work.clean(jcs.write(cast("Json", work.told)))
    if not work.counts:
        return Kept(sent, told, {})
    call = sent.call
    if redact(call.capture_id.encode(), using, key).counts:
        raise InvalidField("a capture id must not be a secret", "give the call another", field="/capture_id")
    read = jcs.read(told)
    again = intake.reread(read, work.asked, work.answered, org=org)
    flags = sent.flags | work.flags
    return Kept(msgspec.structs.replace(sent, call=again, told=read, flags=flags), told, dict(work.counts))


def _is_silent(call: Call, written: bytes, using: Rules) -> bool:
    """Say of a small call that the rules that come with the slice find nothing in it; most are such.

    One look through all that is kept of it. No rule finds anything across the lines that part one from the other.
    """
    request, response = call.request or b"", call.response or b""
    if call.request_encoding or call.response_encoding or len(request) + len(response) > SILENT_BYTES_MAX:
        return False
    if may_hold(b"\n".join((request, response, written))) or may_hide(request, using):
        return False
    return not response or not _hides(response)


class _Work:
    """One call, on the way to what may be kept of it."""

    def __init__(self, sent: Sent, using: Rules, key: bytes) -> None:
        self._call = sent.call
        self._using = using
        self._key = key
        self.told: dict[str, Json] = dict(sent.told)
        self.asked, self.answered = sent.call.request, sent.call.response
        self.flags: set[str] = set()
        self.counts: Counter[str] = Counter()

    def clean(self, data: bytes) -> bytes:
        """Return bytes without what the rules find, and count it."""
        found = redact(data, self._using, self._key)
        if found.counts:
            self.counts.update(found.counts)
        return found.data

    def request(self) -> None:
        """Redact the request."""
        if not self.asked:
            return
        bare, salvaged = _bare(self.asked, self._call.request_encoding)
        cleaned = self.clean(bare)
        if may_hide(cleaned, self._using):
            cleaned = self._unescaped(cleaned)
        if cleaned != bare:
            self.asked = cleaned
            self._uncoded("request", salvaged)

    def response(self) -> None:
        """Redact the response; drop it where it says more than its bytes show."""
        if not self.answered:
            return
        bare, salvaged = _bare(self.answered, self._call.response_encoding)
        cleaned = self.clean(bare)
        if _hides(cleaned) and self._dropped(cleaned):
            return
        if cleaned != bare:
            self.answered = cleaned
            self._uncoded("response", salvaged)

    def _unescaped(self, data: bytes) -> bytes:
        """Return JSON in which secrets were written with escapes as JSON without them; other JSON stays."""
        try:
            spelt = jcs.write(jcs.read(data))
        except (SessionError, ValueError):
            return data
        found = redact(spelt, self._using, self._key)
        if not found.counts:
            return data
        self.counts.update(found.counts)
        self.flags.add(DROPPED)
        return found.data

    def _dropped(self, cleaned: bytes) -> bool:
        """Drop the response if what it says holds a secret that its bytes do not show; say whether."""
        facts = self._facts(cleaned)
        if facts is None or facts.response is None:
            return False
        reduced = jcs.write(_reduced(facts))
        found = redact(reduced, self._using, self._key)
        if not found.counts:
            return False
        self.counts.update(found.counts)
        self.flags.add(DROPPED)
        self.answered = None
        self.told["reduced"] = jcs.read(found.data)
        return True

    def _facts(self, response: bytes) -> Facts | None:
        call = self._call
        request = self.asked
        if request and request is call.request:
            request, _ = _bare(request, call.request_encoding)
        facts = providers.parse(
            call.provider, request, response, content_type=call.response_type, endpoint=call.endpoint
        )
        return None if facts.unparsed else facts

    def _uncoded(self, name: str, salvaged: bool) -> None:  # noqa: FBT001 - of the one who decoded it
        """Note that a body is kept without its codings."""
        if salvaged:
            self.flags.add("truncated_encoding")
        if name == "response" and "raw_response_encoding" in self.told:
            self.told["raw_response_encoding"] = ""
        elif isinstance(self.told.get(name), dict):
            self.told[name] = {**cast("dict[str, Any]", self.told[name]), "content_encoding": ""}


def _bare(body: bytes, encoding: str) -> tuple[bytes, bool]:
    """Return a body without its codings, and whether it had ended early."""
    try:
        decoded = codings.decode(body, encoding)
    except CodingError:
        return body, False  # nobody can read it: neither we nor whoever looks for secrets in the ledger
    return decoded.data, decoded.salvaged


def _hides(data: bytes) -> bool:
    """Say whether what bytes say may hold what the bytes do not show: escapes, or text in pieces."""
    if data.lstrip()[:1] not in (b"{", b"["):
        return True
    return (b"\\" in data and b"\\u" in data) or (b"\n" in data and b"\n{" in data)


def _reduced(facts: Facts) -> Json:
    said = facts.response
    assert said is not None
    usage = facts.usage
    return {
        "model": facts.model,
        "message": {"role": said.role, "content": [plain(block) for block in said.content]},
        "stop_reason": facts.stop_reason,
        "usage": None if usage is None else plain(usage),
    }
