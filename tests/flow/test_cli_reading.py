"""The commands that look: what they show, what they keep to themselves, and that they leave the ledger as it is."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.flow.commandline import SHOP, Answer, ask, command, start, tell
from tests.flow.shop import SECRET
from tests.flow.tamper import change, is_postgres

import holdfast

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
READING = (
    ("executions", "list"),
    ("executions", "list", "--orphaned"),
    ("executions", "show", "bought"),
    ("executions", "show", "doubted"),
    ("executions", "timeline", "doubted"),
    ("executions", "diff", "shifted"),
    ("verify",),
    ("verify", "bought"),
    ("db", "status"),
)


@pytest.fixture
def told(ledger: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A ledger with an execution of each sort: completed, failed, in doubt, and one of two generations."""
    assert ask("--db", ledger, "run", f"{SHOP}:buy", '["milk"]', "--id", "bought").code == 0
    assert ask("--db", ledger, "run", f"{SHOP}:fail", "--id", "failed").code == 1
    assert ask("--db", ledger, "run", f"{SHOP}:buy", '["bread", 3]', "--id", "doubted").code == 1
    assert ask("--db", ledger, "run", f"{SHOP}:shift", "--id", "shifted").code == 1
    monkeypatch.setenv("SHOP_VERSION", "2")
    assert ask("--db", ledger, "executions", "resume", "shifted", "--app", SHOP).code == 0
    return ledger


def names(record: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(record)]


# --- list ---------------------------------------------------------------------------------------------


def test_list_is_newest_first_with_the_names_of_the_reference(told: str) -> None:
    page = tell("executions", "list", "--db", told)
    assert list(page) == ["items", "next"]
    assert page["next"] is None
    assert [item["id"] for item in page["items"]] == ["shifted", "doubted", "failed", "bought"]
    for item in page["items"]:
        assert list(item) == names(holdfast.Execution)
        assert INSTANT.fullmatch(item["created_at"])
        assert item["finished_at"] is None or INSTANT.fullmatch(item["finished_at"])
    doubted = page["items"][1]
    assert (doubted["status"], doubted["open_decisions"], doubted["positions_count"]) == ("needs_decision", ["1"], 2)


def test_list_filters(told: str) -> None:
    def ids(*options: str) -> list[str]:
        return [item["id"] for item in tell("executions", "list", *options, "--db", told)["items"]]

    assert ids("--status", "completed") == ["shifted", "bought"]
    assert ids("--kind", "shop.buy") == ["doubted", "bought"]
    assert ids("--kind", "shop.buy", "--status", "needs_decision") == ["doubted"]
    assert ids("--kind", "no.such") == []


def test_list_turns_pages(told: str) -> None:
    seen, cursor = [], None
    while True:
        page = tell("executions", "list", "--limit", 1, *(["--cursor", cursor] if cursor else []), "--db", told)
        seen += [item["id"] for item in page["items"]]
        if (cursor := page["next"]) is None:
            break
    assert seen == ["shifted", "doubted", "failed", "bought"]
    assert "more: --cursor" in ask("executions", "list", "--limit", 1, "--db", told).out


@pytest.mark.parametrize(
    "options",
    [
        ("--status", "done"),
        ("--limit", "0"),
        ("--limit", "-1"),
        ("--limit", "501"),
        ("--limit", "many"),
        ("--cursor", "AAAA"),
        ("--cursor", ""),
        ("--cursor", "x" * 10_000),
        ("--app", "no_such_module_at_all"),
        ("--no-such-option",),
    ],
)
def test_list_refuses_what_makes_no_sense(tmp_path: Path, options: tuple[str, ...]) -> None:
    db = tmp_path / "ledger.db"
    assert ask("db", "migrate", "--db", db).code == 0
    answer = ask("executions", "list", *options, "--db", db)
    assert answer.code == 2, answer
    assert answer.err.startswith("error: ")
    assert answer.out == ""


def test_orphans_are_those_whose_kind_nobody_registers(ledger: str) -> None:
    """A kind is known in the process that imports its module; the command imports none unless told to."""
    assert ask("--db", ledger, "run", f"{SHOP}:fail", "--id", "a").code == 1
    assert ask("--db", ledger, "executions", "resume", "a").code == 0
    alone = command("executions", "list", "--orphaned", "--json", "--db", ledger)
    assert [item["id"] for item in alone.json["items"]] == ["a"]
    informed = command("executions", "list", "--orphaned", "--app", SHOP, "--json", "--db", ledger)
    assert informed.json["items"] == []


def test_an_empty_ledger_is_no_error(ledger: str) -> None:
    assert ask("db", "migrate", "--db", ledger).code == 0
    assert ask("executions", "list", "--db", ledger) == Answer(0, "no executions\n", "")
    assert tell("executions", "list", "--db", ledger) == {"items": [], "next": None}


