"""Know which adapters exist, under which names, and what each of them claims. Pure.

This module hides where the claims lie: one data file per adapter, in `manifests`, with the wire document, how far
the adapter conforms, and for every claim the test that shows it. Other adapters are registered by their manifests.

Invariants:
    - An adapter is found by its id first and by its exact version then: an unknown id and another version differ.
    - What is handed out is a copy of the caller's own; nobody can change what is registered.
    - Reading the package's data files is done here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from holdfast.lifecycle import wire
from holdfast.lifecycle.documents import AdapterManifest
from holdfast.lifecycle.enums import EVENTS, SUPPORT_STATES, Conformance, LifecycleEventKind, SupportState
from holdfast.lifecycle.errors import AdapterIdNotFound, AdapterVersionMismatch, InvalidManifest

__all__ = ["ADAPTERS", "ALIASES", "Registered", "Registry", "support_of"]

ADAPTERS: Final = ("claude", "codex", "gemini", "opencode", "openclaw", "hermes")
"""The adapters that come with the package, by canonical id."""

ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "claude_code": "claude",
        "claude-code": "claude",
        "codex_cli": "codex",
        "codex-cli": "codex",
        "gemini_cli": "gemini",
        "gemini-cli": "gemini",
        "open_code": "opencode",
        "open_claw": "openclaw",
        "hermes_agent": "hermes",
    }
)
"""Other names that harnesses go by. They are matched as exact text."""


class Registered(msgspec.Struct, frozen=True):
    """One line of a registry.

    Attributes:
        adapter_id: The canonical id.
        adapter_version: The one version that is registered.
        conformance: Whether the adapter has been shown to do what its manifest claims.
        display_name: The harness's name, for people.
    """

    adapter_id: str
    adapter_version: str
    conformance: Conformance
    display_name: str


class Registry:
    """The adapters that requests can be routed to, one version each.

    Example:
        >>> registry = Registry.builtin()
        >>> registry.require(registry.canonical("claude_code"), "0.2.0").display_name
        'Claude Code'
    """

    def __init__(
        self, manifests: Iterable[AdapterManifest], *, conformance: Mapping[str, Conformance] | None = None
    ) -> None:
        """Register adapters by their manifests.

        Args:
            manifests: One for each adapter.
            conformance: What has been shown of which adapter, by id; nothing of those that it does not name.

        Raises:
            ValidationError: A manifest breaks a rule, or two are for one adapter.
        """
        self._lines: dict[str, Registered] = {}
        self._documents: dict[str, bytes] = {}
        for manifest in manifests:
            wire.validate(manifest)
            name = manifest.adapter_id
            if name in self._lines:
                raise InvalidManifest(f"adapter `{name}` is registered twice")
            shown = (conformance or {}).get(name, "pre_conformance")
            self._lines[name] = Registered(name, manifest.adapter_version, shown, manifest.display_name)
            self._documents[name] = wire.encode(manifest)

    @staticmethod
    def builtin() -> Registry:
        """Return the registry of the adapters that come with the package."""
        return _builtin()

    def canonical(self, adapter_id: str) -> str:
        """Return the id that an adapter is registered under; a name that nobody knows stays what it is."""
        return adapter_id if adapter_id in self._lines else ALIASES.get(adapter_id, adapter_id)

    def get(self, adapter_id: str) -> AdapterManifest | None:
        """Return the manifest of an adapter, named by its id or an alias, in the version that is registered."""
        document = self._documents.get(self.canonical(adapter_id))
        return None if document is None else wire.restore(document, AdapterManifest)

    def require(self, adapter_id: str, version: str) -> AdapterManifest:
        """Return the manifest of an adapter, named by its id or an alias, in exactly this version.

        Raises:
            AdapterIdNotFound: No such adapter is registered.
            AdapterVersionMismatch: It is registered in another version.
        """
        found = self.get(adapter_id)
        if found is None:
            raise AdapterIdNotFound(adapter_id)
        if found.adapter_version != version:
            raise AdapterVersionMismatch(adapter_id, version, found.adapter_version)
        return found

    def list(self) -> tuple[Registered, ...]:
        """List the adapters in the order of their registration."""
        return tuple(self._lines.values())


class _File(msgspec.Struct, frozen=True):
    """What a data file holds; its `evidence` is for the tests."""

    conformance: Conformance
    manifest: msgspec.Raw


class _Head(msgspec.Struct, frozen=True):
    """What a registry shows of a manifest."""

    adapter_id: str
    adapter_version: str
    display_name: str


class _Builtin(Registry):
    """The data files as they are: they are ours, valid, and read by processes that a harness waits for."""

    def __init__(self) -> None:
        super().__init__(())
        folder = Path(__file__).parent / "manifests"
        for name in ADAPTERS:
            file = msgspec.json.decode(folder.joinpath(f"{name}.json").read_bytes(), type=_File)
            head = msgspec.json.decode(file.manifest, type=_Head)
            self._lines[name] = Registered(name, head.adapter_version, file.conformance, head.display_name)
            self._documents[name] = bytes(file.manifest)


_builtin = cache(_Builtin)


# --- claims -------------------------------------------------------------------------------------------


def _event(event: LifecycleEventKind) -> Callable[[AdapterManifest], object]:
    return lambda manifest: (claim := manifest.lifecycle_events.get(event)) and claim.support


_CLAIMS: Final[Mapping[str, Callable[[AdapterManifest], object]]] = {
    **{f"lifecycle_event:{event}": _event(event) for event in EVENTS},
    "context_pressure": lambda manifest: manifest.context_pressure.get("support"),
    "receipts.native": lambda manifest: manifest.receipts.native and "native",
    "receipts.lifeloop_synthesized": lambda manifest: manifest.receipts.lifeloop_synthesized and "synthesized",
    "receipts.ledger": lambda manifest: manifest.receipts.receipt_ledger,
    "identity.harness_session_id": lambda manifest: manifest.session_identity.get("harness_session_id"),
    "identity.harness_run_id": lambda manifest: manifest.session_identity.get("harness_run_id"),
    "identity.harness_task_id": lambda manifest: manifest.session_identity.get("harness_task_id"),
    "session_rename": lambda manifest: manifest.session_rename.get("support"),
    "renewal.reset.native": lambda manifest: manifest.renewal and manifest.renewal.reset.native,
    "renewal.reset.wrapper_mediated": lambda manifest: manifest.renewal and manifest.renewal.reset.wrapper_mediated,
    "renewal.reset.manual": lambda manifest: manifest.renewal and manifest.renewal.reset.manual,
    "renewal.continuation.observation": lambda manifest: manifest.renewal and manifest.renewal.continuation.observation,
    "renewal.continuation.payload_delivery": lambda manifest: (
        manifest.renewal and manifest.renewal.continuation.payload_delivery
    ),
    "approval_surface": lambda manifest: manifest.approval_surface.get("support"),
}


def support_of(manifest: AdapterManifest, capability: str) -> SupportState:
    """Return what a manifest claims of a capability; what it does not mention is unavailable.

    Args:
        manifest: The manifest.
        capability: One of `enums.CAPABILITIES`; of any other nothing is claimed.

    Example:
        >>> support_of(Registry.builtin().require("codex", "0.1.0"), "lifecycle_event:session.ended")
        'partial'
    """
    claim = _CLAIMS.get(capability)
    claimed = None if claim is None else claim(manifest)
    # An open object of a manifest made by hand may hold anything.
    return next((state for state in SUPPORT_STATES if state == claimed), "unavailable")
