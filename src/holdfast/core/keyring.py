"""Seal bytes so that only who has the key can read or make them.

This module hides the cipher: XChaCha20-Poly1305, whose nonces are long enough to be drawn at random
for as many messages as anybody will ever write. A ring has one key that seals, and may have the one
before it, so that what it sealed can still be opened while keys change.

Invariants:
    - Whatever was changed, in the sealed bytes or in what they were sealed for, does not open.
    - Keys appear in no representation, message or error.
"""

from __future__ import annotations

import importlib
import secrets
from typing import Any, Final

from holdfast.core.errors import CodecError, ConfigError

__all__ = ["KeyRing"]

KEY_BYTES: Final = 32
KEY_ID_MAX: Final = 2**31
"""Key ids fit a signed column of four bytes, but for the last; they are counted, not drawn."""
_NONCE_BYTES: Final = 24


class KeyRing:
    """The keys of one ledger. Sealing a large text takes time, and may be done in a thread.

    Example:
        >>> ring = KeyRing(current=(2, bytes(32)), previous=(1, bytes(31) + b"!"))
        >>> key_id, sealed = ring.seal(b"secret", b"for this row")
        >>> ring.open(key_id, sealed, b"for this row")
        b'secret'
        >>> ring
        KeyRing(current=2, previous=1)
    """

    __slots__ = ("_bindings", "_current", "_keys", "_previous")

    def __init__(self, current: tuple[int, bytes], previous: tuple[int, bytes] | None = None) -> None:
        """Build a ring.

        Args:
            current: Number (1 to 2^31 - 1) and 32 random bytes of the key that seals.
            previous: The same of the key before it, as long as something it sealed is kept.

        Raises:
            ConfigError: A number or a key is not of this kind, or one number stands for two keys
                (`config.invalid`); PyNaCl is not installed (`config.missing_extra`).
        """
        self._bindings = _bindings()
        self._current = _checked(current)
        self._previous = None if previous is None else _checked(previous)
        if self._current == self._previous:
            raise ConfigError("two keys of a key ring have the same number", "give every new key the next number")
        self._keys = dict(pair for pair in (previous, current) if pair is not None)

    def __repr__(self) -> str:
        return f"KeyRing(current={self._current}, previous={self._previous})"

    def seal(self, plain: bytes, aad: bytes) -> tuple[int, bytes]:
        """Return the number of the current key, and the sealed bytes.

        Args:
            plain: What to hide.
            aad: What it belongs to; it opens for nothing else.
        """
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = self._bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(plain, aad, nonce, self._keys[self._current])
        return self._current, nonce + sealed

    def open(self, key_id: int, sealed: bytes, aad: bytes) -> bytes:
        """Return what was sealed.

        Raises:
            ConfigError: There is no key of this number (`config.unknown_cipher_key`).
            CodecError: It was changed, sealed with another key, or for something else (`codec.decode`).
        """
        key = self._keys.get(key_id)
        if key is None:
            raise ConfigError(
                f"the key ring has no key {key_id}",
                "give it the key of this number as `previous`",
                code="config.unknown_cipher_key",
            )
        nonce, text = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            # PyNaCl says by many types that something does not fit.
            plain: bytes = self._bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(text, aad, nonce, key)
        except Exception as error:
            raise CodecError(f"sealed bytes do not open with key {key_id}", "restore them from a backup") from error
        return plain


def _checked(pair: tuple[int, bytes]) -> int:
    key_id, key = pair
    if type(key_id) is not int or not 0 < key_id < KEY_ID_MAX:
        raise ConfigError("the number of a key must be from 1 to 2^31 - 1", "count keys from 1")
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise ConfigError(f"key {key_id} must be {KEY_BYTES} bytes", "make one with secrets.token_bytes(32)")
    return key_id


def _bindings() -> Any:
    try:
        return importlib.import_module("nacl.bindings")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "nacl":
            raise
        raise ConfigError(
            "a key ring needs the package PyNaCl", "pip install 'holdfast[crypto]'", code="config.missing_extra"
        ) from None
