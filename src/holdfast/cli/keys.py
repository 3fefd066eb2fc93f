"""`holdfast keys`: look at the records of idempotency keys, and decide what no program can.

A REF is a `key_ref`, as problem documents and events show it, or a longer beginning of the key id in hexadecimal
digits; or it is left out and the key itself is named, which needs the secrets.

Invariants:
    - No command shows a key, a principal or, but for `show --body`, anything of a stored response.
    - What changes a record, or shows its body, is in the audit with who did it and why.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.ledger import ConfigOption, DbOption, JsonOption, Place, drive, place_of, placed

if TYPE_CHECKING:
    from holdfast import Holdfast
    from holdfast.core.keyring import KeyRing
    from holdfast.idempotency.values import KeyRecord, Principal
    from holdfast.store.database import Tx

__all__ = ["commands"]

commands = typer.Typer(help="Look at idempotency keys; release, expire and decide them.", invoke_without_command=True)

_REF = re.compile(r"[0-9a-f]{8,32}")

RefArgument = Annotated[
    str | None, typer.Argument(metavar="[REF]", help="The key's ref: 8 or more hex digits.", show_default=False)
]
PrincipalOption = Annotated[
    str | None, typer.Option("--principal", metavar="SUBJECT", help="Whose key, with --key.", show_default=False)
]
TenantOption = Annotated[str, typer.Option("--tenant", help="The principal's tenant.", show_default=False)]
KeyOption = Annotated[
    str | None, typer.Option("--key", help="The key itself; needs the configured secrets.", show_default=False)
]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the audit.")]
ActorOption = Annotated[
    str | None, typer.Option("--actor", help="Who does it. Default: the user of this machine.", show_default=False)
]


@commands.callback()
def group(context: typer.Context, db: DbOption = None, config: ConfigOption = None) -> None:
    place_of(context, db, config)
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)
        raise typer.Exit(2)


# --- looking ------------------------------------------------------------------------------------------


@commands.command("list")
@placed
def list_keys(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    *,
    state: Annotated[
        str | None,
        typer.Option(
            "--state", help="Only reserved, completed, tombstone, unknown or released ones.", show_default=False
        ),
    ] = None,
    route: Annotated[str | None, typer.Option("--route", help="Only those of this route.", show_default=False)] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="T", help="Only newer ones: 90s, 15m, 12h, 7d or an instant.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="How many, at most 500.")] = 50,
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="Where the page before ended.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List keys, newest first."""
    from holdfast.cli.render import print_json
    from holdfast.idempotency import keys

    wanted = _state(state)

    async def read(hf: Holdfast) -> Any:
        async with hf.database.read() as tx:
            return await keys.list(tx, state=wanted, route=route, since=_instant(since, hf), cursor=cursor, limit=limit)

    page = drive(place.look(read))
    if as_json:
        print_json({"items": [_view(record) for record in page.items], "next": page.next})
    else:
        _show_list(page)


