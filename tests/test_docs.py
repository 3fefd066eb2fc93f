"""The documents tell the truth: their Python runs, commands exist, links lead somewhere, the map is complete.

The `python` blocks of README.md and docs/ are run, all blocks of one document as one program, in an empty folder,
with warnings as errors:

- A block may use what earlier blocks defined.
- A block that defines `async def main()` has it run with `asyncio.run` as soon as the block ends.
- A block that needs what a reader has and a test has not, a server for instance, is preceded by
  `<!-- skip: next "why" -->`. The reason is not optional.
- Setup that only the test needs goes into `<!-- invisible-code-block: python ... -->`.

The examples (`>>>`) in docstrings of the package run too.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
from sybil import Example
from sybil.document import Document, PythonDocStringDocument
from sybil.parsers.markdown import CodeBlockParser, SkipParser
from sybil.parsers.rest import DocTestParser
from tests.tree import PACKAGE, ROOT, Source, coded, documents, package
from typer.main import get_command

DOCUMENT_SECONDS_MAX = 60
SHELL = re.compile(r"^```(?:sh|shell|bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MAP = ROOT / "ARCHITECTURE.md"


def title(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class Program:
    """The blocks of one document as one program, each on the lines it has in the document."""

    def __init__(self, text: str) -> None:
        self.lines = [""] * (text.count("\n") + 2)

    def add(self, example: Example) -> None:
        """Sybil's evaluator: take a block into the program instead of running it by itself."""
        block = str(example.parsed)
        first = example.line + example.parsed.line_offset
        lines = block.rstrip("\n").splitlines()
        self.lines[first : first + len(lines)] = lines
        if any(isinstance(node, ast.AsyncFunctionDef) and node.name == "main" for node in ast.parse(block).body):
            self.lines[first + len(lines)] = "__import__('asyncio').run(main())"

    def run(self, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
        script = folder / f"{name}.py"
        script.write_text("\n".join(self.lines))
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HOLDFAST", "XDG"))}
        return subprocess.run(
            [sys.executable, "-W", "error", script.name],
            cwd=folder,
            env={**environment, "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DOCUMENT_SECONDS_MAX,
            check=False,
        )


@pytest.mark.parametrize("path", documents(), ids=title)
def test_the_python_of_a_document_runs(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    program = Program(text)
    document = Document.parse(str(path), CodeBlockParser("python", program.add), SkipParser())
    for example in document.examples():
        try:
            example.evaluate()
        except SkipTest:
            continue  # it said why
    done = program.run(tmp_path, path.stem.lower())
    assert done.returncode == 0, f"{title(path)} does not run (lines are the document's):\n{done.stdout}"


@pytest.mark.parametrize("path", documents(), ids=title)
def test_a_skipped_block_says_why(path: Path) -> None:
    directives = re.findall(r"<!--+\s*skip:\s*(.*?)\s*--+>", path.read_text(), re.DOTALL)
    assert [text for text in directives if not re.fullmatch(r'(next|start) "\w+( \w+)+.*"|end', text)] == []


@pytest.mark.parametrize("path", documents(), ids=title)
def test_python_is_called_python(path: Path) -> None:
    """A block under another name would look like one that runs, and would not."""
    fences = re.findall(r"^ *```([^`\n]*)$", path.read_text(), re.MULTILINE)
    assert [info for info in fences if info.strip().lower().startswith("py") and info != "python"] == []


@pytest.mark.parametrize("source", [s for s in package() if ">>>" in s.text], ids=lambda source: source.place)
def test_the_examples_in_docstrings_run(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = PythonDocStringDocument.parse(str(source.path), DocTestParser())
    document.evaluators.clear()  # it would import the file a second time, under another name
    document.namespace.update(vars(importlib.import_module(source.module)))
    for example in document.examples():
        example.evaluate()


def test_commands_in_documents_exist() -> None:
    wrong, checks = [], {"make": _is_made, "holdfast": _is_known}
    for path in {*documents(), *ROOT.glob("*.md")}:
        for line in "".join(SHELL.findall(path.read_text())).replace("\\\n", " ").splitlines():
            program, _, rest = line.removeprefix("$ ").partition(" ")
            if program in checks and not checks[program](shlex.split(rest, comments=True)):
                wrong.append(f"{title(path)}: {line}")
    assert wrong == []


def _is_made(words: list[str]) -> bool:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return all(word in targets or "=" in word or word.startswith("-") for word in words)


def _is_known(words: list[str]) -> bool:
    """Whether the words lead from group to group of the program to a command; what follows are its arguments."""
    command: Any = get_command(importlib.import_module("holdfast.cli.main").app)
    for word in words:
        inner = getattr(command, "commands", {})
        if not inner or word.startswith("-"):
            return True
        if word not in inner:
            return False
        command = inner[word]
    return True


def test_links_lead_somewhere() -> None:
    links = [
        (path, target)
        for path in {*documents(), *ROOT.glob("*.md")}
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text())
        if not re.match(r"[a-z]+:", target)
    ]
    assert sorted(f"{title(path)}: {target}" for path, target in links if not (path.parent / target).exists()) == []


MODES = {
    "A `transaction`": "share-a-transaction", "B `separate`": "guard-a-payment-endpoint",
    "C `execution`": "answer-from-an-execution",
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_what_can_still_happen_stands_beside_every_mode(mode: str) -> None:
    """HX-7: the windows of the concept's table are repeated where a mode is explained."""
    concept = (ROOT / "docs" / "concepts" / "http-idempotency.md").read_text()
    guide = (ROOT / "docs" / "howto" / f"{MODES[mode]}.md").read_text()
    for row in (mode, "all |"):
        (window,) = re.findall(rf"^\| {re.escape(row)}.*$", concept, re.MULTILINE)
        assert window in guide.splitlines()


def test_http_is_promised_effectively_once() -> None:
    """HX-7: never more than that."""
    concept = (ROOT / "docs" / "concepts" / "http-idempotency.md").read_text()
    assert "**Effectively once**" in concept
    pages = [path for path in documents() if "idempotency" in path.stem or path.stem in MODES.values()]
    promises = [
        f"{title(path)}: {sentence}"
        for path in pages
        for sentence in re.split(r"(?<=[.:])\s", path.read_text())
        if re.search(r"exactly\s+once", sentence, re.IGNORECASE) and not re.search(r"[Nn]obody|never|not", sentence)
    ]
    assert promises == []


def test_readme_says_how_to_start() -> None:
    text = coded((ROOT / "README.md").read_text())
    assert "make demo" in text
    assert "make test" in text


def test_the_map_names_only_what_is_there() -> None:
    """A path is given from the root, from src/ or inside the package; `{a,b}` and `*` stand for several."""
    text = coded(MAP.read_text())
    named: set[str] = set()
    for path in re.findall(r"[\w{},*./-]*\w\.(?:py|sql|toml|md)\b", text):
        several = re.fullmatch(r"(.*)\{(.*)\}(.*)", path)
        named.update(several[1] + one + several[3] for one in several[2].split(",")) if several else named.add(path)
    lost = [path for path in named if not any(any(base.glob(path)) for base in (ROOT, ROOT / "src", PACKAGE))]
    dotted = {name for name in re.findall(r"\bholdfast((?:\.\w+)+)", text) if (PACKAGE / name.split(".")[1]).is_dir()}
    lost += [f"holdfast{name}" for name in dotted if not _is_there(name.strip(".").split("."))]
    assert sorted(lost) == []


def _is_there(parts: list[str]) -> bool:
    """Whether a dotted name leads to a package, a module, or a name that one of them mentions."""
    target, parent = PACKAGE.joinpath(*parts), PACKAGE.joinpath(*parts[:-1])
    if target.is_dir() or target.with_suffix(".py").exists():
        return True
    holders = [file for file in (parent.with_suffix(".py"), parent / "__init__.py") if file.exists()]
    return any(re.search(rf"\b{parts[-1]}\b", file.read_text()) for file in holders)


def test_the_map_names_every_module() -> None:
    """By its path inside the package, as in `core/clock.py`, or dotted, as in `holdfast.core.clock`."""
    text = coded(MAP.read_text())
    modules = [source for source in package() if not source.path.name.startswith("__")]
    absent = [
        s.place for s in modules if not re.search(rf"(?<![\w/]){re.escape(s.place)}|{re.escape(s.module)}\b", text)
    ]
    assert absent == []


def test_the_map_gives_the_reason_for_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [item for name, extra in project["optional-dependencies"].items() if name != "dev" for item in extra]
    names = {re.split(r"[\[<>=!~ ]", item)[0] for item in [*project["dependencies"], *extras]} - {"holdfast"}
    text = coded(MAP.read_text())
    assert sorted(name for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", text, re.IGNORECASE)) == []
