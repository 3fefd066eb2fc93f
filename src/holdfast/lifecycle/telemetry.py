"""See how full a harness's context is, in the files that the harness keeps of its sessions.

    ~/.claude/projects/<directory>/<session>.jsonl
    ~/.codex/sessions/<year>/<month>/<day>/rollout-<time>-<session>.jsonl

They are read from their end, block by block, until a line tells. Nobody promises what they look like, so a line that
is not understood is passed over, and where nothing tells there is no observation.

Invariants:
    - Only regular files under the harness's own directory are read, and nothing is ever written there.
    - What is not in the file is never guessed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from holdfast.core.clock import micros
from holdfast.lifecycle import wire
from holdfast.lifecycle.documents import PressureObservation
from holdfast.lifecycle.errors import TelemetryInternal, TelemetryUnavailable

__all__ = ["READERS", "STALE_AFTER", "Seen", "data_directory", "look", "snapshot"]

STALE_AFTER = timedelta(hours=1)
CLAUDE_WINDOW = 200_000
"""Tokens of a context of Claude's whose model is not configured."""

BLOCK_BYTES = 64 * 1024
LINE_BYTES_MAX = 16 * 1024 * 1024
"""As much as a document may have; longer lines are passed over."""
SCAN_BYTES_MAX = 256 * 1024 * 1024
"""How far back a file is read: usage is told with every answer, so it is near the end."""
META_BYTES_MAX = 1024 * 1024
"""The first line of a rollout, which has the instructions, too."""

_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_ROLLOUT = re.compile(r"rollout-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-(.+)\.jsonl")


class Seen(NamedTuple):
    """What was seen.

    Attributes:
        session_id: Of which session.
        observation: How full its context is.
    """

    session_id: str
    observation: PressureObservation


class _Candidate(NamedTuple):
    """A session's file.

    Attributes:
        changed_at: When it was written last, microseconds.
        path: Where it is.
        session_id: Whose it is.
    """

    changed_at: int
    path: Path
    session_id: str


class _Usage(NamedTuple):
    """What one line tells."""

    used: int
    window: int
    model: str | None


class _Reader(NamedTuple):
    """How the files of one harness are found and read.

    Attributes:
        variable: The environment variable that names its directory.
        folder: Where that is else, in the user's home.
        candidates: Finds files in it, of one session or of all, of one project or of all.
        usage: Reads a line; given the configured windows.
        compacted: Tells whether a line says that the context was compacted.
    """

    variable: str
    folder: str
    candidates: Callable[[Path, str | None, Path | None], Iterator[_Candidate]]
    usage: Callable[[dict[str, Any], Mapping[str, int]], _Usage | None]
    compacted: Callable[[dict[str, Any]], bool]


def data_directory(harness: str, *, home: Path, environ: Mapping[str, str]) -> Path:
    """Return where a harness keeps its sessions.

    Raises:
        TelemetryUnavailable: We cannot read what it keeps.
    """
    reader = _reader(harness)
    named = Path(environ.get(reader.variable, ""))
    return named if named.is_absolute() else home / reader.folder


def snapshot(
    harness: str,
    root: Path,
    session_id: str | None,
    *,
    now: int,
    windows: Mapping[str, int],
    stale_after: timedelta = STALE_AFTER,
) -> PressureObservation | None:
    """Return how full the context of a session is; None: nothing tells.

    Args:
        harness: `claude` or `codex`.
        root: Where it keeps its sessions, from `data_directory`.
        session_id: The session; None: the one that was written to last.
        now: Microseconds.
        windows: Sizes of contexts in tokens, by prefix of the model's name; for Claude, whose files do not tell.
        stale_after: For how long a file that is no longer written to tells anything.

    Raises:
        TelemetryInternal: A file could not be read.
        TelemetryUnavailable: There is no reader for this harness.
    """
    seen = look(harness, root, session_id, now=now, windows=windows, stale_after=stale_after)
    return None if seen is None else seen.observation


