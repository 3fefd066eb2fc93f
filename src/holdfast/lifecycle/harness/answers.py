"""Put together what clients ask of a harness into one answer to its hook. Pure.

Invariants:
    - Context is taken in the order in which clients answered, each payload whole or not at all, within the limit of
      its place.
    - What a client asked for and did not get is noted with its receipt.
"""

from __future__ import annotations

from typing import Final

import msgspec

from holdfast.lifecycle.annotations import Annotations, ClientPayloadNote
from holdfast.lifecycle.documents import AcceptablePlacement, AdapterManifest, CallbackResponse, Chosen, PayloadEnvelope
from holdfast.lifecycle.enums import LifecycleEventKind
from holdfast.lifecycle.harness import Directive, HookEvent, expressed, merge, spoken
from holdfast.lifecycle.negotiation import PayloadPolicy, body_bytes, fit

__all__ = ["Answer", "Heard"]

_JOINT: Final = "\n\n"
_AS_IT_IS: Final = PayloadPolicy(integrity="off", expiry="ignore")


class Heard(msgspec.Struct, frozen=True):
    """What one client asks of the harness, as far as the hook can express it.

    Attributes:
        directive: What is left of it.
        dropped: Why its action, or its reason, is not.
        refused: Why a payload of its is not in the answer, by the payload's place; None: it is.
    """

    directive: Directive
    dropped: str | None = None
    refused: tuple[str | None, ...] = ()


class Answer:
    """The answer to a hook, as it grows. `hear` only asks, `take` adds."""

    def __init__(self, event: HookEvent, manifest: AdapterManifest, *, now_epoch_s: int, policy: PayloadPolicy) -> None:
        """Begin with nothing asked for.

        Args:
            event: The hook.
            manifest: What its adapter offers.
            now_epoch_s: When it came.
            policy: How odd payloads are taken.
        """
        self._event = event
        self._manifest = manifest
        self._now = now_epoch_s
        self._policy = policy
        self._taken: list[Directive] = []
        self._bytes_count = 0

    @property
    def directive(self) -> Directive:
        """What all clients so far ask for."""
        return merge(self._taken)

    def keeps(self, event: LifecycleEventKind) -> bool:
        """Say whether an event of the hook does not happen, because of what clients ask for."""
        action = self.directive.action
        if event == "frame.opened":
            return action in ("block", "halt")
        return event == "frame.ended" and action == "continue"

    def hear(self, response: CallbackResponse | None) -> Heard:
        """Say what is taken of a client's response; of one that failed, nothing."""
        if response is None or response.status == "failed":
            return Heard(Directive())
        texts: list[str] = []
        refused = []
        used = self._bytes_count
        for payload in response.client_payloads:
            text, why = self._room(payload, used)
            if text is not None:
                texts.append(text)
                used += len((_JOINT if used else "").encode()) + len(text.encode())
            refused.append(why)
        asked = msgspec.structs.replace(spoken(response.metadata), context=_JOINT.join(texts) or None)
        directive, dropped = expressed(self._event, asked)
        return Heard(directive, dropped, tuple(refused))

    def take(self, heard: Heard) -> None:
        """Add to the answer what a client asks for."""
        self._taken.append(heard.directive)
        if heard.directive.context is not None:
            self._bytes_count += len((_JOINT if self._bytes_count else "").encode())
            self._bytes_count += len(heard.directive.context.encode())

    def annotated(self, notes: Annotations, response: CallbackResponse | None) -> Annotations:
        """Note with a receipt what became of what its client asks for."""
        heard = self.hear(response)
        payloads = tuple(
            note if why is None else _nowhere(note, why)
            for note, why in zip(notes.client_payloads, heard.refused, strict=False)
        )
        directive = notes.directive
        if directive is not None and directive.dropped is None and heard.dropped is not None:
            directive = msgspec.structs.replace(directive, dropped=heard.dropped)
        return msgspec.structs.replace(
            notes, client_payloads=payloads + notes.client_payloads[len(payloads) :], directive=directive
        )

    def _room(self, payload: PayloadEnvelope, used: int) -> tuple[str | None, str | None]:
        """Return the text of a payload where the answer has room for it, or why it has none."""
        found = fit(payload, self._manifest, now_epoch_s=self._now, policy=self._policy)
        if not isinstance(found, Chosen):
            return None, found.failure_class
        if found.chosen == "receipt_only":
            return None, None
        if "context" not in self._event.means:
            return None, "not_expressible"
        body = body_bytes(payload)
        try:
            text = None if body is None else body.decode()
        except UnicodeDecodeError:
            text = None
        if not text:
            return None, "no_text"
        size = used + len(_JOINT if used else "") + len(text.encode())
        whole = msgspec.structs.replace(
            payload,
            byte_size=size,
            acceptable_placements=(AcceptablePlacement(placement=found.chosen, requirement="optional"),),
        )
        if not isinstance(fit(whole, self._manifest, now_epoch_s=self._now, policy=_AS_IT_IS), Chosen):
            return None, "reply_full"
        return text, None


def _nowhere(note: ClientPayloadNote, why: str) -> ClientPayloadNote:
    return msgspec.structs.replace(note, placement=None, why=why)
