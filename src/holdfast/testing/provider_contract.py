"""What every reader of a provider must do, as verdicts that anybody can have on theirs.

    verdicts = provider_contract(my_parser, [Exchange(request, answer, streamed)])
    assert all(verdict.ok for verdict in verdicts)

The examples are the author's, since nobody else knows the provider; what is done to them is the same for all: they are
cut, flipped, nested, repeated, and every member of theirs takes every type.

Invariants:
    - Nothing is random, and nothing is asked of the parser but what a ledger asks of it.
    - Time is that of the thread's own work, so a loaded machine changes no verdict.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import msgspec

from holdfast.sessions import frames, nodes
from holdfast.sessions.providers import Parser
from holdfast.sessions.values import Facts
from holdfast.testing.verdicts import Verdict

__all__ = ["Exchange", "Verdict", "provider_contract"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A call as its provider would have it, and its answer in both forms. Bodies are without content codings.

    Attributes:
        request: The body that is sent.
        answer: The answer at once.
        streamed: The same answer as a stream; empty where the provider has none.
        endpoint: Path or name.
        answer_type: The content type of `answer`.
        streamed_type: The content type of `streamed`.
    """

    request: bytes
    answer: bytes
    streamed: bytes = b""
    endpoint: str = ""
    answer_type: str = "application/json"
    streamed_type: str = "text/event-stream"


def provider_contract(parser: Parser, exchanges: Sequence[Exchange]) -> list[Verdict]:
    """Try everything that a parser must do.

    Args:
        parser: What the entry point names.
        exchanges: Examples of whole calls, a few kilobytes each: one at least for every form of an answer, with text,
            a tool call and counts in them.

    Returns:
        A verdict for each law.
    """
    return [_verdict(name, holds, parser, exchanges) for name, holds in LAWS.items()]


class Broken(Exception):
    """A law does not hold."""


Law: TypeAlias = Callable[[Parser, Exchange], None]
LAWS: dict[str, Law] = {}


def _law(name: str) -> Callable[[Law], Law]:
    def add(holds: Law) -> Law:
        LAWS[name] = holds
        return holds

    return add


def _verdict(name: str, holds: Law, parser: Parser, exchanges: Sequence[Exchange]) -> Verdict:
    for at, exchange in enumerate(exchanges):
        try:
            holds(parser, exchange)
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is the verdict
            return Verdict(name, ok=False, detail=f"example {at}: {type(error).__name__}: {error}")
    return Verdict(name, ok=bool(exchanges), detail="" if exchanges else "there is no example")


# --- what the examples say


@_law("an example is read without a doubt")
def _reads(parser: Parser, exchange: Exchange) -> None:
    for whole in _forms(exchange):
        facts = _read(parser, whole)
        if facts.unparsed or facts.flags or facts.outcome != "complete":
            raise Broken(f"{facts.unparsed or facts.outcome}, flags {facts.flags}")
        if not facts.messages or facts.response is None:
            raise Broken("nothing was sent, or nothing came back")


@_law("a stream says what the answer at once says")
def _streams(parser: Parser, exchange: Exchange) -> None:
    said = [_said(_read(parser, whole)) for whole in _forms(exchange)]
    if any(each != said[0] for each in said):
        raise Broken(f"{said[-1]}, not {said[0]}")


@_law("what did not come is not made up")
def _absent(parser: Parser, exchange: Exchange) -> None:
    sent = _read(parser, exchange).messages
    without = _kept(parser, exchange, exchange.request, None)
    if (without.messages, without.response, without.outcome, without.usage) != (sent, None, "none", None):
        raise Broken("a call without an answer is the request's messages, with the outcome none")
    if _kept(parser, exchange, exchange.request, b"").outcome == "complete":
        raise Broken("an empty answer is not complete")
    if _kept(parser, exchange, None, None).messages:
        raise Broken("a call without bodies has no messages")


@_law("an answer that is cut is not whole")
def _cut(parser: Parser, exchange: Exchange) -> None:
    for whole in _forms(exchange):
        answer, said = whole.answer.rstrip(), _said(_read(parser, whole))
        for cut in _prefixes(answer):
            facts = _read(parser, replace(whole, answer=cut))
            if facts.outcome == "complete" and _said(facts)[:2] != said[:2]:
                raise Broken(f"{len(cut)} of {len(answer)} bytes are complete, and say something else")


