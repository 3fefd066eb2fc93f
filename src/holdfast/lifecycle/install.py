"""Change a harness's settings file so that it calls us, and so that it no longer does.

What the text becomes is decided in `merge`; here it gets onto the disk. The file may be the user's dearest one, may be
a link into a repository of such files, and may be written by the harness at the same moment.

Invariants:
    - A file is replaced as a whole, by a rename in its own directory; a link stays a link, and the mode stays.
    - What was there is beside it in a backup before it is replaced.
    - A change that somebody else made since it was read is never lost: then everything is decided anew.
    - Proposing a change writes nothing at all.
"""

from __future__ import annotations

import difflib
import fcntl
import importlib.resources
import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from holdfast.core.clock import to_datetime
from holdfast.lifecycle.errors import HookError, SettingsChanged, SettingsUnreadable
from holdfast.lifecycle.merge import HOOKS, Inspected, inspect, merge, unmerge

if TYPE_CHECKING:
    from holdfast.core.clock import Clock

__all__ = [
    "HARNESSES", "SCOPES", "SHIMS", "Change", "Edit", "Scope", "inspect", "installing", "merge", "program", "propose",
    "rewrite", "settings_file", "shim", "states", "uninstalling", "unmerge",
]  # fmt: skip

Scope: TypeAlias = Literal["user", "project", "local"]
SCOPES: tuple[Scope, ...] = ("user", "project", "local")

HARNESSES = (*HOOKS, "opencode")
"""The harnesses that can be installed into."""
SHIMS: Mapping[str, str] = {"opencode": "opencode.js", "openclaw": "openclaw.js", "hermes": "hermes.txt"}
"""The harnesses that need a few lines of ours inside them, and the file that has them."""
SHIM_MARK = "holdfast hook shim:"

SETTINGS_BYTES_MAX = 16 * 1024 * 1024
"""More than any document may have."""
RESTARTS_MAX = 3
BACKUPS_MAX = 5
LOCK_LOOKS_MAX = 250
LOCK_LOOK_S = 0.02
"""Five seconds in all: longer than several installations take."""

Edit: TypeAlias = Callable[[str], str]
"""What a file's text is to become. An empty text stands for no file."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a settings file, or would.

    Attributes:
        path: The file.
        before: What it says; None: there is none.
        after: What it says then; None: there is none then.
        backup: Where what it said was kept, if it was.
    """

    path: Path
    before: str | None
    after: str | None
    backup: Path | None = None

    @property
    def changed(self) -> bool:
        """Whether the two differ."""
        return self.before != self.after

    def diff(self) -> list[str]:
        """Return the difference as a unified diff, line by line."""
        lines = []
        old, new = ((text or "").splitlines(keepends=True) for text in (self.before, self.after))
        was, now = ("/dev/null" if text is None else str(self.path) for text in (self.before, self.after))
        for line in difflib.unified_diff(old, new, was, now):
            lines.append(line.rstrip("\r\n"))
            if not line.endswith("\n"):
                lines.append("\\ No newline at end of file")
        return lines


# --- where and what -----------------------------------------------------------------------------------


def settings_file(harness: str, scope: Scope, *, home: Path, project: Path, environ: Mapping[str, str]) -> Path | None:
    """Return the file that a harness reads its hooks from; None: it has none in this scope.

    Args:
        harness: One of `HARNESSES`.
        scope: Whether it is the user's own, or the project's: shared, or the user's own in it.
        home: The user's home directory.
        project: The project's directory.
        environ: The environment, where harnesses look for their directories, too.
    """
    names = {
        "claude": ("CLAUDE_CONFIG_DIR", ".claude", "settings.json"),
        "codex": ("CODEX_HOME", ".codex", "hooks.json"),
        "gemini": ("", ".gemini", "settings.json"),
    }
    if harness == "opencode":
        return project / ".opencode" / "plugins" / "holdfast.js" if scope == "project" else None
    variable, folder, name = names[harness]
    match scope:
        case "user":
            named = Path(environ.get(variable, "")) if variable else Path()
            return (named if named.is_absolute() else home / folder) / name
        case "project":
            return project / folder / name
        case "local":
            return project / folder / "settings.local.json" if harness == "claude" else None


def program(argv0: str, executable: str) -> str:
    """Return how a harness shall call us: an absolute program, quoted for a shell.

    Args:
        argv0: How this process was called.
        executable: The interpreter it runs in.
    """
    called = shutil.which(argv0) if Path(argv0).name == "holdfast" else None
    beside = str(Path(executable).with_name("holdfast"))
    for found in (called, shutil.which(beside)):
        if found is not None:
            return shlex.quote(os.path.abspath(found))
    return f"{shlex.quote(executable)} -m holdfast"


def shim(harness: str, command: str) -> str:
    """Return the lines that a harness needs inside it.

    Args:
        harness: One of `SHIMS`.
        command: The program, from `program`.
    """
    text = importlib.resources.files("holdfast.lifecycle").joinpath("shims").joinpath(SHIMS[harness])
    words = [*shlex.split(command), "hook", harness]
    return text.read_text(encoding="utf-8").replace("__HOLDFAST__", json.dumps(words))


def installing(harness: str, command: str) -> Edit:
    """Return the edit that installs every hook of a harness; it raises `SettingsUnreadable`."""
    if harness in SHIMS:
        return lambda text: shim(harness, command) if _is_shim(text) else text
    return lambda text: merge(text, harness, command)


def uninstalling(harness: str) -> Edit:
    """Return the edit that takes them all out; it raises `SettingsUnreadable`."""
    if harness in SHIMS:
        return lambda text: "" if _is_shim(text) else text
    return lambda text: unmerge(text, harness)


