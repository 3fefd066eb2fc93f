"""What things are called: events, turns, sessions, orgs; and when two calls are one. Pure.

Ids that people see have a prefix and 32 hex digits; in storage they are 16 bytes. What an id is made of, when nobody
gave one, is decided here and never changes.

Invariants:
    - A capture id is one call of one org, over all of its retries. Callers cannot take one that we derive.
    - A turn's id follows from its event and the evidence in it, so every store gives it the same.
    - A synthetic session's key follows from its first turn alone; equal first words never meet.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias
from uuid import UUID

import msgspec
from blake3 import blake3

from holdfast.sessions import jcs
from holdfast.sessions.errors import InvalidField
from holdfast.sessions.jcs import Json
from holdfast.sessions.limits import CAPTURE_ID_CHARS_MAX, CONTINUATION_US
from holdfast.sessions.values import Mark, SessionKey

__all__ = [
    "UNKNOWN", "Captured", "Prefix", "Synthetic", "caller", "capture_id", "continued", "fingerprint", "group_key",
    "groups", "is_synthetic", "org_id", "parse_id", "shown_id", "synthetic_key", "turn_id",
]  # fmt: skip

UNKNOWN = "unknown"
"""The harness of a call that names none."""

Prefix: TypeAlias = Literal["att", "cap", "ses", "turn"]

_DIGITS = r"(?:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32})"
_UUID = re.compile(rf"(?:urn:uuid:)?{_DIGITS}|\{{{_DIGITS}\}}", re.IGNORECASE | re.ASCII)
_CAPTURE_ID = re.compile(rf"[A-Za-z0-9._:-]{{1,{CAPTURE_ID_CHARS_MAX}}}", re.ASCII)
_OURS = ("seg:", "otlp:", "req:", "sha:")
_SYNTHETIC = "syn-"
_LOW = (1 << 62) - 1


# --- ids ----------------------------------------------------------------------------------------------


def shown_id(prefix: Prefix, raw: bytes) -> str:
    """Return the id that people see."""
    return f"{prefix}_{raw.hex()}"


def parse_id(prefix: Prefix, text: str) -> bytes | None:
    """Return the 16 bytes of an id: one of ours with this prefix, or a bare UUID in any form; else None."""
    uuid = _uuid(text.removeprefix(f"{prefix}_"))
    return None if uuid is None else uuid.bytes


def org_id(text: str) -> UUID | None:
    """Return the org of a text: a UUID in any textual form; None where it is none."""
    return _uuid(text)


def _uuid(text: str) -> UUID | None:
    if not _UUID.fullmatch(text):
        return None
    return UUID(text.lower().removeprefix("urn:uuid:").strip("{}"))


def turn_id(event_id: bytes, evidence_key: str) -> bytes:
    """Return the id of the turn that an evidence makes: the event's, unless the event carries several."""
    if not evidence_key:
        return event_id
    derived = int.from_bytes(blake3(event_id + evidence_key.encode()).digest()[-8:], "big") & _LOW
    return (int.from_bytes(event_id, "big") & ~_LOW | derived).to_bytes(16, "big")


# --- capture ids --------------------------------------------------------------------------------------


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """What a capture id is made of where nobody gave one.

    Attributes:
        captured_at: As it was sent: an integer, a text, or None.
    """

    org: UUID
    harness_id: str
    harness_session_id: str
    provider: str
    captured_at: Json
    request: bytes | None
    response: bytes | None


def capture_id(body: str, header: str, request_id: str, captured: Captured) -> tuple[str, bool]:
    """Return the capture id of a call, and whether it is derived from the content.

    Args:
        body: The member `capture_id`; empty where there is none.
        header: The `Idempotency-Key` header, bare or quoted; empty where there is none.
        request_id: The reference's `meta.request_id`; empty where there is none.
        captured: What else identifies the call.

    Raises:
        InvalidField: A given id is malformed, ours, or the two that were given differ.
    """
    header = header.strip()
    if len(header) > 1 and header[0] == header[-1] == '"':
        header = header[1:-1]
    if body and header and body != header:
        raise InvalidField("capture_id and the Idempotency-Key header differ", "give one of them", field="/capture_id")
    given = body or header
    if given:
        if not _CAPTURE_ID.fullmatch(given):
            raise InvalidField(
                f"a capture id is 1 to {CAPTURE_ID_CHARS_MAX} of A-Z a-z 0-9 . _ : -", field="/capture_id"
            )
        if given.startswith(_OURS):
            raise InvalidField(f"capture ids beginning with {' '.join(_OURS)} are ours", field="/capture_id")
        return given, False
    if request_id:
        derived = f"req:{request_id}"
        if not _CAPTURE_ID.fullmatch(derived):
            raise InvalidField("the request id does not fit into a capture id", field="/meta/request_id")
        return derived, False
    return f"sha:{_content_key(captured)}", True


