"""What a hook call needs to know before anything heavy is imported.

That is: which harnesses there are, how long their hooks take, which reply changes nothing, and `hook.plan`, a text file
that says what the configuration would. Its head names all that the plan was made from; whoever reads it works out the
head of this moment, and a plan with another one is no plan.

    holdfast.plan.v1 0.1.0
    config /u/ann/.config/holdfast/holdfast.toml 1763740000000000000 120
    db -
    home /u/ann
    data -
    ledger /u/ann/.local/share/holdfast/holdfast.db
    schema 6
    state /u/ann/.local/state/holdfast
    lock_wait_ms 2000
    hook claude SessionStart observe
    hook claude UserPromptSubmit dispatch closed
    end

Invariants:
    - A plan is used for the version, configuration file and environment it was made from, or not at all.
    - A plan that somebody else could have written is not used.
    - Passwords in the ledger's URL are not in it.
"""

from __future__ import annotations

import os

from holdfast.core.version import VERSION

TYPE_CHECKING = False  # what `typing` says too
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "FILE_NAME", "HARNESSES", "SOCKET_NAME", "Plan", "compose", "config_file", "deadline_us", "head", "neutral", "read",
    "serves", "spools", "state_directory", "write",
]  # fmt: skip

FILE_NAME = "hook.plan"
SOCKET_NAME = "hook.sock"
PLAN_BYTES_MAX = 64 * 1024
"""A file that is longer is no plan: there are some 50 hooks."""
REMOTE = "-"
"""Stands for a ledger that is no file."""
DEADLINE_US = 8_000_000

HARNESSES = {
    "claude": "claude", "claude_code": "claude", "claude-code": "claude",
    "codex": "codex", "codex_cli": "codex", "codex-cli": "codex",
    "gemini": "gemini", "gemini_cli": "gemini", "gemini-cli": "gemini",
    "opencode": "opencode", "open_code": "opencode",
    "openclaw": "openclaw", "open_claw": "openclaw",
    "hermes": "hermes", "hermes_agent": "hermes",
}  # fmt: skip
"""The harnesses by every name they have: to their canonical ids."""

_DEADLINES_US = {("claude", "SessionEnd"): 1_200_000, ("codex", "SessionEnd"): 2_500_000}


def neutral(harness: str) -> bytes:
    """Return the reply that changes nothing, for a canonical id."""
    return b"" if harness in ("claude", "codex") else b"{}"


def deadline_us(harness: str, hook: str) -> int:
    """Return how long a call of a hook takes at most, microseconds, for a canonical id."""
    return _DEADLINES_US.get((harness, hook), DEADLINE_US)


def state_directory(environ: Mapping[str, str]) -> str:
    """Return the user's own state directory, where the plan is; the configuration may name another for the rest."""
    return os.path.join(_base(environ, "XDG_STATE_HOME", ".local/state"), "holdfast")


