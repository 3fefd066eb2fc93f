"""No claim without proof: whatever a manifest of ours claims names a test that shows it.

A claim's evidence is `tests/<file>.py::<test>`. It stands in the manifest where the wire format has room for it, else
in the data file beside it.
"""

from __future__ import annotations

import ast
import importlib.resources
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from tests.tree import ROOT

from holdfast.lifecycle.documents import AdapterManifest
from holdfast.lifecycle.enums import CAPABILITIES
from holdfast.lifecycle.machine import ADAPTERS, support_of
from holdfast.lifecycle.wire import decode_value


@cache
def data_file(name: str) -> Any:
    folder = importlib.resources.files("holdfast.lifecycle").joinpath("manifests")
    return json.loads(folder.joinpath(f"{name}.json").read_text())


def claims(manifest: AdapterManifest) -> Iterator[str]:
    """Everything a manifest claims, by name."""
    yield from (name for name in CAPABILITIES if support_of(manifest, name) != "unavailable")
    yield from (f"placement:{place}" for place, claim in manifest.placement.items() if claim.support != "unavailable")
    yield from (
        f"telemetry:{source['source']}" for source in manifest.telemetry_sources if source["support"] != "unavailable"
    )


def evidence(file: Any) -> dict[str, str]:
    """What is named as proof, by claim."""
    manifest = file["manifest"]
    found = dict(file["evidence"])
    for name in ("context_pressure", "session_rename", "approval_surface"):
        if "evidence" in manifest.get(name, {}):
            found[name] = manifest[name]["evidence"]
    for source in manifest.get("telemetry_sources", ()):
        if "evidence" in source:
            found[f"telemetry:{source['source']}"] = source["evidence"]
    return found


@cache
def names_in(place: str) -> frozenset[str]:
    """The names of the tests of a file; none where there is no such file."""
    path = ROOT / place
    if not path.is_file():
        return frozenset()
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)}
    return frozenset(name for name in found if name.startswith("test_"))


def exists(proof: str) -> bool:
    """Say whether evidence names a test that there is."""
    place, _, name = proof.partition("::")
    return name.rpartition("::")[2] in names_in(place)


def test_the_data_files_are_those_of_the_registered_adapters() -> None:
    folder = importlib.resources.files("holdfast.lifecycle").joinpath("manifests")
    assert {each.name for each in folder.iterdir()} == {f"{name}.json" for name in ADAPTERS}


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_claim_names_a_test_that_exists(name: str) -> None:
    """LX-64."""
    file = data_file(name)
    found = evidence(file)
    claimed = set(claims(decode_value(file["manifest"], AdapterManifest)))
    assert claimed - set(found) == set(), "claims without evidence"
    assert set(found) - claimed == set(), "evidence of what is not claimed"
    assert {claim: proof for claim, proof in found.items() if not exists(proof)} == {}, "no such test"
