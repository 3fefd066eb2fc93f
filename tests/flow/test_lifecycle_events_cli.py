"""`holdfast events`: the names, a request that is checked, an event that is taken to a program."""

from __future__ import annotations

import io
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import Answer, ask
from tests.unit.lifecycle_documents import ABSENT, changed, envelope, payload, receipt, request

from holdfast.lifecycle import EVENTS, LifecycleReceipt, decode
from holdfast.lifecycle.rules import NOTIFICATION

CLIENT = """
import json, os, sys
data = sys.stdin.read()
told = json.loads(data)
with open(LOG, "a") as log:
    log.write(json.dumps([told, dict(os.environ)]) + "\\n")
print(json.dumps({"schema_version": told["schema_version"], "status": [*sys.argv, "delivered"][1]}))
"""


class Desk:
    """A ledger, a client, and the command line."""

    def __init__(self, folder: Path, ledger: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ledger = ledger
        self.log = folder / "log"
        self.script = folder / "client"
        self.script.write_text(f"#!{sys.executable} -S\nLOG = {str(self.log)!r}\n{CLIENT}")
        self.script.chmod(stat.S_IRWXU)
        self._monkeypatch = monkeypatch

    def ask(self, *arguments: object, stdin: Any) -> Answer:
        text = stdin if isinstance(stdin, str) else json.dumps(stdin)
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        return ask(*arguments)

    def invoke(self, *arguments: object, stdin: Any, client: object = None) -> Answer:
        named = ("--client-cmd", client or self.script)
        return self.ask("events", "invoke", *named, *arguments, "--db", self.ledger, stdin=stdin)

    def calls(self) -> list[Any]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def receipts(self) -> Any:
        answer = ask("receipts", "list", "--json", "--db", self.ledger)
        return answer.json if answer.code == 0 else []


@pytest.fixture
def desk(tmp_path: Path, ledger: str, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, ledger, monkeypatch)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, str(tmp_path / "ledger.db"), monkeypatch)


def about(event: str) -> dict[str, Any]:
    frame = {"frame_id": "frm-1", "frame_class": "top_level"} if event.startswith("frame.") else ABSENT
    return request(event=event, frame_context=frame)


