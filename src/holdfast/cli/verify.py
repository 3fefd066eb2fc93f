"""`holdfast verify`: check what the ledger promises about its own rows, in every slice."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from holdfast.cli.ledger import JsonOption, Place, drive, placed

if TYPE_CHECKING:
    from uuid import UUID

    from holdfast import Holdfast, VerifyReport
    from holdfast.execution.verify import Problem
    from holdfast.idempotency import verify as key_verify
    from holdfast.lifecycle import verify as receipt_verify
    from holdfast.sessions import verify as session_verify
    from holdfast.store.database import Database

__all__ = ["verify", "verify_sessions"]

Slice = Literal["durable", "idempotency", "lifecycle", "sessions"]


AnyProblem: TypeAlias = "Problem | key_verify.Problem | receipt_verify.Problem | session_verify.Problem"


@dataclass(frozen=True, slots=True)
class _Report:
    """What all slices together say."""

    ok: bool
    checked_count: int
    problems: tuple[AnyProblem, ...]


@placed
def verify(
    place: Place,
    id: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]",
            help="One execution, one key, the receipts of one run, or the sessions of one org. Default: all.",
            show_default=False,
        ),
    ] = None,
    *,
    only: Annotated[
        Slice | None,
        typer.Option(
            "--slice",
            metavar="NAME",
            help="Look at one slice only: durable, idempotency, whose ID is a key's reference, lifecycle, "
            "whose ID is a run, or sessions, whose ID is an org. Default: at all.",
            show_default=False,
        ),
    ] = None,
    projection_hash: Annotated[
        bool,
        typer.Option(
            "--projection-hash", help="Print one hash of all that was derived of captured conversations instead."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check every invariant of the ledger; one line per problem."""
    from holdfast.cli.render import counted, line, print_json

    if projection_hash:
        _print_hash(place, id, as_json=as_json)
        return
    if only is None and id is not None:
        only = "durable"
    key = place.lifecycle().chain_key() if only in (None, "lifecycle") else None
    found = drive(place.look(lambda hf: _verify(hf, place, id, only, key)))
    problems = tuple(problem for report in found.values() for problem in report.problems)
    checked = sum(report.checked_count for report in found.values())
    if as_json:
        print_json(_Report(not problems, checked, problems))
    else:
        for problem in problems:
            where = f"{problem.table} {problem.row}".strip()
            line(f"{_owner(problem) or '-'}: {where}: {problem.code}: {problem.message}", "red")
        # A slice that is not in use is not worth a word, unless it was asked for.
        said = [
            counted(report.checked_count, _NOUNS[name])
            for name, report in found.items()
            if report.checked_count or name in (only, "durable")
        ]
        what = f"{_listed(said)} checked"
        count = len(problems)
        line(
            f"{what}, {count} problem{'s' if count != 1 else ''} found" if problems else f"{what}, no problem found",
            "bold red" if problems else "green",
        )
    if problems:
        raise typer.Exit(1)


def _print_hash(place: Place, id: str | None, *, as_json: bool) -> None:
    from holdfast.cli.render import line, print_json
    from holdfast.sessions.verify import projection_hash

    org = _org(id)
    found = drive(place.look(lambda hf: projection_hash(_opened(hf, place), org)))
    if as_json:
        print_json({"projection_hash": found})
    else:
        line(found)


_NOUNS: dict[Slice, str] = {
    "durable": "execution", "idempotency": "key", "lifecycle": "receipt", "sessions": "captured event",
}  # fmt: skip
Report: TypeAlias = "VerifyReport | key_verify.VerifyReport | receipt_verify.VerifyReport | session_verify.VerifyReport"
Found: TypeAlias = "dict[Slice, Report]"


async def _verify(hf: Holdfast, place: Place, id: str | None, only: Slice | None, chain_key: bytes | None) -> Found:
    from holdfast.idempotency import verify as key_verify
    from holdfast.lifecycle import verify as receipt_verify

    found: Found = {}
    if only in (None, "durable"):
        found["durable"] = await hf.verify(id)
    if only in (None, "idempotency"):
        found["idempotency"] = await key_verify.verify(hf.database, id)
    if only in (None, "lifecycle"):
        found["lifecycle"] = await receipt_verify.verify(hf.database, id, chain_key=chain_key)
    if only == "sessions" or (only is None and _has_sessions()):
        found["sessions"] = await verify_sessions(hf, place, _org(id))
    return found


def _has_sessions() -> bool:
    """Whether what captured conversations are read with is installed: it is an extra."""
    from importlib.util import find_spec

    return find_spec("zstandard") is not None


async def verify_sessions(hf: Holdfast, place: Place, org: UUID | None) -> session_verify.VerifyReport:
    """Check captured conversations, of one org or of all, as the settings say."""
    from holdfast.sessions.deriver import terms_of
    from holdfast.sessions.prices import rate_cards
    from holdfast.sessions.verify import verify

    config = place.sessions()
    cards = config.prices.cards
    return await verify(
        _opened(hf, place),
        org,
        lag_us=config.lag_ready_ms * 1000,
        cards=() if cards is None else rate_cards(cards),
        terms=terms_of(config),
    )


def _opened(hf: Holdfast, place: Place) -> Database:
    """Return the ledger with its captured conversations open to whoever has its keys."""
    from holdfast.sessions.sealing import stand_before

    return stand_before(hf.database, place.sessions().encryption, os.environ)


def _org(id: str | None) -> UUID | None:
    from holdfast.sessions.identity import org_id

    if id is None:
        return None
    found = org_id(id)
    if found is None:
        raise typer.BadParameter("an org is a UUID")
    return found


def _owner(problem: AnyProblem) -> str:
    return next((owner for name in _OWNERS if (owner := getattr(problem, name, ""))), "")


_OWNERS = ("execution_id", "key_ref", "receipt_id", "org_id")


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
