"""The laws of keys that no single cell of the table shows."""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from holdfast.core.errors import ConfigError
from holdfast.core.keyring import KeyRing
from holdfast.idempotency import identity, keys, machine
from holdfast.idempotency.errors import RecordUnreadable
from holdfast.idempotency.guard import Idempotency
from holdfast.idempotency.machine import DecideOutcome, ForceExpire, ForceRelease
from holdfast.idempotency.rules import IdempotencyConfig
from holdfast.idempotency.sealing import check_sum, open_outcome, redacted, seal_outcome
from holdfast.idempotency.values import (
    Completed,
    Conflict,
    InFlight,
    KeyRecord,
    Principal,
    Proceed,
    Replay,
    Sealed,
    State,
    Tombstone,
)  # fmt: skip
from holdfast.testing.key_contract.bench import (
    COLUMNS,
    LEASE,
    NOW,
    RESPONSE,
    SECOND,
    TTL,
    Bench,
    Subject,
    told,
)
from holdfast.testing.key_contract.cells import ROWS, became
from holdfast.testing.verdicts import Verdict

__all__ = ["laws"]

SECRET = bytes(range(32))


@dataclass(frozen=True, slots=True)
class Law:
    """One law.

    Attributes:
        name: What it says.
        holds: Tries it, and raises `Broken` where it does not hold.
    """

    name: str
    holds: Callable[[Bench], Awaitable[None]]


class Broken(Exception):
    """A law does not hold."""


LAWS: list[Law] = []


def _law(name: str) -> Callable[[Callable[[Bench], Awaitable[None]]], Callable[[Bench], Awaitable[None]]]:
    def add(holds: Callable[[Bench], Awaitable[None]]) -> Callable[[Bench], Awaitable[None]]:
        LAWS.append(Law(name, holds))
        return holds

    return add


async def laws(bench: Bench) -> list[Verdict]:
    """Try every law."""
    return [await _verdict(bench, law) for law in LAWS]


async def _verdict(bench: Bench, law: Law) -> Verdict:
    try:
        await law.holds(bench)
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is the verdict
        return Verdict(law.name, ok=False, detail=f"{type(error).__name__}: {error}")
    return Verdict(law.name, ok=True)


def _same(seen: object, wanted: object, what: str) -> None:
    if seen != wanted:
        raise Broken(f"{what}: {seen!r}, not {wanted!r}")


def _proceed(decision: object, what: str) -> Proceed:
    if not isinstance(decision, Proceed):
        raise Broken(f"{what}: {decision!r} does not proceed")
    return decision


async def _required(bench: Bench, subject: Subject) -> KeyRecord:
    record = await bench.record(subject)
    if record is None:
        raise Broken("the record is gone")
    return record


async def _forced(bench: Bench, subject: Subject, action: keys.Action) -> None:
    async with bench.database.write() as tx:
        if not await keys.force(tx, subject.key_id, action, actor="ops", reason="a test", now=NOW):
            raise Broken(f"{action} was refused")


@_law("fences rise, over deletion, forced actions and a clock that stands still or runs backwards")
async def _fences(bench: Bench) -> None:
    seen = []
    claim = bench.claim()
    for now in (NOW, NOW, NOW - TTL, NOW - 2 * TTL):
        terms = {"now": now, "lease_until": now + LEASE, "expires_at": NOW + TTL}
        first = _proceed(await bench.attempt(claim, **terms), "a new key")
        subject = Subject(claim, first.fence)
        await _forced(bench, subject, ForceRelease(expires_at=NOW))
        record = await _required(bench, subject)
        async with bench.database.write() as tx:
            while await keys.prune(tx, now=NOW, limit=100) == 100:
                pass
        _same(await bench.record(subject), None, "a pruned key")
        settled = await keys.settle(bench.calls, subject.key_id, first.fence, RESPONSE, expires_at=NOW + TTL, now=NOW)
        _same(told(settled), "F", "a settle under the fence of a deleted row")
        seen += [first.fence, record.fence]
        claim = subject.again()
    _same(seen, sorted(set(seen)), "fences in the order they were issued")


