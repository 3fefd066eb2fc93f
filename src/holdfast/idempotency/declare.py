"""Which rule a request is under: listed, declared at its endpoint, or the guard's own.

`@idempotent` leaves its declaration on the function or class it is given. Endpoints are found the way the
framework would find them, by asking its routes; no framework is imported.

Invariants:
    - `idempotent` returns the very object it was given, and changes nothing that a framework looks at.
    - Looking for an endpoint leaves the scope as it was.
    - A route is named by its template, never by the path that was asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from types import FunctionType
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from holdfast.core.errors import ConfigError
from holdfast.idempotency.rules import (
    Attach,
    Body,
    Declaration,
    IdempotencyConfig,
    KeyUse,
    RouteRule,
    StatusPolicy,
    route_path,
)  # fmt: skip
from holdfast.idempotency.values import Lapse, Mode

__all__ = ["Covered", "Endpoint", "Fields", "Rulebook", "declared", "endpoints", "idempotent"]

F = TypeVar("F")

MARK = "__holdfast_idempotency__"
UNNAMED = "*"
CACHED_MAX = 1024
"""Paths whose rule is remembered: the fixed ones of any application, not those with an id in them."""
CACHED_PATH_MAX = 256
"""Characters of such a path; strangers send longer ones."""
DEPTH_MAX = 16
"""Wrappers looked through to an endpoint, and mounts within mounts."""
WRAPPING = ("fn", "func", "__func__", "__wrapped__")
"""Where handler objects, partials, methods and wrappers have what they call."""
OWNING = ("__self__", "owner")
"""Where methods and handler objects have whose they are: an instance of an endpoint's class, a controller."""
FULL = 2
"""`Match.FULL` of Starlette's routes."""

_required = False  # whether any declaration requires a key: if none does, a request without one needs no look-up


class Fields(TypedDict, total=False):
    """What `@idempotent` takes: the fields of `RouteRule` except `path` and `methods`."""

    key: KeyUse
    mode: Mode
    ttl: timedelta
    tombstone_ttl: timedelta | None
    lease: timedelta
    on_5xx: Literal["release", "freeze", "ambiguous"]
    on_lapse: Lapse | None
    irreversible: bool
    statuses: Mapping[int | str, StatusPolicy]
    on_in_flight: Literal["reject", "wait"]
    wait_max: timedelta
    on_store_error: Literal["closed", "open"]
    on_lost: Literal["continue", "cancel"]
    handler_timeout: timedelta | None
    body: Body
    key_scope: Literal["principal", "route"]
    stream: bool
    stream_after: timedelta
    flush: Literal["after_settle", "early"]
    set_cookie: Literal["drop", "refuse", "keep"]
    header_deny: tuple[str, ...]
    request_bytes_max: int
    response_bytes_max: int
    isolation: str | None
    lock_timeout: timedelta
    retries: int
    on_4xx_writes: Literal["rollback", "commit"]
    attach: Attach | None


