"""Clients are asked: functions, coroutines, and programs that answer, misbehave, hang and leave children behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.unit.plans import payload, request, response

from holdfast import ConfigError
from holdfast.core.clock import SystemClock
from holdfast.lifecycle import (
    CallbackRequest,
    CallbackResponse,
    Command,
    DispatchEnvelope,
    InvalidResponse,
    NonZeroExit,
    OutputTooLarge,
    PayloadEnvelope,
    ReceiptEmittedRejected,
    SchemaVersionMismatch,
    SubprocessInvalidResponse,
    SubprocessParseResponse,
    SubprocessSerializeRequest,
    SubprocessSpawn,
    SubprocessTimeout,
    SubprocessWriteRequest,
    TransportInternal,
    TransportIo,
    TransportTimeout,
    decode,
)
from holdfast.lifecycle.dispatch import STDERR_BYTES_KEPT, STDOUT_BYTES_MAX, Callback, ask, failed_response
from holdfast.testing import ManualClock

ANSWER = '{"schema_version":"lifeloop.v0.3","status":"delivered"}'
PAYLOAD = payload(("pre_prompt_frame", "required"))
Write = Callable[[str], Command]


@pytest.fixture
def program(tmp_path: Path) -> Write:
    """Make a client's program of a piece of Python."""

    def write(code: str) -> Command:
        script = tmp_path / "client.py"
        script.write_text(f"import json, os, signal, subprocess, sys, time\nANSWER = {ANSWER!r}\n{code}\n")
        return Command((sys.executable, "-S", str(script)), timedelta(seconds=30))

    return write


async def asked(client: Callback | Command, about: CallbackRequest | None = None, **changes: Any) -> Any:
    given: dict[str, Any] = {"client_id": "ccd", "clock": SystemClock(), "seconds": 30.0, **changes}
    payloads = given.pop("payloads", ())
    return await ask(client, about or request(), payloads, **given)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def gone(pid: int) -> None:
    for _ in range(1000):
        if not running(pid):
            return
        await SystemClock().sleep(0.01)
    raise AssertionError(f"process {pid} lives on")


# --- callables ----------------------------------------------------------------------------------------


