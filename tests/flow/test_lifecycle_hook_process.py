"""A hook call as a process: kept first, answered always, and without loading what it does not need."""

from __future__ import annotations

import json
import random
import resource
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3
from tests.flow.commandline import ROOT
from tests.flow.hookcalls import FOOTPRINT, HEAVY, Desk, prompt, stop, until

from holdfast.cli.entry import BODY_BYTES_MAX
from holdfast.core.clock import SystemClock
from holdfast.lifecycle import plan

OPENING = {"frame.opening": {"metadata": {"directive": {"action": "block", "reason": "no"}}}}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# --- what it costs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [("--event", "Stop"), (), ("--event", "Stop", "--db", "postgresql://nobody@nowhere/none")],
    ids=["hook", "no name", "remote"],
)
def test_a_call_that_needs_no_client_loads_next_to_nothing(desk: Desk, arguments: tuple[str, ...]) -> None:
    """LA-62; the ratios are measured by `bench/lifecycle.py`."""
    desk.plan()
    if "--db" in arguments:  # as a plan is, whose ledger is no file
        head = plan.head(None, arguments[-1], desk.environment)
        text = plan.compose(head, ledger=None, schema=1, state_dir=str(desk.state), lock_wait_ms=1, hooks=())
        assert text is not None
        plan.write(str(desk.state), text)
    done = subprocess.run(
        [*desk.program(FOOTPRINT), "hook", "claude", *arguments],
        env=desk.variables, cwd=ROOT, input=json.dumps(stop()).encode(), capture_output=True, check=True,
    )  # fmt: skip
    loaded = set(done.stderr.decode().split())
    assert (done.stdout, loaded & HEAVY) == (b"", set())
    assert "apsw" in loaded
    assert len(desk.kept()) + len(desk.kept(desk.state / "hooks.db")) == 1


def test_the_rest_of_the_program_is_where_it_was(desk: Desk) -> None:
    with desk.start("hook", "--help") as process:
        out, _ = process.communicate()
    assert process.returncode == 0
    assert all(each in out.decode() for each in ("install", "serve", "status", "shim"))


# --- what is kept -------------------------------------------------------------------------------------


def test_a_call_is_kept_as_it_came_and_becomes_receipts_when_somebody_reads(desk: Desk) -> None:
    desk.plan()
    body = b' {"hook_event_name":"Stop",  "session_id":"s1", "new": "\\u00e9", "stop_hook_active":false}\n'
    answer = desk.call("claude", "--event", "Stop", body=body)
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    (row,) = desk.kept()
    assert (row["state"], row["harness"], row["event_hint"], row["lease_until"]) == ("pending", "claude", "Stop", 0)
    assert (row["body"], row["body_bytes"], row["cwd"]) == (body, len(body), str(ROOT))
    assert [event for event, _, _ in desk.told()] == ["frame.ending", "frame.ended"]
    assert desk.kept()[0]["state"] == "done"


def test_the_first_call_of_all_makes_ledger_and_plan_and_they_are_private(desk: Desk) -> None:
    assert desk.call("gemini", "--event", "AfterAgent", body=stop() | {"hook_event_name": "AfterAgent"}).out == "{}"
    assert (desk.state / plan.FILE_NAME).exists()
    before = (desk.state / plan.FILE_NAME).read_text()
    assert "hook claude UserPromptSubmit observe\n" in before
    desk.bind(OPENING, ["frame.opening"])
    answer = desk.call("claude", "--event", "UserPromptSubmit", body=prompt())  # the plan is stale by now
    assert json.loads(answer.out)["decision"] == "block"
    assert "hook claude UserPromptSubmit dispatch\n" in (desk.state / plan.FILE_NAME).read_text()
    assert desk.call("claude", "--event", "UserPromptSubmit", body=prompt(turn="p2")).out == answer.out
    assert [event for event, _, _ in desk.told()].count("frame.opening") == 2
    assert len(desk.kept()) == 3
    for path in (desk.ledger, *desk.state.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path
    assert desk.state.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("body", "hook"),
    [(b"", ""), (b"\xff\x00 no JSON", "Stop"), (b'{"session_id": 7}', "PreToolUse")],
    ids=["nothing", "no text", "no session"],
)
def test_whatever_comes_is_kept_and_harms_nobody(desk: Desk, body: bytes, hook: str) -> None:
    desk.plan()
    answer = desk.call("claude", *(("--event", hook) if hook else ()), body=body)
    assert (answer.code, answer.out) == (0, "")
    (row,) = desk.kept()
    assert (row["body"], row["event_hint"]) == (body, hook)
    assert desk.told() == []
    assert desk.kept()[0]["state"] == "refused"


