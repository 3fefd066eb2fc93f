"""Put a guard into a Quart application.

    from holdfast.integrations import quart

    quart.install(app, guard)

Invariants:
    - Declarations are found through the application's own map of URLs; view functions and view classes can bear them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import RoutingException

from holdfast.idempotency.declare import Endpoint
from holdfast.idempotency.rules import route_path
from holdfast.integrations.placement import PlacedMiddleware

if TYPE_CHECKING:
    from quart import Quart

    from holdfast.idempotency.guard import Idempotency

__all__ = ["install"]


def install(app: Quart, guard: Idempotency) -> None:
    """Guard an application. What wraps `app.asgi_app` afterwards stands outside the guard, as authentication should.

    Args:
        app: Not started yet.
        guard: The guard.
    """
    middleware = PlacedMiddleware(app.asgi_app, guard)  # type: ignore[arg-type]  # its scopes are typed dicts

    def lookup(scope: Mapping[str, Any]) -> Endpoint | None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        urls = app.url_map.bind(hosts[0] if hosts else app.config["SERVER_NAME"] or "localhost")
        try:
            rule, _ = urls.match(route_path(scope), scope["method"], return_rule=True)
        except (HTTPException, RoutingException):
            return None  # nothing is there, or only elsewhere
        return Endpoint(app.view_functions.get(rule.endpoint), rule.rule)

    middleware.rulebook.lookup = lookup
    app.asgi_app = middleware  # type: ignore[method-assign,assignment]  # as Quart's documentation says to