# --- show ---------------------------------------------------------------------------------------------


def test_show_gives_the_execution_and_its_journal(told: str) -> None:
    shown = tell("executions", "show", "bought", "--db", told)
    assert list(shown) == [*names(holdfast.Execution), "journal"]
    assert [(entry["position"], entry["part"], entry["outcome"]) for entry in shown["journal"]] == [
        ("0", "outcome", "value"),
        ("1", "opened", None),
        ("1", "outcome", "value"),
    ]
    for entry in shown["journal"]:
        assert list(entry) == [name for name in names(holdfast.Entry) if name != "payload"]
        assert re.fullmatch(r"[0-9a-f]{16}", entry["key_prefix"])
        assert INSTANT.fullmatch(entry["at"])


def test_show_can_be_limited_to_a_generation(told: str) -> None:
    journal = tell("executions", "show", "shifted", "--db", told)["journal"]
    assert {entry["generation"] for entry in journal} == {1, 2}
    first = tell("executions", "show", "shifted", "--generation", 1, "--db", told)["journal"]
    assert [(entry["generation"], entry["name"]) for entry in first] == [(1, "look_up")]
    for wrong in ("0", "3", "-1"):
        assert ask("executions", "show", "shifted", "--generation", wrong, "--db", told).code == 1
    assert ask("executions", "show", "shifted", "--generation", "two", "--db", told).code == 2


def test_show_names_what_is_open_and_how_to_decide_it(told: str) -> None:
    assert "holdfast executions decide doubted 1 --by NAME" in ask("executions", "show", "doubted", "--db", told).out


def test_no_payload_is_ever_shown(told: str) -> None:
    for reading in READING:
        for option in ((), ("--json",)):
            answer = ask(*reading, *option, "--db", told)
            assert answer.code == 0
            assert SECRET not in answer.out + answer.err
            assert 'payload"' not in answer.out


def test_reveal_warns_first_and_is_audited(told: str) -> None:
    for option in ((), ("--json",)):
        answer = ask("executions", "show", "bought", "--reveal", *option, "--db", told)
        assert answer.code == 0
        assert answer.err.startswith("warning: recorded values follow")
        assert f"milk {SECRET}" in answer.out
        assert SECRET not in answer.err
    events = [event["event"] for event in tell("executions", "timeline", "bought", "--db", told)]
    assert events.count("reveal") == 2


def test_reveal_warns_before_it_prints(told: str) -> None:
    """In one stream, as on a terminal, the warning stands above the values."""
    with start("executions", "show", "bought", "--reveal", "--db", told) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert process.stderr.readline().startswith("warning: ")
        assert SECRET in process.stdout.read()


# --- timeline, diff -----------------------------------------------------------------------------------


def test_the_timeline_tells_what_happened_in_order(told: str) -> None:
    events = tell("executions", "timeline", "bought", "--db", told)
    assert all(list(event) == names(holdfast.Event) for event in events)
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    assert events[0]["outcome"] == "running"
    assert events[-1]["outcome"] == "completed"
    assert any(event["name"] == "charge" for event in events)
    assert all(event["duration"] is None or re.fullmatch(r"PT\d+\.\d{6}S", event["duration"]) for event in events)


def test_the_timeline_covers_all_generations(told: str) -> None:
    assert {event["generation"] for event in tell("executions", "timeline", "shifted", "--db", told)} == {1, 2}


def test_diff_shows_what_changed_between_generations(told: str) -> None:
    differences = tell("executions", "diff", "shifted", "--db", told)
    assert [list(difference) for difference in differences] == [names(holdfast.Difference)]
    (difference,) = differences
    assert (difference["position"], difference["change"]) == ("0", "changed")
    assert list(difference["left"]) == ["kind", "name", "effect", "shape"]
    assert (difference["left"]["name"], difference["right"]["name"]) == ("look_up", "changed")
    assert re.fullmatch(r"[0-9a-f]{16}", difference["left"]["shape"])
    backwards = tell("executions", "diff", "shifted", "--from", 2, "--to", 1, "--db", told)
    assert backwards[0]["left"]["name"] == "changed"
    same = tell("executions", "diff", "shifted", "--from", 1, "--to", 1, "--db", told)
    assert [each["change"] for each in same] == ["same"]
    assert "look_up" in ask("executions", "diff", "shifted", "--db", told).out
    assert ask("executions", "diff", "bought", "--db", told).code == 0
    assert ask("executions", "diff", "shifted", "--to", "3", "--db", told).code == 1


# --- verify, db ---------------------------------------------------------------------------------------


