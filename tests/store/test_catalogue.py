"""The statement catalogue: what a file may say, and what its mistakes are told as."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.core.errors import StoreError
from holdfast.store import catalogue

GOOD = """
-- A comment for the reader.

-- name: things.get(id, kind)
-- columns: id, label
SELECT id, label
-- a comment inside
FROM things WHERE id = :id AND kind = :kind AND ':no' <> 'it''s :no' AND (:id IS NULL OR at > '12:30');

-- name: things.drop()
DELETE FROM things
"""


def test_a_file_is_a_sequence_of_statements() -> None:
    get, drop = catalogue.parse("sqlite", "things.sql", GOOD)
    assert (get.name, get.params, get.columns) == ("things.get", ("id", "kind"), ("id", "label"))
    assert get.text.startswith("SELECT id, label\nFROM things")
    assert get.text.endswith("'12:30')")
    assert (drop.params, drop.columns, drop.text) == ((), (), "DELETE FROM things")


def test_rows_are_tuples_with_their_columns_as_attributes() -> None:
    get, drop = catalogue.parse("sqlite", "things.sql", GOOD)
    row = get.row((1, "one"))
    assert row == (1, "one")
    assert (row.id, row.label) == (1, "one")
    assert drop.row((1,)) == (1,)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("SELECT 1", "x.sql:1"),
        ("-- name: things get\nSELECT 1", "x.sql:1"),
        ("-- name: things(id)\nSELECT :id", "x.sql:1"),
        ("-- columns: id\n-- name: a.b()\nSELECT 1", "x.sql:1"),
        ("-- name: a.b()\nSELECT 1\n-- columns: id", "x.sql:3"),
        ("-- name: a.b()\n-- columns: id\n-- columns: id\nSELECT 1", "x.sql:3"),
        ("-- name: a.b()\n\n-- name: a.c()\nSELECT 1", "a.b has no text"),
        ("-- name: a.b(id)\nSELECT 1", "(id)"),
        ("-- name: a.b()\nSELECT :id", "(id)"),
        ("-- name: a.b(one, two)\nSELECT :two, :one", "(two, one)"),
    ],
)
def test_a_mistake_is_told_with_its_place(text: str, where: str) -> None:
    with pytest.raises(StoreError) as caught:
        catalogue.parse("sqlite", "x.sql", text)
    assert where in str(caught.value)


@pytest.mark.parametrize("text", ["SELECT $2", "SELECT $1, $3", "SELECT $1"])
def test_numbered_parameters_are_complete(text: str) -> None:
    with pytest.raises(StoreError, match=r"a\.b lists"):
        catalogue.parse("postgres", "x.sql", f"-- name: a.b(one, two)\n{text}")
    (found,) = catalogue.parse("postgres", "x.sql", "-- name: a.b(one, two)\nSELECT $2::int, $1::text, '$3'")
    assert found.params == ("one", "two")


def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *texts: str) -> catalogue.Catalogue:
    (tmp_path / "sqlite").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "sqlite" / f"{number}.sql").write_text(text)
    (tmp_path / "sqlite" / "README").write_text("not a statement file")
    monkeypatch.setattr(catalogue, "_directories", [tmp_path])
    return catalogue.load("sqlite")


def test_a_name_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"a\.b is given twice"):
        load(tmp_path, monkeypatch, "-- name: a.b()\nSELECT 1", "-- name: a.b()\nSELECT 1")


def test_a_companion_takes_some_of_its_statements_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(
        tmp_path,
        monkeypatch,
        "-- name: a.put(one, two, three)\nSELECT :one, :two, :three\n"
        "-- name: a.put.recorded(three, one)\nSELECT :three, :one\n-- name: a.get()\nSELECT 1",
    )
    companion = found.companion("a.put")
    assert companion is not None
    assert companion.params((1, 2, 3)) == (3, 1)
    assert found.companion("a.get") is None
    assert "a.get" in found
    assert found.get("a.burn") is None
    assert set(found) > {"a.put", "ledger.get"}
    assert len(found) == len(list(found))
    with pytest.raises(StoreError, match=r"no statement 'a\.burn'"):
        found["a.burn"]


@pytest.mark.parametrize("name", ["a.put.recorded(two)", "a.get.recorded(one)"])
def test_a_companion_of_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text = name[name.index("(") + 1 : -1]
    with pytest.raises(StoreError, match="recorded"):
        load(tmp_path, monkeypatch, f"-- name: a.put(one)\nSELECT :one\n-- name: {name}\nSELECT :{text}")