def test_an_input_that_is_too_long_is_kept_as_its_short_fields_and_its_digest(desk: Desk) -> None:
    desk.plan()
    body = json.dumps(stop(last_assistant_message="x" * BODY_BYTES_MAX)).encode()
    assert desk.call("claude", "--event", "Stop", body=body).code == 0
    (row,) = desk.kept()
    assert (row["body_bytes"], row["body_digest"]) == (len(body), blake3(body).digest())
    assert json.loads(row["body"])["session_id"] == "s1"
    assert len(row["body"]) < 10_000
    assert [event for event, _, _ in desk.told()] == ["frame.ending", "frame.ended"]


def test_an_input_that_does_not_end_is_not_waited_for(desk: Desk) -> None:
    """LX-57."""
    desk.plan()
    with desk.start("hook", "claude", "--event", "SessionEnd") as process:
        assert process.stdin is not None
        process.stdin.write(b'{"session_id": "s1", "hook_event_name": "SessionEnd", "reason": "clear"}')
        process.stdin.flush()
        assert process.wait(timeout=60) == 0  # its input is open still
    assert [event for event, _, _ in desk.told()] == ["session.ending", "session.ended"]


def test_the_notified_program_gets_its_input_as_an_argument(desk: Desk) -> None:
    desk.plan()
    said = json.dumps({"type": "agent-turn-complete", "thread-id": "t1", "turn-id": "1"})
    for arguments in (("--notify", said), (said,), (f"--notify={said}",)):
        answer = desk.call("codex", *arguments, body=b"not for us")
        assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert [row["body"].decode() for row in desk.kept()] == [said] * 3
    assert [event for event, _, _ in desk.told()] == ["frame.ended"]


def test_calls_at_the_same_time_are_all_kept(desk: Desk) -> None:
    desk.plan()
    calls = [desk.start("hook", "claude", "--event", "Stop") for _ in range(8)]
    for number, call in enumerate(calls):
        assert call.stdin is not None
        call.stdin.write(json.dumps(stop(f"s{number}")).encode())
        call.stdin.close()
    assert [call.wait(timeout=60) for call in calls] == [0] * 8
    for call in calls:
        with call:
            pass
    assert len(desk.kept()) == 8
    assert len(desk.receipts()) == 16


# --- where the ledger cannot take it ------------------------------------------------------------------


def test_a_call_that_finds_the_ledger_locked_is_spooled_and_moved_under_its_id(desk: Desk) -> None:
    """LX-57. Whoever reads a copy leaves it where it is."""
    desk.configure("[lifecycle]\nlock_wait_ms = 30\n")
    desk.plan()
    with desk.locked():
        answer = desk.call("claude", "--event", "Stop", body=stop())
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    copy = desk.home / "copy.db"
    copy.write_bytes(desk.ledger.read_bytes())
    assert "no receipts" in desk.run("receipts", "list", "--db", str(copy)).out
    (row,) = desk.kept(desk.state / "hooks.db")
    assert desk.kept() == desk.kept(copy) == []
    assert len(desk.receipts()) == 2
    assert [each["id"] for each in desk.kept()] == [row["id"]]
    assert desk.kept(desk.state / "hooks.db") == []


