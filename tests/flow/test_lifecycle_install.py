"""`holdfast hook install | uninstall | status | shim`: a harness's settings on the disk, changed and given back."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import Answer, ask

from holdfast.lifecycle.errors import HookError, SettingsChanged
from holdfast.lifecycle.install import (
    BACKUPS_MAX,
    LOCK_LOOK_S,
    RESTARTS_MAX,
    SETTINGS_BYTES_MAX,
    installing,
    program,
    rewrite,
    shim,
)
from holdfast.lifecycle.merge import HOOKS
from holdfast.testing import ManualClock

OWN = '{\r\n\t"model": "opus",\r\n\t"n": 1.0e3, "e": "\\u00e9",\r\n\t"hooks": {\r\n\t\t"Stop": []\r\n\t}\r\n}'
"""What a user has: with CRLF, tabs, numbers and letters spelled their way, and no last newline."""


class Home:
    """A user's home and project, and the command line in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.claude = folder / ".claude" / "settings.json"

    def hook(self, *arguments: object) -> Answer:
        return ask("hook", *arguments)

    def write(self, text: str, file: Path | None = None) -> Path:
        path = file or self.claude
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return path

    def states(self, *arguments: object) -> dict[str, str]:
        return {each["hook"]: each["state"] for each in self.hook("status", *arguments, "--json").json}

    def backups(self, path: Path | None = None) -> list[Path]:
        path = path or self.claude
        return sorted(path.parent.glob(f"{path.name}.holdfast-*"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    return Home(tmp_path)


def test_what_the_user_had_stays_and_comes_back_byte_for_byte(home: Home) -> None:
    """LA-63, LA-64."""
    path = home.write(OWN)
    path.chmod(0o640)
    answer = home.hook("install", "claude")
    assert (answer.code, answer.err) == (0, "")
    assert str(path) in answer.out
    installed = path.read_bytes()
    assert installed.startswith(OWN.encode()[:60])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    [backup] = home.backups()
    assert str(backup) in answer.out
    assert (backup.read_bytes(), stat.S_IMODE(backup.stat().st_mode)) == (OWN.encode(), 0o600)
    answer = home.hook("status", "claude")
    assert (answer.code, answer.err) == (0, "")
    again = home.hook("install", "claude-code")
    assert (again.code, "nothing to change" in again.out) == (0, True)
    assert (path.read_bytes(), home.backups()) == (installed, [backup])
    assert home.hook("install", "claude", "--uninstall").code == 0
    assert path.read_bytes() == OWN.encode()
    assert sorted(each.name for each in path.parent.iterdir() if ".holdfast-" not in each.name) == ["settings.json"]
    assert "nothing to change" in home.hook("uninstall", "claude").out


@pytest.mark.parametrize(
    ("harness", "scope", "file"),
    [
        ("claude", "user", ".claude/settings.json"),
        ("claude", "project", "project/.claude/settings.json"),
        ("claude", "local", "project/.claude/settings.local.json"),
        ("codex", "user", ".codex/hooks.json"),
        ("codex", "project", "project/.codex/hooks.json"),
        ("gemini", "user", ".gemini/settings.json"),
        ("gemini", "project", "project/.gemini/settings.json"),
        ("opencode", "project", "project/.opencode/plugins/holdfast.js"),
    ],
)
def test_each_harness_has_its_file_and_is_left_without_it(home: Home, harness: str, scope: str, file: str) -> None:
    """LX-65: what was not there before is not there after."""
    path = home.folder / file
    answer = home.hook("install", harness, "--scope", scope)
    assert (answer.code, answer.err) == (0, "")
    assert ("/hooks" in answer.out) == (harness == "codex")
    assert path.exists()
    assert set(home.states(harness, "--scope", scope).values()) == {"present"}
    if harness in HOOKS:
        handlers = [group[0]["hooks"][0] for group in json.loads(path.read_text())["hooks"].values()]
        assert all(os.path.isabs(each["command"].split()[0]) for each in handlers)
    before = path.read_bytes()
    assert home.hook("install", harness, "--scope", scope).code == 0
    assert path.read_bytes() == before
    assert home.hook("uninstall", harness, "--scope", scope).code == 0
    assert not path.exists()
    assert set(home.states(harness, "--scope", scope).values()) == {"missing"}


def test_harnesses_that_live_elsewhere_are_found_there(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEX_HOME", str(home.folder / "codex"))
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(home.folder / "claude"))
    assert home.hook("install", "codex").code == home.hook("install", "claude").code == 0
    assert (home.folder / "codex" / "hooks.json").exists()
    assert (home.folder / "claude" / "settings.json").exists()


def test_a_dry_run_shows_the_difference_and_touches_nothing(home: Home) -> None:
    """LA-65."""
    path = home.write(OWN)
    before = sorted((each, each.stat().st_mtime_ns) for each in home.folder.rglob("*"))
    for arguments in (("install", "claude"), ("install", "codex"), ("install", "opencode")):
        answer = home.hook(*arguments, "--dry-run")
        assert (answer.code, answer.err) == (0, "")
        assert answer.out.startswith("--- ")
    shown = home.hook("install", "claude", "--dry-run").out
    assert "\x1b" not in shown
    assert "+\t\t" in shown
    assert "\\ No newline at end of file" in shown
    quiet = home.hook("uninstall", "claude", "--dry-run")
    assert (quiet.code, quiet.out) == (0, "")
    assert "nothing to change" in quiet.err
    assert sorted((each, each.stat().st_mtime_ns) for each in home.folder.rglob("*")) == before
    assert path.read_bytes() == OWN.encode()


def test_drift_is_reported_and_mended(home: Home) -> None:
    """LA-63."""
    path = home.write(OWN)
    assert home.hook("install", "claude").code == 0
    path.write_bytes(
        path.read_bytes().replace(b'"timeout": 5', b'"timeout": 50').replace(b"PostCompact", b"PostCompacts")
    )
    answer = home.hook("status", "claude")
    assert (answer.code, "not all hooks are present" in answer.err) == (1, True)
    found = home.states("claude")
    assert (found["SessionEnd"], found["PostCompact"], found["Stop"]) == ("drifted", "missing", "present")
    assert home.hook("install", "claude").code == 0
    assert home.hook("status", "claude").code == 0
    path.write_bytes(path.read_bytes().replace(b'"model"', b'"disableAllHooks": true, "model"'))
    assert set(home.states("claude").values()) == {"disabled"}
    answer = home.hook("status")
    assert (answer.code, "switched off" in answer.err) == (1, True)
    answer = home.hook("install", "claude")
    assert (answer.code, "switched off" in answer.err) == (0, True)


def test_a_status_of_everything_shows_what_knows_holdfast(home: Home) -> None:
    answer = home.hook("status")
    assert (answer.code, answer.out) == (1, "")
    assert "no harness here calls Holdfast" in answer.err
    assert home.hook("install", "gemini").code == home.hook("install", "opencode").code == 0
    answer = home.hook("status")
    assert (answer.code, answer.err) == (0, "")
    files = {line.partition(":")[0] for line in answer.out.splitlines() if ": " in line}
    assert files == {"gemini", "opencode"}
    assert {each["harness"] for each in home.hook("status", "--scope", "user", "--json").json} == {"gemini"}


def test_a_link_stays_a_link_to_the_file_that_is_changed(home: Home) -> None:
    """LX-68."""
    target = home.write(OWN, home.folder / "dotfiles" / "claude.json")
    home.claude.parent.mkdir()
    home.claude.symlink_to(target)
    assert home.hook("install", "claude").code == 0
    assert home.claude.is_symlink()
    assert b"hook claude --event" in target.read_bytes()
    assert sorted(each.name for each in target.parent.iterdir()) == ["claude.json"]
    assert len(home.backups()) == 1
    assert home.hook("uninstall", "claude").code == 0
    assert home.claude.is_symlink()
    assert target.read_bytes() == OWN.encode()


def test_the_newest_backups_are_kept(tmp_path: Path) -> None:
    path, clock = tmp_path / "settings.json", ManualClock()
    path.write_text("{}")
    foreign = tmp_path / "settings.json.holdfast-mine"
    foreign.write_text("kept")
    for number in range(BACKUPS_MAX + 2):
        clock.advance(timedelta(seconds=1))
        change = rewrite(path, installing("claude", f"/opt/{number}/holdfast"), lock=tmp_path / "lock", clock=clock)
        assert change.backup is not None
    backups = sorted(tmp_path.glob("settings.json.holdfast-2*"))
    assert len(backups) == BACKUPS_MAX
    assert backups[-1] == change.backup
    assert f"/opt/{BACKUPS_MAX}/holdfast" in backups[-1].read_text()
    assert foreign.exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"hooks": {', "line 1, column 12: a name in quotes"),
        (b'{"a": 1,}', "a name in quotes"),
        (b'{"hooks": {}, "hooks": {}}', "2 times"),
        (b'{"hooks": []}', "no object"),
        (b"\xff\xfe", "not UTF-8"),
        (b" \n", "is empty"),
        (b"", "is empty"),
        (b" " * (SETTINGS_BYTES_MAX + 1), "larger than"),
    ],
    ids=lambda each: each if isinstance(each, str) else str(len(each)),
)
def test_what_cannot_be_understood_is_refused_and_untouched(home: Home, data: bytes, said: str) -> None:
    """LX-68: exit 3."""
    home.claude.parent.mkdir()
    home.claude.write_bytes(data)
    for arguments in (
        ("install", "claude"),
        ("uninstall", "claude"),
        ("status", "claude"),
        ("install", "claude", "--dry-run"),
    ):
        answer = home.hook(*arguments)
        assert (answer.code, answer.out) == (3, "")
        assert str(home.claude) in answer.err
        assert said in answer.err
    assert [each.name for each in home.claude.parent.iterdir()] == ["settings.json"]
    assert home.claude.read_bytes() == data


def test_what_cannot_be_read_or_written_says_so(home: Home, tmp_path: Path) -> None:
    home.claude.mkdir(parents=True)
    answer = home.hook("install", "claude")
    assert (answer.code, "cannot be read" in answer.err) == (3, True)
    (home.folder / ".gemini").write_text("a file where a folder should be")
    answer = home.hook("install", "gemini")
    assert (answer.code, "cannot be read" in answer.err) == (3, True)
    with pytest.raises(HookError, match="cannot be written"):
        rewrite(
            Path("/proc/settings.json"), installing("claude", "holdfast"), lock=tmp_path / "lock", clock=ManualClock()
        )


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("install", "nobody"), 1, "no adapter `nobody`"),
        (("install", "hermes"), 1, "hook shim hermes"),
        (("install", "codex", "--scope", "local"), 2, "no settings in the scope local"),
        (("install", "opencode", "--scope", "user"), 2, "no settings in the scope user"),
        (("install", "claude", "--scope", "global"), 2, "global"),
        (("install",), 2, "HARNESS"),
        (("shim", "claude"), 1, "needs no shim"),
        (("shim", "nobody"), 1, "no adapter"),
    ],
    ids=str,
)
def test_an_answer_that_is_no_says_what_to_do(home: Home, arguments: tuple[str, ...], code: int, said: str) -> None:
    answer = home.hook(*arguments)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err


