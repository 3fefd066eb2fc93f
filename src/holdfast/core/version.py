"""Which version this is. A module of its own, so that whoever needs nothing else of the package can say so."""

from __future__ import annotations

__all__ = ["VERSION"]

VERSION = "0.1.0"
