"""Say what is recorded of a moment that a hook told of, and about whom.

Invariants:
    - Everything follows from the delivery and the settings, so what is recorded twice is the same.
    - A receipt of a hook names its delivery.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from holdfast.lifecycle.annotations import annotate
from holdfast.lifecycle.documents import CallbackRequest, CallbackResponse, NegotiatedPlan, OpenObject, ReceiptContext
from holdfast.lifecycle.errors import AdapterIdNotFound
from holdfast.lifecycle.flight import Unasked
from holdfast.lifecycle.harness import EventDraft, HookEvent
from holdfast.lifecycle.harness.requests import context_for, degraded_request, late_response, request_for
from holdfast.lifecycle.ledger import Claim, Draft, Emit, Entry, Lease
from holdfast.lifecycle.negotiation import negotiate, route

if TYPE_CHECKING:
    from holdfast.lifecycle.config import Client, LifecycleConfig
    from holdfast.lifecycle.deliveries import Moment
    from holdfast.lifecycle.documents import AdapterManifest, CapabilityRequirement
    from holdfast.lifecycle.manifest import Registry

__all__ = ["Late", "Scribe"]


class Late(NamedTuple):
    """A client that wants to be asked about an event whose moment is over."""

    draft: EventDraft
    client: Client


class Scribe:
    """Knows what is recorded where nobody is asked, and what who is asked is told."""

    def __init__(self, config: LifecycleConfig, registry: Registry) -> None:
        """Make one of settings, and of the manifests of the harnesses."""
        self._config = config
        self._registry = registry

    def manifest(self, event: HookEvent) -> AdapterManifest:
        """Return what the adapter of a hook offers.

        Raises:
            AdapterIdNotFound: It is not registered.
        """
        manifest = self._registry.get(event.harness)
        if manifest is None:
            raise AdapterIdNotFound(event.harness)
        return manifest

    def request(self, moment: Moment, draft: EventDraft) -> CallbackRequest:
        """Return the request about an event."""
        return request_for(
            moment.event,
            draft,
            moment.occurrence,
            label=self._config.label,
            version=self.manifest(moment.event).adapter_version,
            prompt_chars=self._config.prompt_head_chars,
        )

    def told(self, moment: Moment) -> tuple[list[Entry], list[Late]]:
        """Return what is recorded of a moment that is over, and which clients are to be asked even now."""
        # What a client may have asked for had no effect: a delivery whose answer was decided has ended with it.
        entries: list[Entry] = []
        late: list[Late] = []
        for draft in moment.event.drafts:
            request = self.request(moment, draft)
            for client in self._config.bound(moment.event.harness, draft.event):
                if draft.event in client.late:
                    late.append(Late(draft, client))
                    continue
                plan = self._negotiated(moment, request, client.requirements())
                entries.append(self._skipped(moment, request, plan, client.id))
                entries += [self.degraded(moment, each) for each in plan.capability_degradations]
            entries += self.unbound(moment, draft)
        return entries, late

    def unbound(self, moment: Moment, draft: EventDraft) -> list[Entry]:
        """Return the receipt of an event that is recorded without anybody being asked, if it is."""
        bound = self._config.bound(moment.event.harness, draft.event)
        if self._config.observer == "off" or (bound and self._config.observer != "always"):
            return []
        request = self.request(moment, draft)
        return [self._emitted(moment, request, self._negotiated(moment, request, ()))]

    def degraded(self, moment: Moment, degradation: OpenObject) -> Entry:
        """Return the receipt of the first degradation of a capability in a session; a later one finds it there."""
        request = degraded_request(
            moment.event,
            str(degradation.get("capability")),
            label=self._config.label,
            version=self.manifest(moment.event).adapter_version,
        )
        plan = self._negotiated(moment, request, ())
        return self._emitted(moment, request, msgspec.structs.replace(plan, capability_degradations=(degradation,)))

    def _skipped(self, moment: Moment, request: CallbackRequest, plan: NegotiatedPlan, client_id: str) -> Entry:
        context = context_for(request, client_id, moment.delivery.received_at)
        response = None if plan.blocks_dispatch else late_response(request.schema_version)
        # Nobody needs the claim: it is settled in the same transaction.
        claim = Claim(plan, context, Lease("", 0), mode="semantic")
        return Unasked(claim, self._draft(moment, plan, response, context))

    def _emitted(self, moment: Moment, request: CallbackRequest, plan: NegotiatedPlan) -> Entry:
        context = context_for(request, self._config.client_id, moment.delivery.received_at)
        return Emit(self._draft(moment, plan, None, context), "semantic")

    def _draft(
        self, moment: Moment, plan: NegotiatedPlan, response: CallbackResponse | None, context: ReceiptContext
    ) -> Draft:
        notes = annotate(plan, response, context, dispatched=False, policy=self._config.policy)
        notes = msgspec.structs.replace(notes, delivery=moment.delivery.id)
        return Draft(plan, response, context, annotations=notes, origin="hook")

    def _negotiated(
        self, moment: Moment, request: CallbackRequest, requirements: Sequence[CapabilityRequirement]
    ) -> NegotiatedPlan:
        now = moment.delivery.received_at // 1_000_000
        return negotiate(route(request, self._registry), requirements, now_epoch_s=now, policy=self._config.policy)
