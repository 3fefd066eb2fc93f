"""The demo's last word: what was to happen, what did, and whether that is once each and nothing lost.

Every figure is counted in a book that outlived the processes: those of the two services, the marks the
agents left, and Holdfast's ledger.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal

from rich.table import Table

import holdfast
from holdfast.cli.demo.agent import TurnReport, turn
from holdfast.cli.demo.book import Follower, Outbox
from holdfast.cli.demo.capture import Captured, cost_usd
from holdfast.cli.demo.hooks import Announced, receipts_expected
from holdfast.cli.demo.orders import MODEL_CALLS_PER_TURN, Order

__all__ = ["Books", "Figures", "executions", "take_stock"]

_PAGE_ROWS = 500
_FOR_THE_TABLE = ("doubts", "tokens_paid")


@dataclass(frozen=True, slots=True)
class Books:
    """What the processes leave behind outside Holdfast's ledger."""

    model: Follower
    decisions: Follower
    tally: Follower
    payments: Outbox

    async def follow(self) -> None:
        """Read on in all of them."""
        for book in (self.model, self.decisions, self.tally):
            book.follow()
        await self.payments.follow()

    @property
    def paid(self) -> int:
        """How many model calls were paid."""
        return len(self.model.of("paid"))

    @property
    def applied(self) -> int:
        """How many payments were applied."""
        return len(self.payments.receipts)

    def decided(self, *kinds: str) -> int:
        """How many requests the payment service's middleware decided so."""
        return sum(len(self.decisions.of(kind)) for kind in kinds)


@dataclass(frozen=True, slots=True)
class Seen:
    """What Holdfast's other slices have seen of the demo: its hooks, and its model calls."""

    told: Announced
    captured: Captured


@dataclass(frozen=True, slots=True)
class Figures:
    """The result of a demo, with the names its JSON uses.

    Attributes:
        cost_usd: What the captured calls cost, exactly, as the read API tells it.
        timelines: Turns whose model calls, tools, steps, effects and receipts are on one timeline.
        tokens_paid: What the model server says it has read and written; for the table alone.
        doubts: How often an effect was in doubt, by the policy that resolved it; for the table alone.
    """

    turns_expected: int
    turns_completed: int
    kills: int
    model_calls_paid: int
    model_calls_expected: int
    payments_expected: int
    payments_applied: int
    payments_doubled: int
    steps_run: int
    steps_replayed: int
    decisions: int
    lost: int
    verify_ok: bool
    http_replays: int
    http_conflicts: int
    http_in_flight: int
    receipts: int
    receipts_verified: int
    sequence_gaps: int
    turns_captured: int
    turns_expected_captured: int
    input_tokens: int
    output_tokens: int
    cost_usd: str
    timelines: int
    seconds: float
    tokens_paid: tuple[int, int]
    doubts: dict[str, int]

    @property
    def ok(self) -> bool:
        """Whether everything happened, and happened once."""
        return (
            self.turns_completed == self.turns_expected
            and self.model_calls_paid == self.model_calls_expected
            and self.payments_applied == self.payments_expected
            and self.payments_doubled == 0
            and self.lost == 0
            and self.http_conflicts == 0
            and self.receipts == self.receipts_verified == receipts_expected(self.turns_expected)
            and self.sequence_gaps == 0
            and self.turns_captured == self.turns_expected_captured
            and (self.input_tokens, self.output_tokens) == self.tokens_paid
            and Decimal(self.cost_usd) == cost_usd(*self.tokens_paid)
            and self.timelines == self.turns_expected
            and self.verify_ok
        )

    def json(self) -> str:
        """Return the figures as one line of JSON."""
        return json.dumps({name: value for name, value in asdict(self).items() if name not in _FOR_THE_TABLE})

    def table(self) -> Table:
        """Return the figures as a table."""
        table = Table(title="Every effect once" if self.ok else "NOT every effect once")
        table.add_column("what")
        table.add_column("expected", justify="right")
        table.add_column("happened", justify="right")
        for what, expected, happened in (
            ("turns completed", self.turns_expected, self.turns_completed),
            ("model calls paid", self.model_calls_expected, self.model_calls_paid),
            ("payments applied", self.payments_expected, self.payments_applied),
            ("payments applied twice", 0, self.payments_doubled),
            ("lost", 0, self.lost),
            ("ledger verified", "yes", "yes" if self.verify_ok else "NO"),
            ("requests refused as another's", 0, self.http_conflicts),
            ("receipts of hooks", receipts_expected(self.turns_expected), self.receipts),
            ("receipts verified", self.receipts, self.receipts_verified),
            ("receipts missing in the sequence", 0, self.sequence_gaps),
            ("model calls captured", self.turns_expected_captured, self.turns_captured),
            ("tokens read", self.tokens_paid[0], self.input_tokens),
            ("tokens written", self.tokens_paid[1], self.output_tokens),
            ("dollars for them", f"{cost_usd(*self.tokens_paid):f}", self.cost_usd),
            ("timelines that show all of it", self.turns_expected, self.timelines),
            ("processes killed with SIGKILL", "", self.kills),
            *((f"effects in doubt: {policy}", "", count) for policy, count in sorted(self.doubts.items())),
            ("operators' decisions", "", self.decisions),
            ("payments answered from the record", "", self.http_replays),
            ("payments told to wait", "", self.http_in_flight),
            ("steps run", "", self.steps_run),
            ("steps replayed from the ledger", "", self.steps_replayed),
            ("seconds", "", f"{self.seconds:.1f}"),
        ):
            table.add_row(what, str(expected), str(happened))
        return table