@_law("attempts count the runs of one operation, and begin again with another")
async def _attempts(bench: Bench) -> None:
    subject = await bench.make("released")
    claim = subject.again(owner="own_second")
    second = _proceed(await bench.attempt(claim), "a released key")
    _same((second.attempt, second.record_id), (2, subject.claim.record_id), "the second run")
    await keys.release(bench.calls, subject.key_id, second.fence, expires_at=NOW + TTL, now=NOW)
    other = subject.again(fingerprint=bench.digest("other"), record_id=bench.digest("another")[:16])
    third = _proceed(await bench.attempt(other), "another operation")
    _same((third.attempt, third.record_id), (1, other.record_id), "its first run")


@_law("a lease lapses and a record expires at their instant, and a live lease outlives its retention")
async def _instants(bench: Bench) -> None:
    subject = await bench.make("live")
    until = NOW + LEASE
    before = await bench.attempt(subject.again(), now=until - 1)
    _same(before, InFlight(until, NOW - 60 * SECOND), "a claim before the lease's end")
    _proceed(await bench.attempt(subject.again(), now=until), "a claim at its end")
    kept = await bench.make("completed")
    _same(told(await bench.attempt(kept.again(), now=NOW + TTL - 1)), "Replay", "before the record expires")
    _same(told(await bench.attempt(kept.again(), now=NOW + TTL)), "P(1)", "when it expires")
    long = bench.claim()
    _proceed(await bench.attempt(long, expires_at=NOW), "a claim that expires at once")
    _same(told(await bench.attempt(replace(long, claim_id=os.urandom(16)))), "InFlight", "but has a live lease")


@_law("a claim, a settle and a release may be repeated after a lost acknowledgement")
async def _repetition(bench: Bench) -> None:
    claim = bench.claim()
    first = _proceed(await bench.attempt(claim), "a claim")
    _same(await bench.attempt(claim), first, "the same claim again")
    subject = Subject(claim, first.fence)
    for outcome in (RESPONSE, Completed(500, [], b"other"), Tombstone(200, [], "stream")):
        done = await keys.settle(bench.calls, subject.key_id, first.fence, outcome, expires_at=NOW + TTL, now=NOW)
        _same(told(done), "T", "a settle")
    record = await _required(bench, subject)
    _same((record.state, record.status), (State.COMPLETED, RESPONSE.status), "what was settled first")
    let_go = await bench.make("released")
    before = await _required(bench, let_go)
    again = await keys.release(bench.calls, let_go.key_id, let_go.fence, expires_at=NOW + 2 * TTL, now=NOW)
    _same((again, await bench.record(let_go)), (True, before), "a release again")
    taken = await bench.make("rerun")
    second = taken.again()
    won = _proceed(await bench.attempt(second), "a takeover")
    _same(await bench.attempt(second), won, "the same takeover again")


@_law("the claim of a dead owner has lapsed at once, and only its")
async def _death(bench: Bench) -> None:
    subject = await bench.make("live")
    _same(told(await bench.attempt(subject.again(), dead="own_other")), "InFlight", "while another owner is dead")
    retry = subject.again(owner="own_second")
    _same(told(await bench.attempt(retry, dead=subject.claim.owner)), "P(2)", "when its owner is dead")
    doubtful = await bench.make("marked live")
    _same(told(await bench.attempt(doubtful.again(), dead="own_first")), "Conflict(unknown)", "marked, and dead")


@_law("what is unknown never expires, and what is released remembers its operation")
async def _memory(bench: Bench) -> None:
    subject = await bench.make("unknown")
    far = NOW + 1000 * TTL
    _same(told(await bench.attempt(subject.again(), now=far)), "Conflict(unknown)", "an unknown outcome much later")
    released = await bench.make("released")
    record = await _required(bench, released)
    claim = released.claim
    remembered = (record.attempt, record.record_id, record.fingerprint)
    _same(remembered, (1, claim.record_id, claim.fingerprint), "a released record")