@_law("a frame that cannot be read is skipped and flagged")
def _malformed(parser: Parser, exchange: Exchange) -> None:
    if not exchange.streamed:
        return
    stream = _Stream(exchange)
    wanted = _read(parser, stream.exchange(stream.frames))
    for at in range(len(stream.frames)):
        for junk in (b'{"broken', b"\xff\xfe", b"[1]"):
            facts = _read(parser, stream.exchange([*stream.frames[:at], (b"", junk), *stream.frames[at:]]))
            if msgspec.structs.replace(facts, flags=()) != msgspec.structs.replace(wanted, flags=()):
                raise Broken(f"{junk!r} before frame {at} changes what is said")
            if not facts.flags:
                raise Broken(f"{junk!r} before frame {at} is not flagged")


# --- what nobody expected


@_law("no bytes make it raise")
def _bytes(parser: Parser, exchange: Exchange) -> None:
    for whole in _forms(exchange):
        for each in _garbage(whole.request):
            _read(parser, replace(whole, request=each))
        for each in _garbage(whole.answer):
            _read(parser, replace(whole, answer=each))


@_law("a member may have any type")
def _types(parser: Parser, exchange: Exchange) -> None:
    for odd in _changed(exchange, _ODD):
        _read(parser, odd)


@_law("depth costs no stack")
def _depth(parser: Parser, exchange: Exchange) -> None:
    for whole in _forms(exchange):
        for deep in _DEEP:
            _read(parser, replace(whole, request=deep))
            _read(parser, replace(whole, answer=deep))
    for odd in _changed(exchange, (_DEEP[0], json.dumps(_DEEP[0].decode()).encode())):
        _read(parser, odd)


@_law("equal bytes give equal facts")
def _deterministic(parser: Parser, exchange: Exchange) -> None:
    wanted = [_read(parser, whole) for whole in _forms(exchange)]
    for odd in _changed(exchange, (b'"other"',)):
        _read(parser, odd)
        if [_read(parser, whole) for whole in _forms(exchange)] != wanted:
            raise Broken("what was read before changes what is read")