def states(path: Path, harness: str, command: str) -> tuple[Inspected, ...]:
    """Tell what became of every hook of a harness in a file.

    Raises:
        SettingsUnreadable: The file cannot be read, or not be understood.
    """
    text = _read(path) or ""
    if harness not in SHIMS:
        with _about(path):
            return inspect(text, harness, command)
    if SHIM_MARK not in text.partition("\n")[0]:
        return (Inspected("plugin", "missing"),)
    return (Inspected("plugin", "present" if text == shim(harness, command) else "drifted"),)


def _is_shim(text: str) -> bool:
    """Tell whether a file of our own may be replaced.

    Raises:
        SettingsUnreadable: It is somebody else's.
    """
    if text and SHIM_MARK not in text.partition("\n")[0]:
        raise SettingsUnreadable("the file was not made by Holdfast", "move it away; it was not touched")
    return True


# --- reading ------------------------------------------------------------------------------------------


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with its text."""
    try:
        yield
    except SettingsUnreadable as error:
        raise SettingsUnreadable(f"{path}: {error.detail}", error.hint) from None


def _read(path: Path) -> str | None:
    """Return what a file says; None: there is none.

    Raises:
        SettingsUnreadable: It cannot be read, is no text, or is empty, which no harness takes for settings.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(SETTINGS_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SettingsUnreadable(f"{path} cannot be read: {error.strerror}", "check the file and its mode") from error
    if len(data) > SETTINGS_BYTES_MAX:
        raise SettingsUnreadable(f"{path} is larger than {SETTINGS_BYTES_MAX} bytes", "it was not touched")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise SettingsUnreadable(f"{path} is not UTF-8: {error.reason}", "it was not touched") from error
    if not text.strip("\ufeff \t\r\n"):
        raise SettingsUnreadable(f"{path} is empty", "delete it, or write {} into it")
    return text


def propose(path: Path, edit: Edit) -> Change:
    """Say what an edit would make of a file.

    Raises:
        SettingsUnreadable: The file cannot be read, or not be understood.
    """
    before = _read(path)
    with _about(path):
        return Change(path, before, edit(before or "") or None)


# --- writing ------------------------------------------------------------------------------------------


def rewrite(path: Path, edit: Edit, *, lock: Path, clock: Clock) -> Change:
    """Edit a file.

    Args:
        path: The file, or a link to it; it need not exist.
        edit: What its text is to become; called again when somebody else has changed the file meanwhile.
        lock: A file that all who edit settings lock; it need not exist.
        clock: For the backup's name, and to wait for the lock.

    Raises:
        HookError: It cannot be written.
        SettingsChanged: It changed every time.
        SettingsUnreadable: It cannot be read, or not be understood. It was not touched.
    """
    change = propose(path, edit)
    if not change.changed:
        return change
    try:
        with _locked(lock, clock):
            for _ in range(1 + RESTARTS_MAX):
                change = propose(path, edit)
                if not change.changed:
                    return change
                if (done := _replaced(change, _stamp(clock))) is not None:
                    return done
    except OSError as error:
        raise HookError(f"{error.filename or path} cannot be written: {error.strerror}", "check its mode") from error
    raise SettingsChanged(f"{path} changed every time it was about to be replaced", "try again")


@contextmanager
def _locked(lock: Path, clock: Clock) -> Iterator[None]:
    lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(LOCK_LOOKS_MAX):
            with suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            clock.pause(LOCK_LOOK_S)
        else:
            raise SettingsChanged("another process is changing settings", "try again when it has ended")
        yield
    finally:
        os.close(held)


def _replaced(change: Change, stamp: str) -> Change | None:
    """Put the new text in the place of the old one; None: the file has changed since it was read."""
    target = Path(os.path.realpath(change.path))
    target.parent.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []  # what goes again, should this not succeed
    try:
        if change.before is not None:
            made.append(_backed_up(change.path, change.before, stamp))
        if change.after is not None:
            made.append(_written(target, change.after))
        if _read(change.path) != change.before:
            return None
        if change.after is None:
            target.unlink()
        else:
            made.pop().replace(target)
        backup = made.pop() if made else None
    finally:
        for each in made:
            each.unlink()
    _flush(target.parent)
    _prune(change.path)
    return Change(change.path, change.before, change.after, backup)


def _written(target: Path, text: str) -> Path:
    """Write a text beside the file that it is to replace, with that file's mode and owner."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".holdfast", dir=target.parent)
    with os.fdopen(handle, "wb") as stream:
        try:
            was = target.stat()
            os.fchmod(handle, was.st_mode & 0o7777)
            if (was.st_uid, was.st_gid) != (os.geteuid(), os.getegid()):
                with suppress(PermissionError):
                    os.fchown(handle, was.st_uid, was.st_gid)
        except FileNotFoundError:
            mask = os.umask(0o077)
            os.umask(mask)
            os.fchmod(handle, 0o666 & ~mask)
        stream.write(text.encode())
        stream.flush()
        os.fsync(handle)
    return Path(name)


def _backed_up(path: Path, text: str, stamp: str) -> Path:
    """Keep what a file said, for its owner only."""
    backup = path.with_name(f"{path.name}.holdfast-{stamp}")
    handle = os.open(backup, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(text.encode())
        stream.flush()
        os.fsync(handle)
    return backup


def _prune(path: Path) -> None:
    """Delete all backups of a file but the newest."""
    ours = re.compile(re.escape(f"{path.name}.holdfast-") + r"\d{8}T\d{6}\.\d{6}Z")
    backups = sorted(each for each in path.parent.iterdir() if ours.fullmatch(each.name))
    for each in backups[:-BACKUPS_MAX]:
        each.unlink()


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _stamp(clock: Clock) -> str:
    return f"{to_datetime(clock.now()):%Y%m%dT%H%M%S.%fZ}"
