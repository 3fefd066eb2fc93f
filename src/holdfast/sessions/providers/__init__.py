"""What providers say, as facts: one module each, and here which of them reads a call. Pure.

Nothing that a provider sent makes `parse` raise: a part that cannot be read is a flag, a call that cannot be is facts
with a reason.

Invariants:
    - Equal bytes give equal facts, wherever and whenever they are read.
    - A provider that nobody here knows is kept as it is, and read when somebody does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from holdfast.sessions.errors import NumberRange
from holdfast.sessions.jcs import Json
from holdfast.sessions.providers import anthropic, chat, ollama, responses
from holdfast.sessions.providers.answers import Answer
from holdfast.sessions.providers.reading import params, request_of, text_of, unparsed
from holdfast.sessions.values import Facts, Message

__all__ = ["PROVIDERS", "Parser", "builtin", "parse"]


class Dialect(Protocol):
    """What a module that knows one API offers."""

    def messages(self, request: dict[str, Json], flags: set[str], /) -> list[Message]: ...
    def system(self, request: dict[str, Json], /) -> str: ...
    def offers_tools(self, request: dict[str, Json], /) -> bool: ...
    def output_max(self, request: dict[str, Json], /) -> int | None: ...
    def answer(self, body: bytes, content_type: str, flags: set[str], /) -> Answer: ...


Choice: TypeAlias = Callable[[str, Mapping[str, Json]], tuple[str, Dialect]]
Parser: TypeAlias = Callable[[bytes | None, bytes | None, str, str], Facts]
"""Request, response, content type of the response, endpoint."""


def parse(
    provider: str,
    request: bytes | None,
    response: bytes | None,
    *,
    content_type: str = "",
    endpoint: str = "",
    providers: Mapping[str, Parser] | None = None,
) -> Facts:
    """Read what was sent to a provider and what came back, both without content codings.

    Args:
        provider: Its name.
        request: The body that was sent; None where only the call itself was captured.
        response: The body that came back; None where there was none, or where it is not to be had.
        content_type: Of the response; empty where it is not known.
        endpoint: Path or name; empty where it is not known.
        providers: Who reads what; None for those that come with the slice.
    """
    parser = (PROVIDERS if providers is None else providers).get(provider)
    if parser is None:
        return unparsed(provider, endpoint, "unknown_provider")
    return parser(request, response, content_type, endpoint)


def builtin(provider: str, choose: Choice) -> Parser:
    """Return the parser of a provider whose dialect is chosen by endpoint and request."""

    def read(request: bytes | None, response: bytes | None, content_type: str, endpoint: str) -> Facts:
        if request is None:
            return Facts(provider=provider, endpoint=endpoint)
        asked = request_of(provider, endpoint, request)
        if isinstance(asked, Facts):
            return asked
        name, dialect = choose(endpoint, asked)
        flags: set[str] = set()
        try:
            messages = dialect.messages(asked, flags)
            answer = _answered(dialect, response, content_type, flags)
        except NumberRange:
            return unparsed(provider, endpoint or name, "number_range")
        if not messages:
            return unparsed(provider, endpoint or name, "no_messages")
        return Facts(
            provider=provider,
            endpoint=endpoint or name,
            model=answer.model or text_of(asked.get("model")),
            messages=tuple(messages),
            response=_said(answer),
            outcome=answer.outcome,
            error_type=answer.error_type,
            stop_reason=answer.stop_reason,
            message_id=answer.message_id,
            usage=answer.usage,
            usage_final=answer.usage_final,
            raw_usage=answer.raw_usage,
            request_params=params(asked, *_MESSAGES),
            system=dialect.system(asked),
            tools_offered=dialect.offers_tools(asked),
            output_max=dialect.output_max(asked),
            flags=tuple(sorted(flags)),
        )

    return read


def _said(answer: Answer) -> Message | None:
    """Return what came back; an answer of which nothing came is none, but one that ended empty is."""
    whole = answer.outcome == "complete"
    return Message("assistant", tuple(answer.blocks)) if whole or answer.blocks else None


_MESSAGES = ("messages", "input", "prompt", "images")


def _answered(dialect: Dialect, response: bytes | None, content_type: str, flags: set[str]) -> Answer:
    if response is None:
        return Answer(flags, outcome="none")
    if not response.strip():
        return Answer(flags, error_type="empty_response")
    return dialect.answer(response, content_type, flags)


def _anthropic(endpoint: str, request: Mapping[str, Json]) -> tuple[str, Dialect]:
    return "/v1/messages", anthropic


def _openai(endpoint: str, request: Mapping[str, Json]) -> tuple[str, Dialect]:
    path = endpoint.partition("?")[0].rstrip("/")
    if path.endswith("responses"):
        return path, responses
    if path.endswith("completions") or "input" not in request:
        return "/v1/chat/completions", chat
    return "/v1/responses", responses


def _ollama(endpoint: str, request: Mapping[str, Json]) -> tuple[str, Dialect]:
    return ("/api/generate" if "prompt" in request else "/api/chat"), ollama


PROVIDERS: Mapping[str, Parser] = {
    "anthropic": builtin("anthropic", _anthropic),
    "ollama": builtin("ollama", _ollama),
    "openai": builtin("openai", _openai),
}
"""The providers that come with the slice."""
