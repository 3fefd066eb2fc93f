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
from holdfast.core.keyring import KEY_BYTES, KeyRing
from holdfast.idempotency.rules import SECRET_BYTES_MIN

__all__ = ["IdempotencySettings"]


@dataclass(frozen=True, kw_only=True)
class IdempotencySettings:
    """Settings of operators' tools.

    Attributes:
        secrets: The guard's secrets in base64, the one that writes first.
        cipher: The keys of the guard's `KeyRing`, each as NUMBER:BASE64: the one that seals, then the one before it.
    """

    secrets: tuple[str, ...] = field(default=(), repr=False)
    cipher: tuple[str, ...] = field(default=(), repr=False)

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

    def ring(self) -> KeyRing | None:
        """Return the guard's cipher; None: none is configured.

        Raises:
            ConfigError: A key is not NUMBER:BASE64, there are more than two, or PyNaCl is not installed.
        """
        if not self.cipher:
            return None
        found = [_cipher_key(text) for text in self.cipher]
        if len(found) > 2:
            raise ConfigError(
                "a cipher has two keys at most", "give the one that seals and the one before it", keys=("cipher",)
            )
        return KeyRing(found[0], found[1] if len(found) > 1 else None)


def _cipher_key(text: str) -> tuple[int, bytes]:
    number, _, key = text.partition(":")
    try:
        decoded = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if len(decoded) != KEY_BYTES or not (number.isascii() and number.isdigit()):
        raise ConfigError(
            "a key of the cipher is not NUMBER:BASE64",
            f"write its number, a colon, and its {KEY_BYTES} bytes in base64",
            keys=("cipher",),
        )
    return int(number), decoded
