"""The recorded data of the sessions contract, and calls and evidences made for tests."""

from __future__ import annotations

import base64
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.tree import ROOT

from holdfast.sessions import codings, nodes, providers
from holdfast.sessions.evidence import Account, Evidence
from holdfast.sessions.values import Facts, Source, Usage

FIXTURES = Path(os.environ.get("HOLDFAST_CONFORMANCE", ROOT.parent / "shared" / "conformance")) / "sessions"
SHARED = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the shared fixtures are not here (HOLDFAST_CONFORMANCE)")


def cases(folder: str) -> list[Any]:
    """The recorded cases of a folder, in the order of their names."""
    return [json.loads(path.read_bytes()) for path in sorted((FIXTURES / folder / "cases").glob("*.json"))]


@dataclass(frozen=True)
class Recording:
    """One recorded call, read, and what is expected of it."""

    facts: Facts
    chain: list[nodes.Node]
    meta: dict[str, Any]
    headers: list[tuple[str, str]]
    request: bytes
    expected: dict[str, Any]


@functools.cache
def recorded() -> list[Recording]:
    """The recorded session, in the order of its calls."""
    expected = json.loads((FIXTURES / "expected" / "recording.json").read_bytes())
    found = []
    for call in expected["calls"]:
        [folder] = FIXTURES.glob(f"recordings/*/{call['call']}")
        sent, meta = (json.loads((folder / name).read_bytes()) for name in ("request.json", "meta.json"))
        body = base64.b64decode(sent["body_b64"])
        answer = codings.decode((folder / "response.sse").read_bytes(), meta["content_encoding"]).data
        facts = providers.parse("anthropic", body, answer, content_type=meta["content_type"], endpoint="/v1/messages")
        assert facts.response is not None
        chain = nodes.chain([*facts.messages, facts.response])
        found.append(Recording(facts, chain, meta, [tuple(pair) for pair in sent["headers"]], body, call))
    return found


def evidence(capture_id: str = "a", at: int = 1, /, *, rank: int = 0, seq: int = 1, **more: Any) -> Evidence:
    """An evidence of one call; members of its account go by their names."""
    own = {key: more.pop(key) for key in list(more) if key not in Account.__struct_fields__}
    sources: tuple[Source, ...] = ("wire", "otlp", "transcript", "transcript")
    return Evidence(
        event_id=capture_id.encode().rjust(16, b"\0"),
        seq=seq,
        rank=rank,
        source=sources[rank],
        captured_at=at,
        capture_id=capture_id,
        provider=own.pop("provider", "anthropic"),
        **own,
        says=Account(**{"harness_id": "claude", "harness_session_id": "s", **more}),
    )


def used(input_: int | None = None, output: int | None = None, **more: Any) -> Usage:
    """A usage of so many tokens."""
    return Usage(input=input_, output=output, **more)