async def test_a_plain_function_runs_in_a_thread_and_gets_request_and_payloads() -> None:
    seen: list[object] = []

    def client(about: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> CallbackResponse:
        seen.extend((about, payloads, threading.current_thread() is threading.main_thread()))
        return response()

    assert await asked(client, payloads=[PAYLOAD]) == response()
    assert seen == [request(), (PAYLOAD,), False]


async def test_a_coroutine_runs_in_the_loop() -> None:
    class Client:
        async def __call__(self, about: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> CallbackResponse:
            assert threading.current_thread() is threading.main_thread()
            return response("observed")

    async def client(about: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> CallbackResponse:
        return response("observed")

    for each in (Client(), client, lambda about, payloads: client(about, payloads)):
        assert await asked(each) == response("observed")


async def test_none_is_an_answer() -> None:
    assert await asked(lambda about, payloads: None) is None


@pytest.mark.parametrize("error", [ValueError("the secret"), SystemExit(3), StopIteration(), asyncio.CancelledError()])
async def test_an_exception_is_an_internal_error_and_its_words_are_not_repeated(error: BaseException) -> None:
    def client(about: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> CallbackResponse:
        raise error

    async def coroutine(about: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> CallbackResponse:
        raise error

    for each in (client, coroutine):
        with pytest.raises(TransportInternal) as caught:
            await asked(each)
        assert "secret" not in str(caught.value)


async def test_an_error_of_the_transport_passes_as_it_is() -> None:
    def client(about: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> CallbackResponse:
        raise TransportIo("connection refused")

    with pytest.raises(TransportIo):
        await asked(client)


async def test_a_callable_that_takes_too_long_is_given_up() -> None:
    clock = ManualClock()
    cancelled = asyncio.Event()
    release = threading.Event()

    async def coroutine(about: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> CallbackResponse:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()
        raise AssertionError

    def plain(about: CallbackRequest, payloads: tuple[PayloadEnvelope, ...]) -> CallbackResponse:
        release.wait()
        return response()

    for client in (coroutine, plain):
        asking = asyncio.ensure_future(asked(client, clock=clock, seconds=5.0))
        await clock.advance(timedelta(0))
        await clock.advance(timedelta(seconds=4.9))
        assert not asking.done()
        await clock.advance(timedelta(seconds=0.1))
        with pytest.raises(TransportTimeout):
            await asking
    release.set()
    await cancelled.wait()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"status": "delivered"}, InvalidResponse),
        (response("failed"), InvalidResponse),
        (response(schema_version="lifeloop.v0.2"), SchemaVersionMismatch),
        (response(schema_version="lifeloop.v0"), SchemaVersionMismatch),
    ],
)
async def test_an_answer_that_is_none_is_refused(answer: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await asked(lambda about, payloads: answer)


@pytest.mark.parametrize("client", [lambda about, payloads: None, Command(("true",), timedelta(seconds=1))])
async def test_receipt_emitted_is_never_dispatched(client: Callback | Command) -> None:
    with pytest.raises(ReceiptEmittedRejected):
        await asked(client, request(event="receipt.emitted", idempotency_key=None))


# --- programs -----------------------------------------------------------------------------------------


async def test_a_program_sees_exactly_one_document_and_then_the_end(program: Write, tmp_path: Path) -> None:
    """LA-24."""
    client = program(f"data = sys.stdin.buffer.read(); open({str(tmp_path / 'in')!r}, 'wb').write(data); print(ANSWER)")
    assert await asked(client, payloads=[PAYLOAD]) == response()
    envelope = decode((tmp_path / "in").read_bytes(), DispatchEnvelope)
    assert envelope == DispatchEnvelope(schema_version="lifeloop.v0.3", request=request(), payloads=(PAYLOAD,))


async def test_a_large_input_is_written_while_output_is_read(program: Write) -> None:
    large = replace(PAYLOAD, body="x" * 3_000_000)
    chatty = "sys.stdout.write(' ' * 500_000); sys.stdout.flush(); sys.stderr.write('e' * 500_000); sys.stderr.flush();"
    client = program(f"{chatty} n = len(sys.stdin.buffer.read()); assert n > 3_000_000; print(ANSWER)")
    assert await asked(client, payloads=[large]) == response()


async def test_a_program_that_reads_nothing_may_still_answer(program: Write) -> None:
    large = replace(PAYLOAD, body="x" * 3_000_000)
    assert await asked(program("os.close(0); print('\\n ', ANSWER, ' \\n')"), payloads=[large]) == response()
    with pytest.raises(SubprocessWriteRequest):
        await asked(program("os.close(0)"), payloads=[large])


async def test_a_program_sees_of_our_environment_only_what_is_named(program: Write, tmp_path: Path) -> None:
    """LA-28."""
    client = program(f"json.dump(dict(os.environ), open({str(tmp_path / 'env')!r}, 'w')); print(ANSWER)")
    ours = {
        "PATH": os.environ["PATH"], "HOME": "/home/me", "USER": "me", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8",
        "TZ": "UTC", "TMPDIR": "/somewhere", "AWS_SECRET_ACCESS_KEY": "hush", "LD_PRELOAD": "", "NEEDED": "1",
        "HOLDFAST_DB": "x", "HOLDFAST_EVENT": "wrong",
    }  # fmt: skip
    await asked(replace(client, env_pass=("NEEDED", "ABSENT")), environ=ours)
    seen = json.loads((tmp_path / "env").read_text())
    expected = {name: ours[name] for name in ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "NEEDED")}
    assert seen == {**expected, "HOLDFAST_CLIENT_ID": "ccd", "HOLDFAST_EVENT": "session.started"}


async def test_a_program_starts_in_the_root_or_where_it_is_told_in_a_session_of_its_own(
    program: Write, tmp_path: Path
) -> None:
    client = program(
        f"where = open({str(tmp_path / 'where')!r}, 'a')\n"
        "where.write(f'{os.getcwd()} {os.getsid(0) == os.getpid()}\\n')\n"
        "print(ANSWER)"
    )
    await asked(client)
    await asked(replace(client, cwd=str(tmp_path)))
    assert (tmp_path / "where").read_text().splitlines() == ["/ True", f"{tmp_path} True"]


async def test_no_shell_reads_the_arguments(program: Write, tmp_path: Path) -> None:
    client = program(f"json.dump(sys.argv[1:], open({str(tmp_path / 'args')!r}, 'w')); print(ANSWER)")
    given = ("$(touch x)", "a b", ";", "*")
    await asked(replace(client, argv=(*client.argv, *given)))
    assert json.loads((tmp_path / "args").read_text()) == list(given)


async def test_a_program_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    """LA-25."""
    plain = tmp_path / "plain"
    plain.write_text("no program")
    plain.chmod(stat.S_IRUSR)
    second = timedelta(seconds=1)
    for client in (
        Command((str(tmp_path / "missing"),), second),
        Command((str(plain),), second),
        Command(("true", "\0"), second),
        Command(("true",), second, cwd=str(tmp_path / "missing")),
    ):
        with pytest.raises(SubprocessSpawn):
            await asked(client)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("print('junk')", SubprocessParseResponse),
        ("print(ANSWER, ANSWER)", SubprocessParseResponse),
        ("pass", SubprocessParseResponse),
        ("print('[]')", SubprocessParseResponse),
        ("sys.stdout.buffer.write(b'\\xff')", SubprocessParseResponse),
        ("print('{}')", SubprocessInvalidResponse),
        ("print(ANSWER.replace('delivered', 'flarbed'))", SubprocessInvalidResponse),
        ("print(ANSWER.replace('v0.3', 'v0.2'))", SubprocessInvalidResponse),
    ],
)
async def test_junk_is_no_answer(program: Write, code: str, error: type[Exception]) -> None:
    """LA-26."""
    with pytest.raises(error):
        await asked(program(f"sys.stdin.read(); {code}"))


async def test_a_valid_answer_of_a_program_that_fails_does_not_count(program: Write) -> None:
    """LA-26."""
    with pytest.raises(NonZeroExit, match=r"exit code 3: .*the end\Z") as caught:
        await asked(program("print(ANSWER); sys.stderr.write('x' * 100_000 + 'the end'); sys.exit(3)"))
    assert (caught.value.exit_code, caught.value.signal) == (3, None)
    assert len(caught.value.stderr_tail) == STDERR_BYTES_KEPT
    with pytest.raises(NonZeroExit, match="signal 9") as caught:
        await asked(program("print(ANSWER, flush=True); os.kill(os.getpid(), 9)"))
    assert (caught.value.exit_code, caught.value.signal) == (None, signal.SIGKILL)


async def test_what_a_program_may_write_is_bounded(program: Write) -> None:
    padding = STDOUT_BYTES_MAX - len(ANSWER)
    assert await asked(program(f"sys.stdout.write(ANSWER + ' ' * {padding})")) == response()
    with pytest.raises(OutputTooLarge) as caught:
        await asked(program(f"sys.stdout.write(ANSWER + ' ' * {padding + 1}); sys.stdout.flush(); time.sleep(60)"))
    assert caught.value.bytes_max == STDOUT_BYTES_MAX


async def test_a_program_that_hangs_is_killed_with_its_children(program: Write, tmp_path: Path) -> None:
    """It ignores SIGTERM, and so does its child."""
    pids = tmp_path / "pids"
    client = program(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "print(ANSWER, flush=True)\n"
        "time.sleep(600)"
    )
    with pytest.raises(SubprocessTimeout):
        await asked(replace(client, timeout=timedelta(seconds=2)))
    for pid in pids.read_text().split():
        await gone(int(pid))


async def test_the_deadline_of_the_call_counts_when_it_is_shorter(program: Write) -> None:
    with pytest.raises(SubprocessTimeout, match=r"within 0\.3 s"):
        await asked(program("time.sleep(600)"), seconds=0.3)


async def test_a_program_may_tidy_up_when_it_is_told_to_end(program: Write, tmp_path: Path) -> None:
    client = program(
        f"signal.signal(signal.SIGTERM, lambda *_: (open({str(tmp_path / 'tidy')!r}, 'w').close(), sys.exit(0)))\n"
        "time.sleep(600)"
    )
    with pytest.raises(SubprocessTimeout):
        await asked(client, seconds=2.0)
    assert (tmp_path / "tidy").exists()


async def test_a_call_that_is_cancelled_kills_the_program(program: Write, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    client = program(f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    asking = asyncio.ensure_future(asked(client))
    while not (pid.exists() and pid.read_text()):
        await SystemClock().sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await gone(int(pid.read_text()))


async def test_children_that_stay_behind_are_killed_after_a_normal_end(program: Write, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    client = program(
        f"child = subprocess.Popen(['sleep', '600'])\nopen({str(pid)!r}, 'w').write(str(child.pid))\nprint(ANSWER)"
    )
    assert await asked(client) == response()
    await gone(int(pid.read_text()))


async def test_output_that_a_grandchild_holds_open_is_abandoned(program: Write, tmp_path: Path) -> None:
    """It has left the process group, so nobody kills it but this test."""
    pid = tmp_path / "pid"
    client = program(
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))\n"
        "print(ANSWER)"
    )
    clock = SystemClock()
    try:
        assert await asked(client) == response()
        began = clock.monotonic()
        assert running(int(pid.read_text()))
        assert clock.monotonic() - began < 30
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


async def test_a_request_that_is_no_json_is_not_sent() -> None:
    client = Command(("true",), timedelta(seconds=1))
    with pytest.raises(SubprocessSerializeRequest):
        await asked(client, request(metadata={"half": "\ud800"}))
    with pytest.raises(SubprocessSerializeRequest, match="more than 16777216"):
        await asked(client, payloads=[replace(PAYLOAD, body="x" * 17_000_000)])


@pytest.mark.parametrize(("argv", "seconds"), [((), 1), (("",), 1), (("true",), 0)])
def test_a_command_that_cannot_work_is_refused(argv: tuple[str, ...], seconds: int) -> None:
    with pytest.raises(ConfigError):
        Command(argv, timedelta(seconds=seconds))


def test_a_failure_becomes_a_response_that_repeats_nothing_of_the_client() -> None:
    made = failed_response("lifeloop.v0.2", NonZeroExit(3, None, "the secret"))
    assert (made.schema_version, made.status) == ("lifeloop.v0.2", "failed")
    assert (made.failure_class, made.retry_class) == ("transport_error", "safe_retry")
    assert made.warnings == ({"code": "client_failed", "message": "the client's program ended with exit code 3"},)
    made = failed_response("lifeloop.v0.3", ZeroDivisionError("the secret"))
    assert (made.failure_class, made.retry_class) == ("internal_error", "retry_after_reread")
    assert "secret" not in str(made)
