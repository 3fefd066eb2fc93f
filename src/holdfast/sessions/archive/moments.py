"""What happened in a session, by time: its turns, and the tools that they asked for.

Invariants:
    - A tool use begins at the end of the answer that asks for it, and ends where its result is first seen.
    - No more is read than its bound, and each message once.
"""

from __future__ import annotations

import json
from typing import NamedTuple
from uuid import UUID

from holdfast.sessions import identity, instants
from holdfast.sessions.archive import reading, rows
from holdfast.sessions.evidence import TurnFacts
from holdfast.sessions.nodes import HASH_VERSION
from holdfast.sessions.values import Block
from holdfast.sessions.views import Moment
from holdfast.store.database import Tx

__all__ = ["moments"]

_TURNS = 200
_NODES = 20
"""Messages in memory at a time: one may be tens of megabytes."""


class _Used(NamedTuple):
    """What messages say of tools: which an answer asks for, and which results were seen first when."""

    asked: dict[str, list[Block]]
    ended: dict[str, tuple[int, bool]]


async def moments(tx: Tx, org: UUID, session_id: bytes, *, most: int) -> tuple[list[Moment], bool]:
    """Return the turns of a session and their tool uses by time, and whether there are more.

    Args:
        tx: A transaction.
        org: Whose.
        session_id: The session.
        most: How many turns, and how many messages, are looked at.
    """
    turns, more = await _turns(tx, org, session_id, most)
    used, cut = await _used(tx, org, session_id, {each.response_hash for each in turns}, most)
    found: list[Moment] = []
    for turn in turns:
        found.append(_turn(turn))
        found += [_tool_use(turn, block, used.ended) for block in used.asked.pop(turn.response_hash, ())]
    return sorted(found, key=lambda each: each.at), more or cut


async def _turns(tx: Tx, org: UUID, session_id: bytes, most: int) -> tuple[list[TurnFacts], bool]:
    found: list[TurnFacts] = []
    after = None
    while len(found) < most:
        limit = min(_TURNS, most - len(found))
        kept, after = await reading.page_kept(tx, org, session_id, limit=limit, after=after)
        found += [each.facts for each in kept]
        if after is None:
            return found, False
    return found, True


async def _used(tx: Tx, org: UUID, session_id: bytes, answers: set[str], most: int) -> tuple[_Used, bool]:
    links = await tx.all("nodes.of_session", org=org.bytes, session_id=session_id, limit=most + 1)
    used = _Used({}, {})
    for start in range(0, min(len(links), most), _NODES):
        batch = {row.hash: row for row in links[start : min(start + _NODES, most)]}
        wanted = json.dumps([hashed.hex() for hashed in batch])
        for row in await tx.all("nodes.contents", hashes=wanted, org=org.bytes, hash_version=HASH_VERSION):
            seen_at = rows.read_mark(batch[row.hash].mark)[0]
            blocks = rows.read_blocks(row.content)
            for block in blocks:
                if block.tool_result_id is not None:
                    before = used.ended.get(block.tool_result_id)
                    if before is None or seen_at < before[0]:
                        used.ended[block.tool_result_id] = seen_at, block.is_error
            if row.hash.hex() in answers:
                used.asked[row.hash.hex()] = [block for block in blocks if block.tool_use_id is not None]
    return used, len(links) > most


def _turn(turn: TurnFacts) -> Moment:
    turn_id = identity.shown_id("turn", turn.turn_id)
    return Moment(
        at=instants.moment(turn.started_at or turn.captured_at),
        ended_at=None if turn.ended_at is None else instants.moment(turn.ended_at),
        kind="turn",
        id=turn_id,
        name=turn.model or None,
        outcome=turn.status,
        turn_id=turn_id,
        thread_id=turn.thread_id,
    )


def _tool_use(turn: TurnFacts, block: Block, ended: dict[str, tuple[int, bool]]) -> Moment:
    name = block.tool_use_id or ""
    ended_at, is_error = ended.get(name, (None, False))
    return Moment(
        at=instants.moment(turn.ended_at or turn.captured_at),
        ended_at=None if ended_at is None else instants.moment(ended_at),
        kind="tool_use",
        id=name,
        name=block.tool_name,
        outcome=None if ended_at is None else "error" if is_error else "ok",
        turn_id=identity.shown_id("turn", turn.turn_id),
        thread_id=turn.thread_id,
    )
