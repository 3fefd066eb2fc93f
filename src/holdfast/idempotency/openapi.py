"""Say in OpenAPI what a guard does to operations: the header, the answers, and how long outcomes are kept.

Everything is derived from the rules that requests are decided by, and merged into the document that the framework
makes, so the two cannot differ.

Invariants:
    - Merging adds, and says nothing else of what the application says itself; merging again changes nothing.
    - Every code that a rule's requests may be answered with is named under its status.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from holdfast.idempotency.answers import SITUATIONS, marker, status_of
from holdfast.idempotency.declare import Endpoint, Rulebook, endpoints
from holdfast.idempotency.policy import iso_duration
from holdfast.idempotency.rules import KEY_LENGTH_MAX, IdempotencyConfig, RouteRule

if TYPE_CHECKING:
    from holdfast.idempotency.guard import Idempotency

__all__ = ["PROBLEM", "contribute", "guarded_operations", "merge", "openapi_for", "problem_schema"]

PROBLEM: Final = "IdempotencyProblem"
"""The name of the schema of problem documents among the document's components."""
MEDIA_TYPE: Final = "application/problem+json"
METHODS: Final = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})
UUIDS: Final = {"uuid": "[0-9a-fA-F]", "uuid4": "4", "uuid7": "7"}

_HEX = "[0-9a-fA-F]"
# What a key may be: bare, or as a Structured Field String that neither begins nor ends with a space.
_BARE = r"[!#-')-+\--9<->A-\[\]-~][!#-+\--:<-\[\]-~]*"
_CHARACTER = r"(?:[!#-\[\]-~]|\\[\"\\])"
_QUOTED = rf'"{_CHARACTER}(?:(?: |{_CHARACTER})*{_CHARACTER})?"'


def openapi_for(rule: RouteRule, config: IdempotencyConfig) -> dict[str, Any]:
    """Return what a rule adds to an operation of an OpenAPI 3 document.

    Args:
        rule: The rule of the operation.
        config: The guard's settings.

    Returns:
        `parameters`, `responses` and `x-idempotency`, as an Operation Object has them. `responses` holds what is
        added to successes under `2XX`. The answers refer to the schema `IdempotencyProblem` (`problem_schema`).
    """
    added: dict[str, Any] = {"x-idempotency": {"key": rule.key, "lifetime": iso_duration(rule.ttl)}}
    if rule.key == "ignored":
        return {}
    if rule.key != "forbidden":
        added["parameters"] = [_key(rule, config), _first_sent()]
    responses = {str(status): _refused(codes) for status, codes in sorted(_codes(rule, config).items())}
    if (executed := str(status_of("executed", config))) in responses and rule.key != "forbidden":
        responses[executed]["headers"] = responses[executed].get("headers", {}) | _marked(config)
    if rule.key != "forbidden":
        responses["2XX"] = {"description": "Successful answer, first or replayed", "headers": _succeeded(config)}
    if config.challenge is not None and "401" in responses:
        responses["401"].setdefault("headers", {})["WWW-Authenticate"] = {"schema": {"type": "string"}}
    return added | {"responses": responses}


def problem_schema() -> dict[str, Any]:
    """Return the schema of the documents that refuse requests."""
    text = {"type": "string"}
    return {
        "type": "object",
        "title": PROBLEM,
        "description": "Why a request with an idempotency key was not run (RFC 9457).",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": text,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": text,
            "code": {"type": "string", "enum": list(SITUATIONS)},
            "key_ref": {"type": "string", "pattern": "^[0-9a-f]{12}$"},
            "retry_after": {"type": "integer", "minimum": 1},
            "limit_bytes": {"type": "integer"},
            "quota": {"type": "integer"},
            "executed_status": {"type": "integer"},
            "reason": text,
        },
    }


def contribute(app: Any, guard: Idempotency) -> None:
    """Let the OpenAPI document of an application say what a guard does to its operations.

    FastAPI and Litestar make such a document; other applications have none, and are left alone.
    """
    if callable(made := getattr(app, "openapi", None)):

        def openapi() -> dict[str, Any]:
            document: dict[str, Any] = made()
            return merge(document, guard, app)

        app.openapi = openapi
    elif getattr(app, "openapi_config", None) is not None and hasattr(app, "openapi_schema"):
        speak_for(app.openapi_schema, guard, app)


def speak_for(schema: Any, guard: Idempotency, app: Any) -> None:
    """Let Litestar's object of a document say the same when it is written out."""
    made = schema.to_schema
    schema.to_schema = lambda: merge(made(), guard, app)


def merge(document: dict[str, Any], guard: Idempotency, app: object) -> dict[str, Any]:
    """Add to a document, in place, what a guard does to its operations; return it."""
    guarded = list(guarded_operations(document, guard, app))
    for operation, rule in guarded:
        _extend(operation, openapi_for(rule, guard.config))
    if guarded:
        document.setdefault("components", {}).setdefault("schemas", {})[PROBLEM] = problem_schema()
    return document


