"""The sessions branch of the error tree, each leaf with its code.

    SessionError                sessions.*
    ├── InvalidCall             what was sent breaks a rule: malformed_json, invalid_field, undecodable_body,
    │                           too_large, unsupported_media_type, unsupported_encoding, past_retention
    ├── Denied                  unauthenticated, forbidden, org_mismatch
    ├── CaptureConflict · NotFound · SessionDeleted
    ├── NotNow                  saturated_items, saturated_bytes, store_unavailable, disk_full, stopping, spool_full
    ├── InvalidQuestion         cursor_mismatch, invalid_query
    ├── Underivable             number_range, unknown_provider, chain_broken, node_corrupt, dead_letter
    └── ImportCorrupt · NoPriceSource · AttributionRefused

Invariants:
    - No two leaves share a code; the code without its prefix is what a problem document carries.
    - A message names keys, never content; of a capture id it shows the first 12 characters.
"""

from __future__ import annotations

from holdfast.core.errors import CodedError

__all__ = [
    "AttributionRefused",
    "CaptureConflict",
    "ChainBroken",
    "CursorMismatch",
    "DeadLetter",
    "Denied",
    "DiskFull",
    "Forbidden",
    "ImportCorrupt",
    "InvalidCall",
    "InvalidField",
    "InvalidQuery",
    "InvalidQuestion",
    "MalformedJson",
    "NoPriceSource",
    "NodeCorrupt",
    "NotFound",
    "NotNow",
    "NumberRange",
    "OrgMismatch",
    "PastRetention",
    "SaturatedBytes",
    "SaturatedItems",
    "SessionDeleted",
    "SessionError",
    "SpoolFull",
    "Stopping",
    "StoreUnavailable",
    "TooLarge",
    "Unauthenticated",
    "UndecodableBody",
    "Underivable",
    "UnknownProvider",
    "UnsupportedEncoding",
    "UnsupportedMediaType",
    "shown",
]  # fmt: skip

_SHOWN = 12


def shown(capture_id: str) -> str:
    """Return what a message may show of a capture id."""
    return capture_id if len(capture_id) <= _SHOWN else capture_id[:_SHOWN] + "…"


class SessionError(CodedError):
    """The root of what the sessions slice raises."""

    code = "sessions.error"

    @property
    def bare_code(self) -> str:
        """The code without the slice, as a problem document carries it."""
        return self.code.removeprefix("sessions.")


class InvalidCall(SessionError):
    """What was sent breaks a rule, and sending it again will not help.

    Attributes:
        field: JSON pointer of the member to blame; empty where it is the whole body.
        limit: Name of the limit that was exceeded; empty where none was.
    """

    code = "sessions.invalid_call"

    def __init__(self, message: str, hint: str = "", *, field: str = "", limit: str = "") -> None:
        super().__init__(message, hint)
        self.field = field
        self.limit = limit


class MalformedJson(InvalidCall):
    """The bytes are not JSON, or nest too deep."""

    code = "sessions.malformed_json"


class InvalidField(InvalidCall):
    """A member breaks its rule."""

    code = "sessions.invalid_field"


class UndecodableBody(InvalidCall):
    """The content coding of a body cannot be undone."""

    code = "sessions.undecodable_body"


class TooLarge(InvalidCall):
    """A body, or a list, is beyond a limit."""

    code = "sessions.too_large"


class UnsupportedMediaType(InvalidCall):
    """The body is of a type that is not read here."""

    code = "sessions.unsupported_media_type"


class UnsupportedEncoding(InvalidCall):
    """A content coding is not known."""

    code = "sessions.unsupported_encoding"


class PastRetention(InvalidCall):
    """The call was captured before what is kept begins."""

    code = "sessions.past_retention"


class Denied(SessionError):
    """The caller may not do this."""

    code = "sessions.denied"


class Unauthenticated(Denied):
    """There is no credential, or none that is valid."""

    code = "sessions.unauthenticated"


