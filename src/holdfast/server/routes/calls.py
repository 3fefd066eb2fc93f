"""What a captured call looks like when it is sent: for the OpenAPI document. Who reads it is `sessions.intake`.

Invariants:
    - What is described here is taken; what else a call has is kept, and ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType

from holdfast.sessions.limits import TAG_BYTES_MAX, TAGS_MAX
from holdfast.sessions.values import COLUMNS

__all__ = ["NDJSON", "ManyCalls", "OneCall"]

NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")
BATCH_MAX = 1000

_TEXT = OpenAPIType.STRING


def _text(said: str = "", **more: Any) -> Schema:
    return Schema(type=_TEXT, description=said or None, **more)


def _object(said: str, required: list[str] | None = None, **members: Any) -> Schema:
    return Schema(type=OpenAPIType.OBJECT, description=said, required=required, properties=members)


def _instant(said: str) -> Schema:
    return Schema(
        description=said,
        one_of=[
            Schema(type=_TEXT, format=OpenAPIFormat.DATE_TIME),
            Schema(type=OpenAPIType.INTEGER, description="Microseconds since 1970"),
        ],
    )


def _count(said: str = "") -> Schema:
    return Schema(type=OpenAPIType.INTEGER, minimum=0, maximum=2**63 - 1, description=said or None)


def _body(said: str) -> Schema:
    return Schema(
        description=f"{said}: JSON, kept as the bytes that are sent; or an object with `base64`, and `content_type` "
        "and `content_encoding` where they are known"
    )


_BLOCKS = Schema(
    type=OpenAPIType.ARRAY,
    items=Schema(type=OpenAPIType.OBJECT, required=["type"], properties={"type": _text()}),
)
_SESSION = _object(
    "The conversation; null and an absent one are the same",
    None,
    org_id=_text("The credential's, or empty"),
    auth_subject=_text("Who the harness works for, at most 256 bytes"),
    harness_id=_text("Empty: `unknown`", pattern=r"^[A-Za-z0-9._-]{0,64}$"),
    harness_session_id=_text("The harness's own id, at most 256 bytes; not `syn-…`"),
    harness_version=_text("At most 256 bytes"),
    parent_harness_id=_text("Only with the parent's session id", pattern=r"^[A-Za-z0-9._-]{0,64}$"),
    parent_harness_session_id=_text("Where it was forked from; not empty"),
    cwd=_text("At most 4 KiB"),
    name=_text("Cut at 256 bytes"),
    harness_metadata=Schema(type=OpenAPIType.OBJECT, additional_properties=Schema(), description="At most 64 KiB"),
)
_SESSION.type = [OpenAPIType.OBJECT, OpenAPIType.NULL]
_UPSTREAM = _object(
    "How the provider's side went",
    status=Schema(type=OpenAPIType.INTEGER),
    outcome=Schema(type=_TEXT, enum=["complete", "incomplete", "aborted", "error"]),
    error_type=_text(),
    request_id=_text("The provider's name for the call"),
    headers=Schema(type=OpenAPIType.OBJECT, additional_properties=_text()),
    time_to_first_token_ms=_count(),
    duration_ms=_count(),
    request_bytes=_count(),
    response_bytes=_count(),
)
_USAGE = _object("Tokens that the caller counted", None, **{name: _count() for name in COLUMNS})
_REDUCED = _object(
    "The answer in blocks, where its bytes are not to be had",
    model=_text(),
    message=_object("", None, role=_text(), content=_BLOCKS),
    stop_reason=_text(),
    usage=_USAGE,
)
_CALL = _object(
    "A call to a provider and what came back",
    ["provider"],
    capture_id=_text("Names the call through all retries", pattern=r"^[A-Za-z0-9._:-]{0,200}$"),
    source=Schema(type=_TEXT, enum=["wire", "sdk"], default="wire"),
    provider=_text(pattern=r"^[a-z0-9_.-]{1,64}$"),
    endpoint=_text("Path or name; where it is absent, the request's shape tells"),
    agent_name=_text("At most 256 bytes"),
    thread_id=_text("Empty: the main thread"),
    parent_tool_use_id=_text("At most 256 bytes"),
    captured_at=_instant("By default when it was received"),
    started_at=_instant("When it was sent"),
    ended_at=_instant("When the answer had ended"),
    request=_body("What was sent; required unless `capture` is `metadata`"),
    response=_body("What came back; null where nothing did"),
    reduced=_REDUCED,
    upstream=_UPSTREAM,
    usage=_USAGE,
    cost=_object(
        "What the caller knows that it cost", None, usd=_text("Decimal, such as `0.25`"), source=_text("Who says so")
    ),
    capture=Schema(type=_TEXT, enum=["full", "metadata"], default="full"),
    tags=Schema(type=OpenAPIType.ARRAY, items=_text(f"At most {TAG_BYTES_MAX} bytes"), max_items=TAGS_MAX),
    session=_SESSION,
)
_CALLS = Schema(type=OpenAPIType.ARRAY, items=_CALL, min_items=1, max_items=BATCH_MAX)
_BATCH = Schema(
    one_of=[
        _object("A batch", ["items"], items=_CALLS),
        _object("A batch as the reference sends it", ["turns"], turns=_CALLS),
    ]
)


@dataclass
class OneCall(Operation):
    """The operation whose body is a call."""

    def __post_init__(self) -> None:
        self.request_body = RequestBody({"application/json": OpenAPIMediaType(_CALL)}, required=True)


@dataclass
class ManyCalls(Operation):
    """The operation whose body is a batch."""

    def __post_init__(self) -> None:
        lines = OpenAPIMediaType(_text("One call to a line"))
        self.request_body = RequestBody({"application/json": OpenAPIMediaType(_BATCH), NDJSON[0]: lines}, required=True)
