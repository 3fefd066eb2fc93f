"""Which harnesses there are, by the ids and names that manifests know. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from holdfast.lifecycle.enums import LifecycleEventKind
from holdfast.lifecycle.harness import Adapter, Hook, claude, codex, gemini, shims
from holdfast.lifecycle.manifest import ALIASES

__all__ = ["HARNESSES", "blocks", "canonical_harness", "deadline_us", "events_of", "known_hooks"]

HARNESSES: Final[Mapping[str, Adapter]] = MappingProxyType(
    {
        "claude": claude,
        "codex": codex,
        "gemini": gemini,
        "opencode": shims.opencode,
        "openclaw": shims.openclaw,
        "hermes": shims.hermes,
    }
)
"""The harnesses that come with the package, by canonical id."""


def canonical_harness(name: str) -> str:
    """Return the id of a harness that may be called by another name; a name that nobody knows stays what it is."""
    return ALIASES.get(name, name)


def known_hooks(harness: str) -> tuple[str, ...]:
    """Return the hooks of a harness that tell of events."""
    return tuple(name for name, line in HARNESSES[harness].HOOKS.items() if line.events)


def events_of(harness: str, hook: str) -> tuple[LifecycleEventKind, ...]:
    """Return all events that a hook may tell of; none for one that nobody knows."""
    return HARNESSES[harness].HOOKS.get(hook, Hook()).events


def blocks(harness: str, hook: str) -> bool:
    """Say whether a hook can keep the harness from what it is about to do."""
    return "block" in HARNESSES[harness].HOOKS.get(hook, Hook()).means


def deadline_us(adapter: Adapter, hook: str) -> int:
    """Return how long a hook takes at most, microseconds."""
    return adapter.HOOKS.get(hook, Hook()).deadline_ms * 1000