class Forbidden(Denied):
    """The credential does not reach as far, or the request comes from elsewhere than it may."""

    code = "sessions.forbidden"


class OrgMismatch(Denied):
    """The body names another org than the credential's."""

    code = "sessions.org_mismatch"


class CaptureConflict(SessionError):
    """Another call is stored under the same capture id; the first one is kept.

    Attributes:
        capture_id: The id.
    """

    code = "sessions.capture_conflict"

    def __init__(self, capture_id: str) -> None:
        super().__init__(
            f"another call is stored under capture id {shown(capture_id)}",
            "a retry sends the same bytes again; a new call needs an id of its own",
        )
        self.capture_id = capture_id


class NotFound(SessionError):
    """There is nothing of that id, or it is another org's."""

    code = "sessions.not_found"


class SessionDeleted(SessionError):
    """The session was deleted, and its key is refused since."""

    code = "sessions.session_deleted"


class NotNow(SessionError):
    """The call cannot be taken just now, and may be sent again.

    Attributes:
        retry_after: Seconds after which that makes sense.
    """

    code = "sessions.not_now"

    def __init__(self, message: str, hint: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class SaturatedItems(NotNow):
    """As many calls are between their first byte and their commit as may be."""

    code = "sessions.saturated_items"


class SaturatedBytes(NotNow):
    """The calls between their first byte and their commit weigh as much as they may."""

    code = "sessions.saturated_bytes"


class StoreUnavailable(NotNow):
    """The ledger cannot be reached or written."""

    code = "sessions.store_unavailable"


class DiskFull(NotNow):
    """There is no room for another call."""

    code = "sessions.disk_full"


class Stopping(NotNow):
    """The server is being stopped."""

    code = "sessions.stopping"


class SpoolFull(NotNow):
    """The proxy holds as many undelivered calls as it may."""

    code = "sessions.spool_full"


class InvalidQuestion(SessionError):
    """A question cannot be answered as it is put."""

    code = "sessions.invalid_question"


class CursorMismatch(InvalidQuestion):
    """The cursor belongs to another list, or to none."""

    code = "sessions.cursor_mismatch"

    def __init__(self) -> None:
        super().__init__("the cursor does not belong to this list", "start again without a cursor")


class InvalidQuery(InvalidQuestion):
    """The words that are searched for cannot be understood."""

    code = "sessions.invalid_query"


class Underivable(SessionError):
    """No turn can be made of what is stored."""

    code = "sessions.underivable"


class NumberRange(Underivable):
    """A number has no binary64."""

    code = "sessions.number_range"

    def __init__(self) -> None:
        super().__init__("a number in the JSON is outside the range of binary64")


class UnknownProvider(Underivable):
    """Nothing here reads what this provider says."""

    code = "sessions.unknown_provider"


class ChainBroken(Underivable):
    """A chain of nodes has a gap, or a link that leads elsewhere.

    Attributes:
        index: The place in the chain, from 0.
    """

    code = "sessions.chain_broken"

    def __init__(self, index: int, why: str) -> None:
        super().__init__(f"the chain is broken at {index}: {why}")
        self.index = index


class NodeCorrupt(Underivable):
    """A node's hash is not that of its content.

    Attributes:
        hash: The node.
    """

    code = "sessions.node_corrupt"

    def __init__(self, hash: str) -> None:
        super().__init__(f"node {hash[:12]}… does not hash to its own id")
        self.hash = hash


class DeadLetter(Underivable):
    """An event was tried as often as it may be."""

    code = "sessions.dead_letter"


class ImportCorrupt(SessionError):
    """An archive is not what its manifest and its end say."""

    code = "sessions.import_corrupt"


class NoPriceSource(SessionError):
    """There is neither a rate card nor a package that could price a call."""

    code = "sessions.no_price_source"


class AttributionRefused(SessionError):
    """An attribution would contradict itself."""

    code = "sessions.attribution_refused"
