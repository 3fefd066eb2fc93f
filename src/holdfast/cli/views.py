"""How executions, journals, timelines and reports look on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from holdfast.cli.render import (
    Cell,
    Column,
    age,
    complain,
    duration,
    facts,
    instant,
    json_text,
    line,
    payload,
    plain,
    print_json,
    size,
    status,
    table,
)

if TYPE_CHECKING:
    from holdfast import Execution

__all__ = [
    "known_status",
    "print_execution",
    "print_result",
    "show_differences",
    "show_execution",
    "show_list",
    "show_recovery",
    "show_timeline",
]

STATUSES = ("pending", "running", "waiting", "needs_decision", "completed", "failed", "aborted", "canceled")
_ENDED = ("completed", "failed", "aborted", "canceled")
_OUTCOME_STYLES = {"failed": "red", "no_value": "red", "assumed": "magenta"}
_CHANGE_STYLES = {"changed": "yellow", "left": "red", "right": "green"}


def known_status(name: str | None) -> Any:
    """Return a status that was asked for.

    Raises:
        ConfigError: There is no such status.
    """
    from holdfast.core.errors import ConfigError

    if name is not None and name not in STATUSES:
        raise ConfigError(f"there is no status {name!r}", f"they are {', '.join(STATUSES)}")
    return name


# --- executions ---------------------------------------------------------------------------------------


def show_list(page: Any) -> None:
    """Print a page of executions."""
    from holdfast.core.clock import SystemClock, to_datetime

    if not page.items:
        line("no executions", "dim")
        return
    now = to_datetime(SystemClock().now())
    table(
        [
            Column("id", keep=True),
            Column("kind"),
            Column("status"),
            Column("steps", right=True),
            Column("generation", right=True),
            Column("owner"),
            Column("age", right=True, keep=True),
            Column("took", right=True, keep=True),
        ],
        [
            (
                execution.id,
                execution.kind,
                _status(execution),
                str(execution.positions_count),
                str(execution.generation) if execution.generation > 1 else "",
                _owner(execution),
                age(now - execution.created_at),
                duration(execution.finished_at - execution.created_at) if execution.finished_at else "",
            )
            for execution in page.items
        ],
    )
    if page.next is not None:
        line("")
        line(f"more: --cursor {page.next}", "dim")


def _status(execution: Execution) -> Cell:
    if execution.status == "needs_decision":
        return status(execution.status, ", ".join(execution.open_decisions))
    if execution.status == "running" and execution.owner is not None and not execution.owner_alive:
        return f"{execution.status} (owner dead)", "yellow"
    return status(execution.status, execution.waiting_on or execution.reason or "")


def _owner(execution: Execution) -> Cell:
    if execution.owner is None:
        return ""
    return (execution.owner, "") if execution.owner_alive else (f"{execution.owner} (dead)", "dim")


def show_execution(execution: Execution, entries: Sequence[Any], *, reveal: bool) -> None:
    """Print one execution and its journal."""
    ended = execution.finished_at
    facts(
        [
            ("id", (execution.id, "bold")),
            ("kind", execution.kind),
            ("status", _status(execution)),
            ("reason", execution.reason or ""),
            ("request", execution.request or ""),
            ("owner", _owner(execution)),
            ("degraded", ("yes: some outcomes were recorded late", "yellow") if execution.degraded else ""),
            ("generation", _generation(execution)),
            ("code", execution.code_version or ""),
            ("steps", f"{execution.positions_count} in {execution.entries_count} entries"),
            ("recoveries", str(execution.recoveries_count) if execution.recoveries_count else ""),
            ("created", instant(execution.created_at)),
            ("deadline", instant(execution.deadline_at)),
            ("ended", f"{instant(ended)} after {duration(ended - execution.created_at)}" if ended else ""),
            ("uid", str(plain(execution.uid))),
        ]
    )
    line("")
    _show_journal(execution.created_at, entries, reveal=reveal)
    for position in execution.open_decisions:
        line("")
        line(f"decide: holdfast executions decide {execution.id} {position} --by NAME", "bold magenta")
        line("        with --happened JSON, --not-happened or --abort", "magenta")


def _generation(execution: Execution) -> str:
    return f"{execution.generation}" + (f", chapter {execution.chapter}" if execution.chapter else "")


def _show_journal(start: datetime, entries: Sequence[Any], *, reveal: bool) -> None:
    if not entries:
        line("the journal is empty", "dim")
        return
    several = len({entry.generation for entry in entries}) > 1
    origin = {entry.seq: f"generation {entry.generation}" for entry in entries}
    columns = [
        Column("generation", right=True),
        Column("position", keep=True),
        Column("what"),
        Column("effect"),
        Column("entry"),
        Column("try", right=True),
        Column("carried from"),
        Column("key", keep=True),
        Column("size", right=True, keep=True),
        Column("at", right=True, keep=True),
    ]
    rows: list[list[Cell]] = [
        [
            str(entry.generation) if several else "",
            entry.position,
            entry.name if entry.kind == "step" else f"{entry.kind} {entry.name}".strip(),
            entry.effect or "",
            _entry(entry),
            str(entry.attempt) if entry.attempt > 1 else "",
            origin.get(entry.carried_from, f"entry {entry.carried_from}") if entry.carried_from else "",
            (entry.key_prefix or "", "dim"),
            size(entry.payload_bytes) if entry.payload_bytes else "",
            f"+{duration(entry.at - start)}",
        ]
        for entry in entries
    ]
    table(columns, rows)
    if reveal:
        line("")
        table(
            [Column("generation", right=True), Column("position", keep=True), Column("what"), Column("value")],
            [[*row[:3], _value(entry)] for row, entry in zip(rows, entries, strict=True) if entry.payload_bytes],
        )


def _entry(entry: Any) -> Cell:
    outcome = entry.outcome or ""
    text = outcome or entry.part if entry.part == "outcome" else f"{entry.part} {outcome}".strip()
    return text + (", folded" if entry.folded else ""), _OUTCOME_STYLES.get(outcome, "")


def _value(entry: Any) -> str:
    return json_text(payload(entry.payload))


def print_execution(execution: Execution, entries: Sequence[Any], *, reveal: bool) -> None:
    """Print one execution and its journal as JSON; values are there only when they were asked for."""
    journal = []
    for entry in entries:
        shown = plain(entry)
        del shown["payload"]
        journal.append(shown | ({"payload": payload(entry.payload)} if reveal else {}))
    print_json(plain(execution) | {"journal": journal})


def print_result(execution: Execution, output: Any, *, ran: bool, as_json: bool) -> None:
    """Print what became of an execution that was resumed, and its output if it ran here."""
    if as_json:
        print_json(plain(execution) | ({"output": payload(output)} if ran else {}))
        return
    if not ran:
        line(f"{execution.id} is {execution.status}: whoever runs or recovers it next goes on")
        return
    print_json(payload(output))


# --- the rest -----------------------------------------------------------------------------------------


def show_timeline(events: Sequence[Any]) -> None:
    """Print the events of an execution."""
    if not events:
        line("nothing has happened yet", "dim")
        return
    start = events[0].at
    several = len({event.generation for event in events}) > 1
    line(f"from {instant(start)}", "dim")
    table(
        [
            Column("at", right=True, keep=True),
            Column("generation", right=True),
            Column("position", keep=True),
            Column("event"),
            Column("name"),
            Column("outcome"),
            Column("took", right=True, keep=True),
        ],
        [
            (
                f"+{duration(event.at - start)}",
                str(event.generation) if several else "",
                event.position or "",
                event.event,
                event.name or "",
                (event.outcome or "", _OUTCOME_STYLES.get(event.outcome, "")),
                duration(event.duration),
            )
            for event in events
        ],
    )


def show_differences(left: int, right: int, differences: Sequence[Any]) -> None:
    """Print how two generations differ, leaving out what is the same."""
    changed = [each for each in differences if each.change != "same"]
    same = len(differences) - len(changed)
    if left == right:
        line(f"there is one generation, with {same} position{'s' if same != 1 else ''}: nothing to compare")
        return
    line(f"generation {left} against {right}: {same} the same, {len(changed)} different")
    if changed:
        table(
            [
                Column("position", keep=True),
                Column("change"),
                Column(f"generation {left}"),
                Column(f"generation {right}"),
            ],
            [
                (
                    each.position,
                    (each.change, _CHANGE_STYLES.get(each.change, "")),
                    _shape(each.left),
                    _shape(each.right),
                )
                for each in changed
            ],
        )


def _shape(shape: Any) -> str:
    if shape is None:
        return ""
    if isinstance(shape, str):
        return shape
    return " ".join(str(part) for part in plain(shape).values() if part)


def show_recovery(report: Any, ended: Sequence[Execution]) -> None:
    """Print what was recovered, and how it went."""
    if ended:
        table(
            [Column("id", keep=True), Column("kind"), Column("status"), Column("steps", right=True)],
            [(each.id, each.kind, _status(each), str(each.positions_count)) for each in ended],
        )
    else:
        line("nothing to recover")
    if report.live_count:
        line(f"{report.live_count} left to their live owners", "dim")
    if report.unknown_kind:
        line(f"of a kind that the module does not register: {', '.join(report.unknown_kind)}", "yellow")
    for id in report.crash_loops:
        complain(f"{id} kept crashing and was aborted")
