"""The resident: hook calls are answered by a process that stays, and as well without it when it does not."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.flow.hookcalls import FOOTPRINT, HEAVY, Desk, prompt, stop, until

from holdfast.lifecycle import frames, plan

OPENING = {
    "frame.opening": {
        "client_payloads": [
            {
                "schema_version": "lifeloop.v0.3", "payload_id": "p", "client_id": "ccd", "payload_kind": "note",
                "format": "text/plain", "content_encoding": "utf8", "body": "remember the milk", "byte_size": 17,
                "acceptable_placements": [{"placement": "pre_prompt_frame", "requirement": "preferred"}],
            }
        ]
    }
}  # fmt: skip


@pytest.fixture
def desk() -> Iterator[Desk]:
    home = Path(tempfile.mkdtemp(prefix="hf"))  # a socket's path is short
    yield Desk(home)
    shutil.rmtree(home)


def test_a_resident_answers_as_a_call_does_by_itself_and_derives_the_rest(desk: Desk) -> None:
    """LX-63, LA-62."""
    desk.bind(OPENING, ["frame.opening"])
    desk.plan()
    alone = desk.call("claude", "--event", "UserPromptSubmit", body=prompt())
    assert "remember the milk" in alone.out
    with desk.resident() as resident:
        where = desk.state / plan.SOCKET_NAME
        assert (where.stat().st_mode & 0o777, desk.state.stat().st_mode & 0o777) == (0o600, 0o700)
        with desk.start("hook", "serve") as second:
            assert second.wait(timeout=60) == 2
            assert second.stderr is not None
            assert b"a resident is there already" in second.stderr.read()
        told = subprocess.run(
            [*desk.program(FOOTPRINT), "hook", "claude", "--event", "UserPromptSubmit"],
            env=desk.variables, input=json.dumps(prompt(turn="p2")).encode(), capture_output=True, check=True,
        )  # fmt: skip
        assert (told.stdout.decode(), set(told.stderr.decode().split()) & (HEAVY | {"apsw"})) == (alone.out, set())
        assert desk.call("claude", "--event", "Stop", body=stop()).code == 0  # nobody is asked: it is only kept
        until(lambda: all(row["state"] == "done" for row in desk.kept()))
        resident.terminate()
        assert resident.wait(timeout=60) == 143
        assert not where.exists()
    assert len(desk.asked()) == 2
    assert desk.call("claude", "--event", "UserPromptSubmit", body=prompt(turn="p3")).out == alone.out
    assert len(desk.kept()) == 4


def test_a_resident_that_is_killed_meanwhile_leaves_one_delivery_and_one_receipt(desk: Desk) -> None:
    """LA-61."""
    begun = desk.home / "begun"
    desk.configure(
        "[[lifecycle.clients]]\nid = 'slow'\nevents = ['session.ending']\n"
        f"command = ['/bin/sh', '-c', 'touch {begun}; exec sleep 60']\n"
    )
    desk.plan()
    event = {"hook_event_name": "SessionEnd", "session_id": "s1", "reason": "clear"}
    with desk.resident() as resident, desk.start("hook", "claude", "--event", "SessionEnd") as call:
        assert call.stdin is not None
        call.stdin.write(json.dumps(event).encode())
        call.stdin.close()
        until(begun.exists)
        resident.kill()
        assert call.wait(timeout=60) == 0
        assert call.stdout is not None
        assert call.stderr is not None
        assert (call.stdout.read(), call.stderr.read()) == (b"", b"holdfast: the resident gave no answer\n")
    (row,) = desk.kept()
    until(lambda: desk.kept()[0]["state"] == "done" or desk.told() is None)
    assert [(each, client) for each, client, _ in desk.told()] == [
        ("session.ending", "slow"), ("session.ended", "holdfast"),
    ]  # fmt: skip
    assert [each["id"] for each in desk.kept()] == [row["id"]]
    assert desk.run("verify").code == 0
    with desk.resident():  # where the dead one's socket was
        assert (desk.state / plan.SOCKET_NAME).exists()


def test_a_resident_that_does_not_answer_costs_a_call_its_client_and_nothing_else(desk: Desk) -> None:
    desk.bind({}, ["session.ending"])
    desk.plan()
    event = {"hook_event_name": "SessionEnd", "session_id": "s1", "reason": "clear"}
    with desk.resident() as resident:
        resident.send_signal(signal.SIGSTOP)
        answer = desk.call("claude", "--event", "SessionEnd", body=event)
        assert (answer.code, answer.out, answer.err) == (0, "", "holdfast: the resident gave no answer\n")
        # It may have been stopped while it was writing; then the ledger is locked.
        assert [row["lease_until"] for row in (*desk.kept(), *desk.kept(desk.state / "hooks.db"))] == [0]
    assert [each for each, _, _ in desk.told()] == ["session.ending", "session.ended"]


def called(head: str, **changes: object) -> bytes:
    row = {
        "id": "dlv_1", "harness": "claude", "hook": "Stop", "body": b'{"session_id":"s"}', "size": 18, "digest": None,
        "received_at": time.time_ns() // 1000, "cwd": None, "lease_until": 0,
    } | changes  # fmt: skip
    return frames.encode(frames.call(head, tuple(row.values())))


def head(desk: Desk) -> str:
    return plan.head(None, None, desk.environment)


def test_a_resident_takes_what_it_understands_and_ends_for_its_successor(desk: Desk) -> None:
    desk.plan()

    def say(data: bytes, *, end: bool = True) -> bytes:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(desk.state / plan.SOCKET_NAME))
            peer.sendall(data)
            if end:
                peer.shutdown(socket.SHUT_WR)
            return peer.recv(1000)

    busy = frames.encode(frames.BUSY)
    with desk.resident() as resident:
        known = head(desk)
        assert say(called(known, harness="clod")) == b""
        assert say(called(known, size="many")) == b""
        assert say(called(known)[:-3]) == b""
        assert say(b"\xff" * 2000) == b""
        assert say(frames.encode([frames.VERSION])) == busy
        assert say(called("another head")) == busy
        assert desk.kept() == []
        assert say(called(known, harness="gemini", hook="BeforeTool")) == frames.encode([b"0", b"{}", b""])
        assert [row["id"] for row in desk.kept()] == ["dlv_1"]

        desk.bind({}, ["frame.ended"])  # it reads its configuration again
        assert say(called(head(desk))) == busy
        assert resident.stdout is not None
        assert resident.stdout.readline().startswith(b"listening on ")
        answer = desk.call("claude", "--event", "Stop", body=stop())
        assert (answer.code, answer.err, len(desk.asked())) == (0, "", 1)

        assert say(frames.encode([b"1 0.0.0", b"", b""])) == busy
        assert resident.wait(timeout=60) == 0


def test_a_resident_serves_nobody_from_a_folder_that_others_look_into(desk: Desk) -> None:
    desk.plan()
    desk.state.chmod(0o755)
    with desk.start("hook", "serve") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "chmod 700" in err.decode()
