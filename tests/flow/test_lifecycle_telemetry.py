"""`holdfast telemetry snapshot`: how full a context is, from files as Claude Code and Codex write them."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import Answer, ask

from holdfast.core.clock import SystemClock, from_datetime
from holdfast.lifecycle import PressureObservation, decode, snapshot
from holdfast.lifecycle.deliveries import pressure_of
from holdfast.lifecycle.errors import TelemetryInternal, TelemetryUnavailable
from holdfast.lifecycle.telemetry import BLOCK_BYTES, LINE_BYTES_MAX, look
from holdfast.store import open_database

AT = datetime(2026, 5, 6, 20, 0, tzinfo=UTC)
NOW = from_datetime(AT)
SESSION = "0b2c6a0e-7a53-4a3c-9d2f-2f5f4f1f7d11"


def claude_row(used: int, **changes: Any) -> dict[str, Any]:
    usage = {
        "input_tokens": 1,
        "cache_read_input_tokens": used - 4,
        "cache_creation_input_tokens": 1,
        "output_tokens": 2,
    }
    message = {"role": "assistant", "model": "claude-opus-4-5", "usage": usage} | changes.pop("message", {})
    return {
        "type": "assistant",
        "isSidechain": False,
        "timestamp": "2026-05-06T19:59:00.5Z",
        "message": message,
    } | changes


def codex_row(used: Any, window: Any = 200_000, **info: Any) -> dict[str, Any]:
    told = {"last_token_usage": {"total_tokens": used}, "model_context_window": window} | info
    return {"timestamp": "2026-05-06T19:59:00Z", "type": "event_msg", "payload": {"type": "token_count", "info": told}}


NO_INFO = {"type": "event_msg", "payload": {"type": "token_count", "info": None}}


class Files:
    """A harness's own directory, written as the harness does."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def claude(self, *rows: Any, session: str = SESSION, folder: str = "-home-shop", age_s: int = 0) -> Path:
        return self.write(f"projects/{folder}/{session}.jsonl", rows, age_s)

    def codex(
        self, *rows: Any, session: str = SESSION, day: str = "06", age_s: int = 0, cwd: str = "/home/shop"
    ) -> Path:
        meta = {"type": "session_meta", "payload": {"id": session, "cwd": cwd}}
        name = f"sessions/2026/05/{day}/rollout-2026-05-{day}T20-00-00-{session}.jsonl"
        return self.write(name, (meta, *rows), age_s)

    def write(self, name: str, rows: Any, age_s: int) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(texts) + "\n")
        moment = (AT - timedelta(seconds=age_s)).timestamp()
        os.utime(path, (moment, moment))
        return path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def pct(files: Files, harness: str, session: str | None = SESSION, **windows: int) -> int | None:
    seen = snapshot(harness, files.root, session, now=NOW, windows=windows)
    return None if seen is None else seen.context_used_pct


# --- what a file tells --------------------------------------------------------------------------------


def test_of_codex_the_last_count_with_numbers_tells(files: Files) -> None:
    """LA-66, LX-69: floored; the last line is cut."""
    files.codex(codex_row(10), codex_row(63_999), NO_INFO, {"type": "event_msg", "payload": {}}, '{"type": "event_ms')
    seen = snapshot("codex", files.root, SESSION, now=NOW, windows={"": 7})
    assert seen == PressureObservation(
        adapter_id="codex",
        observed_at_epoch_s=NOW // 1_000_000 - 60,
        context_used_pct=31,
        used_tokens=63_999,
        context_window_tokens=200_000,
    )


def test_of_claude_the_last_answer_of_the_main_chain_tells(files: Files) -> None:
    """LX-69."""
    zero = dict.fromkeys(("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens"), 0)
    files.claude(
        claude_row(10),
        claude_row(62_999),
        claude_row(190_000, isSidechain=True),
        claude_row(0, message={"model": "<synthetic>", "usage": zero}),
        {"type": "assistant", "message": {"role": "assistant"}},
        {"type": "user", "message": {"usage": {"input_tokens": 7}}},
        "[1, 2]",
        "",
        '{"type": "assistant", "mess',
    )
    seen = snapshot("claude", files.root, SESSION, now=NOW, windows={})
    assert seen is not None
    assert (seen.context_used_pct, seen.used_tokens, seen.context_window_tokens) == (31, 62_999, 200_000)
    assert (seen.model_name, seen.compaction_signaled) == ("claude-opus-4-5", None)


