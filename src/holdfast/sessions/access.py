"""Access keys: who may come in over HTTP, with what scopes, and of which org. Records over a transaction.

A key is `hfk_<id>_<secret>`. The ledger keeps a hash of the secret only: 256 random bits need no salt and no slow
hash. The whole key is seen once, by whoever made it.

Invariants:
    - No row, message or view holds a secret or any part of one.
    - A key says what it is good for by itself: its org and its scopes never change; a new one replaces it.
    - A key that is expired, revoked or unknown is told apart by nobody who asks with it.
"""

from __future__ import annotations

import builtins
import hmac
import os
from base64 import b32encode, urlsafe_b64encode
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast, get_args
from uuid import UUID

from blake3 import blake3

from holdfast.core.errors import ConfigError
from holdfast.sessions.errors import Unauthenticated
from holdfast.sessions.values import Principal, Scope

if TYPE_CHECKING:
    from holdfast.store.database import Row, Tx

__all__ = [
    "LABEL_CHARS_MAX",
    "SCOPES",
    "AccessKey",
    "create",
    "exist",
    "get",
    "list",
    "parse",
    "principal",
    "revoke",
    "used",
]

SCOPES: tuple[Scope, ...] = get_args(Scope)
"""What a key may be good for: to send, to read, to operate."""

LABEL_CHARS_MAX = 200
"""A line that says whose key it is."""

_MARK = "hfk_"
_ID_CHARS = 12
_SECRET_CHARS = 43
_PAGE = 500


@dataclass(frozen=True, slots=True)
class AccessKey:
    """What is known of an access key.

    Attributes:
        key_id: The part of it that may be shown.
        org_id: The org whose rows it reaches.
        scopes: What it is good for.
        label: What it was called.
        created_at: When it was made, microseconds.
        expires_at: From when on it is good for nothing; None: never.
        revoked_at: When it was taken back, or None.
        last_used_at: When it was last let in, within a minute; None: never.
        secret_hash: BLAKE3 of the secret.
    """

    key_id: str
    org_id: UUID
    scopes: frozenset[Scope]
    label: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None
    secret_hash: bytes


def parse(token: str) -> tuple[str, str] | None:
    """Take a key apart into its id and its secret; None: it has not the form of one."""
    key_id, mark, secret = token[len(_MARK) : len(_MARK) + _ID_CHARS], token[len(_MARK) + _ID_CHARS :][:1], token[17:]
    formed = token.startswith(_MARK) and mark == "_" and len(secret) == _SECRET_CHARS
    return (key_id, secret) if formed and token.isascii() and key_id.isalnum() else None


def principal(key: AccessKey | None, secret: str, now: int) -> Principal:
    """Decide who somebody is that came with a key. A key that is not there costs what a wrong one does.

    Args:
        key: The record of the id that it names, if there is one.
        secret: The secret that it has.
        now: The present.

    Raises:
        Unauthenticated: The key is not good.
    """
    right = hmac.compare_digest(key.secret_hash if key is not None else bytes(32), _hash(secret))
    alive = key is not None and key.revoked_at is None and (key.expires_at is None or now < key.expires_at)
    if key is None or not right or not alive:
        raise Unauthenticated("the access key is not valid", "send one that is: Authorization: Bearer hfk_…")
    return Principal(key.org_id, key.scopes, key.key_id)


async def create(
    tx: Tx, *, org: UUID, scopes: Collection[str], label: str, expires_at: int | None, now: int
) -> tuple[AccessKey, str]:
    """Make a key; return what is known of it, and the key itself, which nobody can show again.

    Raises:
        ConfigError: There is no scope, or an unknown one; the label is too long; it has expired already.
    """
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise ConfigError(
            f"{unknown[0]!r} is not a scope" if unknown else "an access key needs a scope",
            f"scopes are {', '.join(SCOPES)}",
            code="config.scope",
        )
    if len(label) > LABEL_CHARS_MAX or not label.isprintable():
        raise ConfigError(f"a label is one line of at most {LABEL_CHARS_MAX} characters", "give a shorter one")
    if expires_at is not None and expires_at <= now:
        raise ConfigError("the key would have expired already", "give a time to come")
    key_id = b32encode(os.urandom(10)).decode().lower()[:_ID_CHARS]
    secret = urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode()
    words = cast("frozenset[Scope]", frozenset(scopes))
    key = AccessKey(key_id, org, words, label, now, expires_at, None, None, _hash(secret))
    row = (org.bytes, key_id, key.secret_hash, " ".join(sorted(words)), label, now, expires_at)
    await tx.run("access_keys.put", [row])
    return key, f"{_MARK}{key_id}_{secret}"


async def get(tx: Tx, key_id: str) -> AccessKey | None:
    """Return the record of a key, whatever has become of it."""
    row = await tx.one("access_keys.get", key_id=key_id)
    return None if row is None else _key(row)


async def list(tx: Tx, org: UUID | None = None) -> builtins.list[AccessKey]:
    """List the keys of an org, or of all, the oldest first."""
    found: builtins.list[AccessKey] = []
    after = ""
    while True:
        rows = await tx.all("access_keys.list", org=None if org is None else org.bytes, after=after, most=_PAGE)
        found += map(_key, rows)
        if len(rows) < _PAGE:
            return sorted(found, key=lambda key: (key.created_at, key.key_id))
        after = rows[-1].key_id


async def revoke(tx: Tx, key_id: str, *, now: int) -> bool:
    """Take a key back; False: there is none, or it was taken back before."""
    return await tx.one("access_keys.revoke", now=now, key_id=key_id) is not None


async def exist(tx: Tx) -> bool:
    """Say whether a key was ever made: from then on nobody comes in without one."""
    row = await tx.one("access_keys.exist")
    assert row is not None
    return bool(row.count)


def used(key: AccessKey, now: int) -> AccessKey:
    """Return what is known of a key that was just let in; `access_keys.use` notes it."""
    return replace(key, last_used_at=now)


def _hash(secret: str) -> bytes:
    return blake3(secret.encode()).digest()


def _key(row: Row) -> AccessKey:
    words = cast("frozenset[Scope]", frozenset(row.scopes.split()))
    return AccessKey(
        row.key_id, UUID(bytes=bytes(row.org)), words, row.label, row.created_at, row.expires_at, row.revoked_at,
        row.last_used_at, bytes(row.secret_hash),
    )  # fmt: skip
