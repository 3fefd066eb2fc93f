"""CHANGELOG.md keeps the form of keepachangelog.com and names the version that is built."""

from __future__ import annotations

import re
import tomllib

from tests.tree import ROOT

import holdfast

KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
TEXT = (ROOT / "CHANGELOG.md").read_text()
RELEASES = re.findall(r"^## \[(\d+)\.(\d+)\.(\d+)\] - (\S+)$", TEXT, re.MULTILINE)


def test_the_newest_version_is_the_one_built() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert ".".join(RELEASES[0][:3]) == version == holdfast.__version__


def test_versions_descend_and_only_the_newest_waits_for_its_date() -> None:
    versions = [tuple(map(int, release[:3])) for release in RELEASES]
    assert versions == sorted(set(versions), reverse=True)
    assert re.fullmatch(r"Unreleased|\d{4}-\d\d-\d\d", RELEASES[0][3])
    assert [release for release in RELEASES[1:] if not re.fullmatch(r"\d{4}-\d\d-\d\d", release[3])] == []
    assert len(re.findall(r"^## ", TEXT, re.MULTILINE)) == len(RELEASES)


def test_each_version_sorts_its_changes() -> None:
    for body in re.split(r"^## .*$", TEXT, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.*)$", body, re.MULTILINE)
        assert kinds, "a version without changes"
        assert kinds == [kind for kind in KINDS if kind in kinds]
        for part in re.split(r"^### .*$", body, flags=re.MULTILINE)[1:]:
            lines = [line for line in part.splitlines() if line.strip()]
            assert lines, "a heading without changes"
            assert lines[0].startswith("- ")
            assert [line for line in lines if not line.startswith(("- ", "  "))] == []
