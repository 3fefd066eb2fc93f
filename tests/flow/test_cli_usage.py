"""The program itself: help, where its options may stand, which ledger it takes, how it looks and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.flow.commandline import ROOT, SHOP, ask, command, start, tell

import holdfast
from holdfast.cli import render
from holdfast.cli.ledger import Place
from holdfast.cli.main import exit_code

COMMANDS = (
    ("run",),
    ("demo",),
    ("verify",),
    ("db", "migrate"),
    ("db", "status"),
    *(
        ("executions", verb)
        for verb in ("list", "show", "timeline", "diff", "decide", "cancel", "pause", "resume", "recover")
    ),
)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    assert ask("run", f"{SHOP}:plain", '["milk"]', "--id", "a", "--db", path).code == 0
    return path


# --- help and usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    answer = ask(*path, "--help")
    assert answer.code == 0
    assert "--json" in answer.out
    assert ("--db" in answer.out) == (path != ("demo",))
    assert ("--config" in answer.out) == (path != ("demo",))


@pytest.mark.parametrize("path", [(), ("executions",), ("db",)], ids=str)
def test_a_group_without_a_command_explains_itself_and_is_a_usage_error(path: tuple[str, ...]) -> None:
    answer = ask(*path)
    assert answer.code == 2
    assert "Usage: holdfast" in answer.out
    assert ask(*path, "--help").out.rstrip("\n") == answer.out.rstrip("\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("executions", "no-such-verb"),
        ("executions", "show"),
        ("executions", "show", "a", "b"),
        ("executions", "decide"),
        ("--no-such-option",),
        ("run",),
        ("demo", "--turns", "several"),
        ("verify", "--db"),
        # Later slices bring these.
        *((later,) for later in ("submit", "worker", "signal", "promises", "queues", "schedules")),
        ("executions", "prune"),
    ],
    ids=" ".join,
)
def test_wrong_usage_says_what_and_where_to_look(arguments: tuple[str, ...]) -> None:
    answer = ask(*arguments)
    assert answer.code == 2, answer
    assert answer.err.startswith("error: ")
    assert "\nhint: holdfast" in answer.err
    assert answer.err.rstrip().endswith("--help")


def test_the_version_is_the_package_s() -> None:
    assert ask("--version").out == f"holdfast {holdfast.__version__}\n"


def test_the_command_starts_quickly() -> None:
    """Showing help loads neither a driver nor the engine; that is what makes it quick on any machine."""
    script = (
        "import sys, holdfast.cli.main; holdfast.cli.main.invoke(['executions', 'list', '--help']); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert {"typer", "holdfast.cli.executions"} <= loaded
    assert not loaded & {"apsw", "asyncpg", "msgspec", "blake3", "holdfast.execution.engine", "holdfast.store"}


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_without_its_extra_it_says_which(module: str) -> None:
    script = f"import sys; sys.modules[{module!r}] = None; from holdfast.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert module in done.stderr
    assert "holdfast[cli]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["fastapi", "starlette"])
def test_what_needs_a_framework_says_so_in_a_line(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("holdfast.cli.bench.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    answer = ask("bench", "idempotency", "--quick")
    assert (answer.code, answer.out) == (2, "")
    assert module in answer.err
    assert "pip install fastapi" in answer.err
    if module == "fastapi":
        answer = ask("demo")
        assert answer.code == 2
        assert "fastapi: pip install fastapi" in answer.out


def test_demo_hands_on_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    import holdfast.cli.demo

    seen = {}

    def run_demo(**options: object) -> int:
        seen.update(options)
        return 1

    monkeypatch.setattr(holdfast.cli.demo, "run_demo", run_demo)
    assert ask("demo", "--json", "--seed", 5, "--turns", 3, "--kills", 2, "--keep", "there").code == 1
    assert seen == {"json": True, "seed": 5, "turns": 3, "kills": 2, "keep": Path("there")}


# --- which ledger -------------------------------------------------------------------------------------


def test_db_may_stand_before_between_and_after(db: Path) -> None:
    for arguments in (
        ("--db", db, "executions", "list"),
        ("executions", "--db", db, "list"),
        ("executions", "list", "--db", db),
        ("--db", "elsewhere.db", "executions", "list", f"--db={db}"),
        ("--db", "elsewhere.db", "executions", "--db", db, "list"),
    ):
        assert [item["id"] for item in tell(*arguments)["items"]] == ["a"]


def test_the_ledger_comes_from_option_environment_file_in_this_order(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "conf" / "some.toml"
    file.parent.mkdir()
    file.write_text('db = "../ledger.db"\n')
    for arguments in (("--config", file, "executions", "list"), ("executions", "list", "--config", file)):
        assert [item["id"] for item in tell(*arguments)["items"]] == ["a"]
    monkeypatch.setenv("HOLDFAST_DB", str(tmp_path / "none.db"))
    assert ask("executions", "list", "--config", file).code == 3
    assert ask("executions", "list", "--config", file, "--db", db).code == 0
    monkeypatch.setenv("HOLDFAST_DB", str(db))
    assert ask("executions", "list").code == 0


def test_the_user_s_own_file_counts_and_one_in_the_working_folder_does_not(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOLDFAST_DB", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "holdfast.toml").write_text('db = "ledger.db"\n')
    assert ask("executions", "list").code == 3
    (tmp_path / "config" / "holdfast").mkdir(parents=True)
    (tmp_path / "config" / "holdfast" / "holdfast.toml").write_text(f'db = "{db}"\n')
    assert ask("executions", "list").code == 0
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "text",
    [
        "db = 3",
        "this is not toml",
        "[durable]\nno_such_key = 1",
        "[durable]\nlease_ms = 1",
        "[durable]\nack = 'never'",
        "durable = 1",
    ],
)
def test_a_wrong_configuration_is_a_usage_error(db: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    place = () if text.startswith(("db", "this")) else ("--db", db)
    for arguments in (("executions", "list"), ("verify",), ("db", "status"), ("run", f"{SHOP}:raw")):
        answer = ask(*arguments, "--config", file, *place)
        assert answer.code == 2, answer
        assert answer.err.startswith("error: ")


def test_a_missing_configuration_file_and_an_empty_name_are_usage_errors(db: Path) -> None:
    assert ask("executions", "list", "--config", "none.toml", "--db", db).code == 2
    assert ask("executions", "list", "--db", "").code == 2
    assert ask("executions", "list", "--db", ":memory:").code == 2


def test_the_environment_s_settings_count(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_DURABLE_LEASE_MS", "soon")
    answer = ask("executions", "list", "--db", db)
    assert answer.code == 2
    assert "HOLDFAST_DURABLE_LEASE_MS" in answer.err


# --- how it looks -------------------------------------------------------------------------------------


def test_tables_are_aligned_and_complete_when_nobody_looks(db: Path) -> None:
    long = "a-rather-long-name-" * 12
    assert ask("run", f"{SHOP}:plain", '["x"]', "--id", long, "--db", db).code == 0
    header, *rows = ask("executions", "list", "--db", db).out.splitlines()
    assert header.split() == ["id", "kind", "status", "steps", "age", "took"]
    assert rows[0].startswith(long)
    assert {row.index("shop.plain") for row in rows} == {header.index("kind")}
    assert all("\x1b" not in row and row == row.rstrip() for row in rows)


def test_what_a_ledger_holds_cannot_steer_the_terminal(db: Path) -> None:
    for evil in ("\u202eevil", "[red]markup[/red]", ":smile:", "two  spaces"):
        assert ask("run", f"{SHOP}:plain", '["x"]', "--id", evil, "--db", db).code == 0
    reason = "\x1b[2J\x07 bell"
    assert ask("run", f"{SHOP}:fail", "--id", "b", "--db", db).code == 1
    assert ask("executions", "resume", "b", "--db", db).code == 0
    assert ask("executions", "cancel", "b", "--reason", reason, "--db", db).code == 0
    shown = ask("executions", "list", "--db", db).out + ask("executions", "show", "b", "--db", db).out
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "\\u202eevil" in shown
    assert "[red]markup[/red]" in shown
    assert ":smile:" in shown
    unknown = ask("executions", "show", "\x1b[31mred", "--db", db)
    assert "\x1b" not in unknown.err


def test_a_terminal_gets_colour_and_a_file_gets_none(db: Path) -> None:
    leader, follower = os.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "holdfast", "executions", "list", "--db", str(db)],
            stdout=follower,
            stderr=follower,
            stdin=follower,
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color"},
        ) as process:
            assert process.wait(60) == 0
        seen = os.read(leader, 65536).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert "\x1b[32mcompleted" in seen
    assert "\x1b" not in command("executions", "list", "--db", db).out


def test_a_reader_that_goes_away_is_no_trouble(db: Path) -> None:
    with start("executions", "list", "--json", "--db", db) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(0), "0.0 ms"),
        (timedelta(microseconds=1500), "1.5 ms"),
        (timedelta(milliseconds=250), "250 ms"),
        (timedelta(seconds=3.21), "3.2 s"),
        (timedelta(minutes=4, seconds=5), "4 m 05 s"),
        (timedelta(hours=3, minutes=7, seconds=1), "3 h 07 m"),
        (timedelta(days=2, hours=5), "2 d 05 h"),
        (timedelta(seconds=-3), "-3.0 s"),
        (None, ""),
    ],
)
def test_durations_are_told_in_the_units_that_matter(span: timedelta | None, text: str) -> None:
    assert render.duration(span) == text


def test_records_become_json_without_surprises() -> None:
    moment = datetime(2026, 11, 21, 12, 0, 0, 5, tzinfo=UTC)
    given = {
        "at": moment,
        "for": timedelta(seconds=-1.5),
        "key": b"\x0f\xf0",
        "odd": [float("nan"), float("inf"), 1.5, None, True],
        1: ("a", {"b"}),
        "problem": holdfast.Problem("a", "t", "1", "c", "m"),
    }
    assert render.plain(given) == {
        "at": "2026-11-21T12:00:00.000005Z",
        "for": "-PT1.500000S",
        "key": "0ff0",
        "odd": [None, None, 1.5, None, True],
        "1": ["a", ["b"]],
        "problem": {"execution_id": "a", "table": "t", "row": "1", "code": "c", "message": "m"},
    }


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (3 << 30, "3.0 GiB")]
)
def test_sizes_are_short(count: int, text: str) -> None:
    assert render.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(-3, "0s"), (59, "59s"), (61, "1m"), (7300, "2h"), (200_000, "2d")])
def test_ages_have_one_unit(seconds: int, text: str) -> None:
    assert render.age(timedelta(seconds=seconds)) == text


async def test_a_file_that_changes_while_it_is_read_is_read_again(db: Path) -> None:
    """A file that nobody has open is read without locks, so that reading leaves nothing behind."""
    reads = 0

    async def read(hf: holdfast.Holdfast) -> str:
        nonlocal reads
        reads += 1
        if reads < 3:
            raise holdfast.Busy("it was changed while it was read", "read again")
        execution = await hf.get("a")
        assert execution is not None
        return execution.status

    assert await Place(db=str(db)).look(read) == "completed"
    assert reads == 3


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (holdfast.ConfigError("x"), 2),
        (holdfast.ConfigError("x", code="config.unknown_key"), 2),
        (holdfast.LimitError("x", limit="x", maximum=1, actual=2), 2),
        (holdfast.CodecError("x", code="codec.cursor"), 2),
        (holdfast.DurabilityDisabled("x"), 2),
        (holdfast.AmbiguityPolicyRequired("x", step="x"), 2),
        (holdfast.UnknownKind("x"), 2),
        (holdfast.UnknownExecution("x"), 1),
        (holdfast.NoDecisionOpen("x"), 1),
        (holdfast.ExecutionFinished("x", status="completed"), 1),
        (holdfast.IntegrityError("x", execution_id="x", table="x", row="x"), 1),
        (holdfast.JournalUnavailable("x"), 1),
        (holdfast.StoreError("x", code="store.missing"), 3),
        (holdfast.SchemaMismatch("x"), 3),
        (holdfast.Unavailable("x"), 3),
        (holdfast.CodecError("x"), 3),
    ],
    ids=lambda value: value.code if isinstance(value, holdfast.HoldfastError) else "",
)
def test_what_an_error_means_for_whoever_called(error: holdfast.HoldfastError, code: int) -> None:
    assert exit_code(error) == code