def test_verify_has_nothing_to_say_about_a_sound_ledger(told: str) -> None:
    assert tell("verify", "--db", told) == {"ok": True, "checked_count": 4, "problems": []}
    assert tell("verify", "bought", "--db", told) == {"ok": True, "checked_count": 1, "problems": []}
    assert ask("verify", "--db", told).out == "4 executions checked, no problem found\n"


def test_verify_names_each_problem_and_says_no(tmp_path: Path) -> None:
    db = tmp_path / "ledger.db"
    assert ask("run", f"{SHOP}:buy", '["milk"]', "--id", "a", "--db", db).code == 0
    with sqlite3.connect(db) as connection:
        connection.execute("DELETE FROM durable_journal WHERE part = 0")
    connection.close()
    for named in ((), ("a",)):
        answer = ask("verify", *named, "--db", db)
        assert answer.code == 1
        assert re.match(r"a: durable_journal \d+: intent: ", answer.out)
        report = ask("verify", *named, "--json", "--db", db)
        assert report.code == 1
        assert list(report.json) == ["ok", "checked_count", "problems"]
        assert [list(problem) for problem in report.json["problems"]] == [names(holdfast.Problem)]
        assert report.json["ok"] is False


def test_db_status_counts(told: str) -> None:
    state = tell("db", "status", "--db", told)
    assert state["schema"] == state["newest"] > 0
    assert state["pending"] == []
    assert state["dialect"] == ("postgres" if "://" in told else "sqlite")
    assert state["executions"] == {"completed": 2, "failed": 1, "needs_decision": 1}
    assert state["executions_count"] == 4
    assert state["bytes_count"] > 0
    assert tell("db", "migrate", "--db", told) == state


def test_db_migrate_makes_a_ledger_once(tmp_path: Path) -> None:
    db = tmp_path / "new.db"
    assert ask("db", "status", "--db", db).code == 3
    made = tell("db", "migrate", "--db", db)
    assert made["executions_count"] == 0
    assert tell("db", "migrate", "--db", db) == tell("db", "status", "--db", db) == made


def set_schema(ledger: str, number: int) -> None:
    """Make a ledger say that it has another schema."""
    value = str(number).encode().hex()
    literal = rf"'\x{value}'" if is_postgres(ledger) else f"x'{value}'"
    asyncio.run(change(ledger, f"UPDATE holdfast_ledger SET value = {literal} WHERE name = 'schema'"))  # noqa: S608 - ours


def test_db_status_tells_the_schema_of_a_ledger_it_cannot_read(ledger: str) -> None:
    newest = tell("db", "migrate", "--db", ledger)["newest"]
    set_schema(ledger, newest - 1)
    state = tell("db", "status", "--db", ledger)
    assert (state["schema"], state["newest"], len(state["pending"])) == (newest - 1, newest, 1)
    assert state["pending"][0].startswith(f"{newest:04}_")
    assert state["executions"] is state["executions_count"] is state["bytes_count"] is None
    shown = ask("db", "status", "--db", ledger)
    assert shown.code == 0
    assert re.search(rf"schema +{newest - 1} of {newest}\npending +{newest:04}_\w+\nexecutions +not known\n", shown.out)
    set_schema(ledger, newest + 1)
    shown = ask("db", "status", "--db", ledger)
    assert (shown.code, shown.err[:7]) == (3, "error: ")
    assert re.search(rf"schema +{newest + 1} of {newest}\npending +none\n", shown.out)


# --- what is not there, what is none ------------------------------------------------------------------

ON_ONE = (
    ("executions", "show", "ID"),
    ("executions", "show", "ID", "--reveal"),
    ("executions", "timeline", "ID"),
    ("executions", "diff", "ID"),
    ("executions", "decide", "ID", "0", "--abort", "--by", "me"),
    ("executions", "cancel", "ID"),
    ("executions", "pause", "ID"),
    ("executions", "resume", "ID"),
    ("executions", "resume", "ID", "--app", SHOP),
    ("verify", "ID"),
)


@pytest.mark.parametrize("id", ["nobody", "ünknown", "x" * 1000, " ", "%", "'; --", ""])
def test_an_unknown_id_is_no(ledger: str, id: str) -> None:
    assert ask("db", "migrate", "--db", ledger).code == 0
    for arguments in ON_ONE:
        answer = ask(*(id if each == "ID" else each for each in arguments), "--db", ledger)
        assert answer.code == 1, answer
        assert answer.err.startswith("error: ")
        assert answer.out == ""