@pytest.mark.parametrize(
    ("windows", "window", "share"),
    [
        ({}, 200_000, 50),
        ({"claude-opus": 1_000_000}, 1_000_000, 10),
        ({"claude": 100, "claude-opus-4": 400_000, "claude-sonnet": 1}, 400_000, 25),
        ({"claude": 50_000}, 50_000, 100),
        ({"gpt": 1}, 200_000, 50),
    ],
)
def test_the_longest_prefix_of_the_model_names_the_window(
    files: Files, windows: dict[str, int], window: int, share: int
) -> None:
    files.claude(claude_row(100_000))
    seen = snapshot("claude", files.root, SESSION, now=NOW, windows=windows)
    assert seen is not None
    assert (seen.context_window_tokens, seen.context_used_pct) == (window, share)


def test_a_compaction_after_the_last_answer_is_signaled(files: Files) -> None:
    files.claude(claude_row(190_000), {"type": "system", "subtype": "compact_boundary"})
    files.codex(codex_row(190_000), {"type": "compacted", "payload": {}})
    for harness in ("claude", "codex"):
        seen = snapshot(harness, files.root, SESSION, now=NOW, windows={})
        assert seen is not None
        assert (seen.context_used_pct, seen.compaction_signaled) == (95, True)


@pytest.mark.parametrize(
    "row",
    [
        codex_row(None),
        codex_row(-1),
        codex_row(True),
        codex_row(1.5),
        codex_row(1, None),
        codex_row(1, 0),
        codex_row(1, last_token_usage=None),
        NO_INFO,
        {"type": "event_msg"},
        {},
    ],
    ids=str,
)
def test_what_tells_nothing_of_codex_is_no_observation(files: Files, row: dict[str, Any]) -> None:
    files.codex(row)
    assert pct(files, "codex") is None


@pytest.mark.parametrize(
    "usage", [{}, {"input_tokens": None}, {"input_tokens": "9"}, {"input_tokens": 1, "output_tokens": -1}, 7]
)
def test_what_tells_nothing_of_claude_is_no_observation(files: Files, usage: Any) -> None:
    files.claude({"type": "assistant", "message": {"model": "m", "usage": usage}})
    assert pct(files, "claude") is None


