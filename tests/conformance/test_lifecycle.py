"""The recorded fixtures of the lifecycle contract, through the command that judges them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import ROOT, Answer, ask, command
from tests.unit.lifecycle_documents import request

FIXTURES = Path(os.environ.get("HOLDFAST_CONFORMANCE", ROOT.parent / "shared" / "conformance")) / "lifecycle"
SHARED = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the shared fixtures are not here (HOLDFAST_CONFORMANCE)")


def verdicts(answer: Answer) -> dict[str, dict[str, Any]]:
    lines = [json.loads(text) for text in answer.out.splitlines()]
    return {each["file"]: each for each in lines}


def put(folder: Path, name: str, value: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@SHARED
def test_every_shared_fixture_is_as_it_states() -> None:
    """LA-11."""
    answer = command("conformance", "run", "--root", FIXTURES)
    assert (answer.code, answer.err) == (0, "")
    found = verdicts(answer)
    assert list(found) == sorted(path.relative_to(FIXTURES).as_posix() for path in FIXTURES.rglob("*.json"))
    assert len(found) == len(answer.out.splitlines()) >= 20
    assert {each["verdict"] for each in found.values()} == {"pass"}
    for name, each in found.items():
        stated = json.loads((FIXTURES / name).read_text())
        assert each["kind"] == stated.get("kind", "callback_request")
        assert each["expect"] == stated.get("expect", "valid")
        assert stated.get("expect_error", "") in each.get("error", "")
        assert set(each) <= {"file", "kind", "expect", "verdict", "error"}


@SHARED
def test_one_flipped_fixture_fails_the_run(tmp_path: Path) -> None:
    """LA-11."""
    root = tmp_path / "fixtures"
    shutil.copytree(FIXTURES, root)
    for path in sorted(root.rglob("*.json")):
        told = json.loads(path.read_text())
        if "kind" not in told:
            continue
        flipped = {"valid": "invalid", "invalid": "valid"}[told["expect"]]
        path.write_text(json.dumps({**told, "expect": flipped}))
        answer = ask("conformance", "run", "--root", root)
        assert answer.code == 1
        failed = [name for name, each in verdicts(answer).items() if each["verdict"] == "fail"]
        assert failed == [path.relative_to(root).as_posix()]
        path.write_text(json.dumps(told))
    assert ask("conformance", "run", "--root", root).code == 0


def test_every_file_has_one_line_whatever_is_in_it(tmp_path: Path) -> None:
    put(tmp_path, "good.json", request())
    put(tmp_path, "deep/er/request.json", {"kind": "callback_request", "expect": "valid", "data": request()})
    put(tmp_path, "poem.json", {"kind": "poem", "expect": "valid", "data": {}})
    put(tmp_path, "torn.json", '{"kind": "callback_req')
    put(tmp_path, "INDEX.json", "not looked at")
    put(tmp_path, "deep/INDEX.json", "not looked at")
    put(tmp_path, "notes.txt", "not looked at")
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.json").mkdir()
    answer = ask("conformance", "run", "--root", tmp_path)
    assert answer.code == 1
    found = verdicts(answer)
    assert {name: each["verdict"] for name, each in found.items()} == {
        "gone.json": "fail",
        "good.json": "pass",
        "poem.json": "fail",
        "torn.json": "fail",
        "deep/er/request.json": "pass",
    }
    assert found["torn.json"] == {
        "file": "torn.json",
        "kind": None,
        "expect": None,
        "verdict": "fail",
        "error": "the input is no JSON: Input data was truncated",
    }
    assert found["gone.json"]["error"] == "not a file"
    assert "unknown kind" in found["poem.json"]["error"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose reading fails, which Linux has")
def test_a_file_that_cannot_be_read_fails(tmp_path: Path) -> None:
    (tmp_path / "torn.json").symlink_to("/proc/self/mem")
    answer = ask("conformance", "run", "--root", tmp_path)
    assert answer.code == 1
    assert verdicts(answer)["torn.json"]["error"] == "cannot be read: Input/output error"


def test_a_folder_without_fixtures_is_unreadable_input(tmp_path: Path) -> None:
    put(tmp_path, "INDEX.json", request())
    for root in (tmp_path, tmp_path / "nowhere", put(tmp_path, "file.txt", "x")):
        answer = ask("conformance", "run", "--root", root)
        assert (answer.code, answer.out) == (3, "")
        assert "there is no fixture below" in answer.err
    assert (
        "nowhere cannot be looked into: No such file" in ask("conformance", "run", "--root", tmp_path / "nowhere").err
    )


def test_a_run_needs_a_folder(tmp_path: Path) -> None:
    answer = ask("conformance", "run")
    assert (answer.code, answer.out) == (2, "")
    assert "--root" in answer.err
    group = ask("conformance")
    assert group.code == 2
    assert "Usage: holdfast conformance" in group.out


def test_a_name_that_does_not_print_is_escaped(tmp_path: Path) -> None:
    put(tmp_path, "a\x1b[31m\n.json", request())
    answer = ask("conformance", "run", "--root", tmp_path)
    assert answer.code == 0
    assert "\x1b" not in answer.out
    assert list(verdicts(answer)) == ["a\x1b[31m\n.json"]
