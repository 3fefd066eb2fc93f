"""The server against its own OpenAPI document: whatever the document allows, and much that it does not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from tests.http.backends import Server, in_doubt, server
from tests.http.captured import call, post
from tests.http.processes import running
from tests.tree import ROOT

from holdfast import Holdfast
from holdfast.sessions import access
from holdfast.sessions.values import LOCAL
from holdfast.testing.key_contract.bench import Bench

EXAMPLES = 3


def test_the_changelog_names_the_document(tmp_path: Path) -> None:
    """SX-132. In a process of its own: `typing` remembers in what order others have named the same alternatives."""
    with running(str(tmp_path / "ledger.db"), tmp_path) as one:
        document = one.client.get("/openapi.json").json()
    assert [path for path, operations in document["paths"].items() if not operations] == []
    assert list(_bare(document)) == [], "every answer and every body says what is in it"
    del document["info"]["version"]
    written = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    newest = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1]
    assert hashlib.sha256(written).hexdigest() in newest, "a route has changed: put this hash into the changelog"


def _bare(value: Any, place: str = "") -> Iterator[str]:
    """Objects and answers of which the document does not say what they are."""
    match value:
        case {"type": "object", **more} if not {"properties", "additionalProperties"} & more.keys():
            yield place
        case {"application/json": {"schema": {**schema}}} if not schema:
            yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inner:
        yield from _bare(each, f"{place}/{name}")


async def _key(hf: Holdfast) -> str:
    return (await Bench(hf.database).make("unknown")).key_id.hex()


async def _access(hf: Holdfast) -> str:
    """An access key that is good for everything: the first one that is made over HTTP would shut out who has none."""
    async with hf.database.write() as tx:
        made = await access.create(
            tx, org=LOCAL.org_id, scopes=access.SCOPES, label="", expires_at=None, now=hf.database.clock.now()
        )
    return made[1]


def _known(at: Server) -> dict[str, str]:
    """An id of something that is there, by the part of the path that says what it is."""
    at.do(lambda hf: in_doubt(hf, "known"))
    parent = {"harness_id": "claude", "harness_session_id": "kid", "parent_harness_session_id": "known"}
    for number, more in enumerate(({}, {"session": parent}, {"session": None}, {"provider": "nobody"})):
        status, told = post(at.client, call("known", capture_id=f"known-{number}", **more), prefer="wait=10")
        assert status == 202, told
    [session, *_] = at.client.get("/v1/sessions", params={"harness_session_id": "known"}).json()["items"]
    [turn] = at.client.get(f"/v1/sessions/{session['id']}/turns").json()["items"]
    events = {"raw": told["event_id"], "dead-letters": told["event_id"]}
    ids = {"sessions": session["id"], "turns": turn["id"], "nodes": turn["response_hash"], **events}
    return {"executions": "known", "idempotency": at.do(_key), **ids}


@pytest.mark.parametrize(
    "examples", [EXAMPLES, pytest.param(60, marks=[pytest.mark.torture, pytest.mark.timeout(1800)])]
)
def test_no_request_fails_and_every_answer_is_as_documented(tmp_path: Path, examples: int) -> None:
    import schemathesis  # a second's worth, which the other tests of a worker need not wait for
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    wanted = [
        not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
        checks.response_schema_conformance,
    ]  # fmt: skip
    tried = 0
    with server(str(tmp_path / "ledger.db"), secret_file=tmp_path / "secret") as at:
        known = _known(at)
        headers = {"authorization": f"Bearer {at.do(_access)}"}
        document = schemathesis.openapi.from_url(f"http://127.0.0.1:{at.port}/openapi.json")
        for found in document.get_all_operations():
            operation = found.ok()
            tried += 1
            deletes = operation.method.upper() == "DELETE"  # what is gone is not there for the others
            real = None if deletes else next((id for part, id in known.items() if f"/{part}/" in operation.path), None)
            for mode in schemathesis.GenerationMode:

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=examples, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                def answers(case: Any) -> None:
                    for name, given_ in (case.path_parameters or {}).items():
                        if len(str(given_)) % 2:
                            case.path_parameters[name] = real or given_  # noqa: B023 - called before the next
                    case.call_and_validate(checks=wanted, headers=headers)

                with suppress(Unsatisfiable):  # what takes nothing cannot be sent anything wrong
                    answers()
    assert tried > 25
