"""The demo's harness: it announces the agent's session and frames, as Claude Code or Codex would, by hook processes.

Invariants:
    - An announcement has one delivery id however often it is made, so that it has its receipts once.
    - Nobody's own configuration is read, and nothing is written but into the demo's folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from holdfast.cli.demo.processes import DemoFailed, run_cli

__all__ = ["HARNESS", "Announced", "Harness", "announced", "environment", "receipts_expected"]

HARNESS = "hermes"
SESSION = "demo"


def receipts_expected(turns: int) -> int:
    """How many receipts a whole demo has: two for the session, two for the frame of each turn."""
    return 2 + 2 * turns


def environment(ledger: Path) -> dict[str, str]:
    """Return what a `holdfast` command of the demo is to find around it."""
    folder = str(ledger.parent)
    return {"HOLDFAST_DB": str(ledger), "XDG_CONFIG_HOME": folder, "XDG_STATE_HOME": folder}


class Harness:
    """Calls `holdfast hook` as a harness does: one process for each thing that happens."""

    def __init__(self, ledger: str) -> None:
        self._environment = environment(Path(ledger))

    async def call(self, hook: str, turn: str | None = None) -> None:
        """Announce something, of a turn or of the session.

        Raises:
            DemoFailed: The hook process complained.
        """
        delivery = {
            "shim": 1,
            "hook": hook,
            "session_id": turn or SESSION,  # a turn is a conversation of its own
            "delivery_id": f"{hook} {turn or SESSION}",
            "data": {},
        }
        if turn is not None:
            delivery["turn_id"] = turn
        command = ("hook", HARNESS, "--event", hook)
        code, said = await run_cli(command, self._environment, given=json.dumps(delivery))
        if code != 0 or said.strip() != "{}":
            raise DemoFailed(f"`holdfast {' '.join(command)}` ended with exit code {code}; it said:\n{said}")


@dataclass(frozen=True, slots=True)
class Announced:
    """What the announcements have left in the ledger.

    Attributes:
        receipts: How many receipts there are.
        verified: How many of them stand in a chain that nobody has changed.
        gaps: How many numbers of the session no receipt has.
    """

    receipts: int
    verified: int
    gaps: int


async def announced(ledger: Path) -> Announced:
    """Count the receipts as an operator does: on the command line."""
    lines = (await _told(ledger, "receipts", "export")).splitlines()
    verified = json.loads(await _told(ledger, "receipts", "verify", "--json"))
    gaps = json.loads(await _told(ledger, "receipts", "gaps", "--json"))
    missing = sum(gap["last"] - gap["first"] + 1 for gap in gaps)
    return Announced(json.loads(lines[-1])["count"], verified["receipts_count"] if verified["ok"] else 0, missing)


async def _told(ledger: Path, *command: str) -> str:
    code, said = await run_cli(command, environment(ledger))
    if code not in (0, 1):
        raise DemoFailed(f"`holdfast {' '.join(command)}` ended with exit code {code}; it said:\n{said}")
    return said
