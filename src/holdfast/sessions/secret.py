"""The installation's secret: what fingerprints and the marks of redaction are keyed with, so that neither is an oracle.

It lies beside the database and not in it: who reads the one has not read the other. Several machines that share a
ledger share the file too, or a retry that comes to another machine is taken for another call.

Invariants:
    - The file is made once, whole, and readable for its owner alone; two processes that start at once agree.
    - The secret is never shown.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from holdfast.core.config import in_memory, state_directory
from holdfast.core.errors import ConfigError

if TYPE_CHECKING:
    from holdfast.store.database import Database

__all__ = ["SECRET_BYTES", "installation_secret", "secret_file"]

SECRET_BYTES: Final = 32
"""What a keyed BLAKE3 takes."""

_IN_MEMORY = "holdfast 2026 sessions: the secret of a ledger that ends with its process"


def secret_file(database: Database, given: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return where the secret of a ledger lies; None for one in memory.

    Args:
        database: The ledger.
        given: The path that is configured.
        environ: The environment, for the state directory.
    """
    if given is not None:
        return given
    if database.dialect == "sqlite":
        return None if in_memory(database.label) else Path(database.label + ".secret").absolute()
    return state_directory(None, environ) / "secrets" / database.namespace.hex()


def installation_secret(database: Database, path: Path | None) -> bytes:
    """Return the secret of a ledger; make it when there is none yet.

    Args:
        database: The ledger.
        path: From `secret_file`.

    Raises:
        ConfigError: The file cannot be read or made, may be read by others, or holds something else.
    """
    if path is None:
        return blake3(database.namespace, derive_key_context=_IN_MEMORY).digest()
    try:
        if not path.exists():
            _make(path)
        return _read(path)
    except OSError as error:
        raise _wrong(f"cannot use {path}: {error.strerror}", "check secret_file") from error


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # readable for the owner alone
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(made, path)  # whole or not at all, and never over another's
    finally:
        Path(made).unlink()


def _read(path: Path) -> bytes:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_uid not in (0, os.geteuid()) or about.st_mode & 0o077:
            raise _wrong(f"{path} is no file of yours that only you may read", "chmod 600 it")
        data = file.read(4096)
    if len(data) != SECRET_BYTES:
        raise _wrong(f"{path} does not hold {SECRET_BYTES} bytes", "give it back what it held")
    return data


def _wrong(message: str, hint: str) -> ConfigError:
    return ConfigError(message, hint, code="config.secret", keys=("secret_file",))