def spools(state_dir: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return every file that a hook call may have been spooled to.

    Args:
        state_dir: The configured state directory.
        environ: The environment.
    """
    return tuple(dict.fromkeys(os.path.join(each, "hooks.db") for each in (state_dir, state_directory(environ))))


def config_file(named: str | None, environ: Mapping[str, str]) -> str:
    """Return where the configuration file is, or would be."""
    if named is not None:
        return os.path.abspath(os.path.expanduser(named))
    return os.path.join(_base(environ, "XDG_CONFIG_HOME", ".config"), "holdfast", "holdfast.toml")


def head(config: str | None, db: str | None, environ: Mapping[str, str]) -> str:
    """Return all that a plan depends on, as it is now. Take it before the configuration is read.

    Args:
        config: `--config`, or None.
        db: `--db`, or None.
        environ: The environment.
    """
    path = config_file(config, environ)
    try:
        state = os.stat(path)
        stamp = f"{state.st_mtime_ns} {state.st_size}"
    except OSError:
        stamp = "-"
    home = environ.get("HOME", "")
    data = environ.get("XDG_DATA_HOME", "")
    return (
        f"holdfast.plan.v1 {VERSION}\nconfig {path} {stamp}\ndb {_named(db, environ)}\n"
        f"home {home or '-'}\ndata {data or '-'}\n"
    )


class Plan:
    """A plan that is valid now.

    Attributes:
        ledger: The path of the ledger, None: it is no file.
        schema: The schema it has.
        state_dir: The configured state directory.
        lock_wait_ms: How long to wait for the ledger.
    """

    __slots__ = ("_hooks", "ledger", "lock_wait_ms", "schema", "state_dir")

    def __init__(self, body: str) -> None:
        lines = body.split("\n")
        if lines[-2:] != ["end", ""]:
            raise ValueError("it was cut off")
        values = dict(line.split(" ", 1) for line in lines[:4])
        self.ledger = None if values["ledger"] == REMOTE else values["ledger"]
        self.schema = int(values["schema"])
        self.state_dir = values["state"]
        self.lock_wait_ms = int(values["lock_wait_ms"])
        self._hooks = dict.fromkeys(lines[4:-2])

    def dispatches(self, harness: str, hook: str) -> bool:
        """Say whether a client is to be asked; of a call that names no hook, whether one may have to be."""
        if not hook:
            return any(line.startswith(f"hook {harness} ") and " dispatch" in line for line in self._hooks)
        line = f"hook {harness} {hook} dispatch"
        return line in self._hooks or f"{line} closed" in self._hooks

    def closes(self, harness: str, hook: str) -> bool:
        """Say whether a failure has to block the harness."""
        line = f"hook {harness} {hook}"
        return f"{line} dispatch closed" in self._hooks or f"{line} observe closed" in self._hooks


def read(directory: str, head: str) -> Plan | None:
    """Read the plan; None: there is none, it is for something else, or it is not to be trusted.

    Args:
        directory: The user's own state directory.
        head: What it has to be for.
    """
    try:
        descriptor = os.open(os.path.join(directory, FILE_NAME), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            state = os.fstat(descriptor)
            if state.st_uid != os.geteuid() or state.st_mode & 0o022 or state.st_size > PLAN_BYTES_MAX:
                return None
            text = os.read(descriptor, PLAN_BYTES_MAX).decode("utf-8", "surrogateescape")
        finally:
            os.close(descriptor)
        return Plan(text[len(head) :]) if text.startswith(head) else None
    except (OSError, ValueError, KeyError):
        return None


def serves(directory: str, db: str | None, environ: Mapping[str, str]) -> bool:
    """Say whether hook calls go to the ledger that is named like this; also where no plan tells.

    Args:
        directory: The user's own state directory.
        db: `--db`, or None.
        environ: The environment.
    """
    try:
        with open(os.path.join(directory, FILE_NAME), encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(PLAN_BYTES_MAX).split("\n")
    except OSError:
        return True
    named = _named(db, environ)
    return f"db {named}" in lines or f"ledger {named}" in lines


def compose(
    head: str, *, ledger: str | None, schema: int, state_dir: str, lock_wait_ms: int, hooks: Iterable[str]
) -> str | None:
    """Return the text of a plan; None: there is a line break where there can be none, so it cannot be written.

    Args:
        head: What it is for.
        ledger: The absolute path of the ledger's file, None: it is no file.
        schema: The schema it has.
        state_dir: The configured state directory.
        lock_wait_ms: How long to wait for the ledger.
        hooks: One line for each: `HARNESS HOOK observe` or `HARNESS HOOK dispatch`, then ` closed` if a failure blocks.
    """
    lines = [
        f"ledger {REMOTE if ledger is None else ledger}",
        f"schema {schema}",
        f"state {state_dir}",
        f"lock_wait_ms {lock_wait_ms}",
        *(f"hook {hook}" for hook in hooks),
        "end",
    ]
    return None if any("\n" in line for line in lines) else head + "\n".join(lines) + "\n"


def write(directory: str, text: str) -> None:
    """Put a plan in the place of the one there is, with mode 0600.

    Raises:
        OSError: The directory cannot be made or written.
    """
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, FILE_NAME)
    fresh = f"{path}.{os.getpid()}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        os.replace(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise


def _base(environ: Mapping[str, str], variable: str, default: str) -> str:
    named = environ.get(variable, "")
    if named.startswith("/"):  # the base directory specification has relative ones ignored
        return named
    return os.path.join(environ.get("HOME") or os.path.expanduser("~"), default)


def _named(db: str | None, environ: Mapping[str, str]) -> str:
    """What tells ledgers apart: an absolute path, or a URL without user and password; `-`: the configured one."""
    target = environ.get("HOLDFAST_DB", "") if db is None else db
    scheme, mark, rest = target.partition("://")
    if mark:
        authority, slash, name = rest.partition("/")
        return f"{scheme}{mark}{authority.rpartition('@')[2]}{slash}{name.partition('?')[0]}"
    return os.path.abspath(target) if target and target != ":memory:" else target or "-"