@_law("the machine is the table")
async def _one_table(bench: Bench) -> None:
    for row in ROWS:
        for index, column in enumerate(COLUMNS):
            subject = await bench.make(column)
            before = await bench.record(subject)
            after, answer = machine.transition(before, row.event(bench, subject), now=NOW)
            _same(f"{became(before, after)} {told(answer)}", row.expected[index], f"{row.name} / {column}")


@_law("a record of a newer release, or a damaged one, is neither absent nor replayed")
async def _readable(bench: Bench) -> None:
    newer = bench.claim(fp_version=99)
    _proceed(await bench.attempt(newer), "a claim of a newer release")
    retry = replace(newer, fp_version=1, claim_id=os.urandom(16))
    _same(await bench.attempt(retry), Conflict("newer"), "an older one's")
    subject = await bench.make("completed")
    strange = subject.again(scope_ids=(bench.digest("nobody")[:16],))
    _same(await bench.attempt(strange), Conflict("unreadable"), "a record of a scope nobody proves")
    sealed = seal_outcome(RESPONSE, key_id=bytes(16), record_id=bytes(16))
    for damaged in (replace(sealed, body=b"other"), replace(sealed, status=500), replace(sealed, headers=b"")):
        found = await _stored(bench, damaged)
        _same(told(check_sum(found)), "F", "the sum over a damaged record")
        try:
            open_outcome(found, key_id=bytes(16), record_id=bytes(16))
        except RecordUnreadable as error:
            _same(error.code, "idempotency.record_unreadable", "a damaged record")
        else:
            raise Broken("a damaged record was opened")
    coded = await bench.make("live")
    future = replace(sealed, codec=99)
    await keys.settle(bench.calls, coded.key_id, coded.fence, future, expires_at=NOW + TTL, now=NOW)
    _same(await bench.attempt(coded.again()), Conflict("newer"), "a body stored in a way not known yet")


@_law("a large body is stored compressed, unless it has a coding, and comes back as it was")
async def _compression(bench: Bench) -> None:
    large = Completed(200, [(b"content-type", b"text/plain")], b"many words " * 10_000)
    found = await _stored(bench, seal_outcome(large, key_id=bytes(16), record_id=bytes(16)))
    _same(found.codec, 1, "its codec")
    _same(open_outcome(found, key_id=bytes(16), record_id=bytes(16)), large, "what it opens to")
    coded = replace(large, headers=[(b"content-encoding", b"gzip")], body=zlib.compress(large.body) * 1000)
    found = await _stored(bench, seal_outcome(coded, key_id=bytes(16), record_id=bytes(16)))
    _same((found.codec, found.body), (0, coded.body), "a body with a coding of its own")


@_law("under a cipher no column holds what was said, and a redacted response is not kept")
async def _cipher(bench: Bench) -> None:
    try:
        ring = KeyRing(current=(7, bytes(range(32))))
    except ConfigError as error:
        raise Broken(f"no cipher to try: {error}") from None
    secret = Completed(201, [(b"location", b"/orders/top-secret")], b"top-secret")
    claim = bench.claim()
    subject = Subject(claim, _proceed(await bench.attempt(claim), "a claim").fence)
    sealed = seal_outcome(secret, key_id=subject.key_id, record_id=claim.record_id, cipher=ring)
    await keys.settle(bench.calls, subject.key_id, subject.fence, sealed, expires_at=NOW + TTL, now=NOW)
    found = (await _required(bench, subject)).sealed
    if found is None or b"top-secret" in found.headers + (found.body or b""):
        raise Broken("the row tells the response")
    opened = open_outcome(found, key_id=subject.key_id, record_id=claim.record_id, cipher=ring)
    _same(opened, secret, "what it opens to")
    try:
        open_outcome(found, key_id=bytes(16), record_id=claim.record_id, cipher=ring)
    except RecordUnreadable:
        pass
    else:
        raise Broken("it opens under another key")
    nothing = Tombstone(201, secret.headers, "redaction", body_bytes=len(secret.body))
    _same(redacted(secret, lambda _: None), nothing, "a redacted response")


