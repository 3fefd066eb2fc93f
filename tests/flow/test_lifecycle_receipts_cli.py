"""`holdfast receipts`: recording, looking, proving and carrying receipts, from the command line."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import ROOT, Answer, ask, start
from tests.unit.lifecycle_documents import ABSENT, payload, request, response

from holdfast.core.clock import SystemClock
from holdfast.lifecycle import LifecycleReceipt, decode
from holdfast.lifecycle import ledger as records
from holdfast.store import open_database


class Desk:
    """A ledger and the command line."""

    def __init__(self, ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ledger = ledger
        self._monkeypatch = monkeypatch

    def ask(self, *arguments: object, stdin: Any = "") -> Answer:
        text = stdin if isinstance(stdin, str) else json.dumps(stdin)
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return ask("receipts", *arguments, "--db", self.ledger)

    def emit(self, number: int = 1, *arguments: object, **changes: Any) -> Answer:
        return self.ask("emit", *arguments, stdin=told(number, **changes))

    def tell(self, *arguments: object) -> Any:
        answer = self.ask(*arguments, "--json")
        assert answer.code == 0, answer
        return answer.json


def told(number: int = 1, *, run: str | None = "run-1", context: Any = None, **changes: Any) -> dict[str, Any]:
    ids = {} if run is None else {"harness_run_id": run}
    own = {"client_id": "ccd", "receipt_id": f"rcp-{number}", "at_epoch_s": 1_778_100_000, **ids, **(context or {})}
    return {
        "request": request(idempotency_key=f"idem-{number}", event_id=f"evt-{number}", **ids, **changes),
        "response": response(),
        "context": own,
    }


@pytest.fixture
def desk(ledger: str, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(ledger, monkeypatch)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(str(tmp_path / "ledger.db"), monkeypatch)


# --- recording ----------------------------------------------------------------------------------------


def test_an_event_is_recorded_and_recorded_once(desk: Desk) -> None:
    made = desk.emit()
    assert (made.code, made.err) == (0, "")
    assert decode(made.out, LifecycleReceipt).sequence == 1
    assert desk.emit().out == made.out
    assert [each["receipt_id"] for each in desk.tell("list")] == ["rcp-1"]


def test_another_try_conflicts_in_strict_mode_and_replays_in_semantic_mode(local: Desk) -> None:
    """LA-34."""
    made = local.emit()
    later = {"receipt_id": "rcp-9", "at_epoch_s": 1_778_100_009}
    answer = local.emit(context=later)
    assert (answer.code, answer.out) == (1, "")
    assert "duplicate_id_conflict" in answer.err
    assert "receipt_id, at_epoch_s" in answer.err
    assert local.emit(1, "--mode", "semantic", context=later).out == made.out


def test_payloads_are_placed_again(local: Desk) -> None:
    given = {**told(), "payloads": [payload()], "response": None}
    answer = local.ask("emit", stdin=given)
    assert answer.code == 0, answer
    assert [each["status"] for each in answer.json["payload_receipts"]] == ["delivered"]
    assert answer.json["status"] == "observed"


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ("{", 3, "JSON"),
        ("[1]", 3, "no object"),
        ({**told(), "request": 1}, 1, "`request` is no object"),
        ({**told(), "payloads": {"a": 1}}, 1, "`payloads` is no array"),
        ({**told(), "payloads": [1]}, 1, "`payloads[0]` is no object"),
        ({"request": request(), "response": response()}, 1, "missing field `context`"),
        ({**told(), "response": response(status="flarbed")}, 1, "unknown variant `flarbed`"),
        ({**told(), "response": response(schema_version="lifeloop.v0.3")}, 1, "schema_version mismatch"),
        (told(event="receipt.emitted") | {"request": request(event="receipt.emitted")}, 1, "must not itself produce"),
        (told(adapter_id="nobody"), 1, "no adapter"),
    ],
)
def test_what_cannot_be_recorded_is_refused_on_standard_error(local: Desk, given: Any, code: int, said: str) -> None:
    """LA-6, LA-48."""
    answer = local.ask("emit", stdin=given)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err
    listed = local.ask("list", "--json")
    assert listed.code == 3 or listed.json == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("flarb",), (), ("show",), ("emit", "--mode", "flarb"), ("list", "--event", "flarb"), ("replay",), ("prune",),
        ("list", "--status", "flarb"), ("list", "--since", "flarb"), ("list", "--limit", "0"), ("prune", "--keep", "x"),
        ("prune", "--keep", "999999999d"), ("show", "-", "--annotations"), ("verify", "--file", "a", "--anchor", "b"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_ends_with_two(arguments: tuple[str, ...]) -> None:
    """LA-48."""
    assert ask("receipts", *arguments).code == 2


# --- looking ------------------------------------------------------------------------------------------


def test_a_receipt_is_shown_and_its_output_is_stable(desk: Desk) -> None:
    """LA-50."""
    desk.emit()
    shown = desk.ask("show", "rcp-1")
    assert (shown.code, shown.err) == (0, "")
    assert decode(shown.out, LifecycleReceipt).receipt_id == "rcp-1"
    assert desk.ask("show", "-", stdin=shown.out) == shown


def test_annotations_are_shown_beside_the_receipt(local: Desk) -> None:
    local.emit()
    shown = local.ask("show", "rcp-1", "--annotations").json
    assert decode(json.dumps(shown["receipt"]), LifecycleReceipt).receipt_id == "rcp-1"
    assert shown["annotations"]["outcome"] == "satisfied"


def test_a_receipt_that_is_missing_or_not_alone_is_told_of(local: Desk) -> None:
    local.emit()
    local.emit(2, context={"receipt_id": "rcp-1", "client_id": "other"})
    missing = local.ask("show", "rcp-9")
    assert (missing.code, missing.out) == (1, "")
    assert "no receipt has the id" in missing.err
    both = local.ask("show", "rcp-1")
    assert both.code == 1
    assert "2 receipts" in both.err
    assert local.ask("show", "rcp-1", "--all") == Answer(0, both.out, "")
    assert both.out.index("other") < both.out.index("ccd")


@pytest.mark.parametrize(("given", "code"), [("{", 3), ('{"schema_version": "lifeloop.v0"}', 1)])
def test_a_receipt_from_elsewhere_is_checked(local: Desk, given: str, code: int) -> None:
    answer = local.ask("show", "-", stdin=given)
    assert (answer.code, answer.out) == (code, "")


def test_the_list_is_newest_first_and_can_be_narrowed(local: Desk) -> None:
    local.emit(1)
    local.emit(2, run="run-2", event="session.ended", context={"client_id": "other", "harness_session_id": "ses-2"})
    local.emit(3, run=None)

    def ids(*arguments: object) -> list[str]:
        return [each["receipt_id"] for each in local.tell("list", *arguments)]

    assert ids() == ["rcp-3", "rcp-2", "rcp-1"]
    assert ids("--limit", 2) == ["rcp-3", "rcp-2"]
    for option, value in (
        ("--run", "run-2"), ("--client", "other"), ("--event", "session.ended"), ("--session", "ses-2"),
    ):  # fmt: skip
        assert ids(option, value) == ["rcp-2"]
    assert ids("--status", "delivered", "--since", "1h") == ["rcp-3", "rcp-2", "rcp-1"]
    assert ids("--status", "failed") == ids("--since", "2999-01-01") == []
    assert len(ids("--since", "2001-01-01T00:00:00Z")) == 3
    table = local.ask("list").out.splitlines()
    assert [line.split()[0] for line in table] == ["receipt", "rcp-3", "rcp-2", "rcp-1"]
    assert local.ask("list", "--status", "failed").out == "no receipts\n"


def test_reading_makes_no_ledger(local: Desk) -> None:
    for arguments in (
        ("list",), ("show", "x"), ("pending",), ("pending", "--close"), ("verify",), ("gaps",), ("gaps", "--emit"),
        ("export",), ("prune", "--keep", "1d"),
    ):  # fmt: skip
        answer = local.ask(*arguments)
        assert (answer.code, answer.out) == (3, ""), arguments
    assert not Path(local.ledger).exists()


# --- calls under way ----------------------------------------------------------------------------------


def test_a_call_whose_caller_was_killed_is_pending_until_it_is_closed(desk: Desk, tmp_path: Path) -> None:
    """LA-42: kill -9 while the client runs."""
    desk.emit(1)
    started = tmp_path / "started"
    script = tmp_path / "client.sh"
    script.write_text(f"#!/bin/sh\necho $$ > {started}.part; mv {started}.part {started}; exec sleep 600\n")
    script.chmod(0o700)
    given = told(2)
    envelope = {"schema_version": "lifeloop.v0.2", "request": given["request"]}
    arguments = ("events", "invoke", "--client-cmd", script, "--receipt-id", "rcp-2", "--db", desk.ledger)
    with start(*arguments) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(envelope))
        process.stdin.close()
        process.stdin = None
        wait_for(started)
        assert [each["receipt_id"] for each in desk.tell("pending")] == ["rcp-2"]
        process.kill()
    os.kill(int(started.read_text()), signal.SIGKILL)
    (intent,) = desk.tell("pending")
    assert (intent["client_id"], intent["event"], intent["attempts"]) == ("holdfast", "session.started", 1)
    assert "rcp-2" in desk.ask("pending").out
    closed = desk.ask("pending", "--close")
    assert (closed.code, closed.out) == (0, "nothing is pending\n")
    assert "rcp-2" in closed.err
    shown = desk.ask("show", "rcp-2", "--annotations").json
    assert (shown["receipt"]["status"], shown["receipt"]["failure_class"]) == ("failed", "state_conflict")
    assert (shown["receipt"]["retry_class"], shown["receipt"]["sequence"]) == ("retry_after_reread", 2)
    assert shown["annotations"]["outcome_unknown"] is True
    assert desk.ask("gaps").code == 0
    assert desk.ask("verify").code == 0


def wait_for(path: Path) -> None:
    for _ in range(3000):
        if path.exists():
            return
        SystemClock().pause(0.01)
    raise AssertionError(f"{path} did not appear")


def test_a_call_that_is_told_to_end_stops_its_client(local: Desk, tmp_path: Path) -> None:
    """Its claim is free at once."""
    started = tmp_path / "started"
    script = tmp_path / "client.sh"
    script.write_text(f"#!/bin/sh\necho $$ > {started}.part; mv {started}.part {started}; exec sleep 600\n")
    script.chmod(0o700)
    with start("events", "invoke", "--client-cmd", script, "--db", local.ledger) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"schema_version": "lifeloop.v0.2", "request": request()}))
        process.stdin.close()
        process.stdin = None
        wait_for(started)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert local.ask("pending", "--close").out == "nothing is pending\n"
    assert [each["failure_class"] for each in local.tell("list")] == ["state_conflict"]


# --- proving and carrying -----------------------------------------------------------------------------


def test_the_ledger_is_proved_and_what_was_changed_is_named(local: Desk, tmp_path: Path) -> None:
    """LA-39."""
    for number in (1, 2, 3):
        local.emit(number)
    assert local.tell("verify") == {"ok": True, "chains_count": 1, "receipts_count": 3}
    assert "nothing was changed" in local.ask("verify").out
    anchor = tmp_path / "anchor"
    anchor.write_text(local.ask("export").out)
    assert local.ask("verify", "--anchor", anchor).code == 0
    anchor.write_text("junk")
    assert local.ask("verify", "--anchor", anchor).code == 3
    assert local.ask("verify", "--anchor", tmp_path / "missing").code == 3
    with closing(sqlite3.connect(local.ledger)) as connection, connection:
        connection.execute(
            "UPDATE lifecycle_receipts SET body = CAST(replace(body, 'evt-2', 'evt-9') AS BLOB) "
            "WHERE receipt_id = 'rcp-2'"
        )
    answer = local.ask("verify", "--json")
    assert answer.code == 1
    assert (answer.json["ok"], answer.json["receipt_id"], answer.json["why"]) == (False, "rcp-2", "body_changed")
    answer = local.ask("verify")
    assert (answer.code, answer.out) == (1, "")
    assert "rcp-2" in answer.err
    assert "body_changed" in answer.err


def test_an_export_is_checked_and_replayed_elsewhere(desk: Desk, local: Desk, tmp_path: Path) -> None:
    """LA-44."""
    for number in (1, 2):
        desk.emit(number)
    desk.emit(3, run=None)
    file = tmp_path / "export.jsonl"
    file.write_text(desk.ask("export").out)
    assert desk.ask("verify", "--file", file).code == 0
    other = Desk(str(tmp_path / "other.db"), desk._monkeypatch)
    assert other.tell("replay", file) == {"inserted": 3, "replayed": 0, "conflict": 0, "gaps": 0}
    again = other.ask("replay", "-", stdin=file.read_text())
    assert (again.code, again.out) == (0, "0 inserted, 3 replayed, 0 conflict, 0 gaps\n")
    bodies = sorted(json.loads(line)["body"] for line in file.read_text().splitlines()[1:-1])
    assert sorted(json.loads(line)["body"] for line in other.ask("export").out.splitlines()[1:-1]) == bodies
    assert len(desk.ask("export", "--run", "run-1").out.splitlines()) == 4
    file.write_text(file.read_text().replace("evt-1", "evt-9"))
    broken = desk.ask("verify", "--file", file)
    assert (broken.code, broken.out) == (1, "")
    conflicting = other.ask("replay", file)
    assert conflicting.code == 1
    assert "duplicate_id_conflict" in conflicting.err
    assert other.ask("replay", tmp_path / "missing").code == 3
    file.write_text("junk")
    assert other.ask("replay", file).code == 3
    assert other.ask("verify", "--file", file).code == 3


def test_a_configured_key_is_needed_to_prove_the_chains(local: Desk, tmp_path: Path) -> None:
    """LA-39: with a key, who can write but does not know it cannot compute the chains anew."""
    key, config, file = tmp_path / "chain.key", tmp_path / "holdfast.toml", tmp_path / "export.jsonl"
    key.write_text("5a" * 32)
    key.chmod(0o600)
    config.write_text('[lifecycle]\nchain_key_file = "chain.key"\n')
    keyed = ("--config", config)
    assert local.emit(1, *keyed).code == local.emit(2, *keyed, run="run-2").code == 0
    asyncio.run(skip(local.ledger))
    assert local.emit(3, *keyed).code == 0
    assert local.ask("gaps", "--emit", *keyed).code == 1
    file.write_text(local.ask("export", *keyed).out)
    other = ("--db", tmp_path / "other.db")
    assert ask("receipts", "replay", file, *other, *keyed).code == 0
    for command in (
        ("receipts", "verify", "--db", local.ledger),
        ("receipts", "verify", "--file", file),
        ("receipts", "verify", *other),
        ("verify", "--db", local.ledger),
    ):
        assert ask(*command, *keyed).code == 0, command
        assert ask(*command).code == 1, command
    key.chmod(0o644)
    refused = local.emit(4, *keyed)
    assert (refused.code, refused.out) == (2, "")
    assert "open to others" in refused.err


def test_a_missing_number_is_told_of_once(desk: Desk) -> None:
    """LA-40."""
    desk.emit(1)
    assert desk.ask("gaps").out == "no number is missing\n"
    asyncio.run(skip(desk.ledger))
    desk.emit(2)
    answer = desk.ask("gaps", "--json")
    assert (answer.code, answer.json) == (1, [{"run_id": "run-1", "first": 2, "last": 3}])
    assert desk.ask("gaps", "--run", "run-2").code == 0
    for _ in range(2):
        assert desk.ask("gaps", "--emit").code == 1
        (told_of,) = desk.tell("list", "--event", "receipt.gap_detected")
        assert told_of["sequence"] is None


async def skip(target: str) -> None:
    database = await open_database(target, clock=SystemClock())
    try:
        async with database.write() as tx:
            for _ in range(2):
                await records.next_sequence(tx, "run-1", now=database.clock.now())
    finally:
        await database.close()


def test_pruned_runs_count_on(local: Desk) -> None:
    """LA-45."""
    for number in (1, 2):
        local.emit(number)
    assert local.tell("prune", "--keep", "1d") == {"chains_count": 0, "receipts_count": 0}
    answer = local.ask("prune", "--keep", "0s")
    assert (answer.code, answer.out) == (0, "dropped 2 receipts of 1 chain\n")
    assert "keys are forgotten" in answer.err
    assert local.tell("list") == []
    assert local.ask("verify").code == 0
    assert local.emit(1).json["sequence"] == 3
    assert local.ask("verify").code == 0


def test_it_works_as_a_program(tmp_path: Path) -> None:
    environment = {**os.environ, "HOLDFAST_DB": str(tmp_path / "ledger.db")}
    given = json.dumps({**told(), "request": request(idempotency_key=ABSENT) | {"idempotency_key": "ключ"}})
    run = [sys.executable, "-m", "holdfast", "receipts"]
    made = subprocess.run([*run, "emit"], input=given, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")
    assert json.loads(made.stdout)["idempotency_key"] == "ключ"
