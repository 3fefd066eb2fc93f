"""`holdfast run`: arguments come as JSON, the output goes as JSON, and every way of going wrong has its exit code."""

from __future__ import annotations

import json
import signal
import textwrap
import uuid
from pathlib import Path

import pytest
from tests.flow.commandline import SHOP, ask, command, start, tell


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_it_runs_as_a_real_command(ledger: str) -> None:
    answer = command("run", f"{SHOP}:plain", '["milk"]', "--id", "a", "--db", ledger)
    assert (answer.code, answer.out, answer.err) == (0, '"MILK"\n', "")


def test_an_id_runs_once_and_then_answers_from_the_record(ledger: str) -> None:
    first = ask("--db", ledger, "run", f"{SHOP}:buy", '["milk"]', "--id", "a")
    entries = tell("--db", ledger, "executions", "show", "a")["entries_count"]
    again = ask("--db", ledger, "run", f"{SHOP}:buy", '{"item": "milk"}', "--id", "a")
    assert first.code == again.code == 0
    assert first.out == again.out
    assert tell("--db", ledger, "executions", "show", "a")["entries_count"] == entries


def test_without_an_id_one_is_made_and_told_on_standard_error(db: Path) -> None:
    answer = ask("run", f"{SHOP}:plain", '["milk"]', "--db", db)
    assert json.loads(answer.out) == "MILK"
    label, _, id = answer.err.strip().partition(": ")
    assert label == "id"
    assert uuid.UUID(id).version == 7
    assert tell("executions", "show", id, "--db", db)["status"] == "completed"


@pytest.mark.parametrize(
    ("function", "arguments", "output"),
    [
        ("typed", '[{"name": "nail", "count": 2}, "2026-11-21"]', ["nail", 2, "2026-11-21", []]),
        ("typed", '{"item": {"name": "nail"}, "due": "2026-11-21", "tags": ["b", "a", "b"]}',
         ["nail", 1, "2026-11-21", ["a", "b"]]),
        ("many", "[1]", 1),
        ("many", "[1, 2, 3]", 6),
        ("many", '{"first": 1, "second": 2, "third": 3}', 6),
        ("plain", '["ümläut \\u2028"]', "ÜMLÄUT \u2028"),
        ("plain", '["\\u0085 \\u001b \\u202e \\udb40\\udc01 \\u007f"]', "\x85 \x1b \u202e \U000e0001 \x7f"),
        ("raw", None, "AP8="),
    ],
)  # fmt: skip
def test_arguments_are_decoded_to_the_types_of_their_parameters(
    db: Path, function: str, arguments: str | None, output: object
) -> None:
    given = [] if arguments is None else [arguments]
    answer = ask("run", f"{SHOP}:{function}", *given, "--id", "a", "--db", db)
    assert answer.code == 0, answer
    assert json.loads(answer.out) == output
    assert answer.out.removesuffix("\n").isprintable()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("buy", "{"),
        ("buy", "nonsense"),
        ("buy", ""),
        ("buy", "[" * 100_000),
        ("buy", "[123456789012345678901234567890]"),
        ("buy", '"milk"'),
        ("buy", "3"),
        ("buy", "[]"),
        ("buy", "[3]"),
        ("buy", '["milk", "dear"]'),
        ("buy", '["milk", 0, 0]'),
        ("buy", '{"item": "milk", "colour": "red"}'),
        ("buy", '{"cents": 3}'),
        ("typed", '[{"count": 2}, "2026-11-21"]'),
        ("typed", '[{"name": "nail"}, "tomorrow"]'),
        ("typed", '[{"name": "nail"}, "2026-11-21", ["a"]]'),
        ("many", '[1, "two"]'),
        ("many", '{"first": 1, "second": "two"}'),
    ],
)
def test_arguments_that_do_not_fit_are_a_usage_error_and_start_nothing(db: Path, function: str, arguments: str) -> None:
    answer = ask("run", f"{SHOP}:{function}", arguments, "--db", db)
    assert answer.code == 2, answer
    assert answer.err.startswith("error: the arguments ")
    assert "\nhint: " in answer.err
    assert answer.out == ""
    assert not db.exists()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (SHOP, "does not name a function"),
        (f"{SHOP}:", "does not name a function"),
        (":buy", "does not name a function"),
        (f"{SHOP}:sell", "has no 'sell'"),
        (f"{SHOP}:Item", "not a durable function"),
        (f"{SHOP}:look_up", "not a durable function"),
        (f"{SHOP}:buy.nothing", "has no 'buy.nothing'"),
        ("no_such_module_at_all:buy", "there is no module no_such_module_at_all"),
        (f"{SHOP}.inner:buy", f"there is no module {SHOP}.inner"),
        ("shop.py:buy", "'shop.py' is not the name of a module"),
        ("../shop:buy", "is not the name of a module"),
        ("..:buy", "is not the name of a module"),
    ],
)
def test_a_function_that_is_not_there_is_a_usage_error(db: Path, function: str, said: str) -> None:
    answer = ask("run", function, "--db", db)
    assert answer.code == 2, answer
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert not db.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_thing", "No module named 'no_such_thing'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError"),
        ("import holdfast\nholdfast.exactly_once('gold')", "unknown effect kind 'gold'"),
        (
            "import holdfast\n@holdfast.step(effect=holdfast.exactly_once('money'))\ndef f() -> None: ...",
            "on_ambiguous",
        ),
    ],
    ids=["missing", "raises", "syntax", "config", "policy"],
)
def test_a_module_that_does_not_import_is_told_with_its_place(
    db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str, request: pytest.FixtureRequest
) -> None:
    module = f"broken_{request.node.callspec.id.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    answer = ask("run", f"{module}:f", "--db", db)
    assert answer.code == 2, answer
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert not db.exists()


