"""The names that `holdfast.lifecycle` promises: all there, and costing nothing until they are used."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from holdfast import lifecycle


def test_every_promised_name_is_there() -> None:
    for name in lifecycle.__all__:
        assert getattr(lifecycle, name) is getattr(lifecycle, name)
    assert dir(lifecycle) == sorted(lifecycle.__all__)


def test_a_name_is_the_one_of_its_module() -> None:
    assert lifecycle.decode is importlib.import_module("holdfast.lifecycle.wire").decode
    assert lifecycle.EVENTS[0] == "session.starting"


def test_a_name_that_is_not_promised_is_missing() -> None:
    with pytest.raises(AttributeError, match=r"'holdfast\.lifecycle' has no attribute 'flarb'"):
        lifecycle.flarb  # noqa: B018 - looking is the test


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, holdfast.lifecycle; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in answer.stdout.split() if name.startswith("holdfast")}
    assert ours == {"holdfast", "holdfast.core", "holdfast.core.version", "holdfast.lifecycle"}
    assert not {"msgspec", "asyncio", "dataclasses", "json"} & set(answer.stdout.split())
