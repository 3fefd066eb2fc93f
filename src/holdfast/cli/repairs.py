"""`holdfast sessions`, what changes something: delete, attribute, price again, derive again, name.

Invariants:
    - What cannot be taken back, or touches many sessions, is only shown without `--yes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.archives import (
    OrgOption,
    SessionArgument,
    SinceOption,
    UntilOption,
    at,
    change,
    look,
    money,
    ref_of,
    show_json,
)
from holdfast.cli.ledger import JsonOption, Place, placed, served

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.sessions import (
        Archive,
        Attributed,
        AttributionReport,
        DeleteReport,
        DeriveReport,
        Event,
        PackReport,
        Page,
        Principal,
        RepriceReport,
        Session,
        SessionTotals,
    )

__all__ = ["COMMANDS", "replay"]

ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do it. Without it only what would change is shown.")]


# --- taking away --------------------------------------------------------------------------------------


@served
def delete(
    place: Place,
    session: SessionArgument,
    *,
    reason: ReasonOption,
    yes: YesOption = False,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a session with everything that was captured of it; its key takes no more calls."""
    from holdfast.cli.render import counted, line

    ref = ref_of(session)

    async def work(books: Archive, who: Principal) -> DeleteReport:
        return await books.delete(ref, reason=reason, dry_run=not yes, principal=who)

    found = change(place, org, work)
    if as_json:
        show_json({"deleted": yes, "report": found})
        return
    word = "deleted" if yes else "would be deleted (--yes does it)"
    line(f"{found.session_id}: {counted(found.events, 'event')} and {counted(found.turns, 'turn')} {word}")
    if found.moved:
        line(f"{counted(found.moved, 'turn')} stay, in the sessions of others that tell of them")


@placed
def undelete_key(
    place: Place,
    session: Annotated[str, typer.Argument(metavar="HARNESS/SESSION_ID", help="Its key.", show_default=False)],
    *,
    org: OrgOption = None,
) -> None:
    """Let calls of a deleted session be taken again; what was deleted stays so."""
    from holdfast.cli.render import complain, line

    ref = ref_of(session)
    if isinstance(ref, str):
        raise typer.BadParameter("a deleted session is named HARNESS/SESSION_ID")
    key = ref

    async def work(books: Archive, who: Principal) -> bool:
        return await books.undelete_key(key, principal=who)

    if not change(place, org, work):
        complain(f"{session} was not deleted", "its calls are taken as they are")
        raise typer.Exit(1)
    line(f"{session} may be captured again")


