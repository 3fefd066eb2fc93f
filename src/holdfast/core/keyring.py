"""Seal bytes so that only who has the key can read or make them.

This module hides the cipher: XChaCha20-Poly1305, whose nonces are long enough to be drawn at random
for as many messages as anybody will ever write. A ring has one key that seals, and may have the one
before it, so that what it sealed can still be opened while keys change.

Invariants:
    - Whatever was changed, in the sealed bytes or in what they were sealed for, does not open.
    - Keys appear in no representation, message or error.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import secrets
from collections.abc import Mapping
from typing import Any, Final

from blake3 import blake3

from holdfast.core.errors import CodecError, ConfigError

__all__ = ["KeyRing", "ring_of"]

KEY_BYTES: Final = 32
KEY_ID_MAX: Final = 2**31
"""Key ids fit a signed column of four bytes, but for the last; they are counted, not drawn."""
ROOT_NUMBER_MAX: Final = 255
"""Numbers of the ledger's own keys are stored in one byte."""
_NONCE_BYTES: Final = 24
_PAYLOADS: Final = "holdfast durable v1 payload-key"


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

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of its keys; the one that seals at first."""
        return (self._current,) if self._previous is None else (self._current, self._previous)

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


def ring_of(environ: Mapping[str, str]) -> KeyRing | None:
    """Return the keys of the ledger: `HOLDFAST_KEY`, and `HOLDFAST_KEY_PREVIOUS` for what was sealed before.

    Each is a number from 1 to 255, a colon, and 32 bytes in base64, from which the key is derived.

    Args:
        environ: The environment. Without `HOLDFAST_KEY` there are no keys.

    Raises:
        ConfigError: One of them is not of this kind, or PyNaCl is not installed.
    """
    found = [_root(name, environ[name]) for name in ("HOLDFAST_KEY", "HOLDFAST_KEY_PREVIOUS") if environ.get(name)]
    if not environ.get("HOLDFAST_KEY"):
        return None
    return KeyRing(found[0], found[1] if len(found) > 1 else None)


def _root(name: str, text: str) -> tuple[int, bytes]:
    number, _, encoded = text.partition(":")
    try:
        root = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        root = b""
    known = number.isascii() and number.isdigit() and 0 < int(number) <= ROOT_NUMBER_MAX
    if not known or len(root) != KEY_BYTES:
        raise ConfigError(
            f"{name} is not NUMBER:BASE64",
            f"write a number from 1 to {ROOT_NUMBER_MAX}, a colon, and {KEY_BYTES} random bytes in base64",
            keys=(name,),
        )
    framed = len(root).to_bytes(4, "little") + root
    return int(number), blake3(framed, derive_key_context=_PAYLOADS).digest()


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
