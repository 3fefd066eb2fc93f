"""Who reads which provider here: the parsers that come with the slice, and those of installed packages.

A package registers a parser under the entry point group `holdfast.sessions.providers`, its name the provider's. One
of the slice's own names replaces the slice's parser.

Invariants:
    - The number that is recorded with what could not be read changes with who could read it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import Mapping
from typing import Final

from blake3 import blake3

from holdfast.sessions.providers import PROVIDERS, Parser

__all__ = ["DERIVE_VERSION", "parsers", "reading_version"]

DERIVE_VERSION: Final = 1
"""Changes with the rules of the derivation."""

GROUP: Final = "holdfast.sessions.providers"

log = logging.getLogger("holdfast.sessions")


@functools.cache
def parsers() -> Mapping[str, Parser]:
    """Return who reads which provider."""
    found = dict(PROVIDERS)
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            found[point.name] = point.load()
        except Exception as error:  # noqa: BLE001 - somebody else's package; its provider stays unread
            log.warning("the parser of provider %s cannot be loaded: %s", point.name, type(error).__qualname__)
    return found


def reading_version(known: Mapping[str, Parser]) -> int:
    """Return the number under which what could not be read is recorded, from 1."""
    names = "\0".join(sorted(known)).encode()
    return DERIVE_VERSION << 32 | int.from_bytes(blake3(names).digest(4), "big")
