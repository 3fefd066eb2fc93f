"""How statements of a plan become one call, which is one message to the server and one transaction.

The catalogue's texts take arrays: a statement runs once, with a column of the batch's rows per parameter, and a
guard's first columns are its parameters. Three calls are made of them:

    whole      a function in the session's temporary schema for all statements of a plan: the creates, the guard,
               whose rows stay locked (in the order of their keys) until the commit, then the writes. One array of
               rows stands for the columns of a statement, of a type made for it, and `unnest` gives them back: the
               driver looks long at every value of an array, and a row is one. A statement without rows is skipped.
    lone       a single statement for one append of one row per statement, with plain values: the guard is its
               first part, and the others take their row from what the guard has found.
    function   a function for one such append whose statements must see one another: the creates are looked up by
               the guard, and a row can be changed only once in a statement.

The guard's lock is the fence. A claim raises the fence by changing the locked row, so it waits for every append that
has seen the old one, and reads the journal after them; an append that comes while a claim is under way waits for it,
and its guard then looks at the row as it is. A plain read would show the fence of its snapshot, and what it let pass
could be committed after the new owner had read the journal.

A whole call and a function fail when the guard refuses a key; they return a guard's row only if it says more than
its key does. A lone call returns the guard's row; where there is none, nothing was written.

Invariants:
    - A text that was not foreseen becomes no call: `whole` leaves its statement out, `lone` gives None.
    - No value becomes text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.store.catalogue import Statement
from holdfast.store.database import Plan

__all__ = ["PARAMETERS_MAX", "REFUSED", "Recipe", "lone", "whole"]

REFUSED = "HF001"
"""The code of the error by which a function ends when a guard refuses."""
PARAMETERS_MAX = 100
"""PostgreSQL's own limit for a function."""

