"""The sizes that nobody configures, and why each is what it is. Pure.

What may be configured has its default in the slice's settings; what stands here is part of what a turn is, so two
ledgers with different settings still agree about it.

Invariants:
    - Beyond a limit a thing is refused, or cut as its rule says and flagged; never silently.
"""

from __future__ import annotations

__all__ = [
    "CAPTURE_ID_CHARS_MAX", "CLOCK_AHEAD_US_MAX", "CLOCK_EARLIEST_US", "CODED_BYTES_MAX", "CONFLICTS_MAX",
    "CONTINUATION_US", "CWD_BYTES_MAX", "DEPTH_MAX", "HEADER_METADATA_BYTES_MAX", "HEADER_SET_BYTES_MAX",
    "ID_BYTES_MAX", "METADATA_BYTES_MAX", "METADATA_DEPTH_MAX", "NAME_BYTES_MAX", "PARENTS_MAX", "TAGS_MAX",
    "TAG_BYTES_MAX", "TITLE_CHARS_MAX", "TOKENS_MAX", "ZSTD_WINDOW_BYTES_MAX",
]  # fmt: skip

CODED_BYTES_MAX = 50_331_648
"""What one content coding may unfold to, 48 MiB: every way of capturing has to agree which bodies exist."""

ZSTD_WINDOW_BYTES_MAX = 32 * 1024 * 1024
"""The history a zstd frame may ask for: it is allocated before a byte is decoded."""

DEPTH_MAX = 200
"""How deep JSON may nest: beyond any provider's schema, far below the stack of any reader."""

CAPTURE_ID_CHARS_MAX = 200
"""A capture id is a key of an index."""

ID_BYTES_MAX = 256
"""Text of an id, a subject, a version, an agent's name: room for a URL-like name, small enough for an index."""

NAME_BYTES_MAX = 256
"""A session's name: a line of a list."""

CWD_BYTES_MAX = 4096
"""A working directory: the longest path that systems take."""

METADATA_BYTES_MAX = 64 * 1024
"""A harness's metadata, and what a session folds of it."""

METADATA_DEPTH_MAX = 16
"""Metadata is for people to look at."""

HEADER_METADATA_BYTES_MAX = 4096
"""Metadata that comes as a header: servers refuse heads of more than 8 or 16 KiB."""

HEADER_SET_BYTES_MAX = 8192
"""All identity headers together, for the same reason."""

TAGS_MAX = 32
"""Tags of one event."""

TAG_BYTES_MAX = 64
"""One tag: a word or two."""

TITLE_CHARS_MAX = 80
"""A title made of the first words that were said: one line of a terminal."""

PARENTS_MAX = 10_000
"""Links that are followed upwards when a cycle is looked for; no honest chain of forks is as long."""

CONFLICTS_MAX = 32
"""Values of a session that disagree with the kept one and are listed."""

TOKENS_MAX = 2**63 - 1
"""The largest count that both databases store."""

CLOCK_AHEAD_US_MAX = 24 * 3600 * 1_000_000
"""A captured time further ahead of the receiver's clock than this is a wrong clock."""

CLOCK_EARLIEST_US = 946_684_800_000_000
"""2000-01-01: a captured time before it is a wrong clock."""

CONTINUATION_US = 24 * 3600 * 1_000_000
"""The default of how long after a turn another one may go on from it without a session id."""
