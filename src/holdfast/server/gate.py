"""Who comes in: access keys and their scopes, and without any key whoever is on this machine.

As long as no access key was ever made, a ledger belongs to the user whose machine this is: requests come over the
loopback interface, under a loopback name, and from no page of another origin. The first key ends that for good.

A proxy that is trusted may say for which org, and for whom, a request comes; nobody else's word on that counts.

Invariants:
    - A key that was revoked anywhere is refused here `SEEN_WITHIN_S` later at the latest.
    - What is remembered of a key is its record, never the key.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING

from holdfast.core.errors import ConfigError, StoreError
from holdfast.core.loops import Tasks
from holdfast.sessions import access
from holdfast.sessions.errors import Forbidden, InvalidField, Unauthenticated
from holdfast.sessions.identity import org_id
from holdfast.sessions.limits import ID_BYTES_MAX
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

_ORG, _SUBJECT = b"x-paper-auth-org-id", b"x-paper-auth-subject"

Headers = Iterable[tuple[bytes, bytes]]


class Gate:
    """Lets requests in. It belongs to one event loop."""

    def __init__(self, database: Database, hosts: Iterable[str], trusted: Iterable[str] = ()) -> None:
        """Describe a gate.

        Args:
            database: The open ledger.
            hosts: Names besides those of this machine that a server without keys may be called by.
            trusted: Addresses, and networks of them, of proxies that may speak for others.

        Raises:
            ConfigError: A proxy is no address.
        """
        self._database = database
        self._trusted = tuple(map(_network, trusted))
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

    async def admit(self, headers: Headers, wanted: Scope | None, peer: str = "") -> Principal:
        """Decide who asks, and whether that is enough.

        Args:
            headers: The request's.
            wanted: The scope that the route needs; None: anybody may come who comes to the right place.
            peer: The address that the request comes from.

        Raises:
            Unauthenticated: A key is needed, and there is none or no good one.
            Forbidden: The key has not the scope; or without keys, the request comes from another place.
            InvalidField: A trusted proxy names an org that cannot be one.
        """
        given = list(headers)
        if not await self.keyed():
            self._check_place(given)
            return self._spoken_for(LOCAL, given, peer)
        if wanted is None:
            return LOCAL
        found = await self._principal(_token(given))
        if wanted not in found.scopes:
            raise Forbidden(f"this needs an access key with the scope {wanted}", "`holdfast access create` makes one")
        return self._spoken_for(found, given, peer)

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

    def _spoken_for(self, principal: Principal, headers: list[tuple[bytes, bytes]], peer: str) -> Principal:
        """Return whom a trusted proxy speaks for."""
        if not self._trusted or not _is_in(peer, self._trusted):
            return principal
        said = {name: value.decode("latin-1").strip() for name, value in headers if name in (_ORG, _SUBJECT)}
        org = org_id(said[_ORG]) if said.get(_ORG) else principal.org_id
        if org is None:
            raise InvalidField("the proxy names an org that is no UUID", "correct the proxy", field=_ORG.decode())
        subject = said.get(_SUBJECT, "")
        if len(subject.encode()) > ID_BYTES_MAX:
            raise InvalidField(
                f"the proxy names a subject of more than {ID_BYTES_MAX} bytes", "correct it", field=_SUBJECT.decode()
            )
        return replace(principal, org_id=org, auth_subject=subject)

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


@functools.lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Say whether a host name or address is this machine's own, without asking any name server."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        raise ConfigError(
            f"trusted_proxies: {text!r} is no address", "give addresses, or networks such as 10.0.0.0/8"
        ) from None


def _is_in(peer: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    try:
        address = ip_address(peer)
    except ValueError:
        return False
    return any(address in network for network in networks)


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
