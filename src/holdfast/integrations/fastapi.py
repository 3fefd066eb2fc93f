"""Put a guard into a FastAPI application.

    from holdfast.integrations import fastapi

    fastapi.install(app, guard)

Invariants:
    - The guard stands where `holdfast.integrations.starlette` puts it.
    - The application's OpenAPI document says what the guard does to each operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.idempotency.openapi import contribute
from holdfast.integrations import starlette

if TYPE_CHECKING:
    from fastapi import FastAPI

    from holdfast.idempotency.guard import Idempotency

__all__ = ["install"]


def install(app: FastAPI, guard: Idempotency) -> None:
    """Guard an application, and let its OpenAPI document say so.

    Args:
        app: Not started yet.
        guard: The guard.
    """
    starlette.install(app, guard)
    contribute(app, guard)
