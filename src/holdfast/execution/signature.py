"""Read a function's signature: how its calls become arguments by name, and what its annotations mean."""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any


class Signature:
    """How calls of one function become arguments by parameter name."""

    __slots__ = ("names", "own", "signature", "simple")

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.signature = inspect.signature(fn)
        parameters = list(self.signature.parameters.values())
        self.own = bool(parameters) and parameters[0].name in ("self", "cls")
        self.simple = all(
            p.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for p in parameters
        )
        self.names = tuple(p.name for p in parameters)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return arguments by parameter name, defaults not filled in, without `self` or `cls`.

        Raises:
            TypeError: The function cannot be called like this.
        """
        if self.simple and not kwargs and len(args) == len(self.names):
            # Every step comes by here, and most take one argument.
            bound = {self.names[0]: args[0]} if len(args) == 1 else dict(zip(self.names, args, strict=True))
        else:
            bound = dict(self.signature.bind(*args, **kwargs).arguments)
        if self.own:
            bound.pop(self.names[0], None)
        return bound


def resolved_hints(fn: Callable[..., Any], depth: int) -> dict[str, Any] | None:
    """Resolve annotations, with the names visible where the function is decorated; None when not yet possible."""
    frame = sys._getframe(depth)  # noqa: SLF001 - the documented way to the caller's names
    try:
        return typing.get_type_hints(fn, localns=dict(frame.f_locals), include_extras=True)
    except NameError:
        return None
    except TypeError:
        return {}
