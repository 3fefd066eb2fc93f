"""Pure modules are tested alone and whole: every line and every branch of each is passed by its own tests.

The tests of a module run in a process of their own, under `coverage`, and only that module is looked at: what the
journeys of other tests pass by chance does not count.
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

PURE: dict[str, tuple[str, ...]] = {
    "holdfast.core.lease": ("test_lease",),
    "holdfast.core.page": ("test_page",),
    "holdfast.core.redact": ("test_redact",),
    "holdfast.execution.effects": ("test_effects",),
    "holdfast.execution.errors": ("test_errors",),
    "holdfast.execution.keys": ("test_keys",),
    "holdfast.execution.machine": ("test_machine",),
}
"""Each pure module, and the files of `tests/unit` that are its own."""

WHOLE_SLICES = ("holdfast.execution.",)
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


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_is_covered_by_its_own_tests(module: str, tmp_path: Path) -> None:
    path = SRC / (module.replace(".", "/") + ".py")
    (tmp_path / "settings").write_text(SETTINGS)
    shared = [f"--rcfile={tmp_path / 'settings'}", f"--data-file={tmp_path / 'data'}"]
    files = [f"tests/unit/{name}.py" for name in PURE[module]]
    coverage("run", *shared, f"--include={path}", "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files)
    coverage("json", *shared, f"--include={path}", "-o", str(tmp_path / "found.json"))
    [found] = json.loads((tmp_path / "found.json").read_text())["files"].values()
    assert (found["missing_lines"], found["missing_branches"]) == ([], [])


def coverage(*arguments: str) -> None:
    """Run the program, which has to succeed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COVERAGE_"))}
    done = subprocess.run(
        [sys.executable, "-m", "coverage", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=SECONDS_MAX,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_names_every_pure_module_of_a_whole_slice() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    pure: dict[str, Any] = next(each for each in contracts if each["name"] == "pure modules are pure")
    assert [name for name in pure["source_modules"] if name.startswith(WHOLE_SLICES) and name not in PURE] == []
