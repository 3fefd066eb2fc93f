"""`holdfast hook serve`: the resident as a command."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.cli.ledger import Place, drive, placed

if TYPE_CHECKING:
    from holdfast.lifecycle.resident import Ending

__all__ = ["serve"]


@placed
def serve(place: Place) -> None:
    """See to hook calls for the processes that make them, until SIGTERM or Ctrl-C.

    A configuration that changes is read again. A call of another version ends it, once it has finished its work.
    """
    while drive(_serve(place)) == "reconfigured":
        pass


async def _serve(place: Place) -> Ending:
    import os
    import sys

    from holdfast.cli.documents import opened
    from holdfast.cli.render import line
    from holdfast.lifecycle import plan, planning
    from holdfast.lifecycle.hooks import Hooks
    from holdfast.lifecycle.resident import Resident

    def head() -> str:
        return plan.head(place.config, place.db, os.environ)

    before = head()
    config, state_dir = place.lifecycle(), str(place.state_dir().absolute())
    async with opened(place) as database:
        planning.refresh(before, config=config, database=database, target=place.target(), state_dir=state_dir)
        spools = plan.spools(state_dir, os.environ)
        async with Hooks(database, config=config, clock=database.clock, spools=spools) as hooks:

            async def derive() -> None:
                while await hooks.derive(call_clients=True):
                    pass

            resident = Resident(
                hooks.receive,
                derive=derive,
                tidy=hooks.tidy,
                head=head,
                directory=state_dir,
                clock=database.clock,
            )
            async with resident.listening():
                line(f"listening on {resident.path}")
                sys.stdout.flush()  # whoever started it waits for this line
                return await resident.over()