def idempotent(*, required: bool = False, **fields: Unpack[Fields]) -> Callable[[F], F]:
    """Declare the rule of an endpoint: a function, a method, or a class of endpoints.

    It may stand above or below the framework's own decorator. What it does not name comes from the guard's
    `rule`; which methods are covered always does.

    Args:
        required: Short for `key="required"`.
        **fields: Fields of `RouteRule`.

    Returns:
        A decorator that returns the object it is given.

    Raises:
        ConfigError: A field does not exist, has a bad value, or `required` contradicts `key`.
    """
    global _required
    if required and fields.setdefault("key", "required") != "required":
        raise ConfigError(
            f"required=True contradicts key={fields['key']!r}", "name one of them", code="config.rule_invalid"
        )
    declaration = Declaration(dict(fields))
    _required |= fields.get("key") == "required"

    def mark(endpoint: F) -> F:
        bearer = _bearer(endpoint)
        try:
            setattr(bearer, MARK, declaration)
        except (AttributeError, TypeError):
            raise ConfigError(
                f"a {type(endpoint).__qualname__} cannot carry a declaration",
                "put @idempotent below the framework's decorator, on the function",
                code="config.rule_invalid",
            ) from None
        return endpoint

    return mark


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers a request.

    Attributes:
        call: The function, class or handler object.
        path: Its route's template; None if its framework does not tell.
        methods: The methods it answers; None: all.
    """

    call: object
    path: str | None
    methods: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Covered:
    """What a guard knows of a request before it looks at the key.

    Attributes:
        rule: The rule it is under.
        route: The rule's path, else the endpoint's, else `*`.
    """

    rule: RouteRule
    route: str


class Rulebook:
    """Finds the rule of a request.

    Attributes:
        lookup: Finds endpoints where scope and routes do not tell; set by the integrations.
    """

    def __init__(self, config: IdempotencyConfig, app: object, rule: RouteRule | None = None) -> None:
        """Read the rules.

        Args:
            config: The guard's settings.
            app: What the middleware wraps.
            rule: The middleware's own rule, which then is the only one.
        """
        self.lookup: Callable[[Mapping[str, Any]], Endpoint | None] | None = None
        self._config = config
        self._source = _source(app)
        self._only = None if rule is None else config.ruled(rule)
        fixed = (self._only,) if self._only is not None else (config.rule, *config.routes)
        self._demanding = any(each is not None and each.key == "required" for each in fixed)
        self._declared: dict[int, tuple[Declaration, RouteRule]] = {}
        self._cache: dict[tuple[object, ...], tuple[Covered | None, object, object]] = {}

    @property
    def demanding(self) -> bool:
        """Whether a request without a key may be refused, so that its rule must be found."""
        return self._demanding or (_required and self._only is None)

    def find(self, scope: Mapping[str, Any]) -> Covered | None:
        """Return the rule of an HTTP request and the name of its route; None if it is not guarded."""
        source = self._source if self._source is not None else _source(scope.get("app"))
        given = scope.get("route_handler")
        if given is None:
            given = scope.get("endpoint")
        routed = 0 if source is None else len(source.routes)
        key = (scope["method"], scope["path"], scope.get("root_path"), id(source), routed, id(given))
        known = self._cache.get(key)
        if known is not None:
            return known[0]
        covered, lasting = self._find(scope, source)
        if lasting and len(scope["path"]) <= CACHED_PATH_MAX:
            if len(self._cache) >= CACHED_MAX:
                self._cache.clear()
            self._cache[key] = (covered, source, given)  # they are kept alive, so that their ids stay theirs
        return covered

    def rule_at(self, endpoint: Endpoint | None, method: str, path: str) -> RouteRule | None:
        """Return the rule of an endpoint for one of its methods, as `find` does for a request to `path`."""
        return self._rule(method, path, endpoint)

    def _find(self, scope: Mapping[str, Any], source: Any) -> tuple[Covered | None, bool]:
        """Find the rule; say too whether method and path alone decided."""
        method, path = scope["method"], route_path(scope)
        endpoint, lasting = self._endpoint(scope, source)
        rule = self._rule(method, path, endpoint)
        if rule is None:
            return None, lasting
        return Covered(rule, rule.path or (endpoint and endpoint.path) or UNNAMED), lasting

    def _rule(self, method: str, path: str, endpoint: Endpoint | None) -> RouteRule | None:
        if self._only is not None:
            return self._only if self._only.matches(method, path) else None
        for listed in self._config.routes:
            if listed.matches(method, path):
                return listed
        declaration = declared(endpoint.call, method) if endpoint is not None else None
        rule = self._config.rule if declaration is None else self._filled(declaration)
        return rule if rule is not None and rule.matches(method, path) else None

    def _filled(self, declaration: Declaration) -> RouteRule:
        known = self._declared.get(id(declaration))
        if known is None:
            known = self._declared[id(declaration)] = declaration, self._config.declared(declaration)
        return known[1]

    def _endpoint(self, scope: Mapping[str, Any], source: Any) -> tuple[Endpoint | None, bool]:
        handler = scope.get("route_handler")
        if handler is not None:
            return Endpoint(handler, scope.get("path_template") or _first_path(handler)), True
        if self.lookup is not None and (found := self.lookup(scope)) is not None:
            return found, True
        given = scope.get("endpoint")
        if given is not None and not hasattr(given, "routes") and not hasattr(given, "app"):
            return Endpoint(given, _template(scope.get("route")) or None), True
        return (None, True) if source is None else _routed(source.routes, scope)


def declared(endpoint: object, method: str) -> Declaration | None:
    """Return what was declared at an endpoint; a method's declaration goes before its class's."""
    for layer in _layers(endpoint):
        if isinstance(layer, type):
            own = getattr(getattr(layer, method.lower(), None), MARK, None)
            if isinstance(own, Declaration):
                return own
        found = getattr(layer, MARK, None)
        if isinstance(found, Declaration):
            return found
    return None


def endpoints(app: object) -> Iterator[Endpoint]:
    """Yield every HTTP endpoint of an application whose routes can be listed, those of mounts included."""
    source = _source(app)
    if source is not None:
        yield from _listed(source.routes, "", 0)


def _layers(endpoint: object) -> Iterator[object]:
    """The endpoint, what it wraps (a partial's function, a handler's, a view's class), and then what it belongs to."""
    layer: object = endpoint
    owners: list[object] = []
    for _ in range(DEPTH_MAX):
        yield layer
        owners += [getattr(layer, name) for name in OWNING if hasattr(layer, name)]
        names = ("view_class", "__wrapped__") if isinstance(layer, FunctionType | type) else WRAPPING
        inner = next((getattr(layer, name) for name in names if hasattr(layer, name)), None)
        if inner is None:
            break
        layer = inner
    yield from owners


def _bearer(endpoint: Any) -> Any:
    """What of an endpoint can carry an attribute and is what the framework will show us."""
    if isinstance(endpoint, FunctionType | type | functools.partial):
        return endpoint
    for name in ("__func__", "fn"):  # a bound or static method; a Litestar handler
        if hasattr(endpoint, name):
            return getattr(endpoint, name)
    return endpoint


def _first_path(handler: object) -> str | None:
    paths = getattr(handler, "paths", None)
    return min(paths) if isinstance(paths, set | frozenset | list | tuple) and paths else None


def _source(app: Any) -> Any:
    """What has the routes of an application: itself, or what its middleware wraps; None if nothing has."""
    for _ in range(DEPTH_MAX):
        if app is None or isinstance(getattr(app, "routes", None), list | tuple):
            return app
        app = getattr(app, "app", None)
    return None


def _routed(
    routes: Iterable[Any], scope: Mapping[str, Any], prefix: str = "", depth: int = 0
) -> tuple[Endpoint | None, bool]:
    """Ask routes, in order, for the first that takes a request whole; say too whether host names had no part in it."""
    lasting = True
    for route in routes:
        if hasattr(route, "effective_route_contexts"):  # FastAPI: a router that was included
            found, fixed = _routed(_effective(route), scope, prefix, depth)
            lasting &= fixed
            if found is not None:
                return found, lasting
            continue
        if not hasattr(route, "matches"):
            continue
        lasting &= not hasattr(route, "host_regex")
        match, child = route.matches(dict(scope))
        if getattr(match, "value", None) != FULL:
            continue
        path = prefix + _template(route)
        inner = getattr(route, "routes", None)
        if inner is not None and depth < DEPTH_MAX:  # a mount or a host
            found, fixed = _routed(inner, {**scope, **child}, prefix + getattr(route, "path", ""), depth + 1)
            return found or Endpoint(child.get("endpoint"), None), lasting and fixed
        return Endpoint(child.get("endpoint"), path), lasting
    return None, lasting


def _template(route: Any) -> str:
    path: str = getattr(route, "path_format", None) or getattr(route, "path", None) or ""
    return path


def _effective(included: Any) -> Iterator[Any]:
    for context in included.effective_route_contexts():
        yield getattr(context, "starlette_route", None) or context


def _listed(routes: Iterable[Any], prefix: str, depth: int) -> Iterator[Endpoint]:
    for route in routes:
        if hasattr(route, "effective_route_contexts"):
            yield from _listed(_effective(route), prefix, depth)
            continue
        if isinstance(handlers := getattr(route, "route_handlers", None), list):  # Litestar
            for handler in handlers:
                methods = frozenset(map(str, handler.http_methods))
                yield Endpoint(handler, getattr(route, "path_format", None), methods)
            continue
        path = prefix + _template(route)
        inner = getattr(route, "routes", None)
        if isinstance(inner, list | tuple) and depth < DEPTH_MAX:
            yield from _listed(inner, prefix + getattr(route, "path", ""), depth + 1)
        elif (call := getattr(route, "endpoint", None)) is not None and hasattr(route, "methods"):
            named = route.methods
            yield Endpoint(call, path, None if named is None else frozenset(named))
