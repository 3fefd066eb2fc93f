"""Put a guard into a Starlette application.

    from holdfast.integrations import starlette

    starlette.install(app, guard)

Invariants:
    - The guard stands inside whatever authenticates, and CORS answers outside it; where the application is put
      together otherwise, that is said when it starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.middleware import Middleware

from holdfast.core.errors import ConfigError
from holdfast.integrations.placement import PlacedMiddleware, place

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from holdfast.idempotency.guard import Idempotency

__all__ = ["install"]


def install(app: Starlette, guard: Idempotency) -> None:
    """Guard an application: inside authentication, sessions and CORS, and outside all its other middleware.

    Middleware that is added afterwards stands outside the guard, where authentication belongs and rate limits
    do not.

    Args:
        app: Not started yet.
        guard: The guard.

    Raises:
        ConfigError: It has started, and its middleware is built.
    """
    if app.middleware_stack is not None:
        raise ConfigError("the application has started; its middleware is built", "install the guard before that")
    names = [getattr(each.cls, "__name__", "") for each in app.user_middleware]
    app.user_middleware.insert(place(names), Middleware(PlacedMiddleware, guard=guard))
