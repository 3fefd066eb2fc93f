"""Whether an OpenAPI document still says what a guard does.

Invariants:
    - What is expected is derived from the guard's rules, never from the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.idempotency.guard import Idempotency

__all__ = ["assert_openapi_matches"]


def assert_openapi_matches(document: Mapping[str, Any], guard: Idempotency, app: object) -> None:
    """Check that a document says of every operation what a guard does to it, and of no other.

    Args:
        document: The application's, as it is served.
        guard: The guard.
        app: The application: FastAPI, Litestar, or whatever has `routes` in their form.

    Raises:
        AssertionError: It does not; the message names every operation that differs, and in what.
    """
    from holdfast.idempotency.openapi import PROBLEM, guarded_operations, openapi_for, problem_schema

    wrong: list[str] = []
    guarded = set()
    for operation, rule in guarded_operations(document, guard, app):
        guarded.add(id(operation))
        wrong += [
            f"{_name(document, operation)}: {what}" for what in _missing(operation, openapi_for(rule, guard.config))
        ]
    for path, item in document.get("paths", {}).items():
        for method, operation in item.items():
            if isinstance(operation, dict) and "x-idempotency" in operation and id(operation) not in guarded:
                wrong.append(f"{method.upper()} {path}: is not guarded, and says it is")
    schema = document.get("components", {}).get("schemas", {}).get(PROBLEM)
    if guarded and schema != problem_schema():
        wrong.append(f"the schema {PROBLEM} is {'not there' if schema is None else 'another'}")
    assert not wrong, "the document does not say what the guard does:\n" + "\n".join(wrong)


def _missing(operation: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What an operation lacks, or has otherwise."""
    missing = []
    if operation.get("x-idempotency") != expected["x-idempotency"]:
        missing.append(f"x-idempotency is {operation.get('x-idempotency')}, not {expected['x-idempotency']}")
    missing += [
        f"the header {parameter['name']} is not there, or another"
        for parameter in expected.get("parameters", [])
        if parameter not in operation.get("parameters", [])
    ]
    responses = operation.get("responses", {})
    for status, response in expected["responses"].items():
        if status == "2XX":
            successes = [name for name in responses if name[:1] in "23"]
            missing += [f"answer {name} {what}" for name in successes for what in _lacks(responses[name], response)]
            missing += [] if successes else ["no success is there"]
        elif status not in responses:
            missing.append(f"answer {status} is not there")
        else:
            missing += [f"answer {status} {what}" for what in _lacks(responses[status], response)]
    return missing


def _lacks(response: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    lacks = []
    for part in ("headers", "content"):
        for name, value in expected.get(part, {}).items():
            if "$ref" not in response and response.get(part, {}).get(name) != value:
                lacks.append(f"has not the {part} {name}, or another")
    return lacks


def _name(document: Mapping[str, Any], operation: Mapping[str, Any]) -> str:
    for path, item in document["paths"].items():
        for method, each in item.items():
            if each is operation:
                return f"{method.upper()} {path}"
    return "an operation"