_HELD = "holdfast_held"
_NUMBER = re.compile(r"\$([0-9]+)")
_ARRAY = re.compile(r"\$([0-9]+)::([\w ]+)\[\]")
_ARRAYS = r"unnest\((?P<arrays>(?:\s*\$[0-9]+::[\w ]+\[\]\s*,?)+)\)"
_ROWS = re.compile(  # where the columns have names of their own, or need none
    rf"(?P<before>\bFROM\s+){_ARRAYS}(?=\s+(?:WITH\s+ORDINALITY\s+)?AS\s+\w+\s*\(|\s*(?:ON\s+CONFLICT|RETURNING|$))"
)
_ROW = re.compile(rf"\b{_ARRAYS}(?P<alias>\s+AS\b|(?=\s*(?:ON|WHERE|RETURNING|ORDER|$)))")
_TARGET = re.compile(r"\s*(?:INSERT\s+INTO|UPDATE)\s+(?P<table>\w+)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What makes a call.

    Attributes:
        definition: What makes the function and its types; empty when there is none.
        call: The statement to prepare.
        names: The statements it runs, in the order of their arguments.
        guarded: Whether the guard's keys come first.
        single: Whether it takes the values of one row per statement; else an array of rows for each.
        refuses: Whether it fails when the guard refuses a key; else it returns no row for it.
    """

    definition: str
    call: str
    names: tuple[str, ...]
    guarded: bool
    single: bool
    refuses: bool


def whole(name: str, plan: Plan, statements: Mapping[str, Statement], columns: Mapping[str, str]) -> Recipe | None:
    """Make the function of a plan's statements; None when it has too many parameters.

    Args:
        name: What to call it, and its types.
        plan: The plan.
        statements: The catalogue.
        columns: The columns of the guard's rows and their types; none for a plan without a guard.
    """
    function = _Function(name)
    guard = function.rows(statements[plan.guard]) if columns else None
    if guard is not None:
        place = len(function.types)
        guard = _if_any(_looked_up(guard, statements[plan.guard], f"cardinality(${place})"), place)
    steps: dict[str, str] = {}
    for each in (*plan.creates, *plan.writes):
        statement = statements.get(each)
        text = function.rows(statement) if statement is not None and not statement.columns else None
        if text is not None:
            steps[each] = _if_any(text, len(function.types))
    return function.recipe(plan, steps, guard, columns if guard is not None else {}, single=False)


def lone(
    name: str, plan: Plan, names: tuple[str, ...], statements: Mapping[str, Statement], columns: Mapping[str, str]
) -> Recipe | None:
    """Make the call of an append of one row for each of these statements of a plan; None when there can be none.

    Args:
        name: What to call a function, should it take one.
        plan: The plan.
        names: The statements, in the plan's order.
        statements: The catalogue.
        columns: The columns of the guard's rows and their types; none for an append without a guard.
    """
    chosen = [statements[each] for each in names]
    if any(statement.columns for statement in chosen):
        return None
    if not columns and len(chosen) == 1:
        text = _Values().take(chosen[0])
        return None if text is None else Recipe("", text, names, guarded=False, single=True, refuses=False)
    targets = [_TARGET.match(statement.text) for statement in chosen]
    tables = {target["table"] for target in targets if target is not None}
    if columns and len(tables) == len(chosen) and not set(names) & set(plan.creates):
        return _statement(names, chosen, statements[plan.guard])
    function = _Function(name)
    guard = None
    if columns:
        text = function.values(statements[plan.guard])
        if text is None:
            return None
        guard = _looked_up(text, statements[plan.guard], "1")
    steps = {}
    for each, statement in zip(names, chosen, strict=True):
        text = function.values(statement)
        if text is None:
            return None
        steps[each] = text
    return function.recipe(plan, steps, guard, columns, single=True)


def _statement(names: tuple[str, ...], chosen: list[Statement], guard: Statement) -> Recipe | None:
    values = _Values()
    held = values.take(guard)
    parts = [values.take(statement, _HELD) for statement in chosen]
    if held is None or None in parts:
        return None
    rest = "".join(f",\nholdfast_{number} AS (\n{part}\n)" for number, part in enumerate(parts))
    call = f"WITH {_HELD} AS MATERIALIZED (\n{held}\n){rest}\nSELECT * FROM {_HELD}"
    return Recipe("", call, names, guarded=True, single=True, refuses=False)


class _Values:
    """Numbers the parameters of statements that take the values of one row."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def take(self, statement: Statement, source: str = "") -> str | None:
        """Return a statement's text with a row of values, one for each row of `source`; None when it allows none."""
        kinds, found = _kinds(statement), list(_ROW.finditer(statement.text))
        if kinds is None or len(found) != 1 or found[0]["arrays"].count("[]") != len(kinds):
            return None
        place = len(self.kinds)
        values = _NUMBER.sub(lambda match: f"${int(match[1]) + place}", found[0]["arrays"].replace("[]", ""))
        row = f"(SELECT {values} FROM {source})" if source else f"(VALUES ({values}))"  # noqa: S608 - of numbers
        self.kinds += kinds
        before, after = statement.text[: found[0].start()], statement.text[found[0].end() :]
        return f"{before}{row}{found[0]['alias'] or ' AS one_row'}{after}"


class _Function:
    """A function in the making.

    Attributes:
        types: Of its parameters, as far as statements have been taken.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._made: list[str] = []
        self._values = _Values()
        self.types: list[str] = []

    def rows(self, statement: Statement) -> str | None:
        """Add a parameter for an array of a statement's rows, and return the text that takes it."""
        kinds, found = _kinds(statement), list(_ROWS.finditer(statement.text))
        if kinds is None or len(found) != 1 or found[0]["arrays"].count("[]") != len(kinds):
            return None
        place = len(self.types) + 1
        fields = ", ".join(f'"{param}" {kind}' for param, kind in zip(statement.params, kinds, strict=True))
        self._made.append(f"CREATE TYPE pg_temp.{self._name}_{place} AS ({fields});\n")
        self.types.append(f"pg_temp.{self._name}_{place}[]")
        return _ROWS.sub(rf"\g<before>unnest(${place})", statement.text)

    def values(self, statement: Statement) -> str | None:
        """Add a parameter for each of a statement's own, and return the text that takes them."""
        text = self._values.take(statement)
        self.types = self._values.kinds
        return text

    def recipe(
        self, plan: Plan, steps: Mapping[str, str], guard: str | None, columns: Mapping[str, str], *, single: bool
    ) -> Recipe | None:
        """Put it together: the creates, the guard, the writes."""
        if len(self.types) > PARAMETERS_MAX:
            return None
        body = [text for name, text in steps.items() if name in plan.creates]
        body += [] if guard is None else [guard]
        body += [text for name, text in steps.items() if name not in plan.creates]
        parameters = ", ".join(f"${number}" for number in range(1, len(self.types) + 1))
        shape = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
        return Recipe(
            self._definition(body, returns="SETOF record" if columns else "void"),
            _invocation(self._name, parameters, shape),
            tuple(steps),
            guarded=guard is not None,
            single=single,
            refuses=True,
        )

    def _definition(self, body: list[str], *, returns: str) -> str:
        steps = ";\n".join(body)
        return (
            f"{''.join(self._made)}CREATE FUNCTION pg_temp.{self._name}({', '.join(self.types)}) RETURNS {returns} "
            f"LANGUAGE plpgsql AS $holdfast$\nDECLARE holdfast_count bigint; holdfast_news bigint;\n"
            f"BEGIN\n{steps};\nEND\n$holdfast$"
        )


def _invocation(name: str, parameters: str, shape: str) -> str:
    call = f"SELECT * FROM pg_temp.{name}({parameters})"  # noqa: S608 - of names that we made, no values
    return f"{call} AS ({shape})" if shape else call


def _if_any(step: str, place: int) -> str:
    # NULL for every array runs every statement with no rows, so that all are planned: `IS DISTINCT` takes it for some.
    return f"IF cardinality(${place}) IS DISTINCT FROM 0 THEN\n{step};\nEND IF"


def _looked_up(guard: str, statement: Statement, wanted: str) -> str:
    """The step that locks what a guard finds, refuses if that is too little, and returns what has news."""
    news = " OR ".join(f'h."{column}" IS NOT NULL' for column in statement.columns[len(statement.params) :]) or "FALSE"
    return (  # of texts of the catalogue, no values
        f"SELECT count(*), count(*) FILTER (WHERE {news}) INTO holdfast_count, holdfast_news "  # noqa: S608 - as said
        f"FROM (\n{guard}\n) AS h;\n"
        f"IF holdfast_count <> {wanted} THEN RAISE 'a guard refuses' USING ERRCODE = '{REFUSED}'; END IF;\n"
        f"IF holdfast_news > 0 THEN RETURN QUERY SELECT * FROM (\n{guard}\n) AS h WHERE {news}; END IF"
    )


def _kinds(statement: Statement) -> list[str] | None:
    """The types of a statement's parameters, if all it takes is one array for each, in order and once."""
    arrays = _ARRAY.findall(statement.text)
    numbers = [str(number) for number in range(1, len(statement.params) + 1)]
    if [number for number, _ in arrays] != numbers or _NUMBER.findall(statement.text) != numbers:
        return None
    return [kind for _, kind in arrays]