def guarded_operations(
    document: Mapping[str, Any], guard: Idempotency, app: object
) -> Iterator[tuple[dict[str, Any], RouteRule]]:
    """Yield the operations of a document that a guard covers, each with its rule."""
    rulebook = Rulebook(guard.config, app)
    known: dict[tuple[str, str | None], Endpoint] = {}
    for endpoint in endpoints(app):
        for method in endpoint.methods or (None,):
            known.setdefault((_plain(endpoint.path or ""), method), endpoint)
    for path, item in document.get("paths", {}).items():
        for name, operation in item.items():
            if name not in METHODS:
                continue
            method = name.upper()
            found = known.get((_plain(path), method)) or known.get((_plain(path), None))
            rule = rulebook.rule_at(found, method, path)
            if rule is not None and rule.key != "ignored":
                yield operation, rule


def _plain(path: str) -> str:
    """A template without the kinds of its parameters, which documents leave out."""
    return re.sub(r"\{([^}:]*):[^}]*\}", r"{\1}", path)


def _extend(operation: dict[str, Any], added: Mapping[str, Any]) -> None:
    ours = added.get("parameters", [])
    names = {parameter["name"].lower() for parameter in ours}
    theirs = [
        each
        for each in operation.get("parameters", [])
        if each.get("in") != "header" or str(each.get("name")).lower() not in names
    ]
    if theirs or ours:
        operation["parameters"] = [*theirs, *ours]
    responses = operation.setdefault("responses", {})
    for status, response in added["responses"].items():
        if status == "2XX":
            for success in [name for name in responses if name[:1] in "23"] or ["2XX"]:
                _extend_response(responses.setdefault(success, {"description": response["description"]}), response)
        else:
            _extend_response(responses.setdefault(status, {"description": response["description"]}), response)
    operation["x-idempotency"] = added["x-idempotency"]


def _extend_response(response: dict[str, Any], added: Mapping[str, Any]) -> None:
    if "$ref" in response:
        return  # somebody else's, and shared
    for part in ("headers", "content"):
        if part in added:
            response[part] = {**response.get(part, {}), **added[part]}


def _key(rule: RouteRule, config: IdempotencyConfig) -> dict[str, Any]:
    quotes = 2 if config.strict_sf else 0
    return {
        "name": config.headers[0],
        "in": "header",
        "required": rule.key == "required",
        "description": "A fresh value for every new request, and the same one for its retries.",
        "schema": {
            "type": "string",
            "minLength": config.key_length_min + quotes,
            "maxLength": KEY_LENGTH_MAX + quotes,
            "pattern": _pattern(config),
        },
    }


def _pattern(config: IdempotencyConfig) -> str:
    format_ = config.key_format
    if isinstance(format_, re.Pattern):
        bare = f"(?:{format_.pattern})"
        quoted = f'"{bare}"'
    elif format_ == "any":
        bare, quoted = _BARE, _QUOTED
    else:
        version = UUIDS[format_]
        variant = _HEX if format_ == "uuid" else "[89abAB]"
        bare = f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-{variant}{_HEX}{{3}}-{_HEX}{{12}}"
        quoted = f'"{bare}"'
    return f"^{quoted}$" if config.strict_sf else f"^(?:{bare}|{quoted})$"


def _first_sent() -> dict[str, Any]:
    return {
        "name": "Idempotency-First-Sent",
        "in": "header",
        "required": False,
        "description": "When the request was first sent; a retry that comes too late is then refused, not run.",
        "schema": {"type": "string", "example": "Sun, 06 Nov 1994 08:49:37 GMT"},
    }


def _codes(rule: RouteRule, config: IdempotencyConfig) -> dict[int, list[str]]:
    """The codes that requests under a rule may be answered with, by status."""
    if rule.key == "forbidden":
        return {status_of("key_forbidden", config): ["key_forbidden"]}
    never = {"key_forbidden", "transaction_misused"}  # the latter is raised to the server
    never |= {"key_missing"} if rule.key != "required" else set()
    never |= {"body_not_canonical"} if rule.body == "raw" else set()
    never |= {"replay_forbidden"} if config.authorize_replay is None else set()
    never |= {"handler_timeout"} if rule.handler_timeout is None else set()
    never |= {"handler_failed"} if rule.on_5xx != "freeze" else set()
    never |= {"store_busy"} if rule.mode != "transaction" else set()
    by_status: dict[int, list[str]] = {}
    for code in SITUATIONS:
        if code not in never:
            by_status.setdefault(status_of(code, config), []).append(code)
    return by_status


def _refused(codes: list[str]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": "; ".join(f"{SITUATIONS[code].title} (`{code}`)" for code in codes),
        "content": {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{PROBLEM}"}}},
    }
    if any(SITUATIONS[code].retry_after is not None for code in codes):
        waits = {"description": "Seconds to wait", "schema": {"type": "integer", "minimum": 1}}
        response["headers"] = {"Retry-After": waits}
    return response


def _marked(config: IdempotencyConfig) -> dict[str, Any]:
    values = {"type": "string", "enum": ["true", "false"] if config.mark_first else ["true"]}
    return {_titled(marker(config)): {"description": "Whether this is the record of an earlier run", "schema": values}}


def _succeeded(config: IdempotencyConfig) -> dict[str, Any]:
    headers = _marked(config)
    if config.echo_key:
        headers["Idempotency-Key"] = {"description": "The key", "schema": {"type": "string"}}
    if config.expires_header:
        headers["Idempotency-Expires"] = {"description": "When the key is new again", "schema": {"type": "string"}}
    return headers


def _titled(name: bytes) -> str:
    return "-".join(part.capitalize() for part in name.decode().split("-"))
