"""An org at a server: what it sends, in the members that are posted, and what it sees, in the members that are shown.

Every scenario has an org of its own, so that scenarios share a server and do not meet.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import httpx
from tests.http.backends import Server
from tests.unit.sessions_data import FIXTURES

from holdfast import Holdfast
from holdfast.sessions import access
from holdfast.sessions.config import Prices
from holdfast.sessions.values import Principal

CARDS = FIXTURES / "rates" / "sonnet-4-6.json"
MODEL = "claude-sonnet-4-6"
PATIENCE_S = 60
NOON = 1_780_000_000_000_000
"""Some instant, in microseconds."""

_numbers = itertools.count(1)


def minute(number: float) -> int:
    """An instant, so many minutes after noon."""
    return NOON + int(number * 60_000_000)


# --- what is sent


def asked(*messages: Any, **more: Any) -> dict[str, Any]:
    """A request of these messages, the user's first, in turns."""
    roles = itertools.cycle(("user", "assistant"))
    return {"model": MODEL, "messages": [{"role": next(roles), "content": each} for each in messages], **more}


def said(text: str = "yes", id: str = "m1", used: tuple[int, int] = (7, 3), **more: Any) -> dict[str, Any]:
    """An answer with this text."""
    usage = {"input_tokens": used[0], "output_tokens": used[1]}
    content = [{"type": "text", "text": text}]
    return {"id": id, "model": MODEL, "content": content, "stop_reason": "end_turn", "usage": usage, **more}


def named(session: str, harness: str = "claude", **more: Any) -> dict[str, Any]:
    """A session of a harness."""
    return {"harness_id": harness, "harness_session_id": session, **more}


def event(capture_id: str, at: float = 0, **more: Any) -> dict[str, Any]:
    """A captured call under a capture id, so many minutes after noon; its message id is its own unless it is given."""
    return {
        "capture_id": capture_id, "provider": "anthropic", "endpoint": "/v1/messages", "captured_at": minute(at),
        "request": asked("hi"), "response": said(id=f"msg_{capture_id}"), "session": named("s"), **more,
    }  # fmt: skip


class Org:
    """One org at a server, and its access keys.

    Attributes:
        id: The org.
        keys: Access keys by scope; "all" is good for everything.
        client: Speaks to the server; `headers` say for whom.
    """

    def __init__(self, at: Server, id: UUID, keys: dict[str, str]) -> None:
        self.at = at
        self.id = id
        self.keys = keys
        self.client: httpx.Client = at.client

    @property
    def headers(self) -> dict[str, str]:
        return {"x-api-key": self.keys["all"]}

    def post(self, given: Any, path: str = "/v1/ingest", **headers: str) -> tuple[int, Any]:
        """Send JSON as it is written here, or bytes as they are; a retry is the same bytes."""
        content = given if isinstance(given, bytes) else json.dumps(given).encode()
        spelt = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {**self.headers, "content-type": "application/json", **spelt}
        answer = self.client.post(path, content=content, headers=sent)
        return answer.status_code, answer.json()

    def take(self, *events: Any) -> list[Any]:
        """Send calls one after the other, each once the one before it has its turn; return what was answered."""
        told = []
        for each in events:
            status, answer = self.post(each, prefer="wait=10")
            assert (status, answer["status"]) == (202, "accepted"), answer
            if not answer["derived"]:
                self.settle()
            told.append(answer)
        return told

    def batch(self, *events: Any) -> Any:
        """Send calls at once, and wait until they have their turns; return what was answered."""
        status, told = self.post({"items": events}, "/v1/ingest/batch")
        assert status == 207, told
        self.settle()
        return told

    def settle(self) -> None:
        """Wait until nothing waits to be derived."""
        until = time.monotonic() + PATIENCE_S
        while self.get("/v1/raw", state="pending", limit=1)["items"]:
            assert time.monotonic() < until

    def ask(self, path: str, method: str = "GET", **query: Any) -> httpx.Response:
        """Ask anything."""
        return self.client.request(method, path, params=query, headers=self.headers)

    def get(self, path: str, **query: Any) -> Any:
        """Return a document that has to be there."""
        answer = self.ask(path, **query)
        assert answer.status_code == 200, (path, answer.text)
        return answer.json()

    def pages(self, path: str, **query: Any) -> Iterator[Any]:
        """Go through a list, page by page."""
        cursor = ""
        while cursor is not None:
            page = self.get(path, cursor=cursor, **query) if cursor else self.get(path, **query)
            yield from page["items"]
            cursor = page["next"]

    def sessions(self, **query: Any) -> dict[str, Any]:
        """Return the sessions that are listed, by their keys."""
        listed = list(self.pages("/v1/sessions", limit=200, **query))
        found = {(each["harness_id"], each["harness_session_id"]): each for each in listed}
        assert len(found) == len(listed), "a key is listed once"
        return {key[1]: each for key, each in found.items()}

    def only(self, **query: Any) -> Any:
        """Return the one session that is listed."""
        [found] = self.sessions(**query).values()
        return found

    def turns(self, session: Any, **query: Any) -> list[Any]:
        """Return the turns of a session."""
        return list(self.pages(f"/v1/sessions/{session['id']}/turns", limit=200, **query))

    def events(self) -> list[Any]:
        """Return the captured events, in the order they came."""
        return list(self.pages("/v1/raw", limit=200))

    def projection(self) -> str:
        """Return the hash of all that was derived."""
        return self.at.do(lambda _: self.at.serving.backend.archive.projection_hash(principal=self.principal))

    @property
    def principal(self) -> Principal:
        """Who the key for everything is, in the server."""
        return Principal(self.id, frozenset(access.SCOPES), "test")


def priced() -> dict[str, Any]:
    """Settings of a server that knows what the recorded session's model costs."""
    return {"prices": Prices(cards=CARDS, package=False)}


def join(at: Server, id: UUID | None = None) -> Org:
    """Make an org, with a key for everything and one for each scope."""
    org_id = UUID(int=0xC0FFEE << 64 | next(_numbers)) if id is None else id
    wanted: dict[str, Sequence[str]] = {"all": access.SCOPES, **{each: (each,) for each in access.SCOPES}}

    async def make(hf: Holdfast) -> dict[str, str]:
        async with hf.database.write() as tx:
            now = hf.database.clock.now()
            made = {}
            for name, scopes in wanted.items():
                _, made[name] = await access.create(
                    tx, org=org_id, scopes=scopes, label="", expires_at=None, now=now
                )  # fmt: skip
            return made

    return Org(at, org_id, at.do(make))