@pytest.mark.parametrize(
    "arguments",
    [("executions", "list"), *ON_ONE, ("executions", "recover", "--app", SHOP), ("verify",), ("db", "status")],
    ids=" ".join,
)
def test_a_missing_ledger_is_unreadable_and_stays_missing(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    for missing in (tmp_path / "none.db", tmp_path / "no" / "folder.db"):
        answer = ask(*arguments, "--db", missing)
        assert answer.code == 3, answer
        assert answer.err.startswith("error: ")
        assert "\nhint: " in answer.err
        assert list(tmp_path.iterdir()) == []


def not_ledgers(folder: Path) -> Iterator[Path]:
    (folder / "text.db").write_text("this is no database " * 1000)
    yield folder / "text.db"
    (folder / "empty.db").write_bytes(b"")
    yield folder / "empty.db"
    (folder / "folder.db").mkdir()
    yield folder / "folder.db"
    with sqlite3.connect(folder / "other.db") as connection:
        connection.execute("CREATE TABLE things (name TEXT)")
    connection.close()
    yield folder / "other.db"
    assert ask("run", f"{SHOP}:plain", '["a"]', "--id", "a", "--db", folder / "newer.db").code == 0
    with sqlite3.connect(folder / "newer.db") as connection:
        connection.execute("UPDATE holdfast_ledger SET value = x'393939' WHERE name = 'schema'")
    connection.close()
    yield folder / "newer.db"
    assert ask("run", f"{SHOP}:plain", '["a"]', "--id", "a", "--db", folder / "torn.db").code == 0
    data = bytearray((folder / "torn.db").read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    (folder / "torn.db").write_bytes(data)
    yield folder / "torn.db"


def test_what_is_no_ledger_is_unreadable_and_stays_as_it_is(tmp_path: Path) -> None:
    for path in not_ledgers(tmp_path):
        before = fingerprint(tmp_path)
        for arguments in (
            ("executions", "list"),
            ("executions", "show", "a"),
            ("executions", "cancel", "a"),
            ("executions", "recover", "--app", SHOP),
            ("verify",),
            ("db", "status"),
        ):
            answer = ask(*arguments, "--db", path)
            assert answer.code == 3, (path, arguments, answer)
            assert answer.err.startswith("error: ")
            assert fingerprint(tmp_path) == before, (path, arguments)


def test_a_database_that_cannot_be_reached_is_unreadable_and_no_password_is_told() -> None:
    answer = ask("executions", "list", "--db", "postgresql://shop:open-sesame@127.0.0.1:1/shop")
    assert answer.code == 3, answer
    assert "open-sesame" not in answer.err


@pytest.mark.parametrize("url", ["mysql://there", "postgresql://[", "file://x"])
def test_a_url_that_makes_no_sense_is_a_usage_error(url: str) -> None:
    assert ask("executions", "list", "--db", url).code == 2


# --- nothing changes ----------------------------------------------------------------------------------


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file and folder with what is in it; the index of the log, which readers mark, by its presence."""
    return {
        str(path.relative_to(folder)): ""
        if path.is_dir() or path.name.endswith("-shm")
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def rows(url: str) -> dict[str, str]:
    """Every row of every table of the ledger's schema, with its place and the transaction that wrote it."""
    import asyncpg

    async def ask_server() -> dict[str, str]:
        connection = await asyncpg.connect(url)
        try:
            found = {}
            tables = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
            for (name,) in await connection.fetch(tables):
                text = f"SELECT string_agg(concat(ctid, xmin, t), ' ' ORDER BY ctid) FROM {name} t"  # noqa: S608 - its own
                found[name] = await connection.fetchval(text)
            return found
        finally:
            await connection.close()

    found = asyncio.run(ask_server())
    assert "durable_journal" in found
    return found


def state_of(ledger: str) -> object:
    return rows(ledger) if "://" in ledger else fingerprint(Path(ledger).parent)


def test_looking_changes_no_byte(told: str) -> None:
    before = state_of(told)
    for reading in READING:
        for option in ((), ("--json",)):
            assert ask(*reading, *option, "--db", told).code == 0
    assert state_of(told) == before


def test_looking_changes_no_byte_while_a_process_works(told: str) -> None:
    patient = {"HOLDFAST_DURABLE_LEASE_MS": "600000", "HOLDFAST_DURABLE_RENEW_MS": "200000"}
    with start("run", f"{SHOP}:listen", "--id", "busy", "--db", told, **patient) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "listening\n"
        before = state_of(told)
        for reading in READING:
            assert ask(*reading, "--db", told).code == 0
        busy = tell("executions", "show", "busy", "--db", told)
        assert state_of(told) == before
        assert (busy["status"], busy["owner_alive"]) == ("running", True)
        assert busy["owner"].endswith(f":{process.pid}")
        out, _ = process.communicate("heard\n", timeout=60)
        assert (process.returncode, out) == (0, '"heard"\n')
