"""Which labels of the contract are understood, and what differs between them.

A document names the label it is written in, as exact text, and is judged by that label alone. The differences
between labels are few; each is one function here, so that no other module compares labels.

Invariants:
    - An unknown label is refused before anything else about a document is looked at.
"""

from __future__ import annotations

from typing import Final

from holdfast.lifecycle.errors import SchemaVersionMismatch

__all__ = ["LABELS", "NEWEST", "V01", "V02", "V03", "agree", "require", "skips_what_does_not_fit"]

V01: Final = "lifeloop.v0.1"
V02: Final = "lifeloop.v0.2"
V03: Final = "lifeloop.v0.3"

LABELS: Final = (V01, V02, V03)
"""The labels that are understood, oldest first."""

NEWEST: Final = V03
"""The label of documents that we start."""


def require(label: str) -> str:
    """Return a label that is understood.

    Raises:
        SchemaVersionMismatch: It is not; the error names those that are.
    """
    if label not in LABELS:
        raise SchemaVersionMismatch(LABELS, label)
    return label


def agree(expected: str, found: str) -> None:
    """Check that two documents of one dispatch carry one label.

    Args:
        expected: The label of the request.
        found: The label of the other document.

    Raises:
        SchemaVersionMismatch: They differ.
    """
    if expected != found:
        raise SchemaVersionMismatch((expected,), found)


def skips_what_does_not_fit(label: str) -> bool:
    """Say whether a payload that fits nowhere, and need not, is skipped under this label instead of failing."""
    return label == V03
