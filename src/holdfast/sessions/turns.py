"""Which evidences are one turn, what the turn is, and what turns make of their session. Pure.

A call may be seen on the wire, in a harness's transcript and as a span; it is one turn, identified by the call and
never by its content. Whatever the order in which the evidences come, the same set ends in the same turns and sums.

Invariants:
    - `partition` is a function of the set of evidences: every evidence is in exactly one cell.
    - A session's sums move by the difference of a turn before and after; nothing is counted twice or left behind.
    - Each other field of a session is a minimum, a maximum, the first or the last by mark, or a union.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate
from typing import Any, Literal

import msgspec

from holdfast.sessions import identity, jcs
from holdfast.sessions.evidence import Account, Cell, Evidence, SessionRow, TurnFacts
from holdfast.sessions.limits import CONFLICTS_MAX, METADATA_BYTES_MAX
from holdfast.sessions.values import COLUMNS, Mark, SessionKey, Source

__all__ = ["fold", "merge", "partition", "refold"]

_JOINED: tuple[Source, ...] = ("otlp", "transcript")


# --- which evidences are one turn ---------------------------------------------------------------------


def partition(evidences: Collection[Evidence]) -> list[Cell]:
    """Return the cells of evidences of one org, each cell one turn.

    Give whole groups: with an evidence all that share its provider and message id, or its join key.
    """
    named: dict[tuple[str, str], list[Evidence]] = defaultdict(list)
    cells: list[list[Evidence]] = []
    loose: list[Evidence] = []
    for evidence in sorted(evidences, key=lambda each: each.mark):
        if evidence.message_id:
            named[evidence.provider, evidence.message_id].append(evidence)
        elif evidence.source in _JOINED and evidence.join_key is not None:
            loose.append(evidence)
        else:
            cells.append([evidence])
    for group in named.values():
        cells += _by_request(group)
    cells += _joined(loose, cells)
    return [tuple(sorted(cell, key=_precedence)) for cell in cells]


def _precedence(evidence: Evidence) -> tuple[int, Mark]:
    return evidence.rank, evidence.mark


def _by_request(group: list[Evidence]) -> list[list[Evidence]]:
    """Part evidences of one message id, in mark order: each request that was seen on the wire is a call."""
    cells: list[list[Evidence]] = []
    by_request: dict[str, list[Evidence]] = {}
    others: list[Evidence] = []
    for evidence in group:
        if evidence.rank:
            others.append(evidence)
        elif evidence.request_id and evidence.request_id in by_request:
            by_request[evidence.request_id].append(evidence)
        else:
            cell = [evidence]
            cells.append(cell)
            if evidence.request_id:
                by_request[evidence.request_id] = cell
    if not cells:
        return [others]
    for evidence in others:
        by_request.get(evidence.request_id, cells[0]).append(evidence)
    return cells


def _joined(loose: list[Evidence], cells: list[list[Evidence]]) -> list[list[Evidence]]:
    """Pair evidences without a message id with cells, first with first; return what stays alone."""
    wired: dict[str, list[list[Evidence]]] = defaultdict(list)
    for cell in sorted(cells, key=lambda each: min(evidence.mark for evidence in each)):
        first = next((each for each in cell if not each.rank and each.join_key is not None), None)
        if first is not None and first.join_key is not None:
            wired[first.join_key].append(cell)
    taken: dict[tuple[str, str], int] = defaultdict(int)
    alone: list[list[Evidence]] = []
    for evidence in loose:
        key = evidence.join_key or ""
        place = taken[evidence.source, key]
        taken[evidence.source, key] += 1
        if place < len(wired[key]):
            wired[key][place].append(evidence)
        else:
            alone.append([evidence])
    return alone


# --- what the turn is ---------------------------------------------------------------------------------

# Fields that only make sense together come from one evidence: the first for which the first of them says something.
_TOGETHER: tuple[tuple[str, ...], ...] = (
    ("parent_harness_session_id", "parent_harness_id"),
    (
        "chain_length", "hash_version", "root_hash", "head_hash", "response_hash", "answer_hash", "continues_hash",
        "first_text",
    ),
)  # fmt: skip
_LEADING = ("status", "upstream_status", "error_type")
_USAGE = ("usage", "usage_state", "raw_usage")
_SESSION = ("harness_id", "harness_session_id", "synthetic")
_UNITED = ("tags", "flags")
_SINGLE = tuple(
    name
    for name in Account.__struct_fields__
    if name not in {*_LEADING, *_USAGE, *_SESSION, *_UNITED, *(each for group in _TOGETHER for each in group)}
)


def merge(cell: Cell) -> TurnFacts:
    """Return the turn of a cell."""
    lead = cell[0]
    first = min(cell, key=lambda each: (each.seq, each.evidence_key))
    said: dict[str, Any] = {name: getattr(lead.says, name) for name in _LEADING}
    for name in _SINGLE:
        said[name] = _first_of(cell, name)
    for names in _TOGETHER:
        giver = next((each for each in cell if getattr(each.says, names[0])), lead)
        said |= {name: getattr(giver.says, name) for name in names}
    counted = _counted(cell)
    said |= {name: getattr(counted.says, name) for name in _USAGE}
    owner = next((each for each in cell if each.says.harness_session_id and not each.says.synthetic), lead)
    said |= {name: getattr(owner.says, name) for name in _SESSION}
    for name in _UNITED:
        said[name] = tuple(sorted({value for each in cell for value in getattr(each.says, name)}))
    return TurnFacts(
        turn_id=identity.turn_id(first.event_id, first.evidence_key),
        captured_at=lead.captured_at,
        capture_id=lead.capture_id,
        evidence_key=lead.evidence_key,
        provider=next((each.provider for each in cell if each.provider), ""),
        message_id=next((each.message_id for each in cell if each.message_id), ""),
        evidence_count=len(cell),
        usage_event=counted.event_id,
        usage_key=counted.evidence_key,
        **said,
    )


def _first_of(cell: Cell, name: str) -> Any:
    """Return the first value that says something; 0 says something, an empty text does not."""
    for evidence in cell:
        value = getattr(evidence.says, name)
        if value is not None and value not in ("", {}):
            return value
    return getattr(cell[0].says, name)


def _counted(cell: Cell) -> Evidence:
    """Return the evidence whose usage counts: the first that measured it, else the first that says anything."""
    for states in (("measured",), ("provided",), ("partial",), ("none",)):
        for evidence in cell:
            if evidence.says.usage_state in states:
                return evidence
    return cell[0]


# --- what turns make of their session -----------------------------------------------------------------

_LAST = ("name", "cwd", "harness_version")
_SAID = ("auth_subject", "parent")
_ASIDE = frozenset(("title", "probe"))


def fold(session: SessionRow | None, old: TurnFacts | None, new: TurnFacts | None) -> SessionRow | None:
    """Return a session after one of its turns came, changed or went.

    Args:
        session: The session before; None where it has no turn.
        old: The turn before; None where it was not there.
        new: The turn after; None where it goes.

    Returns:
        The session after, or None where that takes all of its turns: then `refold` them.
    """
    if old is not None and (new is None or not _contains(new, old)):
        return None
    if new is None:
        return session
    if session is not None and session.metadata_cut:
        return None
    row = session or SessionRow(harness_id=new.key[0], harness_session_id=new.key[1])
    if old is not None:
        row = _summed(row, old, -1)
    row = _shaped(_summed(row, new, 1), new)
    return None if len(jcs.write(row.harness_metadata)) > METADATA_BYTES_MAX else row


def refold(key: SessionKey, turns: Iterable[TurnFacts]) -> SessionRow | None:
    """Return a session made of all of its turns, in any order; None where there are none."""
    row: SessionRow | None = None
    for turn in turns:
        row = row or SessionRow(harness_id=key[0], harness_session_id=key[1])
        row = _shaped(_summed(row, turn, 1), turn)
    return None if row is None else _fitted(row)


def _contains(new: TurnFacts, old: TurnFacts) -> bool:
    """Say whether a session that has folded the old turn needs only to fold the new one too."""
    if new.mark != old.mark or new.key != old.key:
        return False
    for name in (*_LAST, "auth_subject", "harness_metadata", "parent_harness_session_id", "parent_harness_id"):
        if getattr(old, name) and getattr(old, name) != getattr(new, name):
            return False
    if _title(old) and _title(old) != _title(new):
        return False
    return _times(new)[0] <= _times(old)[0] and _times(new)[1] >= _times(old)[1]


def _times(turn: TurnFacts) -> tuple[int, int]:
    known = [at for at in (turn.captured_at, turn.started_at, turn.ended_at) if at is not None]
    return min(known), max(known)


def _title(turn: TurnFacts) -> str:
    """Return what a turn offers as a title: what was said in the conversation itself."""
    return turn.first_text if not turn.thread_id and turn.call_kind not in _ASIDE else ""


def _summed(row: SessionRow, turn: TurnFacts, sign: Literal[-1, 1]) -> SessionRow:
    """Add a turn to the sums, or take it away."""
    tokens = dict(row.tokens)
    for column in COLUMNS:
        count = None if turn.usage is None else getattr(turn.usage, column)
        if count is not None:
            turns, total = tokens.get(column, (0, 0))
            tokens[column] = turns + sign, total + sign * count
    models = dict(row.models)
    if turn.model:
        models[turn.model] = models.get(turn.model, 0) + sign
    return msgspec.structs.replace(
        row,
        turn_count=row.turn_count + sign,
        failed_turn_count=row.failed_turn_count + sign * (turn.status == "failed"),
        tokens={column: pair for column, pair in tokens.items() if pair[0]},
        unmeasured_turn_count=row.unmeasured_turn_count + sign * (turn.usage_state in ("missing", "partial")),
        cost_pusd=row.cost_pusd + sign * (turn.cost_pusd or 0),
        unpriced_turn_count=row.unpriced_turn_count + sign * (turn.cost_state == "unpriced"),
        partial_turn_count=row.partial_turn_count + sign * (turn.cost_state == "partial"),
        provided_turn_count=row.provided_turn_count + sign * (turn.cost_state == "provided"),
        models={model: count for model, count in models.items() if count},
    )


def _shaped(row: SessionRow, turn: TurnFacts) -> SessionRow:
    """Fold in what is no sum."""
    mark = turn.mark
    marks = dict(row.marks)
    changed: dict[str, Any] = {}
    for name in _LAST:
        value = getattr(turn, name)
        if value and (name not in marks or mark > marks[name]):
            changed[name], marks[name] = value, mark
    title = _title(turn)
    if title and ("first_text" not in marks or mark < marks["first_text"]):
        changed["first_text"], marks["first_text"] = title, mark
    metadata = dict(row.harness_metadata)
    for name, value in turn.harness_metadata.items():
        place = f"harness_metadata/{name}"
        if place not in marks or mark > marks[place]:
            metadata[name], marks[place] = value, mark
    seen = dict(row.seen)
    hint = [turn.parent_harness_id, turn.parent_harness_session_id] if turn.parent_harness_session_id else None
    for name, said in zip(_SAID, (turn.auth_subject, hint), strict=True):
        if said:
            seen[name] = _heard(seen.get(name, ()), mark, said)
    earliest, latest = _times(turn)
    return msgspec.structs.replace(
        row,
        is_synthetic=row.is_synthetic or turn.synthetic,
        started_at=earliest if row.started_at is None else min(row.started_at, earliest),
        last_seen_at=latest if row.last_seen_at is None else max(row.last_seen_at, latest),
        auth_subject=seen["auth_subject"][0][1] if "auth_subject" in seen else "",
        harness_metadata=metadata,
        marks=marks,
        seen=seen,
        **changed,
    )


def _heard(before: tuple[tuple[Mark, Any], ...], mark: Mark, value: Any) -> tuple[tuple[Mark, Any], ...]:
    """Return the different values that were said, each with the first mark it was said at, in that order."""
    firsts = [(at, each) for at, each in before if each != value]
    known = [at for at, each in before if each == value]
    return tuple(sorted([*firsts, (min([mark, *known]), value)], key=lambda pair: pair[0])[: CONFLICTS_MAX + 1])


def _fitted(row: SessionRow) -> SessionRow:
    """Return a session whose metadata is not larger than it may be: what does not fit is dropped, by name."""
    if len(jcs.write(row.harness_metadata)) <= METADATA_BYTES_MAX:
        return row
    names = sorted(row.harness_metadata)
    weights = accumulate(len(jcs.write({name: row.harness_metadata[name]})) for name in names)
    kept = {
        name: row.harness_metadata[name]
        for name, weight in zip(names, weights, strict=True)
        if weight <= METADATA_BYTES_MAX
    }
    marks: Mapping[str, Mark] = {
        place: mark
        for place, mark in row.marks.items()
        if not place.startswith("harness_metadata/") or place.partition("/")[2] in kept
    }
    return msgspec.structs.replace(row, harness_metadata=kept, marks=dict(marks), metadata_cut=True)
