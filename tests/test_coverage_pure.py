"""Pure modules are tested alone and whole: every line and every branch of each is passed by its own tests.

They run in a process of their own, under `coverage`, which remembers of each line in which file the test stands that
passed it: what the tests of other modules pass by chance does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.tree import ROOT, SRC

SECONDS_MAX = 300

SESSIONS = (
    "calls", "codings", "cursors", "deltas", "derivation", "envelope", "errors", "evidence", "frames", "headers",
    "identity", "instants", "intake", "jcs", "limits", "machine", "nodes", "overlays", "parents", "pricing",
    "providers.__init__", "providers.answers", "providers.anthropic", "providers.chat", "providers.ollama",
    "providers.reading", "providers.responses", "redact", "redaction", "reports", "tokens", "turns", "values",
    "views",
)  # fmt: skip
"""The pure modules of a slice that is tested as one: a call goes through most of them."""

SESSIONS_TESTS = tuple(
    f"test_sessions_{name}"
    for name in (
        "codings", "deltas", "derivation", "headers", "identity", "intake", "jcs", "machine", "nodes", "overlays",
        "parents", "pricing", "providers", "redact", "redaction", "turns", "views",
    )
)  # fmt: skip

PURE: dict[str, tuple[str, ...]] = {
    "holdfast.core.lease": ("test_lease",),
    "holdfast.core.page": ("test_page",),
    "holdfast.core.redact": ("test_redact",),
    "holdfast.execution.effects": ("test_effects",),
    "holdfast.execution.errors": ("test_errors",),
    "holdfast.execution.keys": ("test_keys",),
    "holdfast.execution.machine": ("test_machine",),
    "holdfast.lifecycle.shapes": ("test_lifecycle_wire", "test_lifecycle_soundness"),
    "holdfast.lifecycle.soundness": ("test_lifecycle_soundness", "test_lifecycle_wire"),
    "holdfast.lifecycle.annotations": ("test_lifecycle_receipts",),
    "holdfast.lifecycle.chain": ("test_lifecycle_chain",),
    "holdfast.lifecycle.conformance": ("test_lifecycle_conformance",),
    "holdfast.lifecycle.documents": ("test_lifecycle_wire", "test_lifecycle_rules"),
    "holdfast.lifecycle.enums": ("test_lifecycle_wire",),
    "holdfast.lifecycle.errors": ("test_lifecycle_errors",),
    "holdfast.lifecycle.failures": ("test_lifecycle_failures",),
    "holdfast.lifecycle.frames": ("test_lifecycle_plan",),
    "holdfast.lifecycle.harness.__init__": ("test_lifecycle_harness",),
    "holdfast.lifecycle.harness.answers": ("test_lifecycle_harness",),
    "holdfast.lifecycle.harness.claude": ("test_lifecycle_harness",),
    "holdfast.lifecycle.harness.codex": ("test_lifecycle_harness",),
    "holdfast.lifecycle.harness.gemini": ("test_lifecycle_harness",),
    "holdfast.lifecycle.harness.known": ("test_lifecycle_harness",),
    "holdfast.lifecycle.harness.requests": ("test_lifecycle_harness",),
    "holdfast.lifecycle.harness.shims": ("test_lifecycle_harness",),
    "holdfast.lifecycle.labels": ("test_lifecycle_wire",),
    "holdfast.lifecycle.machine": ("test_lifecycle_machine",),
    "holdfast.lifecycle.manifest": ("test_lifecycle_manifest",),
    "holdfast.lifecycle.merge": ("test_lifecycle_merge",),
    "holdfast.lifecycle.negotiation": ("test_lifecycle_machine",),
    "holdfast.lifecycle.receipts": ("test_lifecycle_receipts",),
    "holdfast.lifecycle.rules": ("test_lifecycle_rules", "test_lifecycle_wire"),
    "holdfast.lifecycle.spans": ("test_lifecycle_merge",),
    "holdfast.lifecycle.wire": ("test_lifecycle_wire",),
    **dict.fromkeys((f"holdfast.sessions.{name}" for name in SESSIONS), SESSIONS_TESTS),
}
"""Each pure module, and the files of `tests/unit` that are its own.

The files run in this order. What reads and what judges documents is made on first use and kept, so it stands before
what uses it.
"""

WHOLE_SLICES = ("holdfast.execution.", "holdfast.lifecycle.", "holdfast.sessions.")
"""Slices of which every module that the contract calls pure has to be in the table."""

SETTINGS = """
[run]
branch = True
[report]
exclude_also =
    if TYPE_CHECKING:
    @overload
    assert_never\\(
    ^\\s*\\.\\.\\.$
"""

PLUGINS = ("pytest_asyncio.plugin", "pytest_timeout", "_hypothesis_pytestplugin", "tests.contexts")


@pytest.mark.timeout(SECONDS_MAX)
def test_pure_modules_are_covered_by_their_own_tests(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text(SETTINGS)
    shared = [f"--rcfile={tmp_path / 'settings'}", f"--data-file={tmp_path / 'data'}"]
    paths = {module: str(SRC / (module.replace(".", "/") + ".py")) for module in PURE}
    files = [f"tests/unit/{name}.py" for name in dict.fromkeys(name for names in PURE.values() for name in names)]
    plain = [part for plugin in PLUGINS for part in ("-p", plugin)]
    alone = [*plain, "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", "-q"]
    coverage("run", *shared, f"--include={','.join(paths.values())}", "-m", "pytest", *alone, *files)
    missing = {}
    for names in dict.fromkeys(PURE.values()):
        # What a module does when it is imported belongs to no test.
        contexts = ",".join(["^$", *(f"^{name}$" for name in names)])
        own = ",".join(paths[module] for module in PURE if PURE[module] == names)
        found = tmp_path / "found.json"
        coverage("json", *shared, f"--include={own}", f"--contexts={contexts}", "-o", str(found))
        for path, of_file in json.loads(found.read_text())["files"].items():
            missing[str(ROOT / path)] = (of_file["missing_lines"], of_file["missing_branches"])
    assert missing == {path: ([], []) for path in paths.values()}


def coverage(*arguments: str) -> None:
    """Run the program, which has to succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COVERAGE_"))}
    done = subprocess.run(
        [sys.executable, "-m", "coverage", *arguments],
        cwd=ROOT,
        env={**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        check=False,
        text=True,
        timeout=SECONDS_MAX,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_names_every_pure_module_of_a_whole_slice() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    pure: dict[str, Any] = next(each for each in contracts if each["name"] == "pure modules are pure")
    names = {name.removesuffix(".__init__") for name in PURE}
    assert [name for name in pure["source_modules"] if name.startswith(WHOLE_SLICES) and name not in names] == []
