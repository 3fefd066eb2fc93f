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

REFERENCE = ROOT / "docs" / "reference"
PUBLIC = ("holdfast", "holdfast.sync", "holdfast.testing")
CODE = re.compile(r"(config|codec|limit|store|durable)\.[a-z_]+")


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


def errors() -> dict[str, str]:
    """The code of every class of the error tree, by the name of the class. A base that stands for no error has none."""
    for module in pkgutil.walk_packages(holdfast.__path__, "holdfast."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: dict[str, type[HoldfastError]] = {}
    unseen = [HoldfastError]
    while unseen:
        error = unseen.pop()
        found[error.__name__] = error
        unseen += [leaf for leaf in error.__subclasses__() if leaf.__module__.startswith("holdfast")]
    codes = {name: str(getattr(error, "code", "")) for name, error in found.items()}
    return {name: code for name, code in codes.items() if CODE.fullmatch(code)}


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
    """The order ruff keeps (RUF022): constants, classes, the rest."""
    for module in PUBLIC:
        names = list(importlib.import_module(module).__all__)
        assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name)), module
        assert len(names) == len(set(names)), module


def test_exports_are_what_the_package_shows() -> None:
    """Completion offers the promised names, though they are resolved on first use."""
    assert set(holdfast.__all__) <= set(dir(holdfast))
    with pytest.raises(AttributeError):
        holdfast.no_such_name  # type: ignore[attr-defined]  # noqa: B018 - the point of the test


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
                used.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and node.module == "holdfast":
                used.update(alias.name for alias in node.names)
    assert [name for name in holdfast.__all__ if name not in used and not name.startswith("__")] == []
    untested = [source.place for source in sources("typing_tests") if "assert_type" not in source.text]
    assert untested == [], "a typing test asserts what the user's checker infers"


def test_every_error_is_in_the_reference() -> None:
    page, codes = reference("errors"), errors()
    wanted = {*codes, *codes.values(), *codes_given()}
    assert sorted(name for name in wanted if not named(name, page)) == []


def test_the_reference_names_no_error_that_is_not() -> None:
    """A code at the head of a row of docs/reference/errors.md is one that something raises."""
    known = {*codes_given(), *errors().values()}
    rows = (REFERENCE / "errors.md").read_text().splitlines()
    heads = {
        code for row in rows if (head := re.match(r"\|([^|]*)\|", row)) for code in re.findall(r"`([^`]+)`", head[1])
    }
    assert {code for code in heads if CODE.fullmatch(code)} <= known


def test_no_two_errors_share_a_code() -> None:
    """A class that says nothing of its own inherits its base's; then it needs one."""
    codes = list(errors().values())
    assert sorted(codes) == sorted(set(codes))


def test_every_setting_is_in_the_reference() -> None:
    page = reference("configuration")
    assert [key for key in settings(holdfast.DurableConfig) if not named(key, page)] == []


def test_every_command_is_in_the_reference() -> None:
    page = reference("cli")
    missing = []
    for command, options in commands().items():
        if not named(command, page):
            missing.append(command)
        missing += [f"{command} {option}" for option in options if option != "--help" and not named(option, page)]
    assert missing == []