def test_an_odd_time_or_model_is_left_out(files: Files) -> None:
    path = files.claude(claude_row(100_000, timestamp="soon", message={"model": ""}))
    seen = snapshot("claude", files.root, SESSION, now=NOW, windows={"": 1})
    assert seen is not None
    assert (seen.model_name, seen.observed_at_epoch_s) == (None, NOW // 1_000_000)
    files.claude(claude_row(100_000, timestamp="2126-05-06T20:00:00Z"))
    seen = snapshot("claude", files.root, SESSION, now=NOW, windows={})
    assert seen is not None
    assert seen.observed_at_epoch_s == NOW // 1_000_000
    assert path.exists()


def test_a_file_is_read_from_its_end_whatever_its_lines_are(files: Files) -> None:
    long = json.dumps({"type": "user", "text": "é" * BLOCK_BYTES * 2})
    assert len(long) > 3 * BLOCK_BYTES
    files.claude(
        claude_row(20_000), long, json.dumps(claude_row(100_000) | {"pad": "x" * BLOCK_BYTES * 2}), long, "", long
    )
    assert pct(files, "claude") == 50
    files.claude(claude_row(20_000), json.dumps(claude_row(100_000) | {"pad": "x" * LINE_BYTES_MAX}), "{}")
    assert pct(files, "claude") == 10, "a line that is too long is passed over"
    files.claude("x" * (LINE_BYTES_MAX + 1))
    assert pct(files, "claude") is None


# --- which file ---------------------------------------------------------------------------------------


def test_the_file_of_the_session_that_was_written_last_is_read(files: Files) -> None:
    files.claude(claude_row(20_000), session="s-1", age_s=50)
    files.claude(claude_row(100_000), session="s-1", folder="-home-other", age_s=40)
    files.claude(claude_row(190_000), session="s-2", age_s=30)
    files.claude(claude_row(2_000), session="agent-7", age_s=10)
    assert [pct(files, "claude", session) for session in ("s-1", "s-2", None, "s-3", "agent-7")] == [
        50,
        95,
        95,
        None,
        1,
    ]
    files.codex(codex_row(20_000), session="s-1", day="06", age_s=50)
    files.codex(codex_row(100_000), session="s-1", day="05", age_s=40)
    files.codex(codex_row(190_000), session="s-2", day="04", age_s=30)
    assert [pct(files, "codex", session) for session in ("s-1", "s-2", None, "s-3")] == [50, 95, 95, None]
    found = look("codex", files.root, None, now=NOW, windows={})
    assert found is not None
    assert found.session_id == "s-2"


def test_only_sessions_of_a_project_are_looked_at_where_one_is_named(files: Files, tmp_path: Path) -> None:
    shop = tmp_path / "my.shop"
    shop.mkdir()
    (tmp_path / "link").symlink_to(shop)
    slug = "".join(each if each.isalnum() else "-" for each in str(shop))
    files.claude(claude_row(20_000), session="s-1", folder=slug, age_s=50)
    files.claude(claude_row(100_000), session="s-2")
    files.codex(codex_row(20_000), session="s-1", cwd=str(shop), age_s=50)
    files.codex(codex_row(100_000), session="s-2")
    for harness in ("claude", "codex"):
        for project, session in ((shop, "s-1"), (tmp_path / "link", "s-1"), (tmp_path / "none", None), (None, "s-2")):
            found = look(harness, files.root, None, now=NOW, windows={}, project=project)
            assert (None if found is None else found.session_id) == session


def test_a_file_that_is_not_written_to_any_more_tells_nothing(files: Files) -> None:
    """LA-66."""
    for age_s, share in ((3_599, 50), (3_601, None), (-60, 50)):
        files.codex(codex_row(100_000), age_s=age_s)
        files.claude(claude_row(100_000), age_s=age_s)
        assert (pct(files, "codex"), pct(files, "claude")) == (share, share)


def test_nothing_but_files_of_sessions_is_read(files: Files) -> None:
    assert (pct(files, "claude"), pct(files, "codex")) == (None, None)
    (files.root / "projects").write_text("a file where a folder should be")
    assert pct(files, "claude") is None
    (files.root / "projects").unlink()
    path = files.claude(claude_row(100_000))
    secret = files.root / "secret.jsonl"
    secret.write_text(json.dumps(claude_row(100_000)))
    for name in ("../../secret", "secret/", "*", "", ".", "a\0b"):
        assert pct(files, "claude", name) is None
    path.unlink()
    os.mkfifo(path)
    (path.parent / "gone.jsonl").symlink_to("nowhere")
    assert pct(files, "claude", None) is None


def test_a_harness_without_a_reader_says_so(files: Files) -> None:
    with pytest.raises(TelemetryUnavailable, match="no telemetry reader for gemini"):
        snapshot("gemini", files.root, None, now=NOW, windows={})
    loop = files.root / "projects"
    loop.symlink_to(loop)
    with pytest.raises(TelemetryInternal, match="cannot be read"):
        snapshot("claude", files.root, None, now=NOW, windows={})


# --- the command --------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    return tmp_path


def fresh(path: Path) -> Path:
    os.utime(path)
    return path


def take(*arguments: object) -> Answer:
    return ask("telemetry", "snapshot", *arguments)


async def kept(ledger: str, session: str) -> bytes | None:
    database = await open_database(ledger, clock=SystemClock())
    try:
        async with database.read() as tx:
            return await pressure_of(tx, "claude", session)
    finally:
        await database.close()


def test_an_observation_is_printed_and_kept_with_its_session(home: Path, ledger: str) -> None:
    """LX-70."""
    fresh(Files(home / ".claude").claude(claude_row(100_000)))
    config = home / "config" / "holdfast" / "holdfast.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[lifecycle.context_windows]\nclaude-opus = 1000000\n")
    answer = take("--host", "claude_code", "--session", SESSION, "--db", ledger)
    assert (answer.code, answer.err) == (0, "")
    seen = decode(answer.out, PressureObservation)
    assert (seen.adapter_id, seen.context_used_pct) == ("claude", 10)
    assert decode(asyncio.run(kept(ledger, SESSION)) or b"", PressureObservation) == seen
    assert asyncio.run(kept(ledger, "another")) is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--host", "gemini"), 1, "there is no telemetry reader for gemini"),
        (("--host", "nobody"), 1, "there is no telemetry reader for nobody"),
        (("--host", "claude"), 1, "no observation"),
        (("--host", "codex", "--session", "s-1"), 1, "no observation"),
        ((), 2, "--host"),
    ],
    ids=str,
)
def test_where_there_is_nothing_to_see_nothing_is_printed_or_made(
    home: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    """LA-66."""
    os.utime(Files(home / ".codex").codex(codex_row(100_000)), (0, 0))
    before = sorted(home.rglob("*"))
    answer = take(*arguments)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err
    assert sorted(home.rglob("*")) == before


def test_harnesses_that_live_elsewhere_are_read_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh(Files(home / "elsewhere").codex(codex_row(100_000), cwd=str(home)))
    assert take("--host", "codex").code == 1
    monkeypatch.setenv("CODEX_HOME", str(home / "elsewhere"))
    assert take("--host", "codex", "--repo-root", home).json["context_used_pct"] == 50