def test_the_names_are_printed_and_each_reads_and_prints_back(local: Desk) -> None:
    """LA-1."""
    answer = ask("events")
    assert (answer.code, answer.err) == (0, "")
    assert answer.json == list(EVENTS)
    assert len(answer.json) == 14
    for event in answer.json:
        checked = local.ask("events", "check", stdin=about(event))
        assert (checked.code, checked.json) == (0, about(event))
        assert local.ask("events", "check", stdin=checked.out).out == checked.out


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (request(event="frame.flarbed"), 1, "unknown variant `frame.flarbed`"),
        (request(schema_version="lifeloop.v0"), 1, "expected one of lifeloop.v0.1, lifeloop.v0.2, lifeloop.v0.3"),
        (request(invocation_id=""), 1, "`request.invocation_id`"),
        (request(event="frame.opening"), 1, "frame_context"),
        ("{", 3, "JSON"),
        ("[]", 3, "no object"),
        ("", 3, "JSON"),
    ],
    ids=str,
)
def test_a_bad_request_is_refused_on_standard_error(local: Desk, given: Any, code: int, said: str) -> None:
    """LA-2, LA-3, LA-48."""
    answer = local.ask("events", "check", stdin=given)
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("flarb",), ("invoke",), ("check", "--flarb"), ("invoke", "--client-cmd", ""),
        ("invoke", "--client-cmd", "x", "--timeout-ms", "0"), ("invoke", "--client-cmd", "x", "--require", "flarb"),
        ("invoke", "--client-cmd", "x", "--require", "flarb=required:native"),
        ("invoke", "--client-cmd", "x", "--require", "receipts.native=required:unavailable"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage_ends_with_two(local: Desk, arguments: tuple[str, ...]) -> None:
    """LA-48."""
    answer = local.ask("events", *arguments, stdin=envelope())
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: ")


def test_an_event_is_taken_to_a_program_and_its_receipt_printed(desk: Desk) -> None:
    """LA-24."""
    given = envelope(request=request(harness_run_id="run-1", harness_session_id="ses-1", idempotency_key="idem-1"))
    answer = desk.invoke("--client-id", "ccd", stdin=given)
    assert (answer.code, answer.err) == (0, "")
    made = decode(answer.out, LifecycleReceipt)
    assert (made.status, made.client_id, made.sequence, made.harness_run_id) == ("delivered", "ccd", 1, "run-1")
    assert made.schema_version == "lifeloop.v0.2"
    ((told, environ),) = desk.calls()
    assert told == given
    assert (environ["HOLDFAST_CLIENT_ID"], environ["HOLDFAST_EVENT"]) == ("ccd", "session.started")
    # Another try of the same event does not call the client again.
    again = desk.invoke("--client-id", "ccd", stdin=given)
    assert (again.code, again.out) == (0, answer.out)
    assert len(desk.calls()) == 1


def test_what_the_command_line_names_is_in_the_receipt(local: Desk) -> None:
    answer = local.invoke(
        "--client-arg", "skipped", "--receipt-id", "rcp-9", "--run-id", "run-9", stdin=envelope(payloads=ABSENT)
    )
    assert answer.code == 0, answer
    names = ("client_id", "receipt_id", "harness_run_id", "status")
    assert [answer.json[name] for name in names] == ["holdfast", "rcp-9", "run-9", "skipped"]


def test_a_client_s_path_is_one_of_this_directory(local: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(local.script.parent)
    assert local.invoke(stdin=envelope(), client="./client").code == 0


def test_a_missing_program_leaves_a_failed_receipt(local: Desk) -> None:
    """LA-25."""
    answer = local.invoke(stdin=envelope(), client="/nowhere/client")
    assert answer.code == 1
    assert (answer.json["failure_class"], answer.json["retry_class"]) == ("transport_error", "safe_retry")
    assert "cannot be started" in answer.err
    assert local.receipts() == [answer.json]


def test_a_program_that_fails_is_told_of_with_the_end_of_its_errors(local: Desk) -> None:
    """LA-26."""
    local.script.write_text(f"#!{sys.executable} -S\nimport sys\nprint('{{}}')\nsys.exit('what went wrong')")
    answer = local.invoke(stdin=envelope())
    assert answer.code == 1
    assert answer.json["status"] == "failed"
    assert "exit code 1: what went wrong" in answer.err
    assert "exit code 1" in answer.out
    assert "what went wrong" not in answer.out


def test_a_plan_that_is_blocked_never_starts_the_program(local: Desk) -> None:
    """LA-27."""
    answer = local.invoke("--require", "session_rename=required:native", stdin=envelope())
    assert answer.code == 1
    assert answer.json["failure_class"] == "capability_unsupported"
    assert local.calls() == []
    assert local.receipts() == [answer.json]


def test_a_preferred_capability_that_is_missing_degrades(local: Desk) -> None:
    answer = local.invoke("--require", "lifecycle_event:supervisor.tick=preferred:native", stdin=envelope())
    assert (answer.code, answer.json["status"]) == (0, "degraded")


def test_a_secret_of_ours_is_not_in_the_client_s_environment(local: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """LA-28."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    assert local.invoke(stdin=envelope()).code == 0
    assert "hush" not in local.log.read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (envelope(request=request(adapter_id="nobody")), "no adapter `nobody`"),
        (envelope(request=request(adapter_version="9.9.9")), "registered as version 0.1.0, not 9.9.9"),
        (envelope(request=request(event=NOTIFICATION)), "must not itself produce a receipt"),
        (envelope(payloads=[payload(schema_version="lifeloop.v0.3")]), "schema_version mismatch"),
        (envelope(request=request(payload_refs=[{"payload_id": "", "payload_kind": "k"}])), "payload_refs[0]"),
        (receipt(), "missing"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_an_event_that_cannot_be_routed_leaves_nothing(local: Desk, given: Any, said: str) -> None:
    """LA-6, LA-13, LA-14."""
    answer = local.invoke(stdin=given)
    assert (answer.code, answer.out) == (1, "")
    assert said in answer.err
    assert local.calls() == []
    assert local.receipts() == []


def test_only_what_prints_is_printed(local: Desk) -> None:
    given = changed(request(), metadata={"text": "\x1b[31m\u202e\x85"})
    answer = local.ask("events", "check", stdin=given)
    assert answer.out.strip().isprintable()
    assert answer.json == given
