"""What cannot be: a clear error each, and nothing lost."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.flow.agents import Agent
from tests.flow.tamper import change, is_postgres, look
from tests.stage import Stage

import holdfast
from holdfast.core.errors import HoldfastError


@pytest.fixture
def stage(ledger: str, tmp_path: Path) -> Stage:
    return Stage(ledger, tmp_path)


MONEY = holdfast.exactly_once("money", on_ambiguous=holdfast.fail())
ANY: Any = None


async def nothing() -> None:
    return None


@holdfast.step(effect=holdfast.at_least_once())
async def send(what: Any) -> Any:
    return what


@holdfast.durable(kind="bad.program")
async def program(value: Any = None) -> Any:
    return await send(value)


# --- declarations ---------------------------------------------------------------------------------------


async def keyword_only(*, id: str) -> None:
    return None


DECLARED: dict[str, Callable[[], object]] = {
    "kind in capitals": lambda: holdfast.durable(kind="Turn")(nothing),
    "kind empty": lambda: holdfast.durable(kind="")(nothing),
    "kind too long": lambda: holdfast.durable(kind="a" * 65)(nothing),
    "kind no text": lambda: holdfast.durable(kind=ANY)(nothing),
    "kind with a line": lambda: holdfast.durable(kind="turn\n")(nothing),
    "kind taken": lambda: holdfast.durable(kind="bad.program")(nothing),
    "parameter named like an option": lambda: holdfast.durable(kind="bad.keyword")(keyword_only),
    "durable no function": lambda: holdfast.durable(kind="bad.none")(ANY),
    "step no function": lambda: holdfast.step(effect=MONEY)(ANY),
    "effect no effect": lambda: holdfast.step(effect="money")(nothing),
    "effect missing": lambda: holdfast.step(effect=ANY)(nothing),
    "kind of effect": lambda: holdfast.exactly_once("cheap"),
    "policy no policy": lambda: holdfast.exactly_once("money", on_ambiguous="rerun"),
    "unknown_on no exceptions": lambda: holdfast.exactly_once("money", on_ambiguous=holdfast.fail(), unknown_on=(3,)),
    "raises no exceptions": lambda: holdfast.step(effect=MONEY, raises=("ValueError",))(nothing),
    "retry no retry": lambda: holdfast.step(effect=MONEY, retry=3)(nothing),
    "retry never": lambda: holdfast.Retry(max_attempts=0),
    "retry shrinking": lambda: holdfast.Retry(factor=0.5),
    "retry into the past": lambda: holdfast.Retry(initial=timedelta(seconds=-1)),
    "retry not a number": lambda: holdfast.Retry(factor=math.nan),
    "timeout negative": lambda: holdfast.step(effect=MONEY, timeout=timedelta(seconds=-1))(nothing),
    "timeout no duration": lambda: holdfast.step(effect=MONEY, timeout=3)(nothing),
    "name empty": lambda: holdfast.step(effect=MONEY, name="")(nothing),
    "name with control characters": lambda: holdfast.step(effect=MONEY, name="a\x00b")(nothing),
    "name no text": lambda: holdfast.step(effect=MONEY, name=3)(nothing),
    "name no Unicode": lambda: holdfast.step(effect=MONEY, name="\ud800")(nothing),
    "fingerprint word": lambda: holdfast.step(effect=MONEY, fingerprint="arg")(nothing),
    "fingerprint parameter": lambda: holdfast.step(effect=MONEY, fingerprint=("who",))(nothing),
    "fingerprint number": lambda: holdfast.step(effect=MONEY, fingerprint=3)(nothing),
    "probe no function": lambda: holdfast.reconcile(3),
    "substitute of another type": lambda: holdfast.StepDescriptor(
        "a", holdfast.exactly_once("money", on_ambiguous=holdfast.skip("x")), result_type=int
    ),
    "substitute that does not encode": lambda: holdfast.StepDescriptor(
        "a", holdfast.exactly_once("money", on_ambiguous=holdfast.skip(object()))
    ),
    "description without effect": lambda: holdfast.StepDescriptor("a", ANY),
    "description with text for bytes": lambda: holdfast.StepDescriptor("a", MONEY, fingerprint="text"),
    "result type that cannot be decoded to": lambda: holdfast.StepDescriptor("a", MONEY, result_type=3),
    "namespace too short": lambda: holdfast.open(":memory:", namespace=b"short"),
    "namespace no bytes": lambda: holdfast.open(":memory:", namespace="0" * 16),
    "setting out of range": lambda: holdfast.DurableConfig(poll_ms=0),
    "setting of another type": lambda: holdfast.DurableConfig(poll_ms="1000"),
    "setting that is a flag": lambda: holdfast.DurableConfig(poll_ms=True),
    "lease too short": lambda: holdfast.DurableConfig(lease_ms=1000, renew_ms=500),
    "branch without a name": lambda: holdfast.StepDescriptor("", MONEY),
}


@pytest.mark.parametrize("case", DECLARED)
def test_a_declaration_that_makes_no_sense_is_refused_at_once(case: str) -> None:
    """DX-2, DX-25, §16."""
    with pytest.raises((holdfast.ConfigError, holdfast.CodecError)) as raised:
        DECLARED[case]()
    assert raised.value.message
    assert raised.value.hint, "an error says what to do next"


TOO_MUCH: dict[str, tuple[Callable[[], object], str, int]] = {
    "name": (lambda: holdfast.step(effect=MONEY, name="n" * 129)(nothing), "name_bytes", 128),
    "attempts": (lambda: holdfast.Retry(max_attempts=1001), "retry_attempts", 1000),
    "fingerprint": (
        lambda: holdfast.StepDescriptor("a", MONEY, fingerprint=b"x" * (64 * 1024 + 1)), "fingerprint_bytes", 64 * 1024
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_is_over_a_fixed_limit_is_refused_and_named(case: str) -> None:
    """§16: LimitError naming it, never truncation."""
    call, limit, maximum = TOO_MUCH[case]
    with pytest.raises(holdfast.LimitError) as raised:
        call()
    assert (raised.value.limit, raised.value.maximum) == (limit, maximum)
    assert raised.value.actual > maximum


# --- calls ----------------------------------------------------------------------------------------------

Call = Callable[[holdfast.Holdfast], Awaitable[Any]]

CALLED: dict[str, Call] = {
    "a plain function": lambda hf: hf.run(nothing),
    "nothing": lambda hf: hf.run(ANY),
    "a coroutine": lambda hf: closed(hf),
    "arguments beside a bound call": lambda hf: hf.run(program.bind(1), 2),
    "an empty id": lambda hf: hf.run(program, id=""),
    "an id with control characters": lambda hf: hf.run(program, id="a\nb"),
    "an id with a delete": lambda hf: hf.run(program, id="a\x7f"),
    "an id that is no text": lambda hf: hf.run(program, id=3),
    "an id of bytes": lambda hf: hf.run(program, id=b"e"),
    "an id that is no Unicode": lambda hf: hf.run(program, id="\ud800"),
    "an id too long": lambda hf: hf.run(program, id="é" * 128),
    "an unknown on_divergence": lambda hf: hf.run(program, id="e", on_divergence="rasie"),
    "an unknown on_busy": lambda hf: hf.run(program, id="e", on_busy="now"),
    "a deadline that is no duration": lambda hf: hf.run(program, id="e", deadline=3),
    "a deadline that is an instant": lambda hf: hf.run(program, id="e", deadline=datetime.now(UTC)),
    "a block of a bad kind": lambda hf: block(hf, "e", kind="Turn"),
    "a block of an empty id": lambda hf: block(hf, "", kind="turn"),
    "a block with an unknown on_divergence": lambda hf: block(hf, "e", kind="turn", on_divergence="x"),
    "a decision at no position": lambda hf: hf.decide("e", "first", holdfast.abort(), by="ann"),
    "a decision at a negative position": lambda hf: hf.decide("e", "-1", holdfast.abort(), by="ann"),
    "a decision of nobody": lambda hf: hf.decide("e", "0", holdfast.abort(), by=""),
    "a decision that decides nothing": lambda hf: hf.decide("e", "0", holdfast.unknown(), by="ann"),
    "a decision that is no verdict": lambda hf: hf.decide("e", "0", "abort", by="ann"),
    "a note too long": lambda hf: hf.decide("e", "0", holdfast.abort(), by="ann", note="x" * 2001),
    "a reason too long": lambda hf: hf.cancel("e", reason="x" * 2001),
    "a page of nothing": lambda hf: hf.list(limit=0),
    "a page too long": lambda hf: hf.list(limit=501),
    "a page that is no number": lambda hf: hf.list(limit="10"),
    "a cursor of another list": lambda hf: hf.list(cursor="abc"),
    "a cursor that is no text": lambda hf: hf.list(cursor=3),
}


async def closed(hf: holdfast.Holdfast) -> None:
    coroutine = nothing()
    try:
        await hf.run(coroutine)
    finally:
        coroutine.close()


async def block(hf: holdfast.Holdfast, id: str, **options: Any) -> None:
    async with hf.execution(id, **options):
        raise AssertionError("it opened")


@pytest.mark.parametrize("case", CALLED)
async def test_a_call_that_makes_no_sense_is_refused_before_anything_is_written(tmp_path: Path, case: str) -> None:
    """DX-1, DX-3, §22."""
    async with Stage(str(tmp_path / "ledger.db"), tmp_path).open() as hf:
        with pytest.raises((holdfast.ConfigError, holdfast.LimitError, holdfast.CodecError)) as raised:
            await CALLED[case](hf)
        assert raised.value.message
        assert (await hf.list()).items == []
        assert await hf.audit() == []


async def test_arguments_that_do_not_fit_the_function_are_a_type_error(stage: Stage) -> None:
    @holdfast.durable(kind="bad.signature")
    async def fn(number: int, *, flag: bool = False) -> int:
        return number

    async with stage.open() as hf:
        for call in (fn.bind, lambda *a, **k: hf.run(fn, *a, **k)):
            for args, kwargs in (((), {}), ((1, 2), {}), ((1,), {"other": 3})):
                with pytest.raises(TypeError):
                    await call(*args, **kwargs)
        assert (await hf.list()).items == []


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def loop() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


UNENCODABLE: dict[str, Any] = {
    "object": object(), "function": nothing, "lone surrogate": "\ud800", "65 bits": 1 << 64, "negative": -(1 << 63) - 1,
    "nested object": {"a": [object()]}, "deep": deep(100_000), "itself": loop(), "generator": (x for x in ()),
    "complex": 1j, "odd key": {object(): 1}, "surrogate key": {"\udfff": 1}, "type": int,
}  # fmt: skip


@pytest.mark.parametrize("case", UNENCODABLE)
async def test_what_cannot_be_encoded_is_refused_wherever_it_is_given(stage: Stage, case: str) -> None:
    """DX-23, DX-35: inputs, arguments, results, outputs, decisions."""
    value = UNENCODABLE[case]

    @holdfast.step(effect=holdfast.at_least_once())
    async def give() -> Any:
        return value

    @holdfast.step(effect=MONEY)
    async def doubt() -> Any:
        raise holdfast.OutcomeUnknown

    @holdfast.durable(kind="bad.unencodable")
    async def fn(where: str) -> Any:
        match where:
            case "argument":
                with pytest.raises(holdfast.FingerprintError) as refused:
                    send(value)
                assert (refused.value.step, refused.value.argument) == ("send", "what")
                assert refused.value.hint
            case "result":
                with pytest.raises(holdfast.ResultUnserializable):
                    await give()
            case "output":
                return value
            case "decision":
                await doubt()
        return "fine"

    async with stage.open() as hf:
        with pytest.raises(holdfast.CodecError) as raised:
            await hf.run(program, value, id="input")
        assert raised.value.argument == "value"
        assert await hf.get("input") is None
        assert await hf.run(fn, "argument", id="argument") == "fine"
        assert await hf.history("argument") == []
        assert await hf.run(fn, "result", id="result") == "fine"
        with pytest.raises(holdfast.ExecutionFailed) as failed:
            await hf.run(fn, "output", id="output")
        assert isinstance(failed.value.__cause__, holdfast.CodecError)
        with pytest.raises(holdfast.NeedsDecision):
            await hf.run(fn, "decision", id="decision")
        with pytest.raises(holdfast.CodecError):
            await hf.decide("decision", "0", holdfast.happened(value), by="ann")
        found = await hf.get("decision")
        assert found is not None
        assert (found.status, found.open_decisions) == ("needs_decision", ("0",))
        assert (await hf.verify()).ok


async def test_values_at_the_edge_of_what_encodes_come_back_equal(stage: Stage) -> None:
    """DX-35."""
    values: list[Any] = [
        None, True, 0, -(1 << 63), (1 << 64) - 1, 1.5, math.inf, -0.0, "", "é\x00\U0001f600", b"\x00\xff", [], {},
        {"a": {"b": [1, None]}}, datetime(2026, 1, 1, tzinfo=UTC), [[1, 2], []],
    ]  # fmt: skip
    async with stage.open() as hf:
        for number, value in enumerate(values):
            first = await hf.run(program, value, id=str(number))
            assert await hf.run(program, value, id=str(number)) == first
            assert repr(first) == repr(value) or isinstance(value, datetime)
        assert math.isnan(await hf.run(program, math.nan, id="nan"))


async def test_unknown_ids_are_said_to_be_unknown(stage: Stage) -> None:
    """§18."""
    async with stage.open() as hf:
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: hf.history("no"), lambda: hf.timeline("no"), lambda: hf.diff("no", 1, 2), lambda: hf.verify("no"),
            lambda: hf.resume("no"), lambda: hf.decide("no", "0", holdfast.abort(), by="ann"),
            hf.handle("no").info, hf.handle("no").result,
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(holdfast.UnknownExecution) as raised:
                await call()
            assert "'no'" in raised.value.message
        assert await hf.get("no") is None
        assert await hf.cancel("no") == await hf.pause("no") == holdfast.NotFound()
        assert await hf.audit("no") == []


async def test_a_result_is_awaited_no_longer_than_asked(stage: Stage) -> None:
    """§22: `Handle.result(timeout)`."""

    @holdfast.durable(kind="bad.endless")
    async def endless() -> None:
        await asyncio.Event().wait()

    async with stage.open(drain_ms=100) as hf:
        handle = await hf.start(endless, id="e")
        with pytest.raises(TimeoutError):
            await handle.result(timeout=timedelta(milliseconds=50))
        found = await hf.get("e")
        assert found is not None
        assert found.status == "running"


# --- ledgers --------------------------------------------------------------------------------------------


async def attempt(target: Any, folder: Path) -> HoldfastError:
    """Try to open a ledger that cannot be one."""
    with pytest.raises(HoldfastError) as raised:
        await holdfast.open(target, durable=holdfast.DurableConfig(owner_dir=folder / "owners")).open()
    assert raised.value.message
    assert raised.value.hint
    return raised.value


async def test_what_is_no_ledger_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    before = {tmp_path / "garbage.db": os.urandom(8192), tmp_path / "text.db": b"not a database " * 1000}
    for path, content in before.items():
        path.write_bytes(content)
    for path in (*before, tmp_path):
        assert (await attempt(path, tmp_path)).code.startswith(("store.", "config."))
    assert files(tmp_path) == before


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "target", ["postgresql://", "postgresql://nobody@127.0.0.1:1/none", "mysql://localhost/x", "", "\x00"]
)
async def test_a_target_that_makes_no_sense_is_refused(tmp_path: Path, target: str) -> None:
    error = await attempt(target, tmp_path)
    assert error.code.startswith(("store.", "config."))


async def test_a_ledger_of_a_newer_version_is_refused_and_left_as_it_is(stage: Stage) -> None:
    """DX: `SchemaMismatch`."""
    await stage.run(program, 1, id="e")
    newer = r"'\x393939'" if is_postgres(stage.target) else "x'393939'"
    await change(stage.target, f"UPDATE holdfast_ledger SET value = {newer} WHERE name = 'schema'")  # noqa: S608 - ours
    with pytest.raises(holdfast.SchemaMismatch) as raised:
        await stage.open().open()
    assert raised.value.hint
    ((count,),) = await look(stage.target, "SELECT count(*) FROM durable_executions")
    assert count == 1


def spoil(path: Path, *, torn: bool) -> None:
    """Cut a file in half, or overwrite every third of its pages."""
    content = bytearray(path.read_bytes())
    if torn:
        del content[len(content) // 2 :]
    else:
        for start in range(8192, len(content) - 4096, 3 * 4096):
            content[start : start + 4096] = os.urandom(4096)
    for leftover in path.parent.glob(f"{path.name}-*"):
        leftover.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["torn", "page"])
async def test_a_corrupt_file_gives_an_error_and_never_a_wrong_value(tmp_path: Path, damage: str) -> None:
    stage = Stage(str(tmp_path / "ledger.db"), tmp_path)

    @holdfast.step(effect=holdfast.at_least_once())
    async def make(number: int) -> str:
        return f"{number} " + "v" * 2000

    @holdfast.durable(kind="bad.corrupt")
    async def fn() -> int:
        return len([await make(number) for number in range(50)])

    await stage.run(fn, id="e")
    spoil(Path(stage.target), torn=damage == "torn")
    with pytest.raises(HoldfastError) as raised:  # noqa: PT012 - opening or reading, whichever meets it first
        async with stage.open() as hf:
            await hf.history("e")
            await hf.verify()
            await hf.run(fn, id="e")
    assert raised.value.code.startswith(("store.", "durable.", "codec."))


async def test_a_copy_of_a_ledger_can_be_used_beside_it(tmp_path: Path) -> None:
    """A backup taken of a closed ledger is one."""
    stage = Stage(str(tmp_path / "ledger.db"), tmp_path)
    assert await stage.run(program, 1, id="e") == 1
    shutil.copy(stage.target, tmp_path / "copy.db")
    copied = Stage(str(tmp_path / "copy.db"), tmp_path)
    async with copied.open() as hf:
        assert await hf.run(program, 1, id="e") == 1
        assert (await hf.verify()).ok


@pytest.fixture
def closed_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that others than its owner may reach, and nobody may enter."""
    folder = tmp_path / "closed"
    folder.mkdir()
    for each in (tmp_path, *list(tmp_path.parents)[:3]):
        each.chmod(each.stat().st_mode | 0o055)
    folder.chmod(0o000)
    yield folder
    folder.chmod(0o755)


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path, closed_folder: Path) -> None:
    closed_folder.chmod(0o555)
    with Agent("unprivileged", Stage(str(closed_folder / "ledger.db"), tmp_path), poll_ms=1000) as process:
        (said,) = process.finish()
    code, hinted = said.split()
    assert code.startswith("store.")
    assert hinted == "True"
    assert list(closed_folder.iterdir()) == []


def test_a_configuration_that_cannot_be_reached_is_a_clear_error(
    tmp_path: Path, closed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(closed_folder / "config"))
    with Agent("unprivileged", Stage(str(tmp_path / "ledger.db"), tmp_path)) as process:
        (said,) = process.finish()
    assert said == "config.unreadable True"


def test_a_full_disk_stops_what_needs_the_record_and_loses_nothing(tmp_path: Path) -> None:
    """DX-48."""
    stage = Stage(str(tmp_path / "ledger.db"), tmp_path)
    with Agent("fill", stage, ack_timeout_ms=400) as process:
        assert process.finish() == ["durable.journal_unavailable", "19", "True"]
    assert stage.outside.lines() == [
        *(f"note {number}" for number in range(16)), "pay", *(f"note {number}" for number in range(16, 20)),
    ]  # fmt: skip
