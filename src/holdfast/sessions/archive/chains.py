"""Nodes, which sessions hold them, and the large parts of requests' parameters.

A node is kept once per org, however many turns send it. Marks only grow along a chain, so what is known of a node
is known of all above it: a turn that adds two messages to a thousand looks at a few and writes two.

Invariants:
    - A node's content is that of the evidence with the smallest mark; a session's link has the smallest mark too.
    - A session holds the whole chain of each of its evidences, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from holdfast.sessions import jcs
from holdfast.sessions.archive import rows
from holdfast.sessions.archive.work import SWEEP, Seen, Work, seen_of
from holdfast.sessions.derivation import Derived
from holdfast.sessions.evidence import Account, Evidence
from holdfast.sessions.nodes import HASH_VERSION, Node

__all__ = ["DEPTH_ANY", "add_chain", "add_held", "add_parts", "packed", "relink", "sweep"]

DEPTH_ANY = 2**53
"""Deeper than any chain."""

_WINDOWS = (4, 32, 256)
"""How many nodes are looked at together, from the end of a chain: most turns add few."""


_LARGE_CHARS = 1024 * 1024
"""A longer text makes its node a large one: an image, as a rule, that would else be held, and packed on the loop."""


def packed(derived: Derived) -> Derived:
    """Return what an event says with its large nodes as they are stored. It takes a while, and saves room later."""
    large = {node.hash: rows.write_blocks(node) for node in derived.nodes if _is_large(node)}
    if not large:
        return derived
    nodes = [replace(node, blocks=()) if node.hash in large else node for node in derived.nodes]
    return replace(derived, nodes=nodes, packed=large)


def _is_large(node: Node) -> bool:
    return any(
        isinstance(text := getattr(block, name), str) and len(text) > _LARGE_CHARS
        for block in node.blocks
        for name in ("text", "image_base64", "tool_output", "thinking")
    )


async def add_chain(work: Work, session_id: bytes, evidence: Evidence, derived: Derived) -> None:
    """Keep the nodes of an evidence that came, and link them to its session."""
    chain = derived.nodes
    mark, version = rows.mark_of(evidence.mark), evidence.says.hash_version
    start = await _known(work, session_id, version, chain, mark)
    org = work.org.bytes
    await work.tx.run(
        "nodes.put",
        [
            (
                org,
                version,
                bytes.fromhex(node.hash),
                bytes.fromhex(node.parent) if node.parent else None,
                jcs.scrub(node.role),
                derived.packed.get(node.hash) or rows.write_blocks(node),
                mark,
            )
            for node in sorted(chain[start:], key=lambda node: node.hash)
        ],
    )
    await _link(work, session_id, version, [bytes.fromhex(node.hash) for node in chain[start:]], mark)


async def _known(work: Work, session_id: bytes, version: int, chain: Sequence[Node], mark: bytes) -> int:
    """Return how many nodes from the root need not be written: they are there, with smaller marks."""
    end, windows = len(chain), iter(_WINDOWS)
    while end:
        start = max(end - next(windows, end), 0)
        found = await work.tx.all(
            "nodes.marks",
            hashes=json.dumps([node.hash for node in chain[start:end]]),
            session_id=session_id,
            org=work.org.bytes,
            hash_version=version,
        )
        old = {row.hash for row in found if row.node_mark < mark and row.link_mark is not None and row.link_mark < mark}
        for index in range(end - 1, start - 1, -1):
            if bytes.fromhex(chain[index].hash) in old:
                return index + 1
        end = start
    return 0


async def _link(work: Work, session_id: bytes, version: int, hashes: Iterable[bytes], mark: bytes) -> None:
    await work.tx.run(
        "node_links.put", [(work.org.bytes, session_id, version, each, mark) for each in sorted(set(hashes))]
    )


async def add_held(work: Work, session_id: bytes, evidence: Evidence) -> None:
    """Link what an evidence holds to a session that it has come to."""
    for version, leaf in _leaves(evidence.says):
        found = await work.tx.all(
            "node_links.chain", org=work.org.bytes, hash_version=version, leaf=leaf, depth=DEPTH_ANY
        )
        await _link(work, session_id, version, [row.hash for row in found], rows.mark_of(evidence.mark))
    parts = sorted(rows.part_hashes(evidence.says.request_params))
    await work.tx.run("part_links.add", [(work.org.bytes, session_id, each) for each in parts])


def _leaves(says: Account) -> list[tuple[int, bytes]]:
    leaf = says.response_hash or says.head_hash
    return [(says.hash_version, bytes.fromhex(leaf))] if leaf else []


async def add_parts(work: Work, session_id: bytes, parts: dict[bytes, bytes]) -> None:
    """Keep the large parts of an evidence that came, and link them to its session."""
    org = work.org.bytes
    for hashed in sorted(parts):
        if await work.tx.one("part_links.has", org=org, session_id=session_id, hash=hashed) is None:
            await work.tx.run("parts.put", [(org, hashed, rows.pack(parts[hashed]))])
            await work.tx.run("part_links.add", [(org, session_id, hashed)])


async def relink(work: Work, session_id: bytes) -> None:
    """Hold for a session what its evidences hold, after some have left it.

    Nodes by the rules of another time stay while the evidence that they came with does: their hashes are known outside.
    """
    org = work.org.bytes
    named = {"org": org, "session_id": session_id}
    held = await work.tx.all("node_links.of_session", **named)
    nodes = {(row.hash_version, row.hash) for row in held}
    parts = {row.hash for row in await work.tx.all("part_links.of_session", **named)}
    await work.tx.run("node_links.clear", [(org, session_id)])
    await work.tx.run("part_links.clear", [(org, session_id)])
    marks: set[bytes] = set()
    for row in await work.tx.all("turn_evidence.of_session", **named):
        seen: Seen = seen_of(row)
        marks.add(rows.mark_of(seen.evidence.mark))
        await add_held(work, session_id, seen.evidence)
    for row in held:
        if row.hash_version != HASH_VERSION and row.mark in marks:
            await _link(work, session_id, row.hash_version, [row.hash], row.mark)
    nodes -= {(row.hash_version, row.hash) for row in await work.tx.all("node_links.of_session", **named)}
    parts -= {row.hash for row in await work.tx.all("part_links.of_session", **named)}
    left = [each for each in sorted(nodes) if not await _held(work, *each)]
    if left or parts:
        await sweep(work, left, sorted(parts))


async def _held(work: Work, version: int, hashed: bytes) -> bool:
    found = await work.tx.all("node_links.of_node", org=work.org.bytes, hash_version=version, hash=hashed, limit=1)
    return bool(found)


async def sweep(work: Work, nodes: Sequence[tuple[int, bytes]], parts: Sequence[bytes]) -> None:
    """Take away nodes and parts that no session holds any more.

    Raises:
        Widen: Others may be about to hold them.
    """
    work.require([SWEEP])
    await work.tx.run("nodes.sweep", [(work.org.bytes, *each) for each in nodes])
    await work.tx.run("parts.sweep", [(work.org.bytes, each) for each in parts])
