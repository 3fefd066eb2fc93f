"""How the path of a rule covers paths of requests.

A template is literal text with parameters: `{name}` takes one segment or the rest of one, `{name:path}` takes
anything, slashes too. Paths are compared as the server decoded them.

Invariants:
    - The time of a match is linear in the path, which a stranger chooses.
    - `{name}` never takes an empty segment, and literal parts match exactly.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["compiled", "covers", "route_path"]

TEMPLATES_MAX = 4096
"""Compiled templates kept; an application has fewer routes."""
_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}")
_STRAY = re.compile(r"[{}?#]")


@functools.lru_cache(maxsize=TEMPLATES_MAX)
def compiled(template: str) -> re.Pattern[str] | None:
    """Compile a template, or return None when it is none.

    A segment has at most one parameter and a template at most one that takes slashes: more would be matched in
    time that grows with a power of the path's length.
    """
    if not template.startswith("/") and _PARAMETER.match(template) is None:
        return None
    pattern, position = "", 0
    seen: set[str] = set()
    in_segment = wide = False
    for found in _PARAMETER.finditer(template):
        literal = template[position : found.start()]
        in_segment = in_segment and "/" not in literal
        slashes = found[2] is not None
        if _STRAY.search(literal) or in_segment or found[1] in seen or (slashes and wide):
            return None
        pattern += re.escape(literal) + (".*" if slashes else "[^/]+")
        position, in_segment, wide = found.end(), True, wide or slashes
        seen.add(found[1])
    literal = template[position:]
    return None if _STRAY.search(literal) else re.compile(pattern + re.escape(literal), re.DOTALL)


def covers(template: str, path: str) -> bool:
    """Say whether a template covers a path; text that is no template covers none."""
    pattern = compiled(template)
    return pattern is not None and pattern.fullmatch(path) is not None


def route_path(scope: Mapping[str, Any]) -> str:
    """Return the path of a request as templates see it: without the prefix under which the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        return path[len(root) :] or "/"
    return path