async def executions(hf: holdfast.Holdfast) -> list[holdfast.Execution]:
    """Return every turn the ledger knows."""
    found: list[holdfast.Execution] = []
    cursor: str | None = None
    while True:
        page = await hf.list(kind=turn.kind, limit=_PAGE_ROWS, cursor=cursor)
        found.extend(page.items)
        if (cursor := page.next) is None:
            return found


async def take_stock(
    hf: holdfast.Holdfast, orders: Sequence[Order], books: Books, seen: Seen, *, kills: int, seconds: float
) -> Figures:
    """Count what happened, once everything has ended."""
    await books.follow()
    completed = {execution.id for execution in await executions(hf) if execution.status == "completed"}
    # Asking again is how any caller gets a recorded output: nothing runs.
    reports = [await hf.run(turn, order.id, order.prompt, id=order.id) for order in orders if order.id in completed]
    audit = await hf.audit()
    verified = await hf.verify()
    applied = Counter(receipt["order"] for receipt in books.payments.receipts)
    return Figures(
        turns_expected=len(orders),
        turns_completed=len(completed),
        kills=kills,
        model_calls_paid=books.paid,
        model_calls_expected=MODEL_CALLS_PER_TURN * len(orders),
        payments_expected=len(orders),
        payments_applied=books.applied,
        payments_doubled=sum(count - 1 for count in applied.values()),
        steps_run=len(books.tally.of("ran")),
        steps_replayed=len(books.tally.of("replayed")),
        decisions=sum(record.event == "decision" for record in audit),
        lost=_lost(orders, {report.order: report for report in reports}, books),
        verify_ok=verified.ok,
        http_replays=books.decided("replay"),
        http_conflicts=books.decided("reused", "unknown", "executed"),
        http_in_flight=books.decided("in_flight"),
        receipts=seen.told.receipts,
        receipts_verified=seen.told.verified,
        sequence_gaps=seen.told.gaps,
        turns_captured=seen.captured.turns,
        turns_expected_captured=MODEL_CALLS_PER_TURN * len(orders),
        input_tokens=seen.captured.input_tokens,
        output_tokens=seen.captured.output_tokens,
        cost_usd=seen.captured.cost_usd,
        timelines=seen.captured.timelines,
        seconds=round(seconds, 2),
        tokens_paid=_tokens(books),
        doubts=Counter(record.policy or "no policy" for record in audit if record.event == "ambiguity"),
    )


def _tokens(books: Books) -> tuple[int, int]:
    """What the paid answers have read and written."""
    usage = [entry["message"]["usage"] for entry in books.model.of("answered")]
    return sum(each["input_tokens"] for each in usage), sum(each["output_tokens"] for each in usage)


def _lost(orders: Iterable[Order], reports: dict[str, TurnReport], books: Books) -> int:
    """Count the turns, payments and paid answers that are missing, or that the services know otherwise."""
    payments = {receipt["order"]: receipt for receipt in books.payments.receipts}
    paid = Counter(entry["order"] for entry in books.model.of("paid"))
    answered = {entry["message"]["id"] for entry in books.model.of("answered")}
    lost = 0
    for order in orders:
        report, payment = reports.get(order.id), payments.get(order.id)
        lost += max(0, MODEL_CALLS_PER_TURN - paid[order.id])
        lost += payment is None or payment["amount_cents"] != order.amount_cents
        if report is None:
            lost += 1
        else:
            lost += payment is None or (report.payment, report.amount_cents) != (payment["id"], order.amount_cents)
            lost += len(set(report.model_answers) - answered)
    return lost
