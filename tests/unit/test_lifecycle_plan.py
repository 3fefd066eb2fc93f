"""The plan of hook calls, and the frames on the resident's socket: what is read is what was written, or nothing is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.core.config import config_path, state_directory
from holdfast.lifecycle import frames, plan
from holdfast.lifecycle.harness.known import HARNESSES, deadline_us
from holdfast.lifecycle.manifest import ADAPTERS, ALIASES


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    (tmp_path / ".config" / "holdfast").mkdir(parents=True)
    (tmp_path / ".config" / "holdfast" / "holdfast.toml").write_text("")
    return {"HOME": str(tmp_path)}


def written(environ: dict[str, str], *hooks: str) -> str:
    text = plan.compose(
        plan.head(None, None, environ), ledger="/l.db", schema=6, state_dir="/s", lock_wait_ms=70, hooks=hooks
    )
    assert text is not None
    plan.write(plan.state_directory(environ), text)
    return text


def found(environ: dict[str, str], db: str | None = None, config: str | None = None) -> plan.Plan | None:
    return plan.read(plan.state_directory(environ), plan.head(config, db, environ))


def test_a_plan_says_what_was_written(home: dict[str, str]) -> None:
    written(home, "claude Stop observe", "claude UserPromptSubmit dispatch closed", "codex Stop dispatch")
    read = found(home)
    assert read is not None
    assert (read.ledger, read.schema, read.state_dir, read.lock_wait_ms) == ("/l.db", 6, "/s", 70)
    assert [read.dispatches("claude", each) for each in ("Stop", "UserPromptSubmit", "PreToolUse")] == [
        False, True, False,
    ]  # fmt: skip
    assert read.dispatches("codex", "Stop")
    assert read.closes("claude", "UserPromptSubmit")
    assert not read.closes("claude", "Stop")
    # A call that names no hook may be any.
    assert [read.dispatches(each, "") for each in ("claude", "codex", "gemini")] == [True, True, False]


def test_a_plan_tells_to_which_ledger_calls_go(home: dict[str, str]) -> None:
    def serves(db: str | None, **more: str) -> bool:
        return plan.serves(plan.state_directory(home), db, {**home, **more})

    assert serves("/copy.db")  # nobody knows better
    written(home)
    assert [serves(None), serves("/l.db"), serves("/copy.db")] == [True, True, False]
    assert not serves(None, HOLDFAST_DB="/copy.db")


def test_a_plan_is_for_one_configuration_and_environment(home: dict[str, str]) -> None:
    written(home)
    file = Path(home["HOME"]) / ".config" / "holdfast" / "holdfast.toml"
    assert found(home) is not None
    assert found(home, config=str(file)) is not None
    assert found(home, db="elsewhere.db") is None
    assert found({**home, "HOLDFAST_DB": "/elsewhere.db"}) is None
    assert found({**home, "XDG_DATA_HOME": "/elsewhere"}) is None
    assert found(home, config=str(file) + "2") is None
    os.utime(file, ns=(1, 1))
    assert found(home) is None
    written(home)
    file.unlink()
    assert found(home) is None


@pytest.mark.parametrize("spoil", ["cut", "mode", "link", "number", "gone", "long"])
def test_a_plan_that_is_not_whole_or_not_ours_is_none(home: dict[str, str], spoil: str) -> None:
    text = written(home, "claude Stop observe")
    path = Path(plan.state_directory(home)) / plan.FILE_NAME
    match spoil:
        case "cut":
            path.write_text(text[:-4])
        case "mode":
            path.chmod(0o620)
        case "link":
            path.rename(path.with_name("other"))
            path.symlink_to(path.with_name("other"))
        case "number":
            path.write_text(text.replace("schema 6", "schema x"))
        case "gone":
            path.unlink()
        case _:
            path.write_text(text.replace("end\n", "hook a b observe\n" * 5000 + "end\n"))
    assert found(home) is None


def test_a_password_is_not_in_the_head_and_a_line_break_in_no_plan(home: dict[str, str]) -> None:
    head = plan.head(None, "postgresql://ann:secret@host/db?password=secret2", home)
    assert "secret" not in head
    assert "postgresql://host/db" in head
    assert plan.compose(head, ledger="/a\nb", schema=1, state_dir="/s", lock_wait_ms=1, hooks=()) is None


def test_plans_and_spools_are_private(home: dict[str, str]) -> None:
    written(home)
    folder = Path(plan.state_directory(home))
    assert (folder.stat().st_mode & 0o777, (folder / plan.FILE_NAME).stat().st_mode & 0o777) == (0o700, 0o600)
    assert [each.name for each in folder.iterdir()] == [plan.FILE_NAME]


def test_it_looks_where_the_configuration_looks(home: dict[str, str]) -> None:
    for environ in (home, {**home, "XDG_STATE_HOME": "/x", "XDG_CONFIG_HOME": "/y"}, {**home, "XDG_STATE_HOME": "x"}):
        assert plan.state_directory(environ) == str(state_directory(None, environ))
    assert plan.config_file(None, home) == str(config_path(None, home))
    assert plan.spools("/s", home) == ("/s/hooks.db", plan.state_directory(home) + "/hooks.db")
    assert plan.spools(plan.state_directory(home), home) == (plan.state_directory(home) + "/hooks.db",)


def test_it_knows_the_harnesses_as_the_adapters_do() -> None:
    assert {**{each: each for each in ADAPTERS}, **ALIASES} == plan.HARNESSES
    for name, adapter in HARNESSES.items():
        assert plan.neutral(name) == adapter.NEUTRAL
        for hook in (*adapter.HOOKS, "", "unheard of"):
            assert plan.deadline_us(name, hook) == deadline_us(adapter, hook)


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_a_frame_gives_back_its_fields(fields: list[bytes]) -> None:
    frame = frames.encode(fields)
    assert frames.length(frame[: frames.HEAD_BYTES]) == len(frame) - frames.HEAD_BYTES
    assert frames.decode(frame[frames.HEAD_BYTES :]) == tuple(fields)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_frame_are_refused_or_fields(junk: bytes) -> None:
    try:
        fields = frames.decode(junk)
    except ValueError:
        return
    assert frames.encode(fields)[frames.HEAD_BYTES :] == junk


def test_a_call_comes_back_as_it_was() -> None:
    row = ("dlv_1", "claude", "Stop", b"\xff", 1, None, 5, "/ü", 0)
    fields = frames.call("head", row)
    assert fields[:2] == (frames.VERSION, b"head")
    assert frames.row(fields[2:]) == row
    for wrong in (fields[3:], (*fields[2:-1], b"x"), (*fields[2:-1], b"+x")):
        with pytest.raises(ValueError, match=r"."):
            frames.row(wrong)
    with pytest.raises(ValueError, match="frame"):
        frames.length((frames.FRAME_BYTES_MAX + 1).to_bytes(4, "big"))
