"""Who comes in: access keys and their scopes, and without any key whoever is on this machine.

As long as no access key was ever made, a ledger belongs to the user whose machine this is: requests come over the
loopback interface, under a loopback name, and from no page of another origin. The first key ends that for good.

Invariants:
    - A key that was revoked anywhere is refused here `SEEN_WITHIN_S` later at the latest.
    - What is remembered of a key is its record, never the key.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import TYPE_CHECKING

from holdfast.core.errors import ConfigError, StoreError
from holdfast.core.loops import Tasks
from holdfast.sessions import access
from holdfast.sessions.errors import Forbidden, Unauthenticated
from holdfast.sessions.values import LOCAL

if TYPE_CHECKING:
    from holdfast.sessions.access import AccessKey
    from holdfast.sessions.values import Principal, Scope
    from holdfast.store.database import Database

__all__ = ["Gate", "check_bind", "is_loopback"]

SEEN_WITHIN_S = 2.0
"""How old what is remembered of a key may be; revocations are promised within five seconds."""

REMEMBERED_MAX = 4096
"""Keys remembered: many more than an installation has."""

USE_NOTED_US = 60_000_000
"""How exact the time of a key's last use is: one write a minute is not felt."""

Headers = Iterable[tuple[bytes, bytes]]


class Gate:
    """Lets requests in. It belongs to one event loop."""

    def __init__(self, database: Database, hosts: Iterable[str]) -> None:
        """Describe a gate.

        Args:
            database: The open ledger.
            hosts: Names besides those of this machine that a server without keys may be called by.
        """
        self._database = database
        self._hosts = frozenset(host.lower() for host in hosts)
        self._keyed: tuple[float, bool] | None = None
        self._known: dict[str, tuple[float, AccessKey | None]] = {}
        self._tasks = Tasks()

    async def keyed(self) -> bool:
        """Say whether a key is needed. Once it is, it is for good."""
        now = self._database.clock.monotonic()
        if self._keyed is None or (not self._keyed[1] and now - self._keyed[0] > SEEN_WITHIN_S):
            async with self._database.read() as tx:
                self._keyed = (now, await access.exist(tx))
        return self._keyed[1]

    async def admit(self, headers: Headers, wanted: Scope | None) -> Principal:
        """Decide who asks, and whether that is enough.

        Args:
            headers: The request's.
            wanted: The scope that the route needs; None: anybody may come who comes to the right place.

        Raises:
            Unauthenticated: A key is needed, and there is none or no good one.
            Forbidden: The key has not the scope; or without keys, the request comes from another place.
        """
        given = list(headers)
        if not await self.keyed():
            self._check_place(given)
            return LOCAL
        if wanted is None:
            return LOCAL
        found = await self._principal(_token(given))
        if wanted not in found.scopes:
            raise Forbidden(f"this needs an access key with the scope {wanted}", "`holdfast access create` makes one")
        return found

    async def stop(self) -> None:
        """Wait for what is being noted, and forget everything."""
        await self._tasks.settle(1.0)
        await self._tasks.stop()
        self._known.clear()

    async def _principal(self, token: str) -> Principal:
        parts = access.parse(token)
        if parts is None:
            raise Unauthenticated("there is no access key", "send one: Authorization: Bearer hfk_…")
        key_id, secret = parts
        clock = self._database.clock
        at, key = self._known.get(key_id, (-SEEN_WITHIN_S, None))
        if key is None or clock.monotonic() - at > SEEN_WITHIN_S:
            at = clock.monotonic()
            async with self._database.read() as tx:
                key = await access.get(tx, key_id)
        principal = access.principal(key, secret, clock.now())
        assert key is not None  # or it would have been refused
        if len(self._known) >= REMEMBERED_MAX:
            self._known.clear()
        self._known[key_id] = (at, key)
        if key.last_used_at is None or clock.now() - key.last_used_at > USE_NOTED_US:
            key = access.used(key, clock.now())
            self._known[key_id] = (at, key)
            self._tasks.spawn(self._note(key), "holdfast.access.used")
        return principal

    async def _note(self, key: AccessKey) -> None:
        try:
            await self._database.submit("access_keys.use", now=key.last_used_at, key_id=key.key_id)
        except StoreError:
            return  # whoever was let in stays in; the next use is noted

    def _check_place(self, headers: list[tuple[bytes, bytes]]) -> None:
        hosts = [value for name, value in headers if name == b"host"]
        host = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        if not (is_loopback(name := _name(host)) or name in self._hosts):
            raise Forbidden(
                "without access keys this server answers to names of its own machine only",
                "call it by localhost, add the name to allow_hosts, or make an access key",
            )
        for name_, value in headers:
            if name_ == b"origin" and value.decode("latin-1").lower().partition("://")[2] != host:
                raise Forbidden(
                    "the request comes from a page of another origin", "make an access key, and let the page send it"
                )


def check_bind(host: str, *, keyed: bool) -> None:
    """Refuse to listen where others could come in without a key.

    Raises:
        ConfigError: The address is not a loopback one, and no key was ever made (`config.bind`).
    """
    if not keyed and not is_loopback(host):
        raise ConfigError(
            f"without access keys the server listens on this machine only, not on {host}",
            "listen on 127.0.0.1, or make a key first: holdfast access create --scope admin",
            code="config.bind",
        )


def is_loopback(host: str) -> bool:
    """Say whether a host name or address is this machine's own, without asking any name server."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """The name or address of a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _token(headers: list[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return next((value.decode("latin-1") for name, value in headers if name == b"x-api-key"), "")