def _content_key(captured: Captured) -> str:
    parts = [
        str(captured.org),
        captured.harness_id or UNKNOWN,
        captured.harness_session_id,
        captured.provider,
        captured.captured_at,
        _sha256(captured.request),
        _sha256(captured.response),
    ]
    return hashlib.sha256(jcs.write(parts)).hexdigest()


def _sha256(body: bytes | None) -> str:
    return "" if body is None else hashlib.sha256(body).hexdigest()


_UNSIGNED = frozenset(("sent_at", "attempt"))


def fingerprint(
    secret: bytes,
    envelope: Mapping[str, Json],
    request: bytes | None,
    response: bytes | None,
    *,
    written: bytes | None = None,
) -> bytes:
    """Return what a retry must not differ in, keyed so that a stored hash tells nothing.

    Args:
        secret: The installation's secret, 32 bytes.
        envelope: Everything that was sent but the bodies.
        request: The bytes as they were sent, before anything is taken out of them.
        response: Likewise.
        written: The envelope's canonical JSON, where somebody has written it already.
    """
    if written is None or not _UNSIGNED.isdisjoint(envelope):
        written = jcs.write({name: value for name, value in envelope.items() if name not in _UNSIGNED})
    hashed = blake3(_framing(written) + written + _framing(request), key=secret)
    hashed.update(request or b"")
    hashed.update(_framing(response))
    hashed.update(response or b"")
    return hashed.digest()


def _framing(part: bytes | None) -> bytes:
    return b"\x00" if part is None else b"\x01" + len(part).to_bytes(8, "big")


def caller(secret: bytes, credential: str) -> bytes:
    """Return a credential's 8-byte fingerprint: who calls, without saying who."""
    return b"" if not credential else blake3(credential.encode(), key=secret).digest(8)


def group_key(key: SessionKey, thread: str = "") -> bytes:
    """Return the key that events of one session, and where there is none of one thread, are stored together under."""
    return blake3(jcs.write([*key, "" if key[1] else thread])).digest(16)


# --- synthetic sessions -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """A turn without a session id.

    Attributes:
        caller: Fingerprint of the credential, and the agent's name.
        response_hash: The node of its answer; empty where it has none.
        continues_hash: The last node of the assistant in its request; empty where it has none.
    """

    mark: Mark
    caller: tuple[bytes, str]
    response_hash: str
    continues_hash: str


def synthetic_key(org: UUID, first_capture_id: str) -> str:
    """Return the session id of a group of turns that have none."""
    return _SYNTHETIC + blake3(org.bytes + first_capture_id.encode()).hexdigest(16)


def is_synthetic(harness_session_id: str) -> bool:
    """Say whether a session id is one that only we make."""
    return harness_session_id.startswith(_SYNTHETIC)


def continued(turn: Synthetic, others: Iterable[Synthetic], *, window_us: int = CONTINUATION_US) -> Synthetic | None:
    """Return the turn that a turn goes on from: the latest before it, in its window, whose answer it repeats."""
    if not turn.continues_hash:
        return None
    found: Synthetic | None = None
    for other in others:
        if (
            other.caller == turn.caller
            and other.response_hash == turn.continues_hash
            and other.mark < turn.mark
            and turn.mark[0] - other.mark[0] <= window_us
            and (found is None or found.mark < other.mark)
        ):
            found = other
    return found


def groups(turns: Iterable[Synthetic], *, window_us: int = CONTINUATION_US) -> dict[Mark, Mark]:
    """Return the mark of each turn's first one, by the turn's own mark. Turns of one org; any order."""
    ordered = sorted(turns, key=lambda turn: turn.mark)
    answers: dict[tuple[tuple[bytes, str], str], list[Synthetic]] = {}
    firsts: dict[Mark, Mark] = {}
    for turn in ordered:
        before = continued(turn, answers.get((turn.caller, turn.continues_hash), ()), window_us=window_us)
        firsts[turn.mark] = turn.mark if before is None else firsts[before.mark]
        if turn.response_hash:
            # Later ones are always preferred, so one for each answer is enough: marks only grow here.
            answers[turn.caller, turn.response_hash] = [turn]
    return firsts
