"""The statement catalogue: named SQL, one file per slice and dialect.

A file is a sequence of statements. Each opens with a header that lists its parameters in order; a
statement that gives rows says which columns:

    -- name: executions.get(id)
    -- columns: pk, id, status
    SELECT pk, id, status FROM durable_executions WHERE id = :id

SQLite texts use `:name`, PostgreSQL texts `$1` to `$n`; either way a tuple in the header's order binds. What
comes before the first header, and lines that are wholly comments, are for the reader.

A statement that changes one row or none may have the one column `changed`: it gives a row when it has changed one.
On SQLite its text returns nothing, and the driver is asked: there RETURNING makes a table for every statement.

Invariants:
    - Every parameter of the header is used, and nothing else is; on SQLite they first occur in its order.
    - A name is given once per dialect.
    - A statement `<name>.recorded` takes parameters of `<name>` only.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable, Mapping
from functools import cache, cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from holdfast.core.errors import StoreError

__all__ = ["Catalogue", "Companion", "Dialect", "Statement", "load", "parse", "register"]

Dialect: TypeAlias = Literal["sqlite", "postgres"]

_HEADER = re.compile(r"-- name: (?P<name>[a-z_]+(?:\.[a-z_]+)+)\((?P<params>[a-z0-9_, ]*)\)$")
_COLUMNS = re.compile(r"-- columns: (?P<columns>[a-z0-9_, ]+)$")
_STRING = re.compile(r"'(?:[^']|'')*'|--[^\n]*")
_NAMED = re.compile(r"(?<![:\w]):([a-z_][a-z0-9_]*)")
_READS = re.compile(r"select\b", re.IGNORECASE)
_RETURNS = re.compile(r"\breturning\b", re.IGNORECASE)
_NUMBERED = re.compile(r"\$([0-9]+)")


class Statement(msgspec.Struct, frozen=True, dict=True):
    """One named statement.

    Attributes:
        name: `table.verb`.
        params: Its parameters, in order.
        columns: The columns of its rows; empty when it gives none.
        text: The SQL, in one dialect.
    """

    name: str
    params: tuple[str, ...]
    columns: tuple[str, ...]
    text: str

    @cached_property
    def row(self) -> Callable[[tuple[Any, ...]], Any]:
        """Make a row out of a tuple of its columns: the tuple, with the columns as attributes."""
        if not self.columns:
            return tuple
        made = namedtuple("Row", self.columns)  # type: ignore[misc]  # its fields are known here only
        return partial(tuple.__new__, made)

    def bind(self, params: Mapping[str, object]) -> tuple[Any, ...]:
        """Return the values of parameters in their order.

        Raises:
            StoreError: They are not those it takes.
        """
        if len(params) == len(self.params):
            try:
                return self._ordered(params)
            except KeyError:
                pass
        given, wanted = ", ".join(params), ", ".join(self.params)
        raise StoreError(f"{self.name} takes ({wanted}), not ({given})")

    @cached_property
    def _ordered(self) -> Callable[[Mapping[str, object]], tuple[Any, ...]]:
        if len(self.params) > 1:
            return itemgetter(*self.params)
        return lambda params: tuple([params[name] for name in self.params])

    @cached_property
    def reads(self) -> bool:
        """Whether it changes nothing, and asks for nothing but rows."""
        return _READS.match(self.text) is not None

    @cached_property
    def counts(self) -> bool:
        """Whether its row is how many rows it has changed, which the driver tells, and not its text."""
        return self.columns == ("changed",) and _RETURNS.search(self.text) is None


class Companion(msgspec.Struct, frozen=True):
    """A statement `<name>.recorded`, which finds the row that `<name>` has written.

    It takes some of that statement's parameters, one value each in both dialects, and gives one row or none.

    Attributes:
        statement: The statement.
        positions: Where its parameters are among those of `<name>`.
    """

    statement: Statement
    positions: tuple[int, ...]

    def params(self, row: tuple[object, ...]) -> tuple[object, ...]:
        """Choose its parameters out of a row that `<name>` is given."""
        return tuple(row[position] for position in self.positions)


class Catalogue(dict[str, Statement]):
    """All statements of a dialect by name; nobody changes it."""

    def __init__(self, dialect: Dialect, statements: Mapping[str, Statement]) -> None:
        super().__init__(statements)
        self.dialect = dialect

    def __missing__(self, name: str) -> Statement:
        raise StoreError(f"there is no statement {name!r} for {self.dialect}")

    def companion(self, name: str) -> Companion | None:
        """Return how to look for what a statement has written before, if somebody said how."""
        found = self.get(f"{name}.recorded")
        if found is None:
            return None
        params = self[name].params
        return Companion(found, tuple(params.index(param) for param in found.params))


class _Draft(msgspec.Struct):
    """A statement being read."""

    name: str
    params: tuple[str, ...]
    line: int
    columns: tuple[str, ...] = ()
    text: list[str] = []


_directories: list[Path] = []


def register(directory: Path) -> None:
    """Add a directory that holds `sqlite/*.sql`, `postgres/*.sql` or both, for statements of somebody else's slice.

    Databases opened from now on know them.
    """
    if directory not in _directories:
        _directories.append(directory)


def load(dialect: Dialect) -> Catalogue:
    """Return the statements of a dialect.

    Raises:
        StoreError: A file is malformed; the message says where.
    """
    return _load(dialect, tuple(_directories))


@cache
def _load(dialect: Dialect, directories: tuple[Path, ...]) -> Catalogue:
    own = Path(__file__).parent / "sql" / dialect
    roots = [own]
    roots += [path for directory in directories if (path := directory / dialect).is_dir()]
    statements: dict[str, Statement] = {}
    for root in roots:
        for file in sorted(root.iterdir(), key=lambda file: file.name):
            if not file.name.endswith(".sql"):
                continue
            where = f"{dialect}/{file.name}"
            drafts = _drafts(where, file.read_text("utf-8"))
            # The package's own are checked by its tests: a command would wait for that every time.
            made = [_made(each) if root is own else _checked(dialect, where, each) for each in drafts]
            for statement in made:
                if statement.name in statements:
                    raise StoreError(f"{where}: {statement.name} is given twice")
                statements[statement.name] = statement
    for name, statement in statements.items():
        if name.endswith(".recorded"):
            base = statements.get(name.removesuffix(".recorded"))
            if base is None or not set(statement.params) <= set(base.params):
                raise StoreError(f"{dialect}: {name} belongs to no statement, or takes what its statement does not")
    return Catalogue(dialect, statements)


def parse(dialect: Dialect, where: str, text: str) -> list[Statement]:
    """Read the statements of one file, and check them.

    Raises:
        StoreError: It is malformed; the message says where.
    """
    return [_checked(dialect, where, draft) for draft in _drafts(where, text)]


def _drafts(where: str, text: str) -> list[_Draft]:
    drafts: list[_Draft] = []
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("-- name:"):
            header = _HEADER.match(stripped)
            if header is None:
                raise StoreError(f"{where}:{number}: not a header: write '-- name: table.verb(a, b)'")
            drafts.append(_Draft(header["name"], _names(header["params"]), number))
        elif stripped.startswith("-- columns:"):
            columns = _COLUMNS.match(stripped)
            if columns is None or not drafts or drafts[-1].text or drafts[-1].columns:
                raise StoreError(f"{where}:{number}: columns belong right after a header: '-- columns: a, b'")
            drafts[-1].columns = _names(columns["columns"])
        elif not stripped.startswith("--") and stripped:
            if not drafts:
                raise StoreError(f"{where}:{number}: a statement before the first '-- name:' header")
            drafts[-1].text.append(line.rstrip())
    return drafts


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _made(draft: _Draft) -> Statement:
    text = "\n".join(draft.text).strip().rstrip(";").rstrip()
    return Statement(draft.name, draft.params, draft.columns, text)


def _checked(dialect: Dialect, where: str, draft: _Draft) -> Statement:
    made = _made(draft)
    if not made.text:
        raise StoreError(f"{where}:{draft.line}: {draft.name} has no text")
    bare = _STRING.sub("", made.text)
    if dialect == "sqlite":
        used = tuple(dict.fromkeys(_NAMED.findall(bare)))
        expected: tuple[str, ...] = draft.params
    else:
        used = tuple(str(number) for number in sorted({int(number) for number in _NUMBERED.findall(bare)}))
        expected = tuple(str(number + 1) for number in range(len(draft.params)))
    if used != expected:
        raise StoreError(
            f"{where}:{draft.line}: {draft.name} lists the parameters ({', '.join(expected)}) "
            f"but its text uses ({', '.join(used)})"
        )
    return made