@_law("no row holds a key or a principal")
async def _names(bench: Bench) -> None:
    principal, key = Principal("alice@example.com", "acme-corporation"), "order-4711-of-alice"
    claim = bench.claim(
        key_ids=(identity.key_id(SECRET, principal, key),),
        scope_ids=(identity.scope_id(SECRET, principal),),
        record_id=identity.record_id(SECRET, principal, key, bench.digest("request")),
        claim_id=os.urandom(16),
    )
    subject = Subject(claim, 0)
    decision = await bench.attempt(claim)
    if isinstance(decision, Proceed):
        await keys.settle(bench.calls, subject.key_id, decision.fence, RESPONSE, expires_at=NOW + TTL, now=NOW)
    async with bench.database.read() as tx:
        row = await tx.one("keys.get", key_id=subject.key_id)
    if row is None:
        raise Broken("the record is gone")
    everything = b"".join(value if isinstance(value, bytes) else str(value).encode() for value in row)
    for name in (principal.subject, principal.tenant, key, "alice", "acme", "4711"):
        if name.encode() in everything:
            raise Broken(f"a row tells {name!r}")


@_law("processes that share a secret never both proceed, whichever writes, and find each other's records")
async def _rotation(bench: Bench) -> None:
    for first, second in ((b"\x00", b"\xff"), (b"\xff", b"\x00")):
        for mine, theirs in (("o", "on"), ("on", "o"), ("on", "no"), ("no", "on"), ("no", "n"), ("n", "no")):
            tag = f"{mine} {theirs} {first.hex()}"
            ids = {"o": first + bench.digest(tag)[:15], "n": second + bench.digest(tag)[:15]}
            scopes = {"o": bench.digest("o" + tag)[:16], "n": bench.digest("n" + tag)[:16]}
            one = bench.claim(key_ids=tuple(ids[s] for s in mine), scope_ids=tuple(scopes[s] for s in mine))
            two = replace(
                one, claim_id=os.urandom(16), key_ids=tuple(ids[s] for s in theirs),
                scope_ids=tuple(scopes[s] for s in theirs),
            )  # fmt: skip
            await _rotate(bench, one, two, tag)


async def _rotate(bench: Bench, one: keys.Claim, two: keys.Claim, tag: str) -> None:
    first = _proceed(await bench.attempt(one), f"the first of {tag}")
    _same(told(await bench.attempt(two)), "InFlight", f"the second of {tag}")
    _same(told(await bench.attempt(one)), "P(1)", f"the first again of {tag}")
    await keys.release(bench.calls, one.key_ids[0], first.fence, expires_at=NOW + TTL, now=NOW)
    second = _proceed(await bench.attempt(two), f"the second after a release of {tag}")
    _same((second.attempt, second.record_id), (2, first.record_id), f"the operation of {tag}")
    _same(told(await bench.attempt(replace(one, claim_id=os.urandom(16)))), "InFlight", f"the first after it of {tag}")
    done = await keys.settle(bench.calls, two.key_ids[0], second.fence, RESPONSE, expires_at=NOW + TTL, now=NOW)
    _same(told(done), "T", f"the settle of {tag}")
    for claim in (one, two):
        decision = await bench.attempt(replace(claim, claim_id=os.urandom(16)))
        if not isinstance(decision, Replay) or decision.record.record_id != first.record_id:
            raise Broken(f"{decision!r} instead of a replay of {tag}")


@_law("which secrets write, since when and for how long, is known, and a guard that lacks one does not start")
async def _secrets(bench: Bench) -> None:
    ref = bench.digest("secret").hex()[:32]
    for at, ttl in ((NOW, TTL), (NOW + 5, 2 * TTL), (NOW + 3, TTL)):
        await keys.touch_secret(bench.calls, ref, ttl_max=ttl, now=at)
    async with bench.database.read() as tx:
        found = [tuple(row) for row in await keys.secrets(tx) if row.secret_ref == ref]
    _same(found, [(ref, NOW, NOW + 5, 2 * TTL)], "what is known of a secret")
    mine, other = os.urandom(32), os.urandom(32)
    for secrets in ([mine], [other, mine]):
        async with _guard(bench, secrets):
            pass
    try:
        async with _guard(bench, [other]):
            pass
    except ConfigError as error:
        _same(error.code, "config.secret_missing", "a guard that lacks a secret")
    else:
        raise Broken("a guard started without a secret that writes")


