"""The ASGI middleware: which requests are keyed, and the way of all others past us.

Invariants:
    - What is not keyed reaches the application with the very objects the server gave.
    - A request without a key costs one look at each of its field names, unless some rule requires keys.
    - Of several guards on a request's way the outermost that covers it takes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from holdfast.idempotency.declare import Rulebook
from holdfast.idempotency.exchange import Exchange, respond
from holdfast.idempotency.request import FieldNames, Recipes, Site
from holdfast.idempotency.rules import RouteRule, route_path
from holdfast.idempotency.run import IN_SCOPE
from holdfast.idempotency.values import Completed

if TYPE_CHECKING:
    from holdfast.idempotency.guard import Idempotency
    from holdfast.idempotency.request import ASGIApp, Receive, Scope, Send

__all__ = ["IdempotencyMiddleware"]

KEYED = ("optional", "required", "forbidden")
"""What of `RouteRule.key` concerns a request that has a key; one without is concerned by `required` alone."""


class IdempotencyMiddleware:
    """Runs a retried request once: `app.add_middleware(IdempotencyMiddleware, guard=guard)`.

    Place it inside authentication and outside rate limiting. It may stand at a route as well as round the
    whole application.

    Attributes:
        app: What it wraps.
        guard: Whose ledger and settings it uses.
        rulebook: Finds the rule of a request.
    """

    def __init__(self, app: ASGIApp, guard: Idempotency, *, rule: RouteRule | None = None) -> None:
        """Wrap an application.

        Args:
            app: Any ASGI 3 application.
            guard: Made once, and shared by all middlewares of its ledger.
            rule: The only rule here; None: the guard's rules, and what endpoints declare.

        Raises:
            ConfigError: The rule and the guard's settings are a bad pair.
        """
        self.app = app
        self.guard = guard
        self.rulebook = Rulebook(guard.config, app, rule)
        self._policy_path = guard.config.policy_path
        self._names = FieldNames(guard.config)
        config = guard.config
        adds = config.mark_first or config.echo_key or config.expires_header
        self._site = Site(app, guard, Recipes(config), adds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or IN_SCOPE in scope:
            await self.app(scope, receive, send)
        elif self._policy_path is not None and _asks_for(scope, self._policy_path):
            await respond(send, _policy(self.guard, scope["method"]))
        else:
            shape = self._names.shape(scope["headers"])
            covered = self.rulebook.find(scope) if shape.keyed or self.rulebook.demanding else None
            if covered is not None and (covered.rule.key in KEYED if shape.keyed else covered.rule.key == "required"):
                await Exchange(self._site, covered, shape, scope, receive, send).conduct()
            else:
                await self.app(scope, receive, send)


def _asks_for(scope: Scope, path: str) -> bool:
    return scope["method"] in ("GET", "HEAD") and route_path(scope) == path


def _policy(guard: Idempotency, method: str) -> Completed:
    body = msgspec.json.encode(guard.policy())
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return Completed(200, headers, b"" if method == "HEAD" else body)
