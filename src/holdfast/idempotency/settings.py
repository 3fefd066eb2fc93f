"""What the command line is told of idempotency: section `[idempotency]`, `HOLDFAST_IDEMPOTENCY_<KEY>`.

A guard is configured in the application, by `IdempotencyConfig`; only what an operator's tools need beside the
ledger is read from a file.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.core.config import check, load
from holdfast.core.errors import ConfigError
from holdfast.idempotency.rules import SECRET_BYTES_MIN

__all__ = ["IdempotencySettings"]


@dataclass(frozen=True, kw_only=True)
class IdempotencySettings:
    """Settings of operators' tools.

    Attributes:
        secrets: The guard's secrets in base64, the one that writes first.
    """

    secrets: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        check(self)

    @classmethod
    def load(cls, path: Path | None, environ: Mapping[str, str]) -> IdempotencySettings:
        """Read them from the configuration file and the environment; the later wins.

        Raises:
            ConfigError: A key is unknown or has a wrong type.
        """
        return load(cls, "idempotency", path=path, environ=environ)

    def decoded(self) -> list[bytes]:
        """Return the secrets.

        Raises:
            ConfigError: There is none, or one is not base64 or too short.
        """
        if not self.secrets:
            raise ConfigError(
                "no secret is configured, and without it a key cannot be looked up",
                "set HOLDFAST_IDEMPOTENCY_SECRETS, or secrets in [idempotency], to the guard's, in base64",
                code="config.secret_missing",
                keys=("secrets",),
            )
        try:
            found = [base64.b64decode(secret, validate=True) for secret in self.secrets]
        except (binascii.Error, ValueError):
            raise ConfigError("a secret is not base64", "encode its bytes in base64", keys=("secrets",)) from None
        if any(len(secret) < SECRET_BYTES_MIN for secret in found):
            raise ConfigError(
                f"a secret has less than {SECRET_BYTES_MIN} bytes", "give the guard's own secrets",
                code="config.secret_weak", keys=("secrets",),
            )  # fmt: skip
        return found