@_law("work grows with the bytes")
def _linear(parser: Parser, exchange: Exchange) -> None:
    grown: list[Callable[[int], Exchange]] = [lambda times: replace(exchange, request=_grown(exchange.request, times))]
    if exchange.streamed:
        stream = _Stream(exchange)
        grown.append(lambda times: stream.exchange([each for each in stream.frames for _ in range(times)]))
    for make in grown:
        size = len(make(1).request) + len(make(1).answer)
        times = max(1, SMALL_BYTES // size)
        if not any(_grows_evenly(parser, make(times), make(GROWTH * times)) for _ in range(TRIES)):
            raise Broken(f"{GROWTH} times the bytes took more than {GROWTH * SLACK} times the work")


SMALL_BYTES: Final = 32 << 10
GROWTH: Final = 16
SLACK: Final = 3
"""How much more than its share a large body may take: caches are small."""
TRIES: Final = 3


def _grows_evenly(parser: Parser, small: Exchange, large: Exchange) -> bool:
    few = min(_work(parser, small) for _ in range(3))
    return _work(parser, large) <= SLACK * GROWTH * few


def _work(parser: Parser, exchange: Exchange) -> float:
    began = time.thread_time()
    parser(exchange.request, exchange.answer, exchange.answer_type, exchange.endpoint)
    return time.thread_time() - began


# --- reading


def _forms(exchange: Exchange) -> Iterator[Exchange]:
    """Return the example with its answer at once, and with the stream in its place."""
    yield exchange
    if exchange.streamed:
        yield replace(exchange, answer=exchange.streamed, answer_type=exchange.streamed_type)


def _read(parser: Parser, exchange: Exchange) -> Facts:
    return _kept(parser, exchange, exchange.request, exchange.answer)


def _kept(parser: Parser, like: Exchange, request: bytes | None, response: bytes | None) -> Facts:
    """Read bodies that come as those of an example, and check that what is read can be kept."""
    try:
        facts = parser(request, response, like.answer_type, like.endpoint)
    except Exception as error:
        raise Broken(f"{type(error).__name__} for {_short(request)} answered by {_short(response)}") from error
    if not isinstance(facts, Facts):
        raise Broken(f"{type(facts).__name__}, not Facts")
    try:
        msgspec.convert(msgspec.to_builtins(facts), Facts)
        nodes.chain([*facts.messages, *([facts.response] if facts.response else [])])
    except Exception as error:
        raise Broken(f"facts that cannot be kept: {error}, for {_short(request)}, {_short(response)}") from error
    if facts.flags != tuple(sorted(set(facts.flags))):
        raise Broken(f"flags are sorted, each once: {facts.flags}")
    return facts


def _said(facts: Facts) -> tuple[object, ...]:
    """Return what must be equal however it came; the last is the answer's hash in its conversation."""
    sent = [*facts.messages, *([facts.response] if facts.response else [])]
    return facts.response, facts.stop_reason, facts.usage, nodes.chain(sent)[-1].hash if sent else ""


def _short(data: bytes | None) -> str:
    return repr(data) if data is None or len(data) <= 300 else f"{data[:300]!r}… ({len(data)} bytes)"


# --- changing


class _Stream:
    """A stream in frames: what stands before the data of each, and the data."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._events = frames.kind(exchange.streamed_type, exchange.streamed) == "sse"
        self.frames = list(self._parted(exchange.streamed))

    def _parted(self, body: bytes) -> Iterator[tuple[bytes, bytes]]:
        if not self._events:
            yield from ((b"", line) for line in body.split(b"\n") if line.strip())
            return
        for event in body.replace(b"\r\n", b"\n").split(b"\n\n"):
            lines = event.split(b"\n")
            data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
            head = b"".join(line + b"\n" for line in lines if line and not line.startswith(b"data:"))
            if data:
                yield head, b"\n".join(data)

    def exchange(self, parts: Iterable[tuple[bytes, bytes]]) -> Exchange:
        """Return the example with these frames as its answer."""
        form = b"%sdata: %s\n\n" if self._events else b"%s%s\n"
        body = b"".join(form % each for each in parts)
        return replace(self._exchange, answer=body, answer_type=self._exchange.streamed_type)


POINTS_MAX: Final = 500
"""Places in a body at which it is cut or changed; of a longer one, so many, evenly spread."""

DEPTH: Final = 10_000
_DEEP: Final = (b"[" * DEPTH + b"]" * DEPTH, b'{"a":' * DEPTH + b"1" + b"}" * DEPTH, b"[" * DEPTH)

_ODD: Final = tuple(
    each.encode()
    for each in (
        "null", "true", "-1", "1.5", "1e999", "18446744073709551616", '"x"', '"\\ud800"', '"{\\"a\\": 1e999}"', '"{"',
        "[]", '[null, 1, "x", [], {}]', "{}", '{"type": {}, "content": [1], "text": []}',
    )
)  # fmt: skip


def _prefixes(body: bytes) -> Iterator[bytes]:
    return (body[:at] for at in _points(body))


def _points(body: bytes) -> range:
    return range(0, len(body), max(1, len(body) // POINTS_MAX))


def _garbage(body: bytes) -> Iterator[bytes]:
    """Return what is no body any more: nothing like it, a part of it, one bit of it another."""
    yield from (b"", b"\x00", b" \n", b"\xef\xbb\xbf", b"\xff" * 100, b"null", b"data:", b"data: {}\n\n" * 3, b"{}\n{}")
    yield from _prefixes(body)
    for at in _points(body):
        yield body[:at] + bytes([body[at] ^ 1 << at % 8]) + body[at + 1 :]


def _changed(exchange: Exchange, odd: Sequence[bytes]) -> Iterator[Exchange]:
    """Return the example with each member of request, answer and frames replaced by each value."""
    for each in _replaced(exchange.request, odd):
        yield replace(exchange, request=each)
    for each in _replaced(exchange.answer, odd):
        yield replace(exchange, answer=each)
    if exchange.streamed:
        stream = _Stream(exchange)
        for at, (head, data) in enumerate(stream.frames):
            for each in _replaced(data, odd):
                yield stream.exchange([*stream.frames[:at], (head, each), *stream.frames[at + 1 :]])


MARK: Final = "here it is replaced"


def _replaced(data: bytes, odd: Sequence[bytes]) -> Iterator[bytes]:
    try:
        value = json.loads(data)
    except ValueError:
        return
    for holder, name in list(_members(value)):
        kept, holder[name] = holder[name], MARK
        before, _, after = json.dumps(value).encode().partition(json.dumps(MARK).encode())
        holder[name] = kept
        yield from (before + each + after for each in odd)


def _members(value: Any) -> Iterator[tuple[Any, Any]]:
    names = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for name in names:
        yield value, name
        yield from _members(value[name])


def _grown(request: bytes, times: int) -> bytes:
    """Return a request whose lists and texts are so many times as long."""
    value = json.loads(request)
    return json.dumps(
        {name: each * times if isinstance(each, str | list) else each for name, each in value.items()}
    ).encode()