# --- at the same moment -------------------------------------------------------------------------------


def edited_meanwhile(path: Path, times: int) -> Callable[[str], str]:
    """An edit during which somebody else changes the file, so many times."""
    install, texts = installing("claude", "/opt/holdfast"), iter(range(times))

    def edit(text: str) -> str:
        if (number := next(texts, None)) is not None:
            path.write_text(f'{{"theirs": {number}}}')
        return install(text)

    return edit


def test_a_change_that_somebody_else_made_meanwhile_is_kept(tmp_path: Path) -> None:
    """LX-68. The first look is before the lock, and is repeated under it anyway."""
    path = tmp_path / "settings.json"
    path.write_text('{"theirs": "old"}')
    change = rewrite(path, edited_meanwhile(path, 1 + RESTARTS_MAX), lock=tmp_path / "lock", clock=ManualClock())
    said = json.loads(path.read_text())
    assert (said["theirs"], len(said["hooks"])) == (RESTARTS_MAX, 9)
    assert change.before == f'{{"theirs": {RESTARTS_MAX}}}'
    assert len(list(tmp_path.iterdir())) == 3, "no try left anything"


def test_a_file_that_never_keeps_still_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"theirs": "old"}')
    with pytest.raises(SettingsChanged, match="changed every time"):
        rewrite(path, edited_meanwhile(path, 100), lock=tmp_path / "lock", clock=ManualClock())
    assert json.loads(path.read_text()) == {"theirs": 1 + RESTARTS_MAX}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["lock", "settings.json"]


