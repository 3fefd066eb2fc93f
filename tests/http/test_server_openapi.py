"""The server against its own OpenAPI document: whatever the document allows, and much that it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from tests.http.backends import in_doubt, server

from holdfast import Holdfast
from holdfast.testing.key_contract.bench import Bench

EXAMPLES = 3


async def _key(hf: Holdfast) -> str:
    return (await Bench(hf.database).make("unknown")).key_id.hex()


def test_no_request_fails_and_every_answer_is_as_documented(tmp_path: Path) -> None:
    import schemathesis  # a second's worth, which the other tests of a worker need not wait for
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    wanted = [
        not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
        checks.response_schema_conformance,
    ]  # fmt: skip
    tried = 0
    with server(str(tmp_path / "ledger.db")) as at:
        at.do(lambda hf: in_doubt(hf, "known"))
        known = {"id": "known", "ref": at.do(_key)}
        document = schemathesis.openapi.from_url(f"http://127.0.0.1:{at.port}/openapi.json")
        for found in document.get_all_operations():
            operation = found.ok()
            tried += 1
            for mode in schemathesis.GenerationMode:

                @given(case=operation.as_strategy(generation_mode=mode))
                @settings(
                    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                def answers(case: Any) -> None:
                    for name, real in known.items():
                        if name in case.path_parameters and len(str(case.path_parameters[name])) % 2:
                            case.path_parameters[name] = real
                    case.call_and_validate(checks=wanted)

                answers()
    assert tried > 15
