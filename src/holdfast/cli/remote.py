"""A server, asked as an archive is: what commands need of one, over HTTP.

Invariants:
    - What a server refuses is the error that an archive would raise.
    - The access key goes into one header, and nowhere else.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from holdfast.core.errors import CodedError, ConfigError, HoldfastError, Unavailable

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    import httpx

    from holdfast.sessions import (
        DeleteReport,
        Page,
        Payload,
        Principal,
        RawBody,
        Session,
        SessionFilters,
        SessionRef,
        StatsRow,
        Tree,
        Turn,
    )

__all__ = ["Remote"]

T = TypeVar("T")
PAGE = 200
TIMEOUT_S = 60
NOT_FOUND = "sessions.not_found"


@dataclass
class Remote:
    """The archive behind a server. It is asked for the org of its access key, whoever the principal is.

    Attributes:
        url: Where the server is.
        access_key: What lets in; empty: the server needs none.
    """

    url: str
    access_key: str = field(repr=False)
    _client: httpx.AsyncClient = field(init=False, repr=False)

    async def __aenter__(self) -> Self:
        try:
            import httpx
        except ModuleNotFoundError:
            raise ConfigError("--url needs httpx", "pip install 'holdfast[client]'") from None
        headers = {"authorization": f"Bearer {self.access_key}"} if self.access_key else {}
        try:
            self._client = httpx.AsyncClient(base_url=self.url, headers=headers, timeout=TIMEOUT_S)
        except (httpx.InvalidURL, UnicodeEncodeError):
            raise ConfigError("--url or --access-key is malformed", "such as --url http://localhost:4140") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def list(
        self,
        filters: SessionFilters,
        *,
        sort: str = "-last_seen",
        limit: int = 50,
        cursor: str = "",
        principal: Principal | None = None,
    ) -> Page[Session]:
        """See `Archive.list`."""
        from holdfast.sessions import Page, Session

        query = {**asdict(filters), "sort": sort, "limit": limit, "cursor": cursor}
        items, following = await self._items("/v1/sessions", Session, query)
        return Page(tuple(items), following)

    async def get(self, session: SessionRef, *, principal: Principal | None = None) -> Session | None:
        """See `Archive.get`."""
        from holdfast.sessions import Session, SessionFilters

        if isinstance(session, str):
            return await self._one(f"/v1/sessions/{_segment(session)}", Session)
        named = SessionFilters(harness_id=session[0], harness_session_id=session[1], include_placeholders=True)
        return next(iter((await self.list(named, limit=1)).items), None)

    async def turns(
        self, session: SessionRef, *, payload: Payload = "none", principal: Principal | None = None
    ) -> AsyncIterator[Turn]:
        """See `Archive.turns`."""
        from holdfast.sessions import Turn

        found = await self.get(session)
        cursor: str | None = ""
        while found is not None and cursor is not None:
            query = {"payload": payload, "limit": PAGE, "cursor": cursor}
            items, cursor = await self._items(f"/v1/sessions/{found.id}/turns", Turn, query)
            for each in items:
                yield each

    async def tree(self, session: SessionRef, *, principal: Principal | None = None) -> Tree | None:
        """See `Archive.tree`."""
        from holdfast.sessions import Tree

        found = await self.get(session)
        return None if found is None else await self._one(f"/v1/sessions/{found.id}/tree", Tree)

    async def raw(
        self, turn_id: str, part: Literal["request", "response"], *, principal: Principal | None = None
    ) -> RawBody | None:
        """See `Archive.raw`."""
        from holdfast.sessions import RawBody

        request = self._client.build_request("GET", f"/v1/turns/{_segment(turn_id)}/raw", params={"part": part})
        answer = await self._sent(request, stream=True)
        if answer is None:
            return None
        data = b"".join([chunk async for chunk in answer.aiter_raw()])  # as it was captured, its coding still on it
        return RawBody(data, answer.headers.get("content-type", ""), answer.headers.get("content-encoding", ""))

    async def stats(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        group_by: str = "model",
        principal: Principal | None = None,
    ) -> builtins.list[StatsRow]:
        """See `Archive.stats`."""
        from holdfast.sessions import StatsRow

        query = {"since": since, "until": until, "group_by": group_by}
        return (await self._items("/v1/stats", StatsRow, query))[0]

    async def delete(
        self, session: SessionRef, *, reason: str, dry_run: bool = False, principal: Principal | None = None
    ) -> DeleteReport:
        """See `Archive.delete`."""
        from holdfast.sessions import DeleteReport
        from holdfast.sessions.asking import no_session

        found = await self.get(session)
        if found is None:
            raise no_session()
        path = f"/v1/sessions/{found.id}"
        query = {"reason": reason, "dry_run": "true"}
        report = await self._asked("DELETE", path, query)  # a server says what goes only before it does
        if not dry_run and report is not None:
            await self._asked("DELETE", path, {"reason": reason})
        if report is None:
            raise no_session()
        return self._read(report, DeleteReport)

    async def _one(self, path: str, kind: type[T]) -> T | None:
        data = await self._asked("GET", path, {})
        return None if data is None else self._read(data, kind)

    async def _items(
        self, path: str, kind: type[T], query: Mapping[str, object]
    ) -> tuple[builtins.list[T], str | None]:
        import msgspec

        listed = msgspec.defstruct("listed", [("items", builtins.list[kind]), ("next", str | None)])  # type: ignore[valid-type]  # made for this kind
        data = await self._asked("GET", path, query)
        if data is None:
            return [], None
        found: Any = self._read(data, listed)
        return found.items, found.next

    async def _asked(self, method: str, path: str, query: Mapping[str, object]) -> bytes | None:
        params = {name: _written(value) for name, value in query.items() if value is not None}
        answer = await self._sent(self._client.build_request(method, path, params=params))
        return None if answer is None else await answer.aread()

    async def _sent(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response | None:
        """Send a request; return the answer, or None where what is asked for is not there.

        Raises:
            Unavailable: There is no such server.
            HoldfastError: The server refuses.
        """
        import httpx

        try:
            answer = await self._client.send(request, stream=stream)
        except httpx.TransportError as error:
            raise Unavailable(
                f"{self._place} does not answer: {type(error).__name__}", "start it with holdfast serve, or check --url"
            ) from None
        if answer.is_success:
            return answer
        refusal = self._refused(answer.status_code, await answer.aread())
        if refusal.code == NOT_FOUND:
            return None
        raise refusal

    def _refused(self, status: int, data: bytes) -> HoldfastError:
        """Return what a problem document says as the error that it was; another one comes from no server of ours."""
        import msgspec

        try:
            problem = msgspec.json.decode(data, type=dict[str, Any])
            code = str(problem["type"]).removeprefix("urn:holdfast:").replace(":", ".")
            return CodedError(str(problem["detail"]), str(problem.get("hint", "")), code=code)
        except (msgspec.MsgspecError, KeyError):
            return self._stranger(f"answered {status}")

    def _read(self, data: bytes, kind: type[T]) -> T:
        import msgspec

        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.MsgspecError:
            raise self._stranger("answered something else") from None

    def _stranger(self, what: str) -> Unavailable:
        return Unavailable(f"{self._place} {what}, and not as `holdfast serve` does", "check --url")

    @property
    def _place(self) -> str:
        """The server, without what the URL may say of who asks."""
        return self._client.base_url.netloc.decode()


def _segment(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def _written(value: object) -> str:
    """Write what a query says."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if isinstance(value, datetime) else str(value)
