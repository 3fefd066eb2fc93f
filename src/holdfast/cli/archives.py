"""What commands about captured conversations have in common: whose they are, how they are named, how they are asked.

A SESSION is an id (`ses_…`), or harness id and harness session id with a slash between them.

Invariants:
    - A session that is not there ends a command with the answer no, whatever asked for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

import typer

from holdfast.cli.ledger import Place, drive

if TYPE_CHECKING:
    from holdfast import Holdfast
    from holdfast.sessions import Archive, Principal, SessionRef, Total

__all__ = [
    "OrgOption", "SessionArgument", "SinceOption", "UntilOption", "archive_of", "at", "change", "look",
    "missing", "money", "ref_of", "show_json", "who_of",
]  # fmt: skip

T = TypeVar("T")

SessionArgument = Annotated[str, typer.Argument(metavar="SESSION", help="Its id, or HARNESS/SESSION_ID.")]
OrgOption = Annotated[
    str | None,
    typer.Option("--org", metavar="ID", help="A UUID. Default: the org of a ledger without keys.", show_default=False),
]
SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="T", help="From then on: 90s, 15m, 12h, 7d ago, or an instant.", show_default=False
    ),
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="T", help="Before then; as --since.", show_default=False)
]


def archive_of(place: Place, hf: Holdfast) -> Archive:
    """Return the archive of an open ledger."""
    from holdfast.sessions import Archive

    return Archive(hf.database, config=place.sessions())


def look(place: Place, org: str | None, read: Callable[[Archive, Principal], Awaitable[T]]) -> T:
    """Ask an archive something: that of the ledger, or the one behind a server."""
    who = who_of(org)
    if place.url is not None:
        return drive(_ask(place, org, read))
    return drive(place.look(lambda hf: read(archive_of(place, hf), who)))


def change(place: Place, org: str | None, work: Callable[[Archive, Principal], Awaitable[T]]) -> T:
    """Change something in an archive: that of the ledger, or the one behind a server."""
    who = who_of(org)
    if place.url is not None:
        return drive(_ask(place, org, work))

    async def run() -> T:
        async with place.changing() as hf:
            return await work(archive_of(place, hf), who)

    return drive(run())


async def _ask(place: Place, org: str | None, read: Callable[[Archive, Principal], Awaitable[T]]) -> T:
    from holdfast.cli.remote import Remote
    from holdfast.sessions import LOCAL

    if place.db is not None or org is not None:
        raise typer.BadParameter("--url goes without --db and --org: the access key says whose conversations are meant")
    async with Remote(place.url or "", place.access_key or "") as remote:
        # A command that takes a URL asks for nothing that a server does not answer.
        return await read(cast("Archive", remote), LOCAL)


def missing(session: str) -> typer.Exit:
    """Say that a session is not there; return what ends the command."""
    from holdfast.cli.render import complain

    complain(f"there is no session {session}", "holdfast sessions list shows those there are")
    return typer.Exit(1)


def who_of(org: str | None) -> Principal:
    """Return whose rows are meant."""
    from dataclasses import replace

    from holdfast.sessions import LOCAL
    from holdfast.sessions.identity import org_id

    if org is None:
        return LOCAL
    found = org_id(org)
    if found is None:
        raise typer.BadParameter("--org is no UUID")
    return replace(LOCAL, org_id=found)


def ref_of(text: str) -> SessionRef:
    """Return the session that somebody wrote."""
    harness, slash, session = text.partition("/")
    return (harness, session) if slash else text


def at(since: str | None) -> datetime | None:
    """Return the instant that somebody wrote, or how long ago it was."""
    from holdfast.cli.documents import instant_of
    from holdfast.core.clock import SystemClock, to_datetime

    found = instant_of(since, SystemClock().now())
    return None if found is None else to_datetime(found)


def show_json(value: object) -> None:
    """Print records as the JSON that the server sends."""
    from holdfast.cli.render import print_json
    from holdfast.sessions.views import document

    print_json(document(value))


def money(cost: Total) -> str:
    """Write a total; where a part of it is not known, as the least that it is."""
    if cost.usd is None:
        return "unpriced"
    return f"{'' if cost.state == 'priced' else '≥ '}${cost.usd:.6f}"