def look(  # noqa: PLR0913 - as above, and the project
    harness: str,
    root: Path,
    session_id: str | None,
    *,
    now: int,
    windows: Mapping[str, int],
    stale_after: timedelta = STALE_AFTER,
    project: Path | None = None,
) -> Seen | None:
    """Return what `snapshot` does, and of which session.

    Args:
        project: Only of sessions in this directory.

    Raises:
        TelemetryInternal: A file could not be read.
        TelemetryUnavailable: There is no reader for this harness.
    """
    reader = _reader(harness)
    if session_id is not None and _SESSION.fullmatch(session_id) is None:
        return None
    try:
        newest = max(reader.candidates(root, session_id, project), default=None)
        if newest is None or newest.changed_at < now - micros(stale_after):
            return None
        return _seen(harness, newest, windows, now)
    except OSError as error:
        raise TelemetryInternal(f"{error.filename} cannot be read: {error.strerror}") from error


def _reader(harness: str) -> _Reader:
    if harness not in READERS:
        raise TelemetryUnavailable(
            f"there is no telemetry reader for {harness}", f"there is one for {' and '.join(sorted(READERS))}"
        )
    return READERS[harness]


def _seen(harness: str, file: _Candidate, windows: Mapping[str, int], now: int) -> Seen | None:
    """Read a session's file backwards until a line tells of usage."""
    reader = READERS[harness]
    compacted = False
    with file.path.open("rb") as stream:
        for line in _lines(stream):
            row = _row(line)
            if row is None:
                continue
            usage = reader.usage(row, windows)
            if usage is None:
                compacted = compacted or reader.compacted(row)
                continue
            observation = PressureObservation(
                adapter_id=harness,
                observed_at_epoch_s=min(_told_at(row, file.changed_at), now // 1_000_000),
                context_used_pct=min(usage.used * 100 // usage.window, 100),
                model_name=usage.model,
                used_tokens=usage.used,
                context_window_tokens=usage.window,
                compaction_signaled=compacted or None,
            )
            wire.validate(observation)
            return Seen(file.session_id, observation)
    return None


def _told_at(row: dict[str, Any], changed_at: int) -> int:
    """Return when a line was written, seconds; else when its file was."""
    try:
        told = datetime.fromisoformat(row["timestamp"])
        return max(0, int(told.replace(tzinfo=told.tzinfo or UTC).timestamp()))
    except (KeyError, TypeError, ValueError, OverflowError):
        return max(0, changed_at // 1_000_000)


# --- lines --------------------------------------------------------------------------------------------


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file, the last one first. One that is too long is left out."""
    at = stream.seek(0, os.SEEK_END)
    end = max(0, at - SCAN_BYTES_MAX)
    blocks: list[bytes] = []  # of the line whose beginning is not read yet, the last one first
    size = 0
    while at > end:
        start = max(end, at - BLOCK_BYTES)
        stream.seek(start)
        head, *rest = stream.read(at - start).split(b"\n")
        at = start
        if rest:
            last = rest.pop()
            yield from _joined([*blocks, last], size + len(last))
            yield from reversed(rest)
            blocks, size = [], 0
        size += len(head)
        if size <= LINE_BYTES_MAX:
            blocks.append(head)
    if not end:
        yield from _joined(blocks, size)


def _joined(blocks: list[bytes], size: int) -> Iterator[bytes]:
    if size <= LINE_BYTES_MAX:
        yield b"".join(reversed(blocks))


def _row(line: bytes) -> dict[str, Any] | None:
    """Read a line; None: it is cut, or no object."""
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _part(row: Any, *names: str) -> Any:
    """Return a member of members; None: one of them is not there."""
    for name in names:
        row = row.get(name) if isinstance(row, dict) else None
    return row


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


# --- harnesses ----------------------------------------------------------------------------------------


def _file(entry: os.DirEntry[str], session_id: str) -> Iterator[_Candidate]:
    try:
        known = entry.stat()
    except FileNotFoundError:  # it went, or leads nowhere
        return
    if stat.S_ISREG(known.st_mode):
        yield _Candidate(known.st_mtime_ns // 1_000, Path(entry.path), session_id)


def _folders(root: Path) -> list[str]:
    """The folders in a folder; none where there is no such folder."""
    try:
        with os.scandir(root) as entries:
            return [entry.path for entry in entries if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _claude_files(root: Path, session_id: str | None, project: Path | None) -> Iterator[_Candidate]:
    """A session is a file in the folder of the directory that it was begun in; files of sub-agents are left out."""
    named = None if project is None else {re.sub(r"[^A-Za-z0-9]", "-", name) for name in _spellings(project)}
    for folder in _folders(root / "projects"):
        if named is not None and os.path.basename(folder) not in named:
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                name, suffix = os.path.splitext(entry.name)
                mine = name == session_id if session_id is not None else not name.startswith("agent-")
                if suffix == ".jsonl" and mine:
                    yield from _file(entry, name)


def _codex_files(root: Path, session_id: str | None, project: Path | None) -> Iterator[_Candidate]:
    """A session is one file or, where it was resumed, several; the first line says in which directory it was begun."""
    found: list[_Candidate] = []
    for year in _folders(root / "sessions"):
        for day in (day for month in _folders(Path(year)) for day in _folders(Path(month))):
            with os.scandir(day) as entries:
                for entry in entries:
                    named = _ROLLOUT.fullmatch(entry.name)
                    if named is not None and session_id in (None, named[1]):
                        found += _file(entry, named[1])
    if project is None:
        yield from found
        return
    wanted = _spellings(project)
    for candidate in sorted(found, reverse=True):
        with candidate.path.open("rb") as stream:
            row = _row(stream.readline(META_BYTES_MAX))
        if _part(row, "payload", "cwd") in wanted:
            yield candidate
            return


def _spellings(project: Path) -> set[str]:
    """How a harness may have written a directory down."""
    return {os.path.abspath(project), os.path.realpath(project)}


def _claude_usage(row: dict[str, Any], windows: Mapping[str, int]) -> _Usage | None:
    usage, model = _part(row, "message", "usage"), _part(row, "message", "model")
    if row.get("type") != "assistant" or row.get("isSidechain") is True or not isinstance(usage, dict):
        return None
    if model == "<synthetic>":  # Claude Code's own words, which cost nothing and tell nothing
        return None
    names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
    counts = [_count(usage.get(name) or 0) for name in names]
    if _count(usage.get("input_tokens")) is None or None in counts:
        return None
    model = model if isinstance(model, str) and model else None
    prefixes = sorted((prefix for prefix in windows if model is not None and model.startswith(prefix)), key=len)
    return _Usage(sum(filter(None, counts)), windows[prefixes[-1]] if prefixes else CLAUDE_WINDOW, model)


def _claude_compacted(row: dict[str, Any]) -> bool:
    return row.get("type") == "system" and row.get("subtype") == "compact_boundary"


def _codex_usage(row: dict[str, Any], windows: Mapping[str, int]) -> _Usage | None:
    if row.get("type") != "event_msg" or _part(row, "payload", "type") != "token_count":
        return None
    used = _count(_part(row, "payload", "info", "last_token_usage", "total_tokens"))
    window = _count(_part(row, "payload", "info", "model_context_window"))
    return None if used is None or not window else _Usage(used, window, None)


def _codex_compacted(row: dict[str, Any]) -> bool:
    return row.get("type") == "compacted"


READERS: Mapping[str, _Reader] = {
    "claude": _Reader("CLAUDE_CONFIG_DIR", ".claude", _claude_files, _claude_usage, _claude_compacted),
    "codex": _Reader("CODEX_HOME", ".codex", _codex_files, _codex_usage, _codex_compacted),
}
"""The harnesses whose files we can read."""
