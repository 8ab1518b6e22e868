"""The planner's shell: fits the site's assignments to its chips every two seconds and whenever something changed.

Owns the loop and the storing of new plans. Refuses to decide where anything goes: `policy.placement` does. Called
by the site process.
"""

import asyncio

from madang.core import Clock, NodeId, SiteId, Unavailable
from madang.policy.placement import plan_placement
from madang.runtime.telemetry import EventLog
from madang.site.desired import DesiredView
from madang.site.guard import GuardedStore
from madang.site.link import HubLink
from madang.site.nodes import NodeBook, NodeState, make_plan, write_plan
from madang.wire.node_api import NodePlan

TICK_S = 2.0
TRUSTED_AFTER_S = 30.0
"""A hub that was linked so long without ordering a resync agrees with what this site holds."""
_RETRY_S = 1.0


class Planner:
    """Plans for all nodes of one site."""

    def __init__(
        self,
        *,
        site: str,
        view: DesiredView,
        link: HubLink,
        book: NodeBook,
        store: GuardedStore,
        clock: Clock,
        log: EventLog,
    ) -> None:
        self._site = SiteId(site)
        self._view = view
        self._link = link
        self._book = book
        self._store = store
        self._clock = clock
        self._log = log
        self._reasons: dict[str, str] = {}

    async def run(self) -> None:
        """Plan for ever; `changed` of the node book is also raised when desired state changes."""
        while True:
            seen = self._book.changed.level
            try:
                await self.step()
            except Unavailable:
                # The guarded store has said so; what cannot be stored must not be handed out.
                await asyncio.sleep(_RETRY_S)
            await self._book.changed.wait(seen, TICK_S)

    async def step(self) -> None:
        """Plan once and store what changed; raises Unavailable when the database cannot be written."""
        # A site that has never heard from the hub knows nothing: an empty plan would stop what runs.
        if self._view.generation == 0 or not self._book.nodes:
            return
        view = self._view
        placement = plan_placement(
            view.assignments.values(), view.services, view.models, self._book.views(), self._book.plans()
        )
        self._book.unplaced = placement.unplaced
        self._tell({item.replica_id: item.reason for item in placement.unplaced})
        plans: dict[NodeId, NodePlan] = {}
        for name, node in self._book.nodes.items():
            plan = make_plan(self._site, node, placement.replicas.get(name, ()))
            if plan is not None and self._may_plan(node):
                plans[name] = plan
        if not plans:
            return
        now_s = self._clock.wall_s()

        def store(connection: object) -> None:
            for plan in plans.values():
                write_plan(connection, plan, now_s)  # type: ignore[arg-type]

        await self._store.write(store)
        for name, plan in plans.items():
            self._book.nodes[name].plan = plan
            self._log.info("node_planned", node=name, plan_gen=plan.generation, replicas=len(plan.replicas))
        self._book.changed.rise()

    def _may_plan(self, node: NodeState) -> bool:
        """Return whether a new plan for this node would not act on half of the truth.

        Its generation must be above the node's, so the node must have been heard. A node that runs a plan of which
        this database knows nothing belongs to a site that lost its disk: what it runs is left alone until the
        hub's snapshot is here, for the items that came so far may lack the assignments.
        """
        if node.observed is None:
            return False
        is_foreign = node.plan is None and node.observed.plan_generation > 0
        return not is_foreign or self._view.snapshot_generation > 0 or self._link.linked_s() >= TRUSTED_AFTER_S

    def _tell(self, reasons: dict[str, str]) -> None:
        """Log each replica that has no place when that, or the reason, is new."""
        for replica_id, reason in reasons.items():
            if self._reasons.get(replica_id) != reason:
                self._log.warning("replica_unplaced", replica=replica_id, reason=reason)
        for replica_id in self._reasons.keys() - reasons.keys():
            self._log.info("replica_not_unplaced_any_more", replica=replica_id)
        self._reasons = reasons
