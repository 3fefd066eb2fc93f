"""The values of the idempotency slice: a record, what it was claimed for, and what became of it.

A key's record goes through six states; `machine.transition` is the table of its ways.

    (absent) --claim--> reserved --settle--> completed | tombstone
                           |  ^                    |
                   release |  | claim              | expires
                           v  |                    v
                        released               (absent)
                           reserved --lapse, 5xx, raise--> unknown --decide--> completed | tombstone | released

Instants are integer microseconds since the epoch, UTC.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = [
    "RECORD_FORMAT",
    "Absent",
    "Completed",
    "Conflict",
    "Decision",
    "Headers",
    "InFlight",
    "KeyRecord",
    "Lapse",
    "Mode",
    "Once",
    "Outcome",
    "Principal",
    "Proceed",
    "Replay",
    "Rerun",
    "Running",
    "Sealed",
    "State",
    "Tombstone",
    "TombstoneReason",
    "Undecided",
    "UnknownReason",
]  # fmt: skip

Headers: TypeAlias = list[tuple[bytes, bytes]]
Mode: TypeAlias = Literal["transaction", "separate", "execution"]
Lapse: TypeAlias = Literal["ambiguous", "rerun"]
TombstoneReason: TypeAlias = Literal[
    "stream", "oversize", "truncated", "message", "upgrade", "set_cookie", "redaction", "handler_commit", "decided"
]
UnknownReason: TypeAlias = Literal["lapsed", "5xx", "raised", "timeout"]
RECORD_FORMAT = 1


class State(enum.IntEnum):
    """Where a record stands. An alias is a pointer row of secret rotation and leads to a record."""

    ALIAS = 0
    RESERVED = 1
    COMPLETED = 2
    TOMBSTONE = 3
    UNKNOWN = 4
    RELEASED = 5


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, as the application proves it.

    Attributes:
        subject: Who; never empty.
        tenant: On whose behalf; may be empty.
    """

    subject: str
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Completed:
    """A whole response.

    Attributes:
        status: 200 to 599.
        headers: In order, with repetition.
        body: The bytes.
    """

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Tombstone:
    """It was executed, and the body is not kept.

    Attributes:
        status: The status it had.
        headers: `Location`, `ETag` and `Content-Type`, where it had them.
        reason: Why the body is not kept.
        body_bytes: Its size, if known.
        body_digest: SHA-256 of the body, if it was whole.
    """

    status: int
    headers: Headers
    reason: TombstoneReason
    body_bytes: int | None = None
    body_digest: bytes | None = None


Outcome: TypeAlias = Completed | Tombstone


@dataclass(slots=True)
class Sealed:
    """An outcome as a row holds it: compressed, encrypted if there is a cipher, and with a sum over it all.

    Made for every request, so not frozen; nobody changes one that is made.

    Attributes:
        status: As it was sent.
        headers: The header block, as stored.
        body: The body, as stored; None for a tombstone.
        body_bytes: The size of the body as the handler sent it, if known.
        body_digest: SHA-256 of the body, if it was whole and no cipher hides it.
        block_sum: Over status, header block and body as stored; 16 bytes.
        codec: 0 plain, 1 zlib.
        cipher_key: Number of the encryption key, or None.
        reason: Of a tombstone.
    """

    status: int
    headers: bytes
    body: bytes | None
    body_bytes: int | None
    body_digest: bytes | None
    block_sum: bytes
    codec: int = 0
    cipher_key: int | None = None
    reason: str | None = None


@dataclass(slots=True, kw_only=True)
class KeyRecord:
    """The row of one key. The ledger gives its outcome sealed; whoever wants it opens it.

    Made for every replay, so not frozen; nobody changes one that is made, but to open its outcome.

    Attributes:
        key_id: What it is looked up by; 16 bytes, its first 12 hex digits are the `key_ref`.
        scope_id: Names the principal.
        record_id: Names the operation; kept over attempts.
        state: Where it stands.
        fingerprint: What the request must not differ in; 32 bytes.
        fp_version: Version of the rules it was made by.
        method: The request's method, or `CALL`.
        route: The rule's path, else the endpoint's, else `*`.
        fence: Names the newest claim.
        claim_id: The newest claim's own id.
        attempt: 1 for the first run.
        owner: The owner id of the process that holds or held it.
        lease_until: When the claim lapses.
        mode: The mode it was claimed in.
        on_lapse: What a lapse means.
        irreversible: Whether the attempt said that its effect cannot be taken back.
        outcome: For a completed record or a tombstone that was opened.
        sealed: The same as the row holds it; None in lists.
        status: Of a completed record or a tombstone.
        body_bytes: The size of the body as the handler sent it, if known.
        reason: Of a tombstone or an unknown record.
        execution_id: In mode `execution`.
        created_at: When the row was made.
        claimed_at: When the newest claim was made.
        settled_at: When it was settled.
        expires_at: When the key is new again; None while unknown.
        first_sent_at: What the client said about its first sending.
    """

    key_id: bytes
    scope_id: bytes
    record_id: bytes
    state: State
    fingerprint: bytes
    method: str
    route: str
    fence: int
    claim_id: bytes
    owner: str
    lease_until: int
    created_at: int
    claimed_at: int
    expires_at: int | None
    fp_version: int = 1
    attempt: int = 1
    mode: Mode = "separate"
    on_lapse: Lapse = "ambiguous"
    irreversible: bool = False
    outcome: Outcome | None = None
    sealed: Sealed | None = None
    status: int | None = None
    body_bytes: int | None = None
    reason: str | None = None
    execution_id: str | None = None
    settled_at: int | None = None
    first_sent_at: int | None = None

    @property
    def key_ref(self) -> str:
        """What it is called in messages: 12 hex digits of the key id."""
        return self.key_id.hex()[:12]


@dataclass(slots=True)
class Proceed:
    """The caller holds the claim, and runs. Made for every request, so not frozen; nobody changes one that is made.

    Attributes:
        fence: Names the claim in every later write.
        attempt: 1 for the first run.
        record_id: Names the operation.
        reclaimed: Whether the claim of an earlier attempt had lapsed.
    """

    fence: int
    attempt: int
    record_id: bytes
    reclaimed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Replay:
    """It has been settled: answer from the record."""

    record: KeyRecord


@dataclass(frozen=True, slots=True)
class InFlight:
    """Somebody else holds the claim.

    Attributes:
        until: When its lease ends.
        since: When it was claimed.
    """

    until: int
    since: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """It may not run, and there is nothing to replay."""

    why: Literal["reused", "unknown", "quota", "unreadable", "newer"]


Decision: TypeAlias = Proceed | Replay | InFlight | Conflict
"""What becomes of a request with a key; whoever decides about one matches all four."""


@dataclass(frozen=True, slots=True)
class Running:
    """What `attach` says of an execution that has not ended."""


@dataclass(frozen=True, slots=True)
class Absent:
    """What `attach` says of an execution nobody knows."""


@dataclass(frozen=True, slots=True)
class Rerun:
    """What `reconcile` says when the effect did not take place: a retry may run."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """What `reconcile` says when it cannot tell either."""


@dataclass(frozen=True, slots=True)
class Once:
    """What `Idempotency.once` returns.

    Attributes:
        value: What the operation returned, now or when it ran.
        replayed: Whether it comes from the record.
        attempt: Which attempt made it.
    """

    value: bytes
    replayed: bool
    attempt: int
