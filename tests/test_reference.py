"""What the reference says of signatures, fields, settings, tables, crash points and metrics is what the code has.

A signature stands in a fence without a language: `holdfast.` for the package, `sync.` and `testing.` for its
modules, a class of `holdfast` for a method.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.tree import ROOT, coded, package

import holdfast
import holdfast.sync
import holdfast.testing
from holdfast.core import trace
from holdfast.testing import crash_points

REFERENCE = ROOT / "docs" / "reference"
MODULES = {"holdfast": holdfast, "sync": holdfast.sync, "testing": holdfast.testing}
CONSTANTS = {"timedelta": timedelta, "os": os, "Retry": holdfast.Retry}
FACTORY = "<factory>"


def page(name: str) -> str:
    return (REFERENCE / f"{name}.md").read_text()


def signatures() -> Iterator[tuple[str, str]]:
    """Every signature of the reference: the dotted name, and what stands in its parentheses."""
    for path in sorted(REFERENCE.glob("*.md")):
        opening = ""
        for fence in re.finditer(r"^```(\w*)\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
            if fence[1]:
                continue
            for line in fence[2].splitlines():
                opening = opening + line.strip() if line.startswith(" ") else line
                if opening.count("(") == opening.count(")"):
                    found = re.fullmatch(r"([\w.]+)\((.*)\)(?: -> .+)?", opening)
                    assert found, f"{path.name}: {opening!r} is no signature"
                    yield found[1], found[2]


def resolve(name: str) -> Any:
    head, _, rest = name.partition(".")
    target: Any = MODULES.get(head) or getattr(holdfast, head)
    for part in rest.split("."):
        target = getattr(target, part)
    return target


def written(parameters: str) -> dict[str, tuple[Any, Any]]:
    """The parameters of a signature as it is written: kind and default by name."""
    function = ast.parse(f"def f({parameters}): ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    given: dict[str, Any] = {}
    names = [*function.args.posonlyargs, *function.args.args]
    for argument, default in zip(reversed(names), reversed(function.args.defaults), strict=False):
        given[argument.arg] = default
    for argument, keyword_default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if keyword_default is not None:
            given[argument.arg] = keyword_default
    scope: dict[str, Any] = {}
    exec(f"def f({parameters}): ...", CONSTANTS, scope)  # noqa: S102 - the text is our own documentation
    return {each.name: (each.kind, each.default) for each in inspect.signature(scope["f"]).parameters.values()}


@pytest.mark.parametrize(("name", "parameters"), list(signatures()))
def test_a_signature_of_the_reference_is_the_codes(name: str, parameters: str) -> None:
    target = resolve(name)
    actual = {each.name: (each.kind, each.default) for each in inspect.signature(target).parameters.values()}
    method = inspect.isfunction(target) and name.count(".") > (name.split(".")[0] in MODULES)
    if method and next(iter(actual), "") == "self":
        del actual["self"]
    said = written(parameters)
    for parameter, (kind, default) in actual.items():
        if repr(default) == FACTORY and parameter in said:
            actual[parameter] = kind, said[parameter][1]
    assert said == actual


def test_every_function_and_method_of_note_has_its_signature() -> None:
    said = {name for name, _ in signatures()}
    for prefix, module in MODULES.items():
        for name in module.__all__:
            if inspect.isfunction(getattr(module, name)):
                assert f"{prefix}.{name}" in said


def test_every_field_of_a_value_is_in_the_reference() -> None:
    text = "\n".join(coded(path.read_text()) for path in REFERENCE.glob("*.md"))
    values = [getattr(holdfast, name) for name in holdfast.__all__]
    fields = [
        (value.__name__, field.name)
        for value in values
        if isinstance(value, type) and dataclasses.is_dataclass(value)
        for field in dataclasses.fields(value)
        if field.init
    ]
    assert [field for field in fields if not re.search(rf"(?<!\w){field[1]}(?!\w)", text)] == []


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row of a page that begins with code."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def test_settings_have_the_defaults_and_ranges_of_the_reference() -> None:
    fields = {field.name: field for field in dataclasses.fields(holdfast.DurableConfig)}
    said = {cells[0].strip("`"): cells for cells in rows(page("configuration")) if cells[0].strip("`") in fields}
    assert said.keys() == fields.keys()
    for name, field in fields.items():
        default, span = said[name][1].strip("`"), said[name][2]
        assert ast.literal_eval(default) == field.default, name
        if field.metadata.get("minimum") is not None:
            assert re.match(r"(\d+) to (\d+)", span), name
            low, high = map(int, re.findall(r"\d+", span)[:2])
            assert (low, high) == (field.metadata["minimum"], field.metadata["maximum"]), name


async def test_tables_have_the_columns_of_the_reference(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with holdfast.open(path):
        pass
    said: dict[str, list[tuple[str, bool]]] = {}
    for section in re.split(r"^## ", page("tables"), flags=re.MULTILINE)[1:]:
        table = section.splitlines()[0].strip("`")
        said[table] = [(cells[0].strip("`"), cells[1] == "yes") for cells in rows(section)]
    connection = sqlite3.connect(path)
    names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    found = {name: connection.execute(f"PRAGMA table_info({name})").fetchall() for name in names}
    connection.close()
    assert said == {table: [(c[1], bool(c[3] or c[5])) for c in columns] for table, columns in found.items()}


def test_crash_points_are_those_of_the_reference() -> None:
    section = page("testing").partition("## Crash points")[2].partition("\n## ")[0]
    assert sorted(cells[0].strip("`") for cells in rows(section)) == list(crash_points())


def test_metrics_and_spans_are_those_of_the_reference() -> None:
    for module in pkgutil.walk_packages(holdfast.__path__, "holdfast."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    text = page("observability")
    named = {metric.name: metric for metric in trace.metrics().values() if metric.name.startswith("holdfast_")}
    said = {cells[0].strip("`"): cells for cells in rows(text) if cells[0].startswith("`holdfast_")}
    assert said.keys() == named.keys()
    for name, metric in named.items():
        assert said[name][1] == type(metric).__name__.lower()
        assert re.findall(r"`(\w+)`", said[name][2]) == list(metric.labels), name
    spans = {
        node.args[0].value
        for source in package()
        for _, node in source.nodes()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "span"
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }
    assert {cells[0].strip("`") for cells in rows(text) if cells[0].startswith("`holdfast.durable.")} >= spans
    listed = text.partition("## Spans")[2].partition("\n## ")[0]
    assert {cells[0].strip("`") for cells in rows(listed)} == spans


def test_the_map_names_functions_that_exist() -> None:
    """`module.function` and `Class.method` of the map, wherever in the package the module or the class is."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    sources = [source for source in package() if not source.place.startswith("cli/")]
    modules = {source.path.stem: source for source in sources if not source.path.name.startswith("__")}
    classes = {node.name: node for s in sources for _, node in s.nodes() if isinstance(node, ast.ClassDef)}
    lost = []
    for name in set(re.findall(r"`([A-Za-z_]\w*(?:\.(?!py`)[A-Za-z_]\w*)+)`", text)):
        head, *rest = name.split(".")
        if head in modules:
            body = modules[head].tree.body
        elif head in classes:
            body = classes[head].body
        else:
            continue
        for part in rest:
            found = next((node for node in body if getattr(node, "name", None) == part), None)
            if found is None:
                lost.append(name)
                break
            body = getattr(found, "body", [])
    assert lost == []
