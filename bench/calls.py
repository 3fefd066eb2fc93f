"""Captured calls to send: recorded ones, and made up ones of four kilobytes; each is a turn of its own.

What tells one call from another is put into it by its number: its ids, and the first words of its conversation, so
that no two sessions share a message. The recorded ones are the calls of the recorded session, over and over.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from holdfast.sessions import codings

Maker = Callable[[int], bytes]
"""Makes the body of `POST /v1/ingest` that has a number."""

BYTES = 4096
"""Of a call that is made up."""
TURNS = 20
"""Calls of one session that is made up."""
RECORDED = 17
"""Calls of the recorded session."""
AT = 1_790_000_000_000_000
"""When the first of them was captured, in microseconds."""

RECORDINGS = Path(os.environ.get("HOLDFAST_CONFORMANCE", Path(__file__).parents[2] / "shared" / "conformance"))
TEXT = """
    the a an of to in is that for it with as was on are by this be from or which one not have has file function test
    error value return line call name path type module server request answer session turn model token count table row
    column index page cache queue lock write read open close begin commit total first last next order payment refund
"""


def makers(kinds: tuple[str, ...] = ("made", "recorded")) -> dict[str, Maker]:
    """Return what makes calls, by kind; the recorded ones only where the recordings are."""
    found: dict[str, Maker] = {}
    if "made" in kinds:
        found["made"] = made
    if "recorded" in kinds and (RECORDINGS / "sessions" / "recordings").is_dir():
        found["recorded"] = recorded()
    return found


def made(number: int, *, size: int = BYTES) -> bytes:
    """Make a call of so many bytes: a question that no other asks, and an answer to it."""
    words = random.Random(number)  # noqa: S311 - the same calls in every run
    session, turn = divmod(number, TURNS)
    call: dict[str, Any] = {
        "capture_id": f"made-{number:010d}", "provider": "anthropic", "endpoint": "/v1/messages",
        "captured_at": AT + number * 1_000,
        "session": {"harness_id": "bench", "harness_session_id": f"made-{session:08d}", "cwd": "/srv/shop"},
        "upstream": {"status": 200, "request_id": f"req_{number:020d}", "duration_ms": 1_200},
        "request": {
            "model": "claude-sonnet-4-6", "max_tokens": 1024, "system": "You are a careful assistant of a shop.",
            "messages": [{"role": "user", "content": f"{session:08d} {turn:04d} "}],
        },
        "response": {
            "id": f"msg_{number:020d}", "type": "message", "role": "assistant", "model": "claude-sonnet-4-6",
            "content": [{"type": "text", "text": text(words, 900)}], "stop_reason": "end_turn",
            "usage": {"input_tokens": 700 + number % 97, "output_tokens": 200 + number % 89},
        },
    }  # fmt: skip
    asked = call["request"]["messages"][0]
    asked["content"] += text(words, size - len(_json(call)))
    return _json(call)


def text(words: random.Random, size: int) -> str:
    """Write so many characters."""
    return " ".join(words.choices(TEXT.split(), k=size // 3))[:size]


def recorded() -> Maker:
    """Return what makes the recorded calls: calls 0 to 16 are one session, 17 to 33 another one, and so on."""
    root = RECORDINGS / "sessions"
    expected = json.loads((root / "expected" / "recording.json").read_bytes())["calls"]
    templates = [_template(root, each) for each in expected]
    assert len(templates) == RECORDED, f"{len(templates)} recorded calls"

    def make(number: int) -> bytes:
        session, turn = divmod(number, RECORDED)
        before, between, answer, after = templates[turn]
        said = re.sub(rb'"id":"msg_[^"]+"', b'"id":"msg_%020d"' % number, answer, count=1)
        coded = base64.b64encode(gzip.compress(said, 1, mtime=0))
        head = before % (number, AT + number * 1_000, session, number)
        return b"".join((head, b"%08d " % session, between, coded, after))

    return make


def _template(root: Path, call: dict[str, Any]) -> tuple[bytes, bytes, bytes, bytes]:
    """Return a call in four parts: up to its first words, from there to the answer, the answer, the end."""
    [folder] = root.glob(f"recordings/*/{call['call']}")
    sent, meta = (json.loads((folder / name).read_bytes()) for name in ("request.json", "meta.json"))
    request = base64.b64decode(sent["body_b64"])
    asked = json.loads(request)
    first = asked["messages"][0]["content"]
    mark = "here the number goes"
    if isinstance(first, str):
        asked["messages"][0]["content"] = mark + first
    else:
        first[0]["text"] = mark + first[0]["text"]
    begin, end = _json(asked).split(mark.encode(), 1)
    head = (
        b'{"capture_id":"recorded-%010d","provider":"anthropic","endpoint":"/v1/messages","captured_at":%d,'
        b'"session":{"harness_id":"bench","harness_session_id":"recorded-%08d"},'
        b'"upstream":{"status":200,"request_id":"req_%020d"},"request":'
    )
    answer = codings.decode((folder / "response.sse").read_bytes(), meta["content_encoding"] or "").data
    between = end + b',"response":{"content_type":"text/event-stream","content_encoding":"gzip","base64":"'
    return head + begin.replace(b"%", b"%%"), between, answer, b'"}}'


def growing(turn: int) -> bytes:
    """Make a call of a session that grows: it holds all that was said before it."""
    return _one_session(turn, range(turn))


def lonely(turn: int) -> bytes:
    """Make a call of that session that holds its last question only, as after its history was summed up."""
    return _one_session(turn, range(turn - 1, turn))


def _one_session(turn: int, said: range) -> bytes:
    messages = [message for before in said for message in (_question(before), _answer(before))]
    return _json({
        "capture_id": f"growing-{turn:010d}", "provider": "anthropic", "endpoint": "/v1/messages",
        "captured_at": AT + turn * 1_000, "session": {"harness_id": "bench", "harness_session_id": "growing"},
        "request": {"model": "claude-sonnet-4-6", "max_tokens": 1024, "messages": [*messages, _question(turn)]},
        "response": {
            "id": f"msg_growing_{turn:010d}", "type": "message", "model": "claude-sonnet-4-6", **_answer(turn),
            "stop_reason": "end_turn", "usage": {"input_tokens": 9, "output_tokens": 4},
        },
    })  # fmt: skip


def _question(turn: int) -> dict[str, Any]:
    return {"role": "user", "content": f"question {turn}: {text(random.Random(turn), 150)}"}  # noqa: S311 - no secret


def _answer(turn: int) -> dict[str, Any]:
    said = text(random.Random(-turn), 250)  # noqa: S311 - no secret
    return {"role": "assistant", "content": [{"type": "text", "text": f"answer {turn}: {said}"}]}


def large(size: int) -> Iterator[bytes]:
    """Give a call of so many bytes in pieces: one question, of which no part is another's."""
    head = _json({"capture_id": "large", "provider": "anthropic", "endpoint": "/v1/messages"})[:-1]
    yield head + b',"request":{"model":"claude-sonnet-4-6","max_tokens":9,"messages":[{"role":"user","content":"'
    words = random.Random(0)  # noqa: S311 - no secret
    for begin in range(0, size, 1 << 20):
        yield words.randbytes(min(size - begin, 1 << 20) // 2).hex().encode()
    answer = {"id": "msg_large", "type": "message", "model": "claude-sonnet-4-6", **_answer(1)}
    yield b'"}]},"response":' + _json({**answer, "usage": {"input_tokens": 9, "output_tokens": 4}}) + b"}"


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