@placed
def pack(
    place: Place,
    *,
    yes: YesOption = False,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep requests that have lain for a while by how they differ from one another."""
    from holdfast.cli.render import counted, line

    async def work(books: Archive, who: Principal) -> PackReport:
        return await books.pack(dry_run=not yes, principal=who)

    found = change(place, org, work)
    if as_json:
        show_json({"packed": yes, "report": found})
    elif yes:
        sizes = f"{found.bytes_before:,} bytes before, {found.bytes_after:,} after"
        line(f"{found.deltas:,} of {counted(found.events, 'request')} packed: {sizes}")
    else:
        line(f"{counted(found.events, 'request')} of {found.bytes_before:,} bytes would be packed (--yes does it)")


# --- putting events elsewhere -------------------------------------------------------------------------


@placed
def attribute(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    session: Annotated[
        str | None, typer.Argument(metavar="SESSION", help="Its id, or HARNESS/SESSION_ID.", show_default=False)
    ] = None,
    *,
    event: Annotated[
        list[str] | None, typer.Option("--event", metavar="ID", help="This event; several times.", show_default=False)
    ] = None,
    thread: Annotated[
        str | None,
        typer.Option("--thread", metavar="ID", help="Only this thread; empty: the main one.", show_default=False),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", metavar="HARNESS/SESSION_ID", help="Into it.", show_default=False)
    ] = None,
    to_harness: Annotated[
        str, typer.Option("--to-harness", metavar="NAME", help="To this harness.", show_default=False)
    ] = "",
    to_thread: Annotated[
        str | None,
        typer.Option("--to-thread", metavar="ID", help="To it; empty: the main one.", show_default=False),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            "--parent", metavar="[HARNESS/]SESSION_ID", help="Under it; empty: under none.", show_default=False
        ),
    ] = None,
    reason: ReasonOption,
    yes: YesOption = False,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a session's events, or some, into another session, thread or harness, or under another parent."""
    from holdfast.sessions import Attribution, Selector

    harness, _, name = ("", "", "") if to is None else to.partition("/")
    if to is not None and not (harness and name):
        raise typer.BadParameter("--to is HARNESS/SESSION_ID")
    if to is not None and to_harness:
        raise typer.BadParameter("--to names the harness already")
    above, slash, below = ("", "", None) if parent is None else parent.rpartition("/")
    chosen = Selector(
        event_ids=tuple(event or ()), session=None if session is None else ref_of(session), thread_id=thread
    )
    put = Attribution(
        harness_id=harness or to_harness,
        harness_session_id=name,
        thread_id=to_thread,
        parent_harness_id=above if slash else "",
        parent_harness_session_id=below,
    )

    async def work(books: Archive, who: Principal) -> AttributionReport:
        return await books.attribute(chosen, put, reason=reason, dry_run=not yes, principal=who)

    _show_attribution(change(place, org, work), as_json=as_json)


@placed
def undo_attribution(
    place: Place,
    attribution: Annotated[str, typer.Argument(metavar="ATTRIBUTION", help="Its id.", show_default=False)],
    *,
    yes: YesOption = False,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take an attribution back: its events are where they would be without it."""

    async def work(books: Archive, who: Principal) -> AttributionReport:
        return await books.undo_attribution(attribution, dry_run=not yes, principal=who)

    _show_attribution(change(place, org, work), as_json=as_json)


@placed
def attributions(place: Place, *, org: OrgOption = None, as_json: JsonOption = False) -> None:
    """List attributions in the order they were made."""
    from holdfast.cli.render import Column, instant, json_text, table
    from holdfast.sessions.views import document

    async def read(books: Archive, who: Principal) -> list[Attributed]:
        return await books.attributions(principal=who)

    found = look(place, org, read)
    if as_json:
        show_json({"items": found})
        return
    table(
        [
            Column("ATTRIBUTION", keep=True), Column("MADE"), Column("UNDONE"), Column("EVENTS OF"), Column("PUT"),
            Column("BY", minor=True), Column("REASON", minor=True),
        ],
        [
            [
                each.attribution_id, instant(each.created_at), instant(each.undone_at), json_text(each.selector),
                json_text(document(each.change)), each.actor, each.reason,
            ]
            for each in found
        ],
    )  # fmt: skip


def _show_attribution(report: AttributionReport, *, as_json: bool) -> None:
    from holdfast.cli.render import Column, counted, line, table

    if as_json:
        show_json(report)
        return
    table(
        [Column("SESSION", keep=True), Column("BEFORE"), Column("AFTER")],
        [
            [f"{each.harness_id}/{each.harness_session_id}", _totals(each.before), _totals(each.after)]
            for each in report.sessions
        ],
    )
    counts = f"{counted(report.events, 'event')}, {counted(len(report.turns), 'turn')}"
    line(f"{counts} would be moved (--yes does it)" if report.dry_run else f"{counts} moved: {report.attribution_id}")


def _totals(totals: SessionTotals | None) -> str:
    from holdfast.cli.render import counted

    if totals is None:
        return "-"
    parent = f", under {totals.parent}" if totals.parent else ""
    return f"{counted(totals.turn_count, 'turn')}, {money(totals.cost)}{parent}"


# --- prices -------------------------------------------------------------------------------------------


@placed
def reprice(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    *,
    session: Annotated[
        str | None, typer.Option("--session", metavar="SESSION", help="Only of this one.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Only of this one.", show_default=False)
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    reason: ReasonOption,
    yes: YesOption = False,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Price again what turns used, by the rate cards there are now."""
    from holdfast.cli.render import counted, line
    from holdfast.sessions import TurnFilters

    filters = TurnFilters(
        session=None if session is None else ref_of(session), model=model, since=at(since), until=at(until)
    )

    async def work(books: Archive, who: Principal) -> RepriceReport:
        return await books.reprice(filters, reason=reason, dry_run=not yes, principal=who)

    found = change(place, org, work)
    if as_json:
        show_json(found)
        return
    word = "have another price" if yes else "would have another price (--yes does it)"
    line(f"{found.repriced:,} of {counted(found.turns, 'turn')} {word}: {money(found.before)} -> {money(found.after)}")
    if found.unknown:
        line(f"{counted(found.unknown, 'turn')} of models that nobody has a price of keep what they have")
    if found.provided:
        line(f"{counted(found.provided, 'turn')} cost what the caller said")


# --- deriving again -----------------------------------------------------------------------------------


@placed
def rebuild(
    place: Place,
    session: Annotated[
        str | None,
        typer.Argument(metavar="SESSION", help="Its id, or HARNESS/SESSION_ID. Default: all.", show_default=False),
    ] = None,
    *,
    yes: YesOption = False,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Derive everything anew from what was captured, beside whoever reads and writes; broken off, it goes on."""
    from holdfast.cli.render import counted, line

    ref = None if session is None else ref_of(session)

    async def work(books: Archive, who: Principal) -> DeriveReport:
        return await books.rebuild(ref, dry_run=not yes, principal=who)

    found = change(place, org, work)
    if as_json:
        show_json(found)
    elif yes:
        line(_derived(found))
    else:
        line(f"{counted(found.pending, 'event')} would be derived anew (--yes does it)")


@placed
def replay(
    place: Place,
    events: Annotated[list[str] | None, typer.Argument(metavar="EVENT", help="Their ids.", show_default=False)] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All that were set aside or could not be read.")] = False,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Derive captured events again that were set aside, or that nobody could read."""
    from holdfast.cli.render import line

    if bool(events) == every:
        raise typer.BadParameter("name events, or say --all")

    async def work(books: Archive, who: Principal) -> DeriveReport:
        return await books.replay(events or (), principal=who)

    found = change(place, org, work)
    if as_json:
        show_json(found)
    else:
        line(_derived(found))
    if found.dead:
        raise typer.Exit(1)


def _derived(report: DeriveReport) -> str:
    counts = [f"{getattr(report, name):,} {name}" for name in ("derived", "unparsed", "refused", "dead", "pending")]
    return ", ".join(counts)


@placed
def dead(
    place: Place,
    *,
    limit: Annotated[int, typer.Option("--limit", help="How many.", min=1, max=200)] = 50,
    cursor: Annotated[str, typer.Option("--cursor", help="Where the page before ended.", show_default=False)] = "",
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """List events that were tried as often as they may be, and are set aside."""
    from holdfast.cli.render import Column, instant, line, table

    async def read(books: Archive, who: Principal) -> Page[Event]:
        return await books.events(state="dead", limit=limit, cursor=cursor, principal=who)

    page = look(place, org, read)
    if as_json:
        show_json(page)
        return
    table(
        [
            Column("EVENT_ID", keep=True), Column("PROVIDER"), Column("ATTEMPTS"), Column("REASON"),
            Column("CAPTURED_AT", minor=True),
        ],
        [
            [each.event_id, each.provider, str(each.attempts), each.reason or "", instant(each.captured_at)]
            for each in page.items
        ],
    )  # fmt: skip
    if page.next is not None:
        line(f"more: --cursor {page.next}")


# --- names --------------------------------------------------------------------------------------------


@placed
def rename(
    place: Place,
    session: SessionArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Empty: its own again.", show_default=False)] = "",
    *,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a session the name it is shown with."""
    from holdfast.cli.render import line

    ref = ref_of(session)

    async def work(books: Archive, who: Principal) -> Session:
        return await books.rename(ref, name or None, principal=who)

    found = change(place, org, work)
    if as_json:
        show_json(found)
    else:
        line(f"{found.id} is {found.title}")


COMMANDS: dict[str, Callable[..., None]] = {
    "delete": delete, "undelete-key": undelete_key, "pack": pack, "attribute": attribute,
    "undo-attribution": undo_attribution, "attributions": attributions, "reprice": reprice, "rebuild": rebuild,
    "dead": dead, "rename": rename,
}  # fmt: skip
"""The commands by their names under `sessions`; `replay` is the program's own."""
