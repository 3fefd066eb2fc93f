"""The repository as its own checks read it: files, syntax trees, documents.

A check collects what it found as `{place: what}`, and `settle` holds that against the exceptions the check
allows: whatever is found must be excepted with a reason, and whatever is excepted must still be found.
"""

from __future__ import annotations

import ast
import gc
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
PACKAGE = SRC / "holdfast"


@dataclass(frozen=True)
class Source:
    """A Python file: `place` is its path, inside the package relative to it, else to the repository."""

    path: Path
    place: str
    text: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """The dotted name it is imported by; only for files of the package."""
        parts = self.path.relative_to(SRC).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def nodes(self) -> Iterator[tuple[str, ast.AST]]:
        """Every node with the qualified name of the function or class around it ("" at module level)."""
        yield from _nodes(self.tree, "")


def _nodes(parent: ast.AST, scope: str) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(parent):
        inner = scope
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{scope}.{node.name}".lstrip(".")
        yield inner, node
        yield from _nodes(node, inner)


def parse(text: str, path: Path) -> ast.Module:
    """Parse a file. A collection meanwhile, whose finalisers parse too, confuses CPython 3.11's parser."""
    gc.disable()
    try:
        return ast.parse(text, str(path))
    finally:
        gc.enable()


@cache
def sources(folder: str) -> tuple[Source, ...]:
    """The Python files under a folder of the repository."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text()
        base = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
        found.append(Source(path, path.relative_to(base).as_posix(), text, parse(text, path)))
    return tuple(found)


def package() -> tuple[Source, ...]:
    """The Python files of the product."""
    return sources("src/holdfast")


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that is, or is about to be, under version control and holds text."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    names = [name for name in listed.stdout.decode().split("\0") if name]
    return tuple(path for name in names if (path := ROOT / name).is_file() and b"\0" not in path.read_bytes())


def documents() -> list[Path]:
    """The documents whose Python blocks run."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def coded(markdown: str) -> str:
    """What a document sets as code: fenced blocks and inline code."""
    fences = re.findall(r"^```[^\n]*\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```[^\n]*\n.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*fences, *re.findall(r"`([^`\n]+)`", rest)])


def settle(found: Mapping[str, str], excepted: Mapping[str, str]) -> None:
    """Fail for what was found and is not excepted, for exceptions that are stale, and for those without a reason."""
    wrong = [f"{place}: {what}" for place, what in found.items() if place not in excepted]
    wrong += [f"{place}: excepted, but nothing is there any more" for place in excepted if place not in found]
    wrong += [f"{place}: excepted without a reason" for place, reason in excepted.items() if len(reason.split()) < 3]
    assert not wrong, "\n" + "\n".join(sorted(wrong))
