"""Put a guard into a Litestar application.

    from holdfast.integrations.litestar import IdempotencyPlugin

    app = Litestar([create_order], plugins=[IdempotencyPlugin(guard)])

Invariants:
    - The guard stands inside whatever authenticates; where the application is put together otherwise, that is said
      when it starts. CORS is Litestar's own and always outside.
    - The application's OpenAPI document says what the guard does to each operation.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from litestar.middleware import DefineMiddleware
from litestar.plugins import InitPlugin
from litestar.plugins.base import ReceiveRoutePlugin

from holdfast.idempotency.openapi import speak_for
from holdfast.integrations.placement import PlacedMiddleware, place

if TYPE_CHECKING:
    from litestar.config.app import AppConfig
    from litestar.openapi.config import OpenAPIConfig
    from litestar.openapi.spec import OpenAPI
    from litestar.routes import BaseRoute

    from holdfast.idempotency.guard import Idempotency

__all__ = ["IdempotencyPlugin"]


class IdempotencyPlugin(InitPlugin, ReceiveRoutePlugin):
    """Guards the application it is given to, and lets its OpenAPI document say so.

    Attributes:
        guard: The guard.
        routes: The application's routes.
    """

    def __init__(self, guard: Idempotency) -> None:
        self.guard = guard
        self.routes: list[BaseRoute] = []

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Place the guard among the middlewares of the application."""
        names = [_name(each) for each in app_config.middleware]
        guarding: Any = PlacedMiddleware  # its scopes are mappings, not Litestar's typed dicts
        app_config.middleware.insert(place(names), DefineMiddleware(guarding, guard=self.guard))
        if app_config.openapi_config is not None:
            app_config.openapi_config = self._telling(app_config.openapi_config)
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        """Remember a route, for the document."""
        self.routes.append(route)

    def _telling(self, config: OpenAPIConfig) -> OpenAPIConfig:
        """A copy of the settings whose documents say what the guard does; the default ones are everybody's."""
        telling = copy.copy(config)

        def to_openapi_schema() -> OpenAPI:
            schema = config.to_openapi_schema()
            speak_for(schema, self.guard, self)
            return schema

        telling.to_openapi_schema = to_openapi_schema  # type: ignore[method-assign]  # an instance's own
        return telling


def _name(middleware: Any) -> str:
    kind = middleware.middleware if isinstance(middleware, DefineMiddleware) else middleware
    return getattr(kind, "__name__", type(kind).__name__)