def test_a_module_in_the_current_folder_is_found(db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corner_shop.py").write_text(
        textwrap.dedent(
            """
            import holdfast

            @holdfast.durable(kind="corner.turn")
            async def turn() -> str:
                return "here"
            """
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert ask("run", "corner_shop:turn", "--db", db).out == '"here"\n'


def test_a_failure_is_told_with_its_place_and_is_no(ledger: str) -> None:
    answer = ask("run", f"{SHOP}:fail", "--id", "a", "--db", ledger)
    assert answer.code == 1
    assert "ValueError: out of stock" in answer.err
    assert "shop.py:" in answer.err
    assert answer.out == ""
    again = ask("run", f"{SHOP}:fail", "--id", "a", "--db", ledger)
    assert again.code == 1
    assert "ValueError: out of stock" in again.err


def test_an_exception_that_the_program_raises_as_itself_is_told_in_words(db: Path) -> None:
    for _ in range(2):
        answer = ask("run", f"{SHOP}:decline", "--id", "a", "--db", db)
        assert answer.code == 1
        assert "CardDeclined: no credit" in answer.err
        assert "Traceback" not in answer.err


def test_an_effect_in_doubt_says_which_command_decides(ledger: str) -> None:
    answer = ask("run", f"{SHOP}:buy", '["milk", 3]', "--id", "a", "--db", ledger)
    assert answer.code == 1
    assert "holdfast executions decide a 1" in answer.err


def test_another_input_under_the_same_id_is_a_conflict(ledger: str) -> None:
    assert ask("run", f"{SHOP}:plain", '["milk"]', "--id", "a", "--db", ledger).code == 0
    for other in (["run", f"{SHOP}:plain", '["bread"]'], ["run", f"{SHOP}:raw"]):
        answer = ask(*other, "--id", "a", "--db", ledger)
        assert answer.code == 1
        assert answer.err.startswith("error: ")


@pytest.mark.parametrize("id", ["", "x" * 256, "tab\there", "\ud800", "line\nbreak"])
def test_an_id_that_cannot_be_is_a_usage_error(db: Path, id: str) -> None:
    answer = ask("run", f"{SHOP}:raw", "--id", id, "--db", db)
    assert answer.code == 2, answer
    assert answer.err.startswith("error: ")


def test_without_durability_it_runs_plainly_and_leaves_no_file(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_DURABLE_ENABLED", "false")
    answer = ask("run", f"{SHOP}:plain", '["milk"]', "--id", "a", "--db", db)
    assert (answer.code, answer.out) == (0, '"MILK"\n')
    assert list(db.parent.iterdir()) == []
    assert ask("executions", "list", "--db", db).code == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_is_left_for_the_next_one(ledger: str, number: signal.Signals, code: int) -> None:
    with start("run", f"{SHOP}:listen", "--id", "a", "--db", ledger) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "listening\n"
        process.send_signal(number)
        # The thread that listens cannot be stopped, and goes on listening; nobody waits for it.
        assert process.wait(30) == code
        assert "Traceback" not in process.stderr.read()
    execution = tell("executions", "show", "a", "--db", ledger)
    assert (execution["status"], execution["owner"]) == ("pending", None)
