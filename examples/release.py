"""A release script that can be started again, whatever happened to it.

    python examples/release.py releases.db 1.4.0

It is synchronous, as scripts are. Each of its steps answers the question that a half-done release raises in its own
way: building is repeated, uploading is repeated under the same key, and the announcement is never made twice, even
if that means that it may not be made at all.
"""

from __future__ import annotations

import sys
from pathlib import Path

import holdfast
import holdfast.sync

UPLOADS = Path("uploads.txt")
MAILS = Path("mails.txt")


def note(book: Path, line: str) -> None:
    """Let something happen outside, for good."""
    with book.open("a") as file:
        file.write(f"{line}\n")


@holdfast.step(effect=holdfast.idempotent())
def build(version: str) -> str:
    """Build the package."""
    return f"package-{version}.tar"


@holdfast.step(effect=holdfast.exactly_once("custom", on_ambiguous=holdfast.rerun_with_key()))
def upload(package: str) -> None:
    """Upload it to a server that takes an upload once per key."""
    key = holdfast.current_step().idempotency_key.hex()
    if not UPLOADS.exists() or key not in UPLOADS.read_text():
        note(UPLOADS, f"{package} {key}")


@holdfast.step(effect=holdfast.exactly_once("custom", on_ambiguous=holdfast.skip("perhaps announced")))
def announce(version: str) -> str:
    """Write to everybody; nobody wants that mail twice."""
    note(MAILS, f"version {version} is out")
    return "announced"


@holdfast.durable(kind="examples.release")
def release(version: str) -> str:
    """Build, upload, announce."""
    upload(build(version))
    return f"{version} {announce(version)} at {holdfast.sync.now():%H:%M}"


def main(ledger: str, version: str) -> None:
    """Make, or finish, the release of a version."""
    with holdfast.sync.open(ledger) as hf:
        print(hf.run(release, version, id=f"release-{version}"))


if __name__ == "__main__":
    main(*sys.argv[1:])
