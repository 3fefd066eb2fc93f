"""Where among an application's middlewares a guard belongs, and what stands on the wrong side of it.

Invariants:
    - No framework is imported: middlewares are known by their names.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from holdfast.idempotency.asgi import IdempotencyMiddleware

if TYPE_CHECKING:
    from holdfast.idempotency.guard import Idempotency
    from holdfast.idempotency.request import ASGIApp

__all__ = ["PlacedMiddleware", "place"]

OUTSIDE = ("auth", "session", "cors")
"""What names of middlewares hold that belong outside a guard: they say who asks, or answer for other origins."""
DEPTH_MAX = 64

_log = logging.getLogger("holdfast.idempotency")


def place(names: Sequence[str]) -> int:
    """Return where among middlewares, named from the outside inwards, a guard belongs."""
    outside = [at for at, name in enumerate(names) if any(part in name.lower() for part in OUTSIDE)]
    return outside[-1] + 1 if outside else 0


class PlacedMiddleware(IdempotencyMiddleware):
    """The middleware as `install` places it: says at start-up what stands on the wrong side."""

    def __init__(self, app: ASGIApp, guard: Idempotency) -> None:
        super().__init__(app, guard)
        inner: Any = app
        for _ in range(DEPTH_MAX):
            kinds = {kind.__name__ for kind in type(inner).__mro__}
            if any(kind.endswith("AuthenticationMiddleware") for kind in kinds):
                _log.warning(
                    "authentication stands inside the idempotency guard: it would not know who asks; "
                    "add AuthenticationMiddleware after the guard is installed, or before, but outside it"
                )
            if "CORSMiddleware" in kinds:
                _log.warning(
                    "CORS handling stands inside the idempotency guard: browsers could not read its answers; "
                    "put CORSMiddleware outside it"
                )
            inner = getattr(inner, "app", None)
            if inner is None:
                return
