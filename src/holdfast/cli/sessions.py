"""`holdfast sessions`: captured conversations, and what they cost. What repairs them is in `repairs`.

Invariants:
    - A total with parts that nobody measured, or that have no price, is shown as a lower bound, never as a number.
"""

from __future__ import annotations

import sys
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from holdfast.cli.archives import (
    OrgOption,
    SessionArgument,
    SinceOption,
    UntilOption,
    at,
    look,
    missing,
    money,
    ref_of,
    show_json,
    who_of,
)
from holdfast.cli.ledger import ConfigOption, DbOption, JsonOption, Place, drive, place_of, placed, served
from holdfast.cli.verify import verify_sessions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.sessions import Archive, Page, Principal, Session, StatsRow, Tree, Turn
    from holdfast.sessions.views import Tokens, TotalTokens

__all__ = ["commands"]

T = TypeVar("T")

commands = typer.Typer(help="Look at captured conversations; repair and delete them.", invoke_without_command=True)


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
@served
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
    thread: Annotated[str | None, _only("--thread", "thread; empty is the main one")] = None,
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
    from holdfast.sessions.parents import ParentState

    cost = _amount(min_cost)
    state: ParentState | None = None if parent_state is None else _one_of("--parent-state", parent_state, ParentState)

    async def read(books: Archive, who: Principal) -> Page[Session]:
        filters = SessionFilters(
            harness_id=harness,
            harness_session_id=session,
            auth_subject=subject,
            model=model,
            provider=provider,
            agent_name=agent,
            tag=tag,
            parent_state=state,
            thread=thread,
            since=at(since),
            until=at(until),
            min_cost=cost,
            include_placeholders=placeholders,
        )
        return await books.list(filters, sort=sort, limit=limit, cursor=cursor, principal=who)

    page = look(place, org, read)
    if as_json:
        show_json(page)
    else:
        _show_list(page)


@commands.command()
@served
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
    ref = ref_of(session)
    if raw is not None:
        _write_raw(place, org, raw)
        return

    async def read(books: Archive, who: Principal) -> tuple[Session | None, list[Turn], Tree | None]:
        found = await books.get(ref, principal=who)
        listed = [turn async for turn in books.turns(ref, principal=who)] if turns else []
        return found, listed, await books.tree(ref, principal=who) if tree else None

    found, listed, around = look(place, org, read)
    if found is None:
        raise missing(session)
    if as_json:
        from holdfast.sessions.views import document

        shown = document(found)
        if turns:
            shown["turns"] = document(listed)
        if around is not None:
            shown["tree"] = document(around)
        show_json(shown)
        return
    _show_session(found)
    if listed:
        _show_turns(listed)
    if around is not None:
        _show_tree(around)


@commands.command()
@served
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
    from holdfast.sessions.views import GroupBy

    group: GroupBy = _one_of("--by", by, GroupBy)

    async def read(books: Archive, who: Principal) -> list[StatsRow]:
        return await books.stats(since=at(since), until=at(until), group_by=group, principal=who)

    rows = look(place, org, read)
    if as_json:
        show_json({"items": rows})
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

        found = look(place, org, hashed)
        if as_json:
            show_json({"projection_hash": found})
        else:
            line(found)
        return

    report = drive(place.look(lambda hf: verify_sessions(hf, place, who_of(org).org_id)))
    if as_json:
        show_json(report)
    else:
        for each in report.problems:
            line(f"{each.table} {each.row}: {each.code}: {each.message}", "red")
        count = counted(len(report.problems), "problem") if report.problems else "no problem"
        line(f"{counted(report.checked_count, 'event')} checked, {count} found", "" if report.ok else "bold red")
    if not report.ok:
        raise typer.Exit(1)


# --- amounts and bodies -------------------------------------------------------------------------------


def _one_of(option: str, text: str, kind: object) -> Any:
    """Return a word that is one of a type's."""
    from typing import get_args

    if text not in get_args(kind):
        raise typer.BadParameter(f"{option} is one of {', '.join(get_args(kind))}")
    return text


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
    from holdfast.cli.render import complain

    turn, _, part = asked.rpartition(":")
    if part not in ("request", "response"):
        raise typer.BadParameter("--raw is TURN:request or TURN:response")
    wanted: Any = part

    async def read(books: Archive, who: Principal) -> bytes | None:
        body = await books.raw(turn, wanted, principal=who)
        return None if body is None else body.data

    data = look(place, org, read)
    if data is None:
        complain(f"there is no such body: {asked}", "holdfast sessions show SESSION --turns shows the turns there are")
        raise typer.Exit(1)
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


# --- showing ------------------------------------------------------------------------------------------


def _count(tokens: Tokens | TotalTokens, column: str) -> str:
    """Write a count; where it is not known of every turn, as the least that it is."""
    value = cast("Mapping[str, int | None]", tokens).get(column)
    if value is None:
        return "?"
    return f"{'≥ ' if tokens.get('unmeasured_turns') else ''}{value:,}"


def _show_list(page: Page[Session]) -> None:
    from holdfast.cli.render import Column, instant, line, table

    if not page.items:
        line("no sessions", "dim")
        return
    table(
        [
            Column("SESSION", keep=True), Column("TURNS", right=True), Column("INPUT", right=True),
            Column("OUTPUT", right=True), Column("COST", right=True), Column("HARNESS", minor=True),
            Column("LAST SEEN", minor=True), Column("TITLE", minor=True),
        ],
        [
            [
                each.id, str(each.turn_count), _count(each.tokens, "input"), _count(each.tokens, "output"),
                money(each.cost), each.harness_id, instant(each.last_seen_at), each.title,
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
            ("title", found.title),
            ("subject", found.auth_subject or ""),
            ("cwd", found.cwd or ""),
            ("version", found.harness_version or ""),
            ("parent", " ".join(filter(None, (parent.session_id or "", parent.state, parent.flag)))),
            ("started", instant(found.started_at)),
            ("last seen", instant(found.last_seen_at)),
            ("turns", f"{found.turn_count}, {found.failed_turn_count} failed"),
            ("tokens", tokens),
            ("unmeasured", str(found.tokens.get("unmeasured_turns") or "")),
            ("cost", money(found.cost)),
            ("models", ", ".join(f"{name} ({count})" for name, count in found.models.items())),
            ("outcome", f"{found.outcome.status} {found.outcome.stop_reason}".strip() if found.outcome else ""),
        ]
    )


def _show_turns(turns: list[Turn]) -> None:
    from holdfast.cli.render import Column, instant, table

    table(
        [
            Column("TURN", keep=True), Column("STATUS"), Column("INPUT", right=True), Column("OUTPUT", right=True),
            Column("COST", right=True), Column("CAPTURED", minor=True), Column("MODEL", minor=True),
            Column("KIND", minor=True), Column("THREAD", minor=True),
        ],
        [
            [
                each.id, each.status, _count(each.tokens, "input"), _count(each.tokens, "output"),
                each.cost.state if each.cost.usd is None
                else f"{'≥ ' if each.cost.state == 'partial' else ''}${each.cost.usd:.6f}",
                instant(each.captured_at), each.model or "", each.call_kind, each.thread_id,
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
                each.key or "-", str(each.turns), str(each.failed), _count(each.tokens, "input"),
                _count(each.tokens, "output"), money(each.cost),
            ]
            for each in rows
        ],
    )  # fmt: skip