@commands.command()
@placed
def show(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    ref: RefArgument = None,
    *,
    principal: PrincipalOption = None,
    tenant: TenantOption = "",
    key: KeyOption = None,
    body: Annotated[bool, typer.Option("--body", help="Write the stored response's body; this is audited.")] = False,
    actor: ActorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one key's record."""
    from holdfast.cli.render import print_json
    from holdfast.idempotency import keys

    named = _named(place, ref, principal, tenant, key)

    async def read(hf: Holdfast) -> KeyRecord:
        async with hf.database.read() as tx:
            return await _find(tx, named)

    async def audited() -> tuple[KeyRecord, bytes | None]:
        async with place.changing() as hf, hf.database.write() as tx:
            record = await _find(tx, named)
            await keys.audit(tx, record, "show", actor=_actor(actor), reason="--body", now=hf.database.clock.now())
            return record, _body(record, place.guard().ring())

    if body:
        _, written = drive(audited())
        if written is None:
            raise _no("there is no body on record")
        typer.get_binary_stream("stdout").write(written)
        return
    record = drive(place.look(read))
    if as_json:
        print_json(_view(record))
    else:
        _show(record)


# --- deciding -----------------------------------------------------------------------------------------


@commands.command()
@placed
def expire(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    ref: RefArgument = None,
    *,
    principal: PrincipalOption = None,
    tenant: TenantOption = "",
    key: KeyOption = None,
    reason: ReasonOption,
    actor: ActorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget a settled or released key: it is new from now on."""
    from holdfast.idempotency.machine import ForceExpire

    _force(place, _named(place, ref, principal, tenant, key), ForceExpire(), (actor, reason), as_json=as_json)


@commands.command()
@placed
def release(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    ref: RefArgument = None,
    *,
    principal: PrincipalOption = None,
    tenant: TenantOption = "",
    key: KeyOption = None,
    reason: ReasonOption,
    actor: ActorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a retry run; a handler that is still running loses its claim."""
    from holdfast.idempotency.machine import ForceRelease

    _force(place, _named(place, ref, principal, tenant, key), ForceRelease(), (actor, reason), as_json=as_json)


@commands.command()
@placed
def decide(  # noqa: PLR0913 - a command's options are its parameters
    place: Place,
    ref: RefArgument = None,
    *,
    principal: PrincipalOption = None,
    tenant: TenantOption = "",
    key: KeyOption = None,
    rerun: Annotated[bool, typer.Option("--rerun", help="It did not take effect: a retry runs.")] = False,
    result: Annotated[
        Path | None,
        typer.Option("--result", metavar="FILE", help="It did: the answer, as JSON.", show_default=False),
    ] = None,
    tombstone: Annotated[
        int | None,
        typer.Option("--tombstone", metavar="STATUS", help="It did, and the answer is not known.", show_default=False),
    ] = None,
    reason: ReasonOption,
    actor: ActorOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what became of a key whose outcome is unknown."""
    from holdfast.idempotency.machine import DecideOutcome, DecideRerun
    from holdfast.idempotency.values import Tombstone

    named = _named(place, ref, principal, tenant, key)
    if [rerun, result is not None, tombstone is not None].count(True) != 1:
        raise typer.BadParameter("give exactly one of --rerun, --result and --tombstone")
    action: Any
    if rerun:
        action = DecideRerun()
    elif result is not None:
        action = DecideOutcome(outcome=_answer(result))
    else:
        if tombstone is None or not 200 <= tombstone <= 599:
            raise typer.BadParameter("--tombstone is a status from 200 to 599")
        action = DecideOutcome(outcome=Tombstone(tombstone, [], "decided"))
    _force(place, named, action, (actor, reason), as_json=as_json)


def _force(place: Place, named: _Named | str, action: Any, said: tuple[str | None, str], *, as_json: bool) -> None:
    from holdfast.cli.render import line, print_json
    from holdfast.idempotency import keys, operating
    from holdfast.idempotency.machine import DecideOutcome, ForceExpire

    actor, reason = _actor(said[0]), said[1].strip()
    if not reason:
        raise typer.BadParameter("--reason is empty: whoever looks at the audit will want to know why")

    async def work() -> tuple[KeyRecord, bool, KeyRecord | None]:
        async with place.changing() as hf, hf.database.write() as tx:
            record, sealed = await _find(tx, named), None
            if isinstance(action, DecideOutcome):
                sealed = await operating.sealed(tx, record, action.outcome, place.guard().ring())
            now = hf.database.clock.now()
            done = await keys.force(tx, record.key_id, action, actor=actor, reason=reason, now=now, sealed=sealed)
            return record, done, await keys.get(tx, record.key_id)

    before, done, after = drive(work())
    if not done:
        raise _no(f"{before.key_ref} is {_state_name(before)}, which this does not apply to")
    if as_json:
        print_json(_view(after or before))
    else:
        now = "new" if after is None or isinstance(action, ForceExpire) else _state_name(after)
        line(f"{before.key_ref} was {_state_name(before)}, and is {now}", "green")


# --- which --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Named:
    """A key that the command line names by itself."""

    secrets: list[bytes]
    principal: Principal
    key: str


def _named(place: Place, ref: str | None, principal: str | None, tenant: str, key: str | None) -> _Named | str:
    """Return what the command line names: a key, or the beginning of a key id."""
    if ref is not None:
        if principal is not None or key is not None:
            raise typer.BadParameter("give a REF, or --principal and --key")
        if not _REF.fullmatch(ref.lower()):
            raise typer.BadParameter("a REF has 8 to 32 hexadecimal digits")
        return ref.lower()
    if principal is None or key is None:
        raise typer.BadParameter("give a REF, or --principal and --key")
    from holdfast.idempotency.values import Principal

    return _Named(place.guard().decoded(), Principal(principal, tenant), key)


async def _find(tx: Tx, named: _Named | str) -> KeyRecord:
    from holdfast.idempotency import keys

    if isinstance(named, str):
        ids = await keys.search(tx, named)
        if len(ids) > 1:
            raise typer.BadParameter("that REF fits more than one key: give more of its digits")
        found = [record for each in ids if (record := await keys.get(tx, each)) is not None]
    else:
        found = await _find_key(tx, named)
        if len(found) > 1:
            which = ", ".join(f"{record.key_ref} ({record.method} {record.route})" for record in found)
            raise typer.BadParameter(f"that key has a record on each of several routes; give the REF of one: {which}")
    if not found:
        raise _no("there is no such key")
    return found[0]


async def _find_key(tx: Tx, named: _Named) -> list[KeyRecord]:
    """Return the records of a key, read as the guard reads it: one, or one on each route that has keys of its own."""
    from holdfast.idempotency import keys
    from holdfast.idempotency.identity import key_id, scope_id, spellings

    routes: dict[tuple[str, str] | None, None] = {None: None}
    for secret in named.secrets:
        routes.update(dict.fromkeys(await keys.routes(tx, scope_id(secret, named.principal))))
    for spelling in spellings(named.key):
        found = {}
        for route in routes:
            for secret in named.secrets:
                record = await keys.get(tx, key_id(secret, named.principal, spelling, route=route))
                if record is not None:
                    found[record.key_id] = record
        if found:
            return list(found.values())
    return []


def _no(text: str) -> typer.Exit:
    """Say why the answer is no; return what ends the command so."""
    from holdfast.cli.render import complain

    complain(text)
    return typer.Exit(1)


def _actor(given: str | None) -> str:
    import getpass

    return given or getpass.getuser()


def _state(name: str | None) -> Any:
    from holdfast.idempotency.values import State

    if name is None:
        return None
    known = [state.name.lower() for state in State if state is not State.ALIAS]
    if name not in known:
        raise typer.BadParameter(f"--state is one of {', '.join(known)}")
    return State[name.upper()]


def _instant(since: str | None, hf: Holdfast) -> int | None:
    """Read a span back from now, or an instant."""
    from datetime import UTC, datetime

    from holdfast.core.clock import from_datetime, micros

    if since is None:
        return None
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    if since[:-1].isdigit() and since[-1:] in units:
        return hf.database.clock.now() - micros(timedelta(**{units[since[-1]]: int(since[:-1])}))
    try:
        at = datetime.fromisoformat(since)
    except ValueError:
        raise typer.BadParameter("--since is a span like 90s, 15m, 12h, 7d, or an instant in ISO 8601") from None
    return from_datetime(at if at.tzinfo is not None else at.replace(tzinfo=UTC))


def _answer(path: Path) -> Any:
    """Read the answer an operator gives for a request: as much of it as a guard would keep."""
    import msgspec

    from holdfast.core.errors import CodecError
    from holdfast.idempotency import operating

    status = Annotated[int, msgspec.Meta(ge=200, le=599)]
    pairs: Any = list[tuple[str, str]]
    answer: Any = msgspec.defstruct("Answer", [("status", status), ("headers", pairs, []), ("body", str, "")])
    made, what = None, "a header field that could not be sent"
    try:
        given = msgspec.json.decode(path.read_bytes(), type=answer)
        made = operating.answer_of(given.status, given.headers, given.body)
    except (OSError, msgspec.MsgspecError, UnicodeError) as error:
        what = str(error.strerror if isinstance(error, OSError) else error)
    if made is None:
        raise CodecError(
            f"cannot read the answer in {path}: {what}",
            'write JSON: {"status": 201, "headers": [["name", "value"]], "body": ""}',
        )
    return made


def _body(record: KeyRecord, ring: KeyRing | None) -> bytes | None:
    from holdfast.idempotency.sealing import open_outcome
    from holdfast.idempotency.values import Completed

    if record.sealed is None:
        return None
    outcome = open_outcome(record.sealed, key_id=record.key_id, record_id=record.record_id, cipher=ring)
    return outcome.body if isinstance(outcome, Completed) else None


# --- how it looks -------------------------------------------------------------------------------------


def _state_name(record: KeyRecord) -> str:
    return record.state.name.lower()


def _view(record: KeyRecord) -> dict[str, Any]:
    """What may be shown of a record."""
    from dataclasses import asdict

    from holdfast.idempotency import operating

    return asdict(operating.view(record))


_COLOURS = {"completed": "green", "unknown": "bold red", "reserved": "cyan", "tombstone": "yellow", "released": "dim"}


def _show_list(page: Any) -> None:
    from holdfast.cli.render import Column, instant, line, table

    rows: list[tuple[Any, ...]] = []
    for record in page.items:
        view = _view(record)
        state = (view["state"] + (f" ({view['reason']})" if view["reason"] else ""), _COLOURS[view["state"]])
        rows.append(
            (view["ref"], state, f"{view['method']} {view['route']}", str(view["attempt"]), str(view["status"] or ""),
             instant(view["claimed_at"]), view["scope_ref"])
        )  # fmt: skip
    if not rows:
        line("no keys", "dim")
        return
    table(
        [
            Column(name, keep=name == "ref")
            for name in ("ref", "state", "route", "attempt", "status", "claimed", "scope")
        ],
        rows,
    )
    if page.next is not None:
        line(f"more: --cursor {page.next}", "dim")


def _show(record: KeyRecord) -> None:
    from datetime import datetime

    from holdfast.cli.render import facts, instant, size

    def text(name: str, value: Any) -> Any:
        if isinstance(value, datetime):
            return instant(value)
        if name == "body_bytes" and value is not None:
            return size(value)
        if name == "state":
            return value, _COLOURS[value]
        return "-" if value is None else str(value)

    facts([(name.replace("_", " "), text(name, value)) for name, value in _view(record).items()])
