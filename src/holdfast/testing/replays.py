"""Say whether a response was replayed, whatever library it comes from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["assert_replayed"]

MARKERS = ("idempotency-replayed", "idempotent-replayed")


def assert_replayed(response: Any) -> None:
    """Make sure a response was answered from the record of its key, and says so once.

    Args:
        response: Of httpx, requests, or a test client: what has `headers`, and `status_code` or `status`.

    Raises:
        AssertionError: It was not, or does not say so.
    """
    status = getattr(response, "status_code", getattr(response, "status", "?"))
    found = [(name, value) for name, value in _fields(response.headers) if name in MARKERS]
    if not found:
        raise AssertionError(f"the response ({status}) was not replayed: it has no {MARKERS[0]} header")
    if len(found) > 1:
        raise AssertionError(f"the response ({status}) says {len(found)} times whether it was replayed")
    name, value = found[0]
    if value.lower() != "true":
        raise AssertionError(f"the response ({status}) is a first run: {name} is {value}")


def _fields(headers: Any) -> Iterable[tuple[str, str]]:
    # Mappings of most libraries fold repeated fields; those that have every line give it under one of these names.
    for method in ("multi_items", "items"):
        if hasattr(headers, method):
            headers = getattr(headers, method)()
            break
    for name, value in headers:
        yield _text(name).lower(), _text(value).strip()


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
