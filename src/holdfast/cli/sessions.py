"""`holdfast sessions`: captured conversations, what they cost, and taking them away.

A SESSION is an id (`ses_…`), or harness id and harness session id with a slash between them.

Invariants:
    - A total with parts that nobody measured, or that have no price, is shown as a lower bound, never as a number.
    - Nothing is deleted without `--yes`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from holdfast.cli.ledger import ConfigOption, DbOption, JsonOption, Place, drive, place_of, placed
from holdfast.cli.verify import verify_sessions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast import Holdfast
    from holdfast.sessions import Archive, Page, Principal, Session, SessionRef, StatsRow, Total, Tree, Turn

__all__ = ["commands"]

T = TypeVar("T")

commands = typer.Typer(help="Look at captured conversations; delete them.", invoke_without_command=True)

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


def _only(option: str, what: str) -> Any:
    return typer.Option(option, help=f"Only those of this {what}.", show_default=False)


@commands.callback()
def group(context: typer.Context, db: DbOption = None, config: ConfigOption = None) -> None:
    place_of(context, db, config)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


# --- looking ------------------------------------------------------------------------------------------


@commands.command("list")
@placed
def list_sessions(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    *,
    harness: Annotated[str | None, _only("--harness", "harness")] = None,
    session: Annotated[str | None, _only("--session", "harness session id")] = None,
    subject: Annotated[str | None, _only("--subject", "subject")] = None,
    model: Annotated[str | None, _only("--model", "model")] = None,
    provider: Annotated[str | None, _only("--provider", "provider")] = None,
    agent: Annotated[str | None, _only("--agent", "agent")] = None,
    tag: Annotated[str | None, _only("--tag", "tag")] = None,
    parent_state: Annotated[str | None, _only("--parent-state", "state of the parent's link")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    min_cost: Annotated[
        str | None, typer.Option("--min-cost", metavar="USD", help="Only those that cost as much.", show_default=False)
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", help="last_seen, started, turns, cost or tokens; with a - the greatest first.")
    ] = "-last_seen",
    limit: Annotated[int, typer.Option("--limit", help="How many, at most 200.")] = 50,
    cursor: Annotated[str, typer.Option("--cursor", help="Where the page before ended.", show_default=False)] = "",
    placeholders: Annotated[
        bool, typer.Option("--placeholders", help="Also parents that nobody has seen yet.")
    ] = False,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """List sessions, those seen last first."""
    from holdfast.sessions import SessionFilters

    cost = _amount(min_cost)

    async def read(books: Archive, who: Principal) -> Page[Session]:
        filters = SessionFilters(
            harness_id=harness,
            harness_session_id=session,
            auth_subject=subject,
            model=model,
            provider=provider,
            agent_name=agent,
            tag=tag,
            parent_state=parent_state,
            since=_at(since),
            until=_at(until),
            min_cost=cost,
            include_placeholders=placeholders,
        )
        return await books.list(filters, sort=sort, limit=limit, cursor=cursor, principal=who)

    page = _look(place, org, read)
    if as_json:
        _print(page)
    else:
        _show_list(page)


@commands.command()
@placed
def show(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    session: SessionArgument,
    *,
    turns: Annotated[bool, typer.Option("--turns", help="Also its turns.")] = False,
    tree: Annotated[bool, typer.Option("--tree", help="Also the sessions above and below it.")] = False,
    raw: Annotated[
        str | None,
        typer.Option(
            "--raw",
            metavar="TURN:PART",
            help="Write a body as it was captured: request or response.",
            show_default=False,
        ),
    ] = None,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one session."""
    ref = _ref(session)
    if raw is not None:
        _write_raw(place, org, raw)
        return

    async def read(books: Archive, who: Principal) -> tuple[Session | None, list[Turn], Tree | None]:
        found = await books.get(ref, principal=who)
        listed = [turn async for turn in books.turns(ref, principal=who)] if turns else []
        return found, listed, await books.tree(ref, principal=who) if tree else None

    found, listed, around = _look(place, org, read)
    if found is None:
        raise _missing(session)
    if as_json:
        from holdfast.sessions.views import document

        shown = document(found)
        if turns:
            shown["turns"] = document(listed)
        if around is not None:
            shown["tree"] = document(around)
        _print(shown)
        return
    _show_session(found)
    if listed:
        _show_turns(listed)
    if around is not None:
        _show_tree(around)


