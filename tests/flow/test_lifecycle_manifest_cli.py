"""`holdfast manifest`: the adapters and their claims, from the command line."""

from __future__ import annotations

import pytest
from tests.flow.commandline import ask, tell

from holdfast.lifecycle import AdapterManifest, Registry, decode
from holdfast.lifecycle.manifest import ADAPTERS

ROWS = [
    ("claude", "0.2.0", "v1_conformance", "Claude Code"),
    ("codex", "0.1.0", "v1_conformance", "Codex"),
    ("gemini", "0.1.0", "v1_conformance", "Gemini CLI"),
    ("opencode", "0.1.0", "pre_conformance", "opencode"),
    ("openclaw", "0.1.0", "pre_conformance", "OpenClaw"),
    ("hermes", "0.1.0", "pre_conformance", "Hermes Agent"),
]


def test_the_list_has_six_rows() -> None:
    """LA-49."""
    names = ("adapter_id", "adapter_version", "conformance", "display_name")
    assert tell("manifest", "list") == [dict(zip(names, row, strict=True)) for row in ROWS]
    shown = ask("manifest", "list")
    assert (shown.code, shown.err) == (0, "")
    assert [tuple(line.split(None, 3)) for line in shown.out.splitlines()[1:]] == ROWS


@pytest.mark.parametrize("name", [*ADAPTERS, "claude_code", "codex-cli"])
def test_a_manifest_is_shown_whole(name: str) -> None:
    """What is printed is the document itself: it reads back as what is registered."""
    registered = Registry.builtin().get(name)
    assert registered is not None
    version = registered.adapter_version
    for arguments in (("show", name), ("inspect", f"{name}@{version}")):
        for options in ((), ("--json",)):
            answer = ask("manifest", *arguments, *options)
            assert (answer.code, answer.err) == (0, "")
            assert decode(answer.out, AdapterManifest) == registered
            assert (answer.out.count("\n") == 1) == bool(options)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("inspect", "codex@9.9.9"), 1, "registered as version 0.1.0, not 9.9.9"),
        (("inspect", "nobody@0.1.0"), 1, "no adapter `nobody`"),
        (("show", "nobody"), 1, "no adapter `nobody`"),
        (("inspect", "codex"), 2, "ID@VERSION"),
        (("inspect", "@0.1.0"), 2, "ID@VERSION"),
        (("inspect", "codex@"), 2, "ID@VERSION"),
        (("show",), 2, "ID"),
        (("explain", "codex"), 2, "explain"),
    ],
    ids=str,
)
def test_an_answer_that_is_no_says_why_on_standard_error(arguments: tuple[str, ...], code: int, said: str) -> None:
    """LA-49."""
    answer = ask("manifest", *arguments)
    assert (answer.code, answer.out) == (code, "")
    assert answer.err.startswith("error: ")
    assert said in answer.err


def test_it_needs_no_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_DB", "/nowhere/at/all.db")
    answer = ask("manifest", "inspect", "codex@9.9.9")
    assert (answer.code, answer.out) == (1, "")
    assert ask("manifest", "list", "--json").json[0]["adapter_id"] == "claude"


def test_the_group_alone_explains_itself() -> None:
    answer = ask("manifest")
    assert answer.code == 2
    assert "Usage: holdfast manifest" in answer.out