def test_a_call_that_has_to_ask_ends_by_its_deadline_though_the_ledger_stays_locked(desk: Desk) -> None:
    """LX-57."""
    desk.bind({}, ["session.ending"])
    desk.plan()
    event = {"hook_event_name": "SessionEnd", "session_id": "s1", "reason": "clear"}
    with desk.locked():
        answer = desk.call("claude", "--event", "SessionEnd", body=event)
        assert (answer.code, answer.out, len(answer.err.splitlines())) == (0, "", 1)
        assert len(desk.kept(desk.state / "hooks.db")) == 1
    until(lambda: len(desk.receipts()) == 2)


@pytest.mark.parametrize("schema", ["999", "x"])
def test_a_ledger_of_another_schema_is_left_alone(desk: Desk, schema: str) -> None:
    desk.plan()

    def make_it(value: bytes) -> None:
        with closing(sqlite3.connect(desk.ledger)) as database, database:
            database.execute("UPDATE holdfast_ledger SET value = ? WHERE name = 'schema'", (value,))

    known = (desk.state / plan.FILE_NAME).read_text().partition("\nschema ")[2].partition("\n")[0]
    make_it(schema.encode())
    assert desk.call("claude", "--event", "Stop", body=stop()).code == 0
    assert len(desk.kept(desk.state / "hooks.db")) == 1
    make_it(known.encode())
    assert len(desk.receipts()) == 2


@pytest.mark.parametrize("closed", [False, True])
def test_a_call_that_nothing_can_take_fails_as_configured(desk: Desk, closed: bool) -> None:
    """A full disk, which a limit on the size of files is, too: SQLite cannot write a byte."""
    if closed:
        desk.configure('[lifecycle]\non_error = "closed"\n')
    desk.plan()

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    answers = [
        desk.call("claude", "--event", hook, body=body, setup=fill)
        for hook, body in (("UserPromptSubmit", prompt()), ("Stop", stop()))
    ]
    assert [answer.code for answer in answers] == [2 if closed else 0, 0]
    for answer in answers:
        assert answer.out == ""
        assert len(answer.err.splitlines()) == 1
        assert answer.err.startswith("holdfast: the call is not kept: ")
        assert "do it" not in answer.err
    assert desk.kept() == []
    assert desk.call("claude", "--event", "Stop", body=stop()).code == 0
    assert len(desk.receipts()) == 2


@pytest.mark.parametrize(("named", "hook"), [(True, "UserPromptSubmit"), (False, "UserPromptSubmit"), (True, "Stop")])
def test_a_ledger_that_was_never_opened_blocks_where_that_is_wanted(desk: Desk, named: bool, hook: str) -> None:
    """LX-56: nothing is planned yet, so what has to block is known from the configuration alone."""
    desk.configure('[lifecycle]\non_error = "closed"\n')
    desk.ledger.parent.mkdir(parents=True)
    desk.ledger.write_bytes(b"no database" * 1000)
    answer = desk.call("claude", *(("--event", hook) if named else ()), body=prompt() | {"hook_event_name": hook})
    assert (answer.code, answer.out) == (2 if hook == "UserPromptSubmit" else 0, "")
    assert answer.err.endswith("is not a SQLite database\n")
    assert len(desk.kept(desk.state / "hooks.db")) == 1


@pytest.mark.parametrize("place", ["ledger", "spool", "config"])
def test_files_that_are_something_else_do_not_stop_a_harness(desk: Desk, place: str) -> None:
    desk.plan()
    if place == "ledger":
        desk.ledger.write_bytes(b"no database" * 1000)
    elif place == "spool":
        (desk.state / "hooks.db").mkdir(mode=0o700)
        desk.ledger.unlink()
    else:
        desk.configure("this is = no [ TOML")
    answer = desk.call("gemini", "--event", "AfterAgent", body=stop())
    assert (answer.code, answer.out) == (0, "{}")
    if place == "spool":
        assert answer.err.startswith("holdfast: the call is not kept: ")
    else:
        assert len(desk.kept(desk.state / "hooks.db")) == 1


