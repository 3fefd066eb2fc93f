"""`holdfast verify`: check what the ledger promises about its own rows, in every slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from holdfast.cli.ledger import JsonOption, Place, drive, placed

if TYPE_CHECKING:
    from holdfast import Holdfast, VerifyReport
    from holdfast.execution.verify import Problem
    from holdfast.idempotency import verify as key_verify
    from holdfast.lifecycle import verify as receipt_verify

__all__ = ["verify"]

Slice = Literal["durable", "idempotency", "lifecycle"]


@dataclass(frozen=True, slots=True)
class _Report:
    """What all slices together say."""

    ok: bool
    checked_count: int
    problems: tuple[Problem | key_verify.Problem | receipt_verify.Problem, ...]


@placed
def verify(
    place: Place,
    id: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]", help="One execution, one key, or the receipts of one run. Default: all.", show_default=False
        ),
    ] = None,
    *,
    only: Annotated[
        Slice | None,
        typer.Option(
            "--slice",
            metavar="NAME",
            help="Look at one slice only: durable, idempotency, whose ID is a key's reference, or lifecycle, "
            "whose ID is a run. Default: at all.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every invariant of the ledger; one line per problem."""
    from holdfast.cli.render import line, print_json

    if only is None and id is not None:
        only = "durable"
    key = place.lifecycle().chain_key() if only in (None, "lifecycle") else None
    found = drive(place.look(lambda hf: _verify(hf, id, only, key)))
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
            _counted(report.checked_count, _NOUNS[name])
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


_NOUNS: dict[Slice, str] = {"durable": "execution", "idempotency": "key", "lifecycle": "receipt"}
Found: TypeAlias = "dict[Slice, VerifyReport | key_verify.VerifyReport | receipt_verify.VerifyReport]"


async def _verify(hf: Holdfast, id: str | None, only: Slice | None, chain_key: bytes | None) -> Found:
    from holdfast.idempotency import verify as key_verify
    from holdfast.lifecycle import verify as receipt_verify

    found: Found = {}
    if only in (None, "durable"):
        found["durable"] = await hf.verify(id)
    if only in (None, "idempotency"):
        found["idempotency"] = await key_verify.verify(hf.database, id)
    if only in (None, "lifecycle"):
        found["lifecycle"] = await receipt_verify.verify(hf.database, id, chain_key=chain_key)
    return found


def _owner(problem: Problem | key_verify.Problem | receipt_verify.Problem) -> str:
    return next((owner for name in _OWNERS if (owner := getattr(problem, name, ""))), "")


_OWNERS = ("execution_id", "key_ref", "receipt_id")


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun if count == 1 else noun + 's'}"
