"""The adapters there are, their names, and what they claim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.unit.plans import manifest

from holdfast.lifecycle import manifest as module
from holdfast.lifecycle import wire
from holdfast.lifecycle.documents import AdapterManifest, Continuation, EventClaim, ReceiptClaims, Renewal, Reset
from holdfast.lifecycle.enums import CAPABILITIES, EVENTS, MANIFEST_PLACEMENT_CLASSES
from holdfast.lifecycle.errors import AdapterIdNotFound, AdapterVersionMismatch, InvalidManifest, ValidationError
from holdfast.lifecycle.machine import ALIASES, Registered, Registry, support_of
from holdfast.lifecycle.manifest import ADAPTERS

BUILTIN = Registry.builtin()

STATES = {"nat": "native", "synth": "synthesized", "part": "partial", "man": "manual", "-": "unavailable"}
TABLE_EVENTS = [
    "session.starting", "session.started", "frame.opening", "frame.opened", "frame.ending", "frame.ended",
    "context.pressure_observed", "context.compacted", "session.ending", "session.ended", "supervisor.tick",
    "capability.degraded", "receipt.emitted", "receipt.gap_detected",
]  # fmt: skip
TABLE = {
    "claude": (
        "0.2.0 primary_worker v1_conformance",
        "native_hook manual_skill telemetry_only",
        "nat nat  nat synth  nat nat  nat nat  nat nat  -  synth synth synth",
        "nat - nat - man",
        "nat synth -",
    ),
    "codex": (
        "0.1.0 primary_worker v1_conformance",
        "native_hook manual_skill telemetry_only",
        "nat nat  nat synth  nat nat  nat nat  part part  -  synth synth synth",
        "nat - nat - man",
        "nat synth -",
    ),
    "gemini": (
        "0.1.0 primary_worker v1_conformance",
        "native_hook manual_skill",
        "nat nat  nat synth  nat nat  part -  part part  -  synth synth synth",
        "nat - nat - -",
        "nat synth -",
    ),
    "opencode": (
        "0.1.0 primary_worker pre_conformance",
        "native_hook",
        "- nat  nat -  - nat  part nat  - part  -  synth synth synth",
        "- - - - -",
        "nat synth -",
    ),
    "openclaw": (
        "0.1.0 primary_worker pre_conformance",
        "native_hook",
        "- -  part -  - part  nat nat  - nat  -  synth synth synth",
        "- - - - -",
        "part synth -",
    ),
    "hermes": (
        "0.1.0 supervisor pre_conformance",
        "native_hook reference_adapter",
        "- nat  nat -  - nat  - nat  - nat  nat  synth synth synth",
        "- - - - -",
        "nat synth -",
    ),
}


def states(words: str) -> list[str]:
    return [STATES[word] for word in words.split()]


def test_six_adapters_are_registered_in_one_version_each() -> None:
    lines = BUILTIN.list()
    assert [(line.adapter_id, line.display_name) for line in lines] == [
        ("claude", "Claude Code"),
        ("codex", "Codex"),
        ("gemini", "Gemini CLI"),
        ("opencode", "opencode"),
        ("openclaw", "OpenClaw"),
        ("hermes", "Hermes Agent"),
    ]
    assert BUILTIN is Registry.builtin()


@pytest.mark.parametrize("name", TABLE)
def test_an_adapter_claims_what_the_contract_s_table_says(name: str) -> None:
    """LX-64."""
    head, modes, events, placements, identity = TABLE[name]
    version, role, conformance = head.split()
    found = BUILTIN.require(name, version)
    line = next(line for line in BUILTIN.list() if line.adapter_id == name)
    assert (line.adapter_version, line.conformance, found.role) == (version, conformance, role)
    assert list(found.integration_modes) == modes.split()
    assert [support_of(found, f"lifecycle_event:{event}") for event in TABLE_EVENTS] == states(events)
    assert sorted(TABLE_EVENTS) == sorted(EVENTS)
    offered = {place: claim.support for place, claim in found.placement.items()}
    assert [offered.get(place, "unavailable") for place in MANIFEST_PLACEMENT_CLASSES] == states(placements)
    limits = {claim.max_bytes for place, claim in found.placement.items() if place.startswith("pre_")}
    assert limits <= {10_000}
    assert found.receipts == ReceiptClaims(native=False, lifeloop_synthesized=True, receipt_ledger="native")
    ids = ("harness_session_id", "harness_run_id", "harness_task_id")
    assert [support_of(found, f"identity.{each}") for each in ids] == states(identity)
    # The table is silent on pressure as a capability of its own: it is what the event is.
    assert support_of(found, "context_pressure") == support_of(found, "lifecycle_event:context.pressure_observed")


def test_an_adapter_has_other_names() -> None:
    assert dict(ALIASES) == {
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
    for name, canonical in ALIASES.items():
        assert BUILTIN.canonical(name) == canonical
        assert BUILTIN.get(name) == BUILTIN.get(canonical) is not None


@pytest.mark.parametrize("name", ["claude", "nobody", "Claude_Code", "CLAUDE", ""])
def test_a_name_that_is_no_alias_stays_what_it_is(name: str) -> None:
    assert BUILTIN.canonical(name) == name


def test_an_unknown_id_and_another_version_are_different_answers() -> None:
    """LA-13."""
    with pytest.raises(AdapterIdNotFound) as unknown:
        BUILTIN.require("nobody", "0.2.0")
    assert unknown.value.adapter_id == "nobody"
    with pytest.raises(AdapterVersionMismatch) as other:
        BUILTIN.require("claude_code", "9.9.9")
    assert (other.value.adapter_id, other.value.requested, other.value.registered) == ("claude_code", "9.9.9", "0.2.0")
    assert BUILTIN.get("nobody") is None


def test_what_is_handed_out_is_the_caller_s_own() -> None:
    mine = BUILTIN.require("claude", "0.2.0")
    mine.placement.clear()
    mine.session_identity["harness_task_id"] = "native"
    assert BUILTIN.require("claude", "0.2.0").placement
    assert support_of(BUILTIN.require("claude", "0.2.0"), "identity.harness_task_id") == "unavailable"


def test_other_adapters_are_registered_by_their_manifests() -> None:
    own = replace(manifest(), adapter_id="codex-cli", adapter_version="7", display_name="Mine")
    registry = Registry([own, manifest()], conformance={"claude": "v1_conformance"})
    assert registry.list() == (
        Registered("codex-cli", "7", "pre_conformance", "Mine"),
        Registered("claude", "0.2.0", "v1_conformance", "Claude Code"),
    )
    assert registry.require("codex-cli", "7") == own
    with pytest.raises(AdapterIdNotFound):
        registry.require("codex", "0.1.0")


def test_a_registry_takes_no_manifest_that_breaks_a_rule() -> None:
    with pytest.raises(InvalidManifest, match="registered twice"):
        Registry([manifest(), replace(manifest(), adapter_version="9")])
    with pytest.raises(ValidationError, match="integration_modes"):
        Registry([replace(manifest(), integration_modes=())])


def test_every_capability_has_a_claim_behind_it() -> None:
    """A manifest that claims everything, each in a way of its own where it can."""
    everything = replace(
        manifest(),
        lifecycle_events={event: EventClaim(support="partial") for event in EVENTS},
        context_pressure={"support": "native"},
        receipts=ReceiptClaims(native=True, lifeloop_synthesized=True, receipt_ledger="manual"),
        session_identity={"harness_session_id": "native", "harness_run_id": "manual", "harness_task_id": "partial"},
        session_rename={"support": "manual"},
        renewal=Renewal(
            reset=Reset(native="native", wrapper_mediated="synthesized", manual="manual"),
            continuation=Continuation(observation="partial", payload_delivery="synthesized"),
        ),
        approval_surface={"support": "synthesized"},
    )
    claims = {capability: support_of(everything, capability) for capability in CAPABILITIES}
    assert claims == {
        **{f"lifecycle_event:{event}": "partial" for event in EVENTS},
        "context_pressure": "native",
        "receipts.native": "native",
        "receipts.lifeloop_synthesized": "synthesized",
        "receipts.ledger": "manual",
        "identity.harness_session_id": "native",
        "identity.harness_run_id": "manual",
        "identity.harness_task_id": "partial",
        "session_rename": "manual",
        "renewal.reset.native": "native",
        "renewal.reset.wrapper_mediated": "synthesized",
        "renewal.reset.manual": "manual",
        "renewal.continuation.observation": "partial",
        "renewal.continuation.payload_delivery": "synthesized",
        "approval_surface": "synthesized",
    }


@pytest.mark.parametrize("capability", [*CAPABILITIES, "nothing", "lifecycle_event:nothing", ""])
def test_what_a_manifest_does_not_claim_is_unavailable(capability: str) -> None:
    nothing = replace(
        manifest(),
        lifecycle_events={},
        context_pressure={"support": ["native"]},
        receipts=ReceiptClaims(native=False, lifeloop_synthesized=False, receipt_ledger="unavailable"),
        session_identity={},
        session_rename={"support": "superb"},
        renewal=None,
        approval_surface={},
    )
    assert support_of(nothing, capability) == "unavailable"


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_data_files_are_valid_and_registered_as_they_are(name: str) -> None:
    file = json.loads((Path(module.__file__).parent / "manifests" / f"{name}.json").read_bytes())
    read = wire.decode(json.dumps(file["manifest"]), AdapterManifest)
    assert (read.adapter_id, BUILTIN.get(name)) == (name, read)
