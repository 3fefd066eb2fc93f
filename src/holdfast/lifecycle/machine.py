"""The rules of the lifecycle slice, under one roof: everything here is pure. The parts say what they hide.

    manifest       which adapters exist, and what they claim
    negotiation    route a request, settle what the adapter can do of it
    receipts       what became of the event
    annotations    what its receipt does not say
    failures       what a failure is called, and what a retry waits for
    chain          which receipts are the same, and what ties them together

Invariants:
    - Nothing here reads a clock, draws a random number or touches a store: equal arguments give equal answers.
"""

from holdfast.lifecycle.annotations import (
    Annotations,
    ClientPayloadNote,
    DirectiveNote,
    PayloadNote,
    Refined,
    RequestNote,
    ResponseNote,
    annotate,
    decode_annotations,
    encode_annotations,
)
from holdfast.lifecycle.chain import (
    FieldDiff,
    canonical,
    chain_id,
    compare,
    full_digest,
    genesis,
    link,
    request_digest,
    semantic_digest,
)
from holdfast.lifecycle.failures import default_retry, failure_of, project
from holdfast.lifecycle.manifest import ADAPTERS, ALIASES, Registered, Registry, support_of
from holdfast.lifecycle.negotiation import (
    DEFAULT_POLICY,
    PayloadPolicy,
    body_bytes,
    fit,
    negotiate,
    place,
    request_of,
    route,
)
from holdfast.lifecycle.receipts import DerivedStatus, derive_status, synthesize

__all__ = [
    "ADAPTERS",
    "ALIASES",
    "DEFAULT_POLICY",
    "Annotations",
    "ClientPayloadNote",
    "DerivedStatus",
    "DirectiveNote",
    "FieldDiff",
    "PayloadNote",
    "PayloadPolicy",
    "Refined",
    "Registered",
    "Registry",
    "RequestNote",
    "ResponseNote",
    "annotate",
    "body_bytes",
    "canonical",
    "chain_id",
    "compare",
    "decode_annotations",
    "default_retry",
    "derive_status",
    "encode_annotations",
    "failure_of",
    "fit",
    "full_digest",
    "genesis",
    "link",
    "negotiate",
    "place",
    "project",
    "request_digest",
    "request_of",
    "route",
    "semantic_digest",
    "support_of",
    "synthesize",
]