def _guard(bench: Bench, secrets: list[bytes]) -> Idempotency:
    config = IdempotencyConfig(principal=lambda _: None, secrets=secrets, allow_memory=True)
    return Idempotency(bench.database, config)


@_law("pruning takes no more than a batch, takes pointers along, and leaves a key that is new")
async def _pruning(bench: Bench) -> None:
    async with bench.database.write() as tx:
        while await keys.prune(tx, now=NOW, limit=100):
            pass
    gone = [await bench.make("expired response") for _ in range(5)]
    rotated = bench.claim(key_ids=(bench.digest("a")[:16], bench.digest("b")[:16]), scope_ids=(bytes(16), bytes(16)))
    fence = _proceed(await bench.attempt(rotated), "a claim under two secrets").fence
    await _forced(bench, Subject(rotated, fence), ForceRelease(expires_at=NOW))
    kept = [await bench.make("live"), await bench.make("unknown"), await bench.make("completed")]
    deleted = []
    for _ in range(4):
        async with bench.database.write() as tx:
            deleted.append(await keys.prune(tx, now=NOW, limit=2))
    _same(deleted, [2, 2, 2, 0], "rows deleted by each of four prunes of two")
    async with bench.database.read() as tx:
        pointers = [await tx.one("keys.get", key_id=key_id) for key_id in rotated.key_ids]
    _same(pointers, [None, None], "the record and its pointer")
    for subject in kept:
        await _required(bench, subject)
    _same(told(await bench.attempt(gone[0].again())), "P(1)", "a key whose row was deleted")


@_law("a claim belongs to no session: any connection may renew, settle and read it")
async def _sessions(bench: Bench) -> None:
    async def journey() -> str:
        claim = bench.claim()
        fence = _proceed(await bench.attempt(claim), "a claim").fence
        key_id = claim.key_ids[0]
        async with bench.database.write() as tx:
            held = await keys.renew(tx, [(key_id, fence)], lease_until=NOW + 2 * LEASE, now=NOW)
        _same(held, {key_id}, "what was renewed")
        await keys.settle(bench.calls, key_id, fence, RESPONSE, expires_at=NOW + TTL, now=NOW)
        async with bench.database.read() as tx:
            decision = await keys.lookup(tx, replace(claim, claim_id=os.urandom(16)), now=NOW)
        return told(decision) if decision is not None else "nothing"

    _same(set(await asyncio.gather(*(journey() for _ in range(20)))), {"Replay"}, "what twenty journeys end with")


@_law("a forced action and its audit row are one, and a claim it took away is lost")
async def _audited(bench: Bench) -> None:
    subject = await bench.make("live")
    await _forced(bench, subject, ForceRelease())
    await _forced(bench, subject, ForceExpire())
    held = await keys.mark_irreversible(bench.calls, subject.key_id, subject.fence, now=NOW)
    _same(told(held), "F", "the old fence")
    doubtful = await bench.make("unknown")
    await _forced(bench, doubtful, DecideOutcome(RESPONSE))
    async with bench.database.read() as tx:
        trail = [*await keys.trail(tx, subject.claim.record_id), *await keys.trail(tx, doubtful.claim.record_id)]
    said = [(row.action, row.state_before, row.state_after, row.actor) for row in trail]
    wanted = [
        ("release", "reserved", "released", "ops"),
        ("expire", "released", "expired", "ops"),
        ("result", "unknown", "completed", "ops"),
    ]
    _same(said, wanted, "the audit rows")
    record = await _required(bench, doubtful)
    _same((record.fence, record.owner), (trail[-1].fence, ""), "the forced record")


async def _stored(bench: Bench, sealed: Sealed) -> Sealed:
    """What a row gives back of an outcome."""
    subject = await bench.make("live")
    await keys.settle(bench.calls, subject.key_id, subject.fence, sealed, expires_at=NOW + TTL, now=NOW)
    found = (await _required(bench, subject)).sealed
    if found is None:
        raise Broken("the row holds no outcome")
    return found
