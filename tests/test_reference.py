"""What the reference says of signatures, fields, settings, tables, codes, events and metrics is what the code has.

A signature stands in a fence without a language: `holdfast.` for the package, `sync.`, `testing.`, `idempotency.` and
the like for its modules, a public class for a method.
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
from types import ModuleType
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from tests.tree import ROOT, coded, package

import holdfast
import holdfast.idempotency
import holdfast.sync
import holdfast.testing
from holdfast import lifecycle, sessions
from holdfast.core import trace
from holdfast.idempotency import IdempotencyConfig, RouteRule, answers, calls, client, errors, events, openapi, outbox
from holdfast.idempotency.rules import CODES, PROFILES
from holdfast.integrations import (
    aiosqlite,
    apsw,
    asyncpg,
    fastapi,
    litestar,
    quart,
    sqlalchemy,
    starlette,
)
from holdfast.lifecycle import ledger
from holdfast.lifecycle.config import Client, LifecycleConfig
from holdfast.sessions.config import SessionsConfig
from holdfast.testing import crash_points

REFERENCE = ROOT / "docs" / "reference"
MODULES: dict[str, ModuleType] = {
    "holdfast": holdfast, "sync": holdfast.sync, "testing": holdfast.testing, "idempotency": holdfast.idempotency,
    "client": client, "outbox": outbox, "starlette": starlette, "fastapi": fastapi, "quart": quart,
    "litestar": litestar, "asyncpg": asyncpg, "sqlalchemy": sqlalchemy, "aiosqlite": aiosqlite, "apsw": apsw,
    "lifecycle": lifecycle, "ledger": ledger, "sessions": sessions,
}  # fmt: skip
CONSTANTS = {
    "timedelta": timedelta, "os": os, "Retry": holdfast.Retry, "RetryPolicy": client.RetryPolicy,
    "SECRET_PARAMS": calls.SECRET_PARAMS, "RouteRule": RouteRule,
    "PayloadPolicy": lifecycle.PayloadPolicy, "SessionFilters": sessions.SessionFilters, "LOCAL": sessions.LOCAL,
    "TurnFilters": sessions.TurnFilters,
}  # fmt: skip
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
    holders = [
        module for module in (holdfast, holdfast.idempotency, client, lifecycle, sessions) if hasattr(module, head)
    ]
    target: Any = MODULES.get(head) or getattr(holders[0], head)
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
    modules = (holdfast, holdfast.idempotency, client, outbox, lifecycle, ledger)
    values = [getattr(module, name) for module in modules for name in module.__all__]
    fields = [
        (value.__name__, field.name)
        for value in values
        if isinstance(value, type) and dataclasses.is_dataclass(value)
        for field in dataclasses.fields(value)
        if field.init
    ]
    fields += [
        (value.__name__, field)
        for value in values
        if isinstance(value, type) and issubclass(value, msgspec.Struct)
        for field in value.__struct_fields__
    ]
    assert [field for field in fields if not re.search(rf"(?<!\w){field[1]}(?!\w)", text)] == []


def test_every_method_of_a_class_of_note_is_in_the_reference() -> None:
    """What is public of a class of these slices is a method or attribute that some page names."""
    text = "".join(
        coded(page(name))
        for name in ("idempotency", "idempotency-client", "integrations", "lifecycle", "configuration")
    )
    own = (holdfast.idempotency, client, outbox, lifecycle, ledger)
    classes = {getattr(module, name) for module in own for name in module.__all__}
    inner = {"Idem": SAID_OF_IDEM, "Idempotency": CALLED_BY_SHELLS, "KeyJournal": SENDING}
    inner |= dict.fromkeys(("IdempotencyConfig", "RouteRule"), RULING)
    inner |= dict.fromkeys(("Claim", "Close", "Draft", "Emit", "Entry", "Put", "Settle"), DECIDING)
    missing = [
        f"{each.__name__}.{name}"
        for each in classes
        if isinstance(each, type) and each.__module__.startswith("holdfast.") and "Transport" not in each.__name__
        for name in vars(each)
        if not name.startswith("_") and name not in inner.get(each.__name__, ())
        if not re.search(rf"(?<!\w){name}(?!\w)", text)
    ]
    assert missing == []


# Public to the other modules of the slice, and of no use outside.
SAID_OF_IDEM = {"apply", "discarded", "result", "retention", "settled"}
CALLED_BY_SHELLS = {
    "claim", "claim_in", "claim_ready", "enter", "gated", "holding", "holds", "lateness", "leave", "lookup",
    "mark_irreversible", "mark_unknown", "observe", "ready", "record", "release", "retry_after", "set_result", "settle",
    "settle_in", "ticket", "unprotected", "wait",
}  # fmt: skip
RULING = {"declared", "lapse", "matches", "ruled"}
SENDING = {"claim", "conclude", "describe", "release"}
DECIDING = {"chain", "decide", "identity", "intent", "notes", "place"}


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row of a page that begins with code."""
    for line in text.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def test_settings_have_the_defaults_and_ranges_of_the_reference() -> None:
    fields = {field.name: field for field in dataclasses.fields(holdfast.DurableConfig)}
    durable = page("configuration").partition("## `[idempotency]`")[0]
    said = {cells[0].strip("`"): cells for cells in rows(durable) if cells[0].strip("`") in fields}
    assert said.keys() == fields.keys()
    for name, field in fields.items():
        default, span = said[name][1].strip("`"), said[name][2]
        assert ast.literal_eval(default) == field.default, name
        if field.metadata.get("minimum") is not None:
            assert re.match(r"(\d+) to (\d+)", span), name
            low, high = map(int, re.findall(r"\d+", span)[:2])
            assert (low, high) == (field.metadata["minimum"], field.metadata["maximum"]), name


