"""Which session a call belongs to: the rules of each member, whether it came as JSON or as headers. Pure.

Invariants:
    - What an `Envelope` holds can be stored: no control characters in ids, nothing longer than its limit.
    - A session id that we make ourselves is never taken from a caller.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from uuid import UUID

from holdfast.sessions import identity, jcs
from holdfast.sessions.errors import InvalidField, MalformedJson, NumberRange, OrgMismatch
from holdfast.sessions.jcs import Json
from holdfast.sessions.limits import (
    CWD_BYTES_MAX,
    ID_BYTES_MAX,
    METADATA_BYTES_MAX,
    METADATA_DEPTH_MAX,
    NAME_BYTES_MAX,
)
from holdfast.sessions.values import Envelope

__all__ = ["checked", "cut", "limited", "session_id", "uncontrolled"]

_HARNESS_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def checked(given: Mapping[str, Json], flags: set[str], *, org: UUID | None, at: str = "/session") -> Envelope:
    """Return the envelope of a call.

    Args:
        given: The members as they were sent.
        flags: What was cut off or emptied goes here.
        org: The credential's org; None where the envelope itself says whose it is.
        at: JSON pointer of the members, for messages.

    Raises:
        InvalidField: A member breaks its rule.
        OrgMismatch: It names another org.
    """
    parent = given.get("parent_harness_session_id")
    if parent is not None and not (isinstance(parent, str) and parent.strip()):
        raise InvalidField(
            "a parent's session id is not empty", "leave it out", field=f"{at}/parent_harness_session_id"
        )
    parent_harness = _harness(given, "parent_harness_id", at)
    if parent_harness and parent is None:
        raise InvalidField(
            "a parent's harness without its session id says nothing",
            "give parent_harness_session_id too",
            field=f"{at}/parent_harness_id",
        )
    return Envelope(
        harness_id=_harness(given, "harness_id", at) or identity.UNKNOWN,
        harness_session_id=session_id(given, "harness_session_id", at, flags),
        harness_version=limited(given, "harness_version", ID_BYTES_MAX, flags, at),
        cwd=uncontrolled(limited(given, "cwd", CWD_BYTES_MAX, None, at), "cwd", flags),
        name=uncontrolled(cut(_text(given, "name", at), NAME_BYTES_MAX, flags), "name", flags),
        auth_subject=limited(given, "auth_subject", ID_BYTES_MAX, flags, at),
        org_id=_org(given, org, at),
        parent_harness_id=parent_harness,
        parent_harness_session_id=session_id(given, "parent_harness_session_id", at, flags),
        harness_metadata=_metadata(given, at),
    )


def _text(given: Mapping[str, Json], name: str, at: str) -> str:
    value = given.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidField(f"{name} is no text", field=f"{at}/{name}")
    return value


def limited(given: Mapping[str, Json], name: str, bytes_max: int, flags: set[str] | None, at: str) -> str:
    """Return a text of limited length, fit for a text column; None for `flags` leaves control characters to others.

    Raises:
        InvalidField: It is no text, or too long.
    """
    value = given.get(name)
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        raise InvalidField(f"{name} is no text", field=f"{at}/{name}")
    size = len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if size > bytes_max:
        raise InvalidField(f"{name} has more than {bytes_max} bytes", field=f"{at}/{name}", limit=name)
    if flags is None:
        return value
    return _scrubbed(value, flags)


def _scrubbed(value: str, flags: set[str]) -> str:
    clean = jcs.scrub(value)
    if clean != value:
        flags.add("scrubbed")
    return clean


def _harness(given: Mapping[str, Json], name: str, at: str) -> str:
    value = _text(given, name, at)
    if value and not _HARNESS_ID.fullmatch(value):
        raise InvalidField(f"{name} is 1 to 64 of A-Z a-z 0-9 . _ -", field=f"{at}/{name}")
    return value


def session_id(given: Mapping[str, Json], name: str, at: str, flags: set[str]) -> str:
    """Return a harness's session id.

    Raises:
        InvalidField: It is no text, too long, has control characters or outer white space, or is one of ours.
    """
    value = limited(given, name, ID_BYTES_MAX, None, at)
    if not value:
        return value
    if value != value.strip() or (not value.isprintable() and _CONTROLS.search(value)):
        raise InvalidField(f"{name} has control characters or outer white space", field=f"{at}/{name}")
    if identity.is_synthetic(value):
        raise InvalidField(f"{name} begins like those that are made here", field=f"{at}/{name}")
    return _scrubbed(value, flags)


def uncontrolled(value: str, name: str, flags: set[str]) -> str:
    """Return a text, or an empty one where it has control characters: such a value is not recorded."""
    if not value.isprintable() and _CONTROL.search(value):
        flags.add(f"{name}_control_characters")
        return ""
    return _scrubbed(value, flags)


def cut(value: str, bytes_max: int, flags: set[str]) -> str:
    """Return as many whole characters of a text as fit."""
    if not value or len(raw := jcs.scrub(value).encode()) <= bytes_max:
        return value
    flags.add("name_cut")
    return raw[:bytes_max].decode("utf-8", "ignore")


def _org(given: Mapping[str, Json], org: UUID | None, at: str) -> str:
    value = _text(given, "org_id", at)
    if not value:
        return "" if org is None else _shown(org)
    said = identity.org_id(value)
    if said is None:
        raise InvalidField("org_id is no UUID", field=f"{at}/org_id")
    if org is not None and said != org:
        raise OrgMismatch("the body names another org than the credential's", "leave org_id out")
    return str(said)


@functools.lru_cache(maxsize=64)
def _shown(org: UUID) -> str:
    return str(org)


def _metadata(given: Mapping[str, Json], at: str) -> Mapping[str, Json]:
    if "harness_metadata" not in given:
        return {}
    value, where = given["harness_metadata"], f"{at}/harness_metadata"
    if not isinstance(value, dict):
        raise InvalidField("harness_metadata is no object", field=where)
    try:
        written = jcs.write(value)
        jcs.check_depth(written, METADATA_DEPTH_MAX)
    except (MalformedJson, NumberRange) as error:
        raise InvalidField(f"harness_metadata: {error}", field=where) from None
    if len(written) > METADATA_BYTES_MAX:
        raise InvalidField(
            f"harness_metadata has more than {METADATA_BYTES_MAX} bytes", field=where, limit="harness_metadata"
        )
    return value