def test_two_installations_do_not_get_into_each_other_s_way(tmp_path: Path) -> None:
    lock, path, clock = tmp_path / "lock", tmp_path / "settings.json", ManualClock()
    ends: list[object] = []

    def install() -> None:
        try:
            ends.append(rewrite(path, installing("claude", "holdfast"), lock=lock, clock=clock).changed)
        except SettingsChanged as error:
            ends.append(error.message)

    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = threading.Thread(target=install)
        second.start()
        while second.is_alive():
            clock.advance(timedelta(seconds=LOCK_LOOK_S))
            second.join(0.001)
        assert not path.exists()
    install()
    assert ends == ["another process is changing settings", True]


# --- the program, and what harnesses without hooks need -----------------------------------------------


def test_we_are_called_by_an_absolute_program(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    script = folder / "holdfast"
    script.touch(mode=0o755)
    assert program(str(script), "/nowhere/python") == f"'{script}'"
    assert program("/x/holdfast/__main__.py", str(folder / "python")) == f"'{script}'"
    assert program("/x/holdfast/__main__.py", "/nowhere/python3") == "/nowhere/python3 -m holdfast"


def test_a_plugin_that_somebody_else_wrote_is_left_alone(home: Home) -> None:
    path = home.write("export const Mine = 1\n", home.folder / "project/.opencode/plugins/holdfast.js")
    for arguments in (("install", "opencode"), ("uninstall", "opencode")):
        answer = home.hook(*arguments)
        assert (answer.code, "not made by Holdfast" in answer.err) == (3, True)
    assert home.states("opencode") == {"plugin": "missing"}
    path.write_text(shim("opencode", "/elsewhere/holdfast"))
    assert home.states("opencode") == {"plugin": "drifted"}
    assert home.hook("install", "opencode").code == 0
    assert home.states("opencode") == {"plugin": "present"}


@pytest.mark.parametrize("harness", ["opencode", "openclaw", "hermes"])
def test_a_shim_is_printed_with_the_program_in_it(home: Home, harness: str) -> None:
    answer = home.hook("shim", harness)
    assert (answer.code, answer.err) == (0, "")
    assert f'/holdfast", "hook", "{harness}"]' in answer.out
    assert "__HOLDFAST__" not in answer.out


RECORDER = f"""#!{sys.executable} -S
import os, sys
with open(os.environ["RECORD"], "a") as record:
    record.write(sys.stdin.read() + " " + " ".join(sys.argv[1:]) + "\\n")
"""
FIRED = {
    "hermes": """
import asyncio, shim
asyncio.run(shim.handle("agent:start", {"session_id": "s-1", "message_id": 7}))
asyncio.run(shim.handle("agent:start", {}))
shim.HOLDFAST = ["/nowhere/holdfast"]
asyncio.run(shim.handle("agent:end", {"session_id": "s-1"}))
""",
    "opencode": """
import { Holdfast } from "./shim.mjs"
const hooks = await Holdfast({})
await hooks.event({ event: { type: "session.created", properties: { info: { id: "s-1" } } } })
await hooks["chat.message"]({ sessionID: "s-1", messageID: "m-1" }, {})
await hooks.event({ event: { type: "session.idle", properties: { sessionID: "s-1" } } })
await hooks.event({ event: { type: "session.idle", properties: {} } })
await hooks.event({ event: { type: "file.edited" } })
""",
    "openclaw": """
import handler from "./shim.mjs"
await handler({ type: "message", action: "preprocessed", sessionKey: "s-1", context: { messageId: 7 } })
await handler({ type: "message", action: "sent", sessionKey: "agent:main", context: { sessionId: "s-1" } })
await handler({ type: "session", action: "end" })
""",
}
TOLD = {
    "hermes": [("agent:start", "7")],
    "opencode": [("session.created", None), ("chat.message", "m-1"), ("session.idle", None)],
    "openclaw": [("message:preprocessed", "7"), ("message:sent", None)],
}


@pytest.mark.parametrize("harness", sorted(FIRED))
def test_a_shim_tells_what_the_adapter_reads_and_never_fails(tmp_path: Path, harness: str) -> None:
    """LX-61, in the shim's own language: a call without a session is none."""
    recorder = tmp_path / "holdfast"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    python = harness == "hermes"
    runs = sys.executable if python else shutil.which("node")
    if runs is None:
        assert "CI" not in os.environ, "node is missing, and where tests gate nothing may be skipped: install it"
        pytest.skip("there is no node here to run the shim")
    (tmp_path / ("shim.py" if python else "shim.mjs")).write_text(shim(harness, str(recorder)))
    main = tmp_path / ("fire.py" if python else "fire.mjs")
    main.write_text(FIRED[harness])
    environment = os.environ | {"RECORD": str(tmp_path / "record")}
    subprocess.run([runs, main], cwd=tmp_path, env=environment, check=True, timeout=60)
    calls: list[tuple[Any, str]] = []
    for line in (tmp_path / "record").read_text().splitlines():
        body, _, words = line.partition("} hook ")
        calls.append((json.loads(body + "}"), words))
    assert [(said["hook"], said.get("turn_id")) for said, _ in calls] == TOLD[harness]
    assert [words for _, words in calls] == [f"{harness} --event {hook}" for hook, _ in TOLD[harness]]
    assert {(said["shim"], said["session_id"], str(said["data"])) for said, _ in calls} == {(1, "s-1", "{}")}
    assert len({said["delivery_id"] for said, _ in calls}) == len(calls)