@pytest.mark.parametrize("config", [LifecycleConfig, Client])
def test_settings_of_hooks_have_the_defaults_and_ranges_of_the_reference(config: type) -> None:
    section = page("configuration").partition("## `[lifecycle]`")[2].partition("\n## ")[0]
    hooks, _, clients = section.partition("Each client is a table")
    table = clients if config is Client else hooks.rpartition("In section")[2]
    said = {cells[0].strip("`"): cells for cells in rows(table)}
    fields = {field.name: field for field in dataclasses.fields(config)}
    assert list(said) == list(fields)
    for name, field in fields.items():
        cell, span = said[name][1].strip("`"), said[name][2]
        given = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        assert (None if cell == "required" else ast.literal_eval(cell)) == (
            None if given is dataclasses.MISSING else given
        ), name
        if field.metadata.get("minimum") is not None:
            low, high = map(int, re.findall(r"\d+", span)[:2])
            assert (low, high) == (field.metadata["minimum"], field.metadata["maximum"]), name


def leaves(config: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a settings class by their keys, those of a nested one after its name and a dot."""
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from leaves(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field


def test_settings_of_sessions_have_the_defaults_and_ranges_of_the_reference() -> None:
    section = page("configuration").partition("## `[sessions]`")[2].partition("\n## ")[0]
    said = {cells[0].strip("`"): cells for cells in rows(section)}
    fields = dict(leaves(SessionsConfig))
    assert list(said) == list(fields)
    for name, field in fields.items():
        assert ast.literal_eval(said[name][1].strip("`")) == field.default, name
        if field.metadata.get("minimum") is not None:
            low, high = map(int, re.findall(r"\d+", said[name][2])[:2])
            assert (low, high) == (field.metadata["minimum"], field.metadata["maximum"]), name


QUANTITY = re.compile(r"(\d+) (h|s|min|MiB|KiB)")
SIZES = {"MiB": 1024 * 1024, "KiB": 1024}


def quantity(cell: str) -> Any:
    """What a default of the reference means: `24 h`, `2 MiB`, or a Python expression set as code."""
    if found := QUANTITY.fullmatch(cell):
        number, unit = int(found[1]), found[2]
        if unit in SIZES:
            return number * SIZES[unit]
        return timedelta(**{{"h": "hours", "min": "minutes", "s": "seconds"}[unit]: number})
    return eval(cell.strip("`"), CONSTANTS)  # noqa: S307 - the text is our own documentation


@pytest.mark.parametrize("settings", [RouteRule, IdempotencyConfig])
def test_fields_have_the_defaults_of_the_reference(settings: type) -> None:
    """Every field has its row, in the order of the class, with its default and a docstring of its own."""
    section = page("idempotency").partition(f"## `{settings.__name__}`")[2].partition("\n## ")[0]
    said = {cells[0].strip("`"): cells for cells in rows(section)}
    fields = dataclasses.fields(settings)
    assert list(said) == [field.name for field in fields]
    described = re.findall(r"^        (\w+): ", settings.__doc__ or "", re.MULTILINE)
    assert described == [field.name for field in fields], "the docstring describes every field"
    for field in fields:
        assert len(said[field.name]) == 3, field.name
        cell = said[field.name][1]
        if cell == "required":
            assert field.default is dataclasses.MISSING is field.default_factory, field.name
        else:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            assert quantity(cell) == default, field.name


def test_codes_are_those_of_the_reference() -> None:
    """Every situation has its row: code, status, what the answer carries, and the class of its error."""
    section = page("idempotency-http").partition("## Refusals")[2].partition("\n### ")[0]
    said = {cells[0].strip("`"): cells for cells in rows(section.replace("| |", "| - |"))}
    assert list(said) == list(answers.SITUATIONS), "the order of the table is that of the reference"
    for code, situation in answers.SITUATIONS.items():
        _, status, more, error, *_ = said[code]
        assert int(status) == situation.status, code
        assert ("`Retry-After`" in more) == (situation.retry_after is not None), code
        assert error.strip("`-") == (situation.error.__name__ if situation.error else ""), code


def test_codes_are_the_same_everywhere() -> None:
    """The table of answers, the schema of problem documents, what a profile may name, and the classes of errors."""
    codes = set(answers.SITUATIONS)
    assert set(openapi.problem_schema()["properties"]["code"]["enum"]) == codes
    assert codes - {"transaction_misused"} == CODES, "the server answers that one"
    own = {each.code for each in map(errors.__dict__.get, errors.__all__) if each is not errors.IdempotencyError}
    assert {code.removeprefix("idempotency.") for code in own} - {"call_changed", "request_invalid"} <= codes
    raised = {each.error for each in answers.SITUATIONS.values()}
    assert {getattr(errors, name) for name in errors.__all__} - {errors.IdempotencyError, errors.CallChanged} <= raised


def test_profiles_are_those_of_the_reference() -> None:
    section = page("idempotency-http").partition("### Profiles")[2].partition("\n## ")[0]
    said = {cells[0].strip("`"): cells[1] for cells in rows(section)}
    assert said.keys() == PROFILES.keys() - {"draft"}
    for name, statuses in PROFILES.items():
        found = dict(re.findall(r"`(\w+)` (\d{3})", said.get(name, "")))
        assert {code: int(status) for code, status in found.items()} == statuses, name


def test_events_are_those_of_the_reference() -> None:
    section = page("observability").partition("## Idempotency keys")[2].partition("\n## ")[0]
    decisions, notices = re.split(r"^\| Notice ", section, flags=re.MULTILINE)
    assert {cells[0].strip("`") for cells in rows(decisions)} == set(get_args(events.DecisionKind))
    assert {cells[0].strip("`") for cells in rows(notices)} == set(get_args(events.NoticeKind))


async def test_tables_have_the_columns_of_the_reference(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    async with holdfast.open(path):
        pass
    said: dict[str, list[tuple[str, bool]]] = {}
    for section in re.split(r"^## ", page("tables"), flags=re.MULTILINE)[1:]:
        table = section.splitlines()[0].strip("`")
        said[table] = [(cells[0].strip("`"), cells[1] == "yes") for cells in rows(section)]
    connection = sqlite3.connect(path)
    listed = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    names = [row[0] for row in listed]
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
    listed = text.partition("## Spans")[2].partition("\n## ")[0]
    assert {cells[0].strip("`") for cells in rows(listed)} == spans


def test_the_map_names_functions_that_exist() -> None:
    """`module.function` and `Class.method` of the map, wherever in the package the module or the class is."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    sources = [source for source in package() if not source.place.startswith("cli/")]
    places: dict[str, list[list[ast.stmt]]] = {}  # slices have modules of the same name
    for source in sources:
        places.setdefault(source.path.stem, []).append(source.tree.body)
        for _, node in source.nodes():
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(node.body)
    lost = []
    for name in set(re.findall(r"`([A-Za-z_]\w*(?:\.(?!py`)[A-Za-z_]\w*)+)`", text)):
        head, *rest = name.split(".")
        bodies = places.get(head)
        for part in rest:
            if bodies is not None:
                found = [node for body in bodies for node in body if getattr(node, "name", None) == part]
                bodies = [getattr(node, "body", []) for node in found]
        if bodies == []:
            lost.append(name)
    assert lost == []
