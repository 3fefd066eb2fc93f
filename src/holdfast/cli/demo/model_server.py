"""A double of somebody else's model server: the Anthropic Messages API, streaming, with a script for brains.

Every call it accepts is paid for, whoever asks and however often: a repeated call costs twice. What saves
its clients money is that it remembers what it answered to which `Idempotency-Key` and can be asked:
`GET /v1/answers/{key}` costs nothing.

Invariants:
    - A call is booked as paid when it arrives, before a word of its answer is made.
    - An answer once begun is finished and kept, whether or not the client is still there.
    - "Never seen" is said only after every request sent before the question has been read.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from holdfast.cli.demo.book import Book
from holdfast.cli.demo.wire import Reply, Request, serve
from holdfast.core.clock import SystemClock

__all__ = ["ModelServer"]

_EVENT_SECONDS = 0.025
_JSON_PIECE_CHARS = 12
_ORDERED = re.compile(r"order (?P<count>\d+) x (?P<item>[\w ]+)")

Block = dict[str, Any]


class ModelServer:
    """Answers messages by script, streams the answers, and books what it is owed."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._clock = SystemClock()
        self._answers: dict[str, dict[str, Any]] = {}
        self._finished: dict[str, asyncio.Event] = {}
        for entry in book.entries:
            if entry["event"] == "answered":
                self._answers[entry["key"]] = entry["message"]

    async def __call__(self, request: Request, reply: Reply) -> None:
        """Serve one request."""
        match request.method, request.path.strip("/").split("/"):
            case "POST", ["v1", "messages"]:
                await self._create(request, reply)
            case "GET", ["v1", "answers", key]:
                await self._recall(request, reply, key)
            case _:
                reply.json(404, {"type": "error", "error": {"type": "not_found_error", "message": "no such route"}})

    async def _create(self, request: Request, reply: Reply) -> None:
        key = request.headers["idempotency-key"]
        finished = self._finished[key] = asyncio.Event()
        self._book.append(event="paid", key=key, order=request.body["metadata"]["user_id"])
        message = _answer(request.body, len(self._book.entries))
        reply.start_events()
        for event in _stream(message):
            reply.event(str(event["type"]), event)
            await self._clock.sleep(_EVENT_SECONDS)
        self._answers[key] = message
        self._book.append(event="answered", key=key, message=message)
        finished.set()

    async def _recall(self, request: Request, reply: Reply, key: str) -> None:
        await request.all_earlier_have_arrived()
        if (finished := self._finished.get(key)) is not None:
            await finished.wait()
        if (message := self._answers.get(key)) is not None:
            reply.json(200, message)
        else:
            reply.json(404, {"type": "error", "error": {"type": "not_found_error", "message": "never seen that key"}})


def _answer(body: dict[str, Any], number: int) -> dict[str, Any]:
    """Compose the message the script prescribes; its ids differ each time, as a real model's would."""
    last = body["messages"][-1]["content"]
    if isinstance(last, str):
        content, stop_reason = _ask_for_tools(last, number), "tool_use"
    else:
        content, stop_reason = _conclude(last), "end_turn"
    return {
        "id": f"msg_{number:06d}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": len(json.dumps(body)) // 4, "output_tokens": len(json.dumps(content)) // 4},
    }


def _ask_for_tools(prompt: str, number: int) -> list[Block]:
    ordered = _ORDERED.search(prompt)
    if ordered is None:
        return [{"type": "text", "text": "I can only take orders."}]
    item, count = ordered["item"], int(ordered["count"])
    return [
        {"type": "text", "text": f"I will see whether we have {count} x {item} and what that costs."},
        {"type": "tool_use", "id": f"toolu_{number:06d}_0", "name": "look_up_stock", "input": {"item": item}},
        {
            "type": "tool_use",
            "id": f"toolu_{number:06d}_1",
            "name": "quote_price",
            "input": {"item": item, "count": count},
        },
    ]


def _conclude(results: Sequence[Block]) -> list[Block]:
    told = "; ".join(str(block["content"]) for block in results)
    return [{"type": "text", "text": f"Your order is on its way, and this is how it went: {told}."}]


def _stream(message: dict[str, Any]) -> Iterator[Block]:
    """Cut a message into the events of the Messages API."""
    usage = {"input_tokens": message["usage"]["input_tokens"], "output_tokens": 1}
    opening = {**message, "content": [], "stop_reason": None, "usage": usage}
    yield {"type": "message_start", "message": opening}
    yield {"type": "ping"}
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            shell: Block = {"type": "text", "text": ""}
            pieces = re.findall(r"\S+\s*", block["text"])
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces]
        else:
            shell, text = {**block, "input": {}}, json.dumps(block["input"])
            pieces = [text[at : at + _JSON_PIECE_CHARS] for at in range(0, len(text), _JSON_PIECE_CHARS)]
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        yield {"type": "content_block_start", "index": index, "content_block": shell}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": message["usage"]["output_tokens"]}}
    yield {"type": "message_stop"}


if __name__ == "__main__":
    asyncio.run(serve(ModelServer(Book(Path(sys.argv[1]))), int(sys.argv[2])))
