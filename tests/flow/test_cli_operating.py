"""The commands that change: decisions, cancelling, pausing, resuming and recovering, with and without a live owner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.flow.commandline import SHOP, ask, command, start, tell


@pytest.fixture
def doubted(ledger: str) -> str:
    """A ledger with the execution `a`, in doubt about position 1."""
    assert ask("--db", ledger, "run", f"{SHOP}:buy", '["milk", 3]', "--id", "a").code == 1
    return ledger


def status(ledger: str, id: str = "a") -> str:
    return str(tell("executions", "show", id, "--db", ledger)["status"])


# --- decide -------------------------------------------------------------------------------------------


def test_an_operator_says_it_happened(doubted: str) -> None:
    """By the real command: the value stays JSON, the audit names the operator, the next run gets it."""
    answer = command(
        *("executions", "decide", "a", "1", "--happened", '"paid in cash"', "--by", "ann", "--note", "saw the slip"),
        *("--json", "--db", doubted),
    )
    assert answer.code == 0, answer
    assert answer.json == {
        "id": "a",
        "position": "1",
        "decision": "happened",
        "by": "ann",
        "note": "saw the slip",
        "status": "pending",
        "open_decisions": [],
    }
    assert "paid in cash" not in answer.err
    run = ask("run", f"{SHOP}:buy", '["milk", 3]', "--id", "a", "--db", doubted)
    assert json.loads(run.out)[1] == "paid in cash"
    decision = next(e for e in tell("executions", "timeline", "a", "--db", doubted) if e["event"] == "decision")
    assert (decision["position"], decision["name"], decision["outcome"]) == ("1", "happened", "ann")
    revealed = ask("executions", "show", "a", "--reveal", "--json", "--db", doubted).json["journal"]
    assert [entry["payload"] for entry in revealed if entry["outcome"] == "assumed"] == ["paid in cash"]


def test_an_operator_says_it_did_not_happen(doubted: str) -> None:
    answer = ask("executions", "decide", "a", "1", "--not-happened", "--by", "ann", "--db", doubted)
    assert (answer.code, answer.out) == (0, "a 1: not_happened, decided by ann\na is pending\n")
    run = ask("run", f"{SHOP}:buy", '["milk", 3]', "--id", "a", "--db", doubted)
    assert json.loads(run.out)[1] == "receipt 2"


def test_an_operator_gives_it_up(doubted: str) -> None:
    assert tell("executions", "decide", "a", "1", "--abort", "--by", "ann", "--db", doubted)["status"] == "aborted"
    shown = tell("executions", "show", "a", "--db", doubted)
    assert (shown["status"], shown["reason"]) == ("aborted", "decision")
    assert ask("run", f"{SHOP}:buy", '["milk", 3]', "--id", "a", "--db", doubted).code == 1


def test_the_first_answer_stands(doubted: str) -> None:
    assert ask("executions", "decide", "a", "1", "--happened", "null", "--by", "ann", "--db", doubted).code == 0
    second = ask("executions", "decide", "a", "1", "--abort", "--by", "bob", "--db", doubted)
    assert second.code == 1
    assert "no open decision" in second.err
    assert status(doubted) == "pending"


def test_where_nothing_is_open_the_answer_is_no(doubted: str) -> None:
    for position in ("0", "7", "1.0", "4294967295", "1." * 40 + "1"):
        assert ask("executions", "decide", "a", position, "--abort", "--by", "ann", "--db", doubted).code == 1
    assert status(doubted) == "needs_decision"


SENSELESS: tuple[tuple[str, ...], ...] = (
    ("1", "--by", "ann"),
    ("1", "--by", "ann", "--abort", "--not-happened"),
    ("1", "--by", "ann", "--happened", "1", "--abort"),
    ("1", "--by", "ann", "--happened", "{"),
    ("1", "--by", "ann", "--happened", ""),
    ("1", "--by", "ann", "--happened", "paid"),
    ("1", "--by", "ann", "--happened", "99999999999999999999999"),
    ("1", "--by", "ann", "--happened"),
    ("1", "--abort"),
    ("1", "--abort", "--by", ""),
    ("1", "--abort", "--by", "ann", "--note", "x" * 2001),
    ("one", "--abort", "--by", "ann"),
    ("1.", "--abort", "--by", "ann"),
    ("", "--abort", "--by", "ann"),
    ("\u0661", "--abort", "--by", "ann"),
    ("99999999999", "--abort", "--by", "ann"),
    (),
)


def test_a_decision_that_makes_no_sense_is_a_usage_error(doubted: str) -> None:
    for options in SENSELESS:
        answer = ask("executions", "decide", "a", *options, "--db", doubted)
        assert answer.code == 2, (options, answer)
        assert answer.err.startswith("error: ")
    assert status(doubted) == "needs_decision"


def test_a_value_that_is_not_json_is_not_repeated(doubted: str) -> None:
    answer = ask("executions", "decide", "a", "1", "--happened", "card 4111", "--by", "ann", "--db", doubted)
    assert "4111" not in answer.err + answer.out


# --- cancel -------------------------------------------------------------------------------------------


def test_cancelling_what_nobody_runs_is_done_at_once(doubted: str) -> None:
    assert tell("executions", "cancel", "a", "--reason", "no more", "--db", doubted) == {
        "id": "a",
        "outcome": "canceled",
    }
    shown = tell("executions", "show", "a", "--db", doubted)
    assert (shown["status"], shown["reason"], shown["open_decisions"]) == ("canceled", "no more", [])
    again = ask("executions", "cancel", "a", "--db", doubted)
    assert (again.code, again.out) == (0, "a had ended: canceled\n")
    assert tell("executions", "cancel", "a", "--db", doubted) == {
        "id": "a",
        "outcome": "already_terminal",
        "status": "canceled",
    }


def test_a_live_owner_is_asked_and_agrees(ledger: str) -> None:
    with start("run", f"{SHOP}:listen", "--id", "a", "--db", ledger, HOLDFAST_DURABLE_POLL_MS="50") as process:
        assert process.stderr is not None
        assert process.stdin is not None
        assert process.stderr.readline() == "listening\n"
        asked = ask("executions", "cancel", "a", "--db", ledger)
        assert (asked.code, asked.out) == (0, "a has a live owner, which is asked to cancel it\n")
        process.stdin.close()
        assert process.wait(60) == 1
        assert "canceled" in process.stderr.read()
    assert status(ledger) == "canceled"


def test_force_does_not_ask(ledger: str) -> None:
    with start("run", f"{SHOP}:listen", "--id", "a", "--db", ledger) as process:
        assert process.stderr is not None
        assert process.stdin is not None
        assert process.stderr.readline() == "listening\n"
        assert tell("executions", "cancel", "a", "--force", "--db", ledger)["outcome"] == "canceled"
        assert status(ledger) == "canceled"
        process.stdin.write("too late\n")
        process.stdin.close()
        assert process.wait(60) == 1
        assert process.stdout is not None
        assert process.stdout.read() == ""


def test_cancelling_refuses_a_reason_that_is_too_long(doubted: str) -> None:
    assert ask("executions", "cancel", "a", "--reason", "x" * 2001, "--db", doubted).code == 2
    assert status(doubted) == "needs_decision"


@pytest.mark.parametrize("verb", ["cancel", "pause"])
def test_stopping_what_is_not_there_is_no(doubted: str, verb: str) -> None:
    answer = ask("executions", verb, "b", "--json", "--db", doubted)
    assert answer.code == 1
    assert answer.json == {"id": "b", "outcome": "not_found"}


# --- pause, resume ------------------------------------------------------------------------------------


def test_what_is_paused_rests_until_it_is_resumed(ledger: str) -> None:
    assert ask("--db", ledger, "run", f"{SHOP}:fail", "--id", "a").code == 1
    assert ask("--db", ledger, "executions", "resume", "a").code == 0
    assert tell("executions", "pause", "a", "--db", ledger) == {"id": "a", "outcome": "paused"}
    shown = tell("executions", "show", "a", "--db", ledger)
    assert (shown["status"], shown["waiting_on"]) == ("waiting", "paused")
    assert "waiting (paused)" in ask("executions", "list", "--db", ledger).out
    assert tell("executions", "recover", "--app", SHOP, "--db", ledger)["resumed"] == []
    assert tell("executions", "resume", "a", "--db", ledger)["status"] == "pending"


def test_pausing_an_ended_one_is_no(ledger: str) -> None:
    assert ask("--db", ledger, "run", f"{SHOP}:plain", '["milk"]', "--id", "a").code == 0
    answer = ask("executions", "pause", "a", "--json", "--db", ledger)
    assert answer.code == 1
    assert answer.json == {"id": "a", "outcome": "already_terminal", "status": "completed"}


def test_a_paused_run_is_taken_up_where_it_was(ledger: str) -> None:
    with start("run", f"{SHOP}:listen", "--id", "a", "--db", ledger, HOLDFAST_DURABLE_POLL_MS="50") as process:
        assert process.stderr is not None
        assert process.stdin is not None
        assert process.stderr.readline() == "listening\n"
        assert tell("executions", "pause", "a", "--db", ledger)["outcome"] == "requested"
        process.stdin.write("heard\n")
        process.stdin.flush()
        until_paused(ledger)
        assert tell("executions", "resume", "a", "--db", ledger)["status"] in ("pending", "running", "completed")
        assert process.stdout is not None
        assert process.stdout.read() == '"heard"\n'
        process.stdin.close()
        assert process.wait(60) == 0


def until_paused(ledger: str) -> None:
    for _ in range(3000):
        if tell("executions", "show", "a", "--db", ledger)["waiting_on"] == "paused":
            return
    raise AssertionError("the execution was not paused")


def test_resume_makes_a_failed_one_claimable(ledger: str) -> None:
    assert ask("--db", ledger, "run", f"{SHOP}:fail", "--id", "a").code == 1
    answer = ask("executions", "resume", "a", "--db", ledger)
    assert (answer.code, answer.out) == (0, "a is pending: whoever runs or recovers it next goes on\n")


@pytest.mark.parametrize("app", [SHOP, f"{SHOP}:app"])
def test_resume_with_an_application_runs_to_the_end(ledger: str, app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = [] if ":" in app else ["--db", ledger]
    monkeypatch.setenv("SHOP_LEDGER", ledger)
    monkeypatch.delenv("SHOP_VERSION", raising=False)
    assert ask("--db", ledger, "run", f"{SHOP}:shift", "--id", "a").code == 1
    monkeypatch.setenv("SHOP_VERSION", "2")
    answer = ask("executions", "resume", "a", "--app", app, *place)
    assert (answer.code, answer.out) == (0, '"changed"\n'), answer
    finished = ask("executions", "resume", "a", "--app", app, *place)
    assert finished.code == 1
    assert "completed" in finished.err


def test_resume_with_an_application_tells_the_next_failure(ledger: str) -> None:
    assert ask("--db", ledger, "run", f"{SHOP}:fail", "--id", "a").code == 1
    answer = ask("executions", "resume", "a", "--app", SHOP, "--db", ledger)
    assert answer.code == 1
    assert "ValueError: out of stock" in answer.err


def test_resume_prints_json(ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_VERSION", raising=False)
    assert ask("--db", ledger, "run", f"{SHOP}:shift", "--id", "a").code == 1
    monkeypatch.setenv("SHOP_VERSION", "2")
    done = tell("executions", "resume", "a", "--app", SHOP, "--db", ledger)
    assert (done["id"], done["status"], done["generation"], done["output"]) == ("a", "completed", 2, "changed")


def test_a_new_deadline_is_set_and_kept(ledger: str) -> None:
    assert ask("--db", ledger, "run", f"{SHOP}:fail", "--id", "a").code == 1
    assert tell("executions", "resume", "a", "--deadline-ms", "3600000", "--db", ledger)["deadline_at"] is not None
    for wrong in ("0", "-1", "soon"):
        assert ask("executions", "resume", "a", "--deadline-ms", wrong, "--db", ledger).code == 2


def test_a_passed_deadline_ends_it(ledger: str) -> None:
    assert ask("--db", ledger, "run", f"{SHOP}:fail", "--id", "a").code == 1
    answer = ask("executions", "resume", "a", "--app", SHOP, "--deadline-ms", "1", "--db", ledger)
    assert answer.code == 1
    assert status(ledger) == "failed"


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("no_such_module_at_all", "there is no module"),
        ("", "does not name an application"),
        (f"{SHOP}:", "does not name an application"),
        (f"{SHOP}:nothing", "has no 'nothing'"),
        (f"{SHOP}:not_an_app", "gives an int, not an application"),
        (f"{SHOP}:raw", "not an application"),
        (f"{SHOP}:app", "gives no application: KeyError: 'SHOP_LEDGER'"),
        (f"{SHOP}:slow_app", "gives a coroutine, not an application"),
    ],
)
def test_an_application_that_cannot_be_opened_is_a_usage_error(
    app: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHOP_LEDGER", raising=False)
    for verb in (["resume", "a"], ["recover"]):
        answer = ask("executions", *verb, "--app", app)
        assert answer.code == 2, answer
        assert said in answer.err


def test_an_application_with_its_own_ledger_does_not_take_another(doubted: str) -> None:
    answer = ask("executions", "resume", "a", "--app", f"{SHOP}:app", "--db", doubted)
    assert answer.code == 2
    assert "opens a ledger of its own" in answer.err


def test_an_application_that_registers_no_such_kind_is_a_usage_error(tmp_path: Path) -> None:
    """In a process of its own, for here every kind is known."""
    db = tmp_path / "ledger.db"
    assert ask("run", f"{SHOP}:fail", "--id", "a", "--db", db).code == 1
    answer = command("executions", "resume", "a", "--app", "json", "--db", db)
    assert answer.code == 2, answer
    assert "shop.fail" in answer.err


# --- recover ------------------------------------------------------------------------------------------


def test_what_a_killed_process_left_is_seen_and_recovered(ledger: str) -> None:
    with start("run", f"{SHOP}:listen", "--id", "a", "--db", ledger) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "listening\n"
        process.kill()
        process.wait(60)
    left = tell("executions", "show", "a", "--db", ledger)
    assert (left["status"], left["owner_alive"]) == ("running", False)
    assert "running (owner dead)" in ask("executions", "list", "--db", ledger).out
    with start("executions", "recover", "--app", SHOP, "--json", "--db", ledger) as process:
        out, err = process.communicate("heard\n", timeout=60)
    assert process.returncode == 0, err
    report = json.loads(out)
    assert list(report) == ["resumed", "unknown_kind", "crash_loops", "live_count", "executions"]
    assert (report["resumed"], report["live_count"]) == (["a"], 0)
    assert [(each["id"], each["status"]) for each in report["executions"]] == [("a", "completed")]
    assert ask("run", f"{SHOP}:listen", "--id", "a", "--db", ledger).out == '"heard"\n'


def test_recover_leaves_live_owners_alone(ledger: str) -> None:
    with start("run", f"{SHOP}:listen", "--id", "a", "--db", ledger) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "listening\n"
        report = tell("executions", "recover", "--app", SHOP, "--db", ledger)
        assert (report["resumed"], report["live_count"]) == ([], 1)
        assert process.communicate("heard\n", timeout=60)[0] == '"heard"\n'


def test_recover_says_no_when_something_did_not_complete(ledger: str) -> None:
    assert ask("--db", ledger, "run", f"{SHOP}:fail", "--id", "a").code == 1
    assert ask("--db", ledger, "executions", "resume", "a").code == 0
    answer = ask("executions", "recover", "--app", SHOP, "--db", ledger)
    assert answer.code == 1
    assert "failed" in answer.out
    nothing = ask("executions", "recover", "--app", SHOP, "--db", ledger)
    assert (nothing.code, nothing.out) == (0, "nothing to recover\n")


def test_recover_names_kinds_it_does_not_know(tmp_path: Path) -> None:
    db = tmp_path / "ledger.db"
    assert ask("--db", db, "run", f"{SHOP}:fail", "--id", "a").code == 1
    assert ask("--db", db, "executions", "resume", "a").code == 0
    answer = command("executions", "recover", "--app", "json", "--json", "--db", db)
    assert answer.code == 0
    assert answer.json["unknown_kind"] == ["a"]
    assert ask("executions", "recover", "--db", db).code == 2
