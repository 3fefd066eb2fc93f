"""What Holdfast promises: names, error codes, settings and commands, each documented, the names type-tested too.

A document counts as naming something when the name is set as code. An exported value that can carry no docstring
(an alias of a type, a constant) has a string literal right below its assignment.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any, get_type_hints

import pytest
from tests.tree import ROOT, coded, package, sources
from typer.main import get_command

import holdfast
from holdfast import HoldfastError
from holdfast.idempotency.settings import IdempotencySettings
from holdfast.lifecycle.config import Client, LifecycleConfig
from holdfast.sessions.config import SessionsConfig

REFERENCE = ROOT / "docs" / "reference"
PUBLIC = (
    "holdfast", "holdfast.sync", "holdfast.testing", "holdfast.testing.key_contract",
    "holdfast.testing.provider_contract",
    "holdfast.idempotency", "holdfast.idempotency.client", "holdfast.idempotency.errors",
    "holdfast.integrations.aiosqlite", "holdfast.integrations.apsw", "holdfast.integrations.asyncpg",
    "holdfast.integrations.fastapi", "holdfast.integrations.litestar", "holdfast.integrations.quart",
    "holdfast.integrations.sqlalchemy", "holdfast.integrations.starlette",
    "holdfast.lifecycle", "holdfast.lifecycle.ledger", "holdfast.sessions",
)  # fmt: skip
TYPED = (
    "holdfast", "holdfast.idempotency", "holdfast.idempotency.client",
    "holdfast.lifecycle", "holdfast.lifecycle.ledger", "holdfast.sessions",
)  # fmt: skip
CODE = re.compile(r"(config|codec|limit|store|durable|idempotency|lifecycle|sessions)\.[a-z_]+")


@cache
def reference(name: str = "*") -> str:
    """What the pages of the reference, or one of them, set as code."""
    return "\n".join(coded(path.read_text()) for path in sorted(REFERENCE.glob(f"{name}.md")))


def named(name: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None


def exports() -> list[tuple[str, str]]:
    return [(module, name) for module in PUBLIC for name in importlib.import_module(module).__all__]


@cache
def literal_docstrings() -> set[str]:
    """Module-level names of the package with a string literal right below their assignment."""
    found: set[str] = set()
    for source in package():
        for node, below in pairwise(source.tree.body):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found.update(target.id for target in targets if isinstance(target, ast.Name))
    return found


def documented(name: str, value: object) -> bool:
    if isinstance(value, ModuleType):
        return bool(value.__doc__)
    if not isinstance(value, type) and not callable(value):
        return name in literal_docstrings() or name.startswith("__")
    own = vars(value).get("__doc__") if isinstance(value, type) else getattr(value, "__doc__", None)
    generated = isinstance(own, str) and own.startswith(f"{name}(")  # what a dataclass makes up
    return name in literal_docstrings() or (bool(own) and not generated)


def errors() -> set[tuple[str, str]]:
    """Name and code of every error that a module `errors` has. A base that stands for no error has none."""
    for module in pkgutil.walk_packages(holdfast.__path__, "holdfast."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: set[type[HoldfastError]] = set()
    unseen = [HoldfastError]
    while unseen:
        error = unseen.pop()
        found.add(error)
        unseen += [leaf for leaf in error.__subclasses__() if leaf.__module__.startswith("holdfast")]
    public = [each for each in found if each.__module__.endswith(".errors") and not each.__name__.startswith("_")]
    codes = {(error.__name__, str(getattr(error, "code", ""))) for error in public}
    return {(name, code) for name, code in codes if CODE.fullmatch(code)}


def codes_given() -> set[str]:
    """Codes that a raise passes, besides the one its class has."""
    return {
        keyword.value.value
        for source in package()
        for _, node in source.nodes()
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "code" and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str)
        if CODE.fullmatch(keyword.value.value)
    }


def settings(config: type, prefix: str = "") -> Iterator[str]:
    """The keys of a configuration class, those of a nested one after its name and a dot."""
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from settings(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def commands() -> dict[str, list[str]]:
    """Every command of the program with the long options it takes."""
    found: dict[str, list[str]] = {}

    def walk(command: Any, path: str) -> None:
        if inner := getattr(command, "commands", None):
            for name, child in inner.items():
                walk(child, f"{path} {name}")
        if not inner or command.params:
            options = [option for param in command.params for option in param.opts]
            found[path] = [option for option in options if option.startswith("--")]

    walk(get_command(importlib.import_module("holdfast.cli.main").app), "holdfast")
    return found


def test_exports_are_sorted() -> None:
    """The order ruff keeps (RUF022) in a list that is written out: constants, classes, the rest."""
    for module in PUBLIC:
        names = list(importlib.import_module(module).__all__)
        if names != sorted(names):  # as a list is that is computed
            assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name)), module
        assert len(names) == len(set(names)), module


@pytest.mark.parametrize("module", ["holdfast", "holdfast.idempotency", "holdfast.lifecycle", "holdfast.sessions"])
def test_exports_are_what_the_package_shows(module: str) -> None:
    """Completion offers the promised names, though they are resolved on first use."""
    package = importlib.import_module(module)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError):
        package.no_such_name  # noqa: B018 - the point of the test


@pytest.mark.parametrize(("module", "name"), exports())
def test_an_export_resolves_and_says_what_it_is_for(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    assert documented(name, value), f"{module}.{name} has no docstring of its own"


@pytest.mark.parametrize(("module", "name"), exports())
def test_an_export_is_in_the_reference(module: str, name: str) -> None:
    if name.startswith("__"):
        return
    assert named(name, reference()), f"no page of docs/reference names `{name}` of {module}"


def test_every_export_is_type_tested() -> None:
    used = set()
    for source in sources("typing_tests"):
        for _, node in source.nodes():
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "holdfast":
                used.add(("holdfast", node.attr))
            elif isinstance(node, ast.ImportFrom):
                used.update((node.module, alias.name) for alias in node.names)
    promised = [(module, name) for module in TYPED for name in importlib.import_module(module).__all__]
    assert [each for each in promised if each not in used and not each[1].startswith("__")] == []
    untested = [source.place for source in sources("typing_tests") if "assert_type" not in source.text]
    assert untested == [], "a typing test asserts what the user's checker infers"


def test_every_error_is_in_the_reference() -> None:
    page = reference("errors")
    wanted = {*(each for pair in errors() for each in pair), *codes_given()}
    assert sorted(name for name in wanted if not named(name, page)) == []


def test_the_reference_names_no_error_that_is_not() -> None:
    """A code at the head of a row of docs/reference/errors.md is one that something raises."""
    known = {*codes_given(), *(code for _, code in errors())}
    rows = (REFERENCE / "errors.md").read_text().splitlines()
    heads = {
        code for row in rows if (head := re.match(r"\|([^|]*)\|", row)) for code in re.findall(r"`([^`]+)`", head[1])
    }
    assert {code for code in heads if CODE.fullmatch(code)} <= known


def test_no_two_errors_share_a_code() -> None:
    """A class that says nothing of its own inherits its base's; then it needs one."""
    codes = [code for _, code in errors()]
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize(
    "config", [holdfast.DurableConfig, IdempotencySettings, LifecycleConfig, Client, SessionsConfig]
)
def test_every_setting_is_in_the_reference(config: type) -> None:
    page = reference("configuration")
    assert [key for key in settings(config) if not named(key, page)] == []


def test_every_command_is_in_the_reference() -> None:
    page = reference("cli")
    missing = []
    for command, options in commands().items():
        if not named(command, page):
            missing.append(command)
        missing += [f"{command} {option}" for option in options if option != "--help" and not named(option, page)]
    assert missing == []
