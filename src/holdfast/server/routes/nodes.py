"""Messages over HTTP: one, and the way to its root.

Invariants:
    - What is long is cut, and says so, unless all of it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from litestar import Response, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from holdfast.server.answers import Asked, shown, there
from holdfast.server.backend import Backend
from holdfast.sessions.archive.shown import previewed
from holdfast.sessions.values import Principal
from holdfast.sessions.views import Node

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["HANDLERS"]

Depth = Annotated[int, QueryParameter(ge=0, le=10_000)]
Payload = Literal["preview", "full"]

READS = {"tagged": True, "codes": ("sessions.not_found",)}
WHOLE_BYTES_MAX = 1024 * 1024
"""What is shown whole without being asked for."""


@dataclass(frozen=True, slots=True)
class Way:
    """The way from a message to its root, the message itself first.

    Attributes:
        truncated: Whether it goes on beyond what was asked for.
        missing_parent: The parent of the last message, where it should be there and is not.
    """

    items: list[Node]
    truncated: bool
    missing_parent: str | None


@get("/v1/nodes/{hash:str}", opt=READS, summary="Show a message, and which sessions hold it", tags=["sessions"])
async def node(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    hash: FromPath[str],
    payload: FromQuery[Payload | None] = None,
) -> Response[Node]:
    found = await backend.archive.node(hash, principal=principal)
    return await shown(request, _fitting([there(found, "node")], payload)[0])


@get("/v1/nodes/{hash:str}/ancestry", opt=READS, summary="Show the way from a message to its root", tags=["sessions"])
async def ancestry(
    request: Asked,
    backend: NamedDependency[Backend],
    principal: NamedDependency[Principal],
    hash: FromPath[str],
    depth: Depth = 10_000,
    payload: FromQuery[Payload | None] = None,
) -> Response[Way]:
    way = there(await backend.archive.ancestry(hash, depth=depth, principal=principal), "node")
    return await shown(request, Way(_fitting(way, payload), way.truncated, way.missing_parent))


def _fitting(found: Sequence[Node], payload: Payload | None) -> list[Node]:
    """Cut the texts of messages where that is asked for, or where they are long and nobody asked for all of them."""
    whole = payload == "full" or (
        payload is None and sum(len(msgspec.json.encode(each.content)) for each in found) <= WHOLE_BYTES_MAX
    )
    return list(found) if whole else list(map(previewed, found))


HANDLERS = [node, ancestry]