@commands.command()
@placed
def stats(
    place: Place,
    *,
    by: Annotated[str, typer.Option("--by", help="day, model, harness, subject or session.")] = "model",
    since: SinceOption = None,
    until: UntilOption = None,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sum turns, tokens and cost by group."""
    if by not in ("day", "model", "harness", "subject", "session"):
        raise typer.BadParameter("--by is day, model, harness, subject or session")
    group: Any = by

    async def read(books: Archive, who: Principal) -> list[StatsRow]:
        return await books.stats(since=_at(since), until=_at(until), group_by=group, principal=who)

    rows = _look(place, org, read)
    if as_json:
        _print({"items": rows})
    else:
        _show_stats(by, rows)


@commands.command()
@placed
def verify(
    place: Place,
    *,
    projection_hash: Annotated[
        bool, typer.Option("--projection-hash", help="Print one hash of all that was derived instead.")
    ] = False,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check what the ledger promises about captured conversations; one line per problem."""
    from holdfast.cli.render import counted, line

    if projection_hash:

        async def hashed(books: Archive, who: Principal) -> str:
            return await books.projection_hash(principal=who)

        found = _look(place, org, hashed)
        if as_json:
            _print({"projection_hash": found})
        else:
            line(found)
        return

    report = drive(place.look(lambda hf: verify_sessions(hf, place, _who(org).org_id)))
    if as_json:
        _print(report)
    else:
        for each in report.problems:
            line(f"{each.table} {each.row}: {each.code}: {each.message}", "red")
        count = counted(len(report.problems), "problem") if report.problems else "no problem"
        line(f"{counted(report.checked_count, 'event')} checked, {count} found", "" if report.ok else "bold red")
    if not report.ok:
        raise typer.Exit(1)


# --- taking away --------------------------------------------------------------------------------------


@commands.command()
@placed
def delete(
    place: Place,
    session: SessionArgument,
    *,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without it only what would go is shown.")] = False,
    org: OrgOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a session with everything that was captured of it; its key takes no more calls."""
    from holdfast.cli.render import counted, line

    ref = _ref(session)

    async def change() -> Any:
        async with place.changing() as hf:
            return await _archive(place, hf).delete(ref, reason=reason, dry_run=not yes, principal=_who(org))

    found = drive(_answered(change(), session))
    if as_json:
        _print({"deleted": yes, "report": found})
        return
    word = "deleted" if yes else "would be deleted (--yes does it)"
    line(f"{found.session_id}: {counted(found.events, 'event')} and {counted(found.turns, 'turn')} {word}")
    if found.moved:
        line(f"{counted(found.moved, 'turn')} stay, in the sessions of others that tell of them")


@commands.command("undelete-key")
@placed
def undelete_key(place: Place, session: SessionArgument, *, org: OrgOption = None) -> None:
    """Let calls of a deleted session be taken again; what was deleted stays so. SESSION is HARNESS/SESSION_ID."""
    from holdfast.cli.render import line

    ref = _ref(session)
    if isinstance(ref, str):
        raise typer.BadParameter("a deleted session is named HARNESS/SESSION_ID")
    key = ref

    async def change() -> bool:
        async with place.changing() as hf:
            return await _archive(place, hf).undelete_key(key, principal=_who(org))

    if not drive(change()):
        raise _missing(session)
    line(f"{session} may be captured again")


# --- asking -------------------------------------------------------------------------------------------


def _archive(place: Place, hf: Holdfast) -> Archive:
    from holdfast.sessions import Archive

    return Archive(hf.database, config=place.sessions())


def _look(place: Place, org: str | None, read: Callable[[Archive, Principal], Awaitable[T]]) -> T:
    who = _who(org)
    return drive(place.look(lambda hf: read(_archive(place, hf), who)))


async def _answered(work: Awaitable[T], session: str) -> T:
    from holdfast.sessions import NotFound

    try:
        return await work
    except NotFound:
        raise _missing(session) from None


def _missing(session: str) -> typer.Exit:
    from holdfast.cli.render import complain

    complain(f"there is no session {session}", "holdfast sessions list shows those there are")
    return typer.Exit(1)


def _who(org: str | None) -> Principal:
    from dataclasses import replace

    from holdfast.sessions import LOCAL
    from holdfast.sessions.identity import org_id

    if org is None:
        return LOCAL
    found = org_id(org)
    if found is None:
        raise typer.BadParameter("--org is no UUID")
    return replace(LOCAL, org_id=found)


def _ref(text: str) -> SessionRef:
    harness, slash, session = text.partition("/")
    return (harness, session) if slash else text


def _at(since: str | None) -> datetime | None:
    from holdfast.cli.documents import instant_of
    from holdfast.core.clock import SystemClock, to_datetime

    found = instant_of(since, SystemClock().now())
    return None if found is None else to_datetime(found)


def _amount(text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or not 0 <= amount <= 9_000_000:
        raise typer.BadParameter("--min-cost is an amount in dollars, from 0 to nine million")
    return amount


def _write_raw(place: Place, org: str | None, asked: str) -> None:
    turn, _, part = asked.partition(":")
    if part not in ("request", "response"):
        raise typer.BadParameter("--raw is TURN:request or TURN:response")
    wanted: Any = part

    async def read(books: Archive, who: Principal) -> bytes | None:
        body = await books.raw(turn, wanted, principal=who)
        return None if body is None else body.data

    data = _look(place, org, read)
    if data is None:
        raise _missing(asked)
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


# --- showing ------------------------------------------------------------------------------------------


def _print(value: object) -> None:
    from holdfast.cli.render import print_json
    from holdfast.sessions.views import document

    print_json(document(value))


def _money(cost: Total) -> str:
    """Write a total; where a part of it is not known, as the least that it is."""
    if cost.usd is None:
        return "unpriced"
    return f"{'' if cost.state == 'priced' else '≥ '}${cost.usd:.6f}"


def _count(tokens: Mapping[str, int | None], column: str) -> str:
    value = tokens.get(column)
    if value is None:
        return "?"
    return f"{'≥ ' if tokens.get('unmeasured_turns') else ''}{value:,}"


def _show_list(page: Page[Session]) -> None:
    from holdfast.cli.render import Column, instant, line, table

    table(
        [
            Column("SESSION", keep=True), Column("HARNESS"), Column("TITLE"), Column("TURNS", right=True),
            Column("INPUT", right=True), Column("OUTPUT", right=True), Column("COST", right=True),
            Column("LAST SEEN", minor=True),
        ],
        [
            [
                each.id, each.harness_id, each.display_name or each.title, str(each.turn_count),
                _count(each.tokens, "input"), _count(each.tokens, "output"), _money(each.cost),
                instant(each.last_seen_at),
            ]
            for each in page.items
        ],
    )  # fmt: skip
    if page.next is not None:
        line(f"more: --cursor {page.next}")


def _show_session(found: Session) -> None:
    from holdfast.cli.render import facts, instant

    tokens = ", ".join(
        f"{name} {_count(found.tokens, name)}" for name, value in found.tokens.items()
        if value is not None and name != "unmeasured_turns"
    )  # fmt: skip
    parent = found.parent
    facts(
        [
            ("session", found.id),
            ("key", f"{found.harness_id}/{found.harness_session_id}"),
            ("title", found.display_name or found.title),
            ("subject", found.auth_subject),
            ("cwd", found.cwd),
            ("version", found.harness_version),
            ("parent", " ".join(filter(None, (parent.session_id or "", parent.state, parent.flag)))),
            ("started", instant(found.started_at)),
            ("last seen", instant(found.last_seen_at)),
            ("turns", f"{found.turn_count}, {found.failed_turn_count} failed"),
            ("tokens", tokens),
            ("unmeasured", str(found.tokens.get("unmeasured_turns") or "")),
            ("cost", _money(found.cost)),
            ("models", ", ".join(f"{name} ({count})" for name, count in found.models.items())),
            ("outcome", f"{found.outcome.status} {found.outcome.stop_reason}".strip() if found.outcome else ""),
        ]
    )


def _show_turns(turns: list[Turn]) -> None:
    from holdfast.cli.render import Column, instant, table

    table(
        [
            Column("TURN", keep=True), Column("CAPTURED"), Column("MODEL"), Column("THREAD"), Column("KIND"),
            Column("STATUS"), Column("INPUT", right=True), Column("OUTPUT", right=True), Column("COST", right=True),
        ],
        [
            [
                each.id, instant(each.captured_at), each.model, each.thread_id, each.call_kind, each.status,
                _count(each.tokens, "input"), _count(each.tokens, "output"),
                each.cost.state if each.cost.usd is None
                else f"{'≥ ' if each.cost.state == 'partial' else ''}${each.cost.usd:.6f}",
            ]
            for each in turns
        ],
    )  # fmt: skip


def _show_tree(tree: Tree) -> None:
    from holdfast.cli.render import line

    above = list(reversed(tree.ancestors))
    for level, each in enumerate(above):
        line(f"{'  ' * level}{each.id} {each.title}")
    line(f"{'  ' * len(above)}{tree.session.id} {tree.session.title}", "bold")
    for node in tree.descendants:
        line(f"{'  ' * (len(above) + node.depth)}{node.session.id} {node.session.title}")
    if tree.truncated:
        line("and more")


def _show_stats(by: str, rows: list[StatsRow]) -> None:
    from holdfast.cli.render import Column, table

    table(
        [
            Column(by.upper(), keep=True), Column("TURNS", right=True), Column("FAILED", right=True),
            Column("INPUT", right=True), Column("OUTPUT", right=True), Column("COST", right=True),
        ],
        [
            [
                each.key, str(each.turns), str(each.failed), _count(each.tokens, "input"),
                _count(each.tokens, "output"), _money(each.cost),
            ]
            for each in rows
        ],
    )  # fmt: skip