def test_a_ledger_in_postgresql_is_reached_through_the_spool(desk: Desk, make_target: Callable[[str], str]) -> None:
    desk.environment["HOLDFAST_DB"] = make_target("postgres")
    for session in ("s1", "s2"):
        assert desk.call("claude", "--event", "Stop", body=stop(session)).code == 0
    # The first call found no plan and went the long way; the second one knew that the ledger is no file.
    assert len(desk.kept(desk.state / "hooks.db")) in (1, 2)
    assert "\nledger -\n" in (desk.state / plan.FILE_NAME).read_text()
    assert len(desk.receipts()) == 4
    assert desk.kept(desk.state / "hooks.db") == []


# --- usage --------------------------------------------------------------------------------------------


def test_wrong_usage_never_exits_with_what_a_harness_takes_for_an_order(desk: Desk) -> None:
    """LA-60."""
    for arguments in (("clod",), ("claude", "--evnt", "Stop"), ("claude", "--event"), ("claude", "word")):
        answer = desk.call(*arguments)
        assert (answer.code, answer.out) == (1, "")
        assert answer.err.startswith("holdfast: ")
    assert desk.kept() == []
    assert not desk.state.exists()


def test_hooks_can_be_turned_off(desk: Desk) -> None:
    answer = desk.call("claude", "--event", "Stop", body=stop(), HOLDFAST_HOOKS="off")
    assert (answer.code, answer.out, answer.err) == (0, "", "")
    assert not desk.state.exists()


# --- death --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planned", [True, False], ids=["cold", "first call"])
@pytest.mark.parametrize("asked", [False, True], ids=["observed", "dispatched"])
def test_a_call_whose_process_dies_once_it_is_kept_is_not_lost(desk: Desk, planned: bool, asked: bool) -> None:
    """LA-59."""
    event = {"hook_event_name": "SessionEnd", "session_id": "s1", "reason": "clear"}
    if asked:
        desk.bind({}, ["session.ended"])
    if planned:
        desk.plan()
    answer = desk.call(
        "claude", "--event", "SessionEnd", body=event, HOLDFAST_TESTING="1", HOLDFAST_TEST_CRASH="hooks.appended"
    )
    assert answer.code == -signal.SIGKILL
    (row,) = desk.kept(None if planned else desk.state / "hooks.db")
    assert bool(row["lease_until"]) is (asked or not planned)
    until(lambda: len(desk.receipts()) == 2)  # its lease is 1.2 seconds at most
    assert [event for event, _, _ in desk.told()] == ["session.ending", "session.ended"]
    assert desk.asked() == []
    assert desk.run("verify").code == 0


@pytest.mark.torture
def test_calls_killed_at_any_moment_lose_nothing_that_was_answered(desk: Desk) -> None:
    rng = random.Random(7)  # noqa: S311 - moments, no secrets
    desk.bind({}, ["frame.opening"])
    desk.plan()
    answered = []
    for number in range(150):
        hook, body = (("Stop", stop), ("UserPromptSubmit", prompt))[number % 2]
        with desk.start("hook", "claude", "--event", hook) as call:
            assert call.stdin is not None
            call.stdin.write(json.dumps(body(f"s{number}")).encode())
            call.stdin.close()
            SystemClock().pause(rng.random() * (0.06, 0.3)[number % 2])
            call.kill()
        if call.returncode == 0:
            answered.append(f"s{number}")
    until(lambda: all(row["state"] != "pending" for row in desk.kept()) or desk.receipts() is None)
    assert set(answered) <= {row["session_id"] for row in desk.kept()}
    assert desk.run("verify").code == 0
