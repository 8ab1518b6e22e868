"""The shell of proposers and authority: looks, lets them decide, and does what was decided.

Owns the loop, what people asked for, the storing of the authority's state with every action in the audit log, and the
carrying out. Refuses to decide: `madang.policy.power` does. Called by the site program once a second, hub or not.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from functools import partial

import msgspec
import sqlalchemy as sa

from madang.core import Clock, MadangError, NodeId, Rejected, SiteId, Unavailable
from madang.model import Action, ActionState, Alarm, NodeState, Request, Verb
from madang.model.facility_site import Actuator, ActuatorKind, ActuatorMode
from madang.policy.power.authority import actuator_of, decide
from madang.policy.power.authority_reads import state_of
from madang.policy.power.loss import recall_loss
from madang.policy.power.proposers import ProposerMemory, ProposerRules, propose_all
from madang.policy.power.state import Approve, AuthorityRules, AuthorityState, Setpoint
from madang.runtime.telemetry import EventLog
from madang.site.audit import AUDIT_LOG
from madang.site.desired import read_meta, write_meta
from madang.site.facility.allowed import Allowed
from madang.site.facility.poller import Poller
from madang.site.facility.world import NodeUse, World, power_command, server_of
from madang.site.guard import GuardedStore

PERIOD_S = 1.0
FIRST_LOOK_S_MAX = 8.0
"""Less than an envelope holds, so that the one of an earlier life is followed by a new one; longer than most polls."""
ACTIONS_KEPT = 200
REQUESTS_WAITING_MAX = 100
STORE_PERIOD_S = 30.0
"""How old the stored memory of the proposers may be: after a restart they go on from there."""
_STATE, _ARMED = "authority", "facility_armed"
_ISOLATIONS = {
    Verb.ISOLATE_ELECTRICAL: ActuatorKind.ISOLATE_ELECTRICAL,
    Verb.ISOLATE_LIQUID: ActuatorKind.ISOLATE_LIQUID,
}


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What outlives the program."""

    authority: AuthorityState = AuthorityState()
    proposers: ProposerMemory = ProposerMemory()


class Mind:
    """Decides for one site, once a second."""

    def __init__(
        self,
        *,
        site: SiteId,
        world: World,
        poller: Poller,
        point_devices: dict[str, str],
        armed: Iterable[str],
        allowed: Allowed,
        find_use: Callable[[NodeId], NodeUse],
        list_alarms: Callable[[], tuple[Alarm, ...]],
        list_peers: Callable[[], tuple[SiteId, ...]],
        on_change: Callable[[], None],
        store: GuardedStore,
        clock: Clock,
        log: EventLog,
        proposer_rules: ProposerRules | None = None,
    ) -> None:
        """Prepare the loop; `load` takes the earlier life.

        Args:
            site: our name.
            world: gives the view of an instant.
            poller: reaches devices.
            point_devices: which device answers for a point.
            armed: actuators that are armed without anybody's word, beside those of the site file.
            allowed: gets every envelope.
            find_use: what runs on a node.
            list_alarms: that are not normal.
            list_peers: sites that could take requests now.
            on_change: called when what a node may do has changed.
            store: where state and audit are.
            clock: time.
            log: gets every action.
            proposer_rules: other than the usual ones.
        """
        self._site = site
        self.world = world
        self._poller = poller
        self._devices = point_devices
        self._fixed = frozenset(armed) | frozenset(
            _name(one) for one in world.plan.actuators if one.mode is ActuatorMode.ARMED
        )
        self._setpoints = _list_setpoints(world.plan.actuators)
        self._allowed = allowed
        self._find_use = find_use
        self._list_alarms = list_alarms
        self._list_peers = list_peers
        self._on_change = on_change
        self._store = store
        self._clock = clock
        self._log = log
        self._rules = proposer_rules or ProposerRules()
        self._stored = Stored()
        self._stored_s = 0.0
        self._by_hand: frozenset[str] = frozenset()
        self._requests: list[Request] = []
        self._approvals: list[Approve] = []
        self._nodes: dict[NodeId, NodeState] = {}
        self._doing: set[asyncio.Task[None]] = set()
        self.actions: list[Action] = []

    async def load(self) -> None:
        """Take what an earlier life stored; what cannot be read any more is begun anew, and said."""

        def read(connection: sa.Connection) -> tuple[str | None, str | None]:
            return read_meta(connection, _STATE), read_meta(connection, _ARMED)

        state, armed = await self._store.read(read)
        try:
            self._stored = msgspec.json.decode(state, type=Stored) if state else Stored()
            self._by_hand = frozenset(msgspec.json.decode(armed, type=list[str])) if armed else frozenset()
        except msgspec.MsgspecError as error:
            self._log.error("authority_state_unreadable", reason=str(error))
        proposers = self._stored.proposers
        loss = recall_loss(proposers.loss, self._clock.wall_s(), self._rules.loss)
        proposers = msgspec.structs.replace(proposers, loss=loss)
        self._stored = msgspec.structs.replace(self._stored, proposers=proposers)
        # Proposers go on from what nodes were let do, not from all of them running.
        books = self._stored.authority.nodes
        self._nodes = {
            node: state_of(books[node]) if actuator_of(Verb.STOP, node) in self.armed else NodeState.RUN
            for node in self.world.topology.nodes
            if node in books
        }

    @property
    def armed(self) -> frozenset[str]:
        """Return the actuators that are armed now."""
        return self._fixed | self._by_hand

    def list_actuators(self) -> list[dict[str, object]]:
        """Return every actuator by name with its mode, sorted."""
        names = {actuator_of(Verb.SHED, self._site), actuator_of(Verb.SPILL, self._site)}
        for node in self.world.topology.nodes:
            names |= {actuator_of(Verb.CAP, node), actuator_of(Verb.STOP, node)}
        for one in self.world.plan.actuators:
            names.add(_name(one))
        return [
            {
                "actuator": name,
                "mode": (ActuatorMode.ARMED if name in self.armed else ActuatorMode.OBSERVE).value,
                "by": "site" if name in self._fixed else "hand" if name in self._by_hand else "",
            }
            for name in sorted(names)
        ]

    async def arm(self, name: str, *, is_armed: bool, who: str, reason: str) -> None:
        """Arm an actuator, or let it only observe again.

        Raises:
            Rejected: there is no such actuator, it is armed by the site file, or no reason is given.
            Unavailable: it cannot be stored; then nothing changed.
        """
        known = {str(row["actuator"]) for row in self.list_actuators()}
        if name not in known:
            raise Rejected(f"there is no actuator {name!r}", next_step=f"one of {', '.join(sorted(known))}")
        if not reason:
            raise Rejected("arming and disarming want a reason, for the audit")
        if not is_armed and name in self._fixed:
            raise Rejected(f"{name} is armed by the site's file or settings", next_step="change it there")
        changed = self._by_hand | {name} if is_armed else self._by_hand - {name}
        text = msgspec.json.encode(sorted(changed)).decode()
        now_s, action = self._clock.wall_s(), "facility.arm" if is_armed else "facility.observe"

        def write(connection: sa.Connection) -> None:
            write_meta(connection, _ARMED, text)
            AUDIT_LOG.append(connection, at_s=now_s, actor=who, action=action, target=name, detail={"reason": reason})

        await self._store.write(write)
        self._by_hand = changed
        self._log.info("actuator_mode", actuator=name, is_armed=is_armed, actor=who)

    def ask(self, request: Request) -> None:
        """Take a person's request; it is judged at the next look. Raises Unavailable when too many wait."""
        if len(self._requests) >= REQUESTS_WAITING_MAX:
            raise Unavailable("too many requests wait to be judged", retry_after_s=PERIOD_S)
        self._requests.append(request)

    def approve(self, approval: Approve) -> None:
        """Take a second person's word; raises Unavailable when too many wait."""
        if len(self._approvals) >= REQUESTS_WAITING_MAX:
            raise Unavailable("too many approvals wait", retry_after_s=PERIOD_S)
        self._approvals.append(approval)

    def list_awaiting(self) -> list[Request]:
        """Return requests that a second person or the interlock has to agree to."""
        return [hold.request for hold in self._stored.authority.awaiting.values()]

    async def run(self) -> None:
        """Look and decide for ever, from when every device was asked once or had the time to answer."""
        # Before that nothing is known: a program that was restarted would take it for the worst and stop nodes.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S_MAX):
                await self._poller.wait_first()
        while True:
            began_ns = self._clock.monotonic_ns()
            # Unavailable: the guarded store has said so. What cannot be stored is not done, and the envelope runs out.
            with contextlib.suppress(Unavailable):
                await self.step()
            took_s = (self._clock.monotonic_ns() - began_ns) / 1e9
            await asyncio.sleep(max(0.05, PERIOD_S - took_s))

    async def step(self) -> None:
        """Look once, decide, store, and begin to do what was decided; raises Unavailable when it cannot be stored."""
        now_s = self._clock.wall_s()
        view = self.world.look(
            now_s,
            states=self._nodes,
            find_use=self._find_use,
            alarms=self._list_alarms(),
            peers=self._list_peers(),
            held=self._stored.authority.holds,
        )
        memory, asked = propose_all(self._stored.proposers, view, self.world.topology, self._rules)
        requests, approvals = self._requests, self._approvals
        decision = decide(
            self._stored.authority,
            (*requests, *asked),
            approvals,
            view,
            self.world.topology,
            AuthorityRules(armed=self.armed, setpoints=self._setpoints),
        )
        stored = Stored(authority=decision.state, proposers=memory)
        if decision.actions or now_s - self._stored_s > STORE_PERIOD_S:
            await self._store.write(partial(_store, stored=stored, actions=decision.actions, now_s=now_s))
            self._stored_s = now_s
        self._stored = stored
        self._requests, self._approvals = self._requests[len(requests) :], self._approvals[len(approvals) :]
        envelope = msgspec.structs.replace(decision.envelope, is_simulated=view.is_simulated)
        self._allowed.take(envelope)
        states = {one.node: one.state for one in envelope.nodes}
        if states != self._nodes:
            self._nodes = states
            self._on_change()
        for action in decision.actions:
            self._note(action)
            if action.state is ActionState.SENT:
                self._begin(action)

    def _note(self, action: Action) -> None:
        self.actions.append(action)
        del self.actions[:-ACTIONS_KEPT]
        self._log.info(
            "facility_action",
            verb=action.request.verb,
            target=action.request.target,
            value=action.request.value,
            state=action.state,
            requester=action.request.requester,
            reason=action.reason,
        )

    def _begin(self, action: Action) -> None:
        # At most one for each node and second, and each ends with its device's time-out.
        task = asyncio.create_task(self._do(action), name=f"action_{action.action_id}")
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _do(self, action: Action) -> None:
        found = self._find_command(action.request)
        if found is None:
            return
        point_id, value = found
        device_id = self._devices[point_id]
        try:
            if value is None:
                await self._poller.relinquish(device_id, point_id)
            else:
                await self._poller.write(device_id, point_id, value)
        except MadangError as error:
            # The read-back tells the authority that it was not done; it orders again or goes one step further.
            self._log.warning("action_failed", target=action.request.target, point=point_id, reason=error.message)

    def _find_command(self, request: Request) -> tuple[str, float | None] | None:
        """Return the point to write and the value; None for what the envelope alone brings about.

        Without a value the point's command is let go.
        """
        model, plan = self.world.model, self.world.plan
        if request.verb in (Verb.CAP, Verb.UNCAP):
            for one in plan.actuators:
                if one.kind is ActuatorKind.CAP and one.target == request.target:
                    value = request.value if request.value is not None else one.value_rest
                    return None if value is None else (one.point_id, value)
        if request.verb in (Verb.STOP, Verb.RESUME):
            server = server_of(model, NodeId(request.target))
            is_on = request.verb is Verb.RESUME
            return power_command(model.points, server, is_on=is_on) if server else self._find_release(request)
        if request.verb is Verb.SETPOINT and request.target in self._devices:
            return request.target, request.value
        if request.verb in _ISOLATIONS:
            for one in plan.actuators:
                if one.kind is _ISOLATIONS[request.verb] and one.target == request.target:
                    value = one.value_high if one.value_high is not None else 1.0
                    return one.point_id, value
        return None

    def _find_release(self, request: Request) -> tuple[str, float] | None:
        """Return what ends the isolation of a piece of equipment; None where a hand has to."""
        for one in self.world.plan.actuators:
            if one.kind in _ISOLATIONS.values() and one.target == request.target and one.value_rest is not None:
                return one.point_id, one.value_rest
        return None

    async def stop(self) -> None:
        """Do nothing more."""
        for task in tuple(self._doing):
            task.cancel()
        await asyncio.gather(*self._doing, return_exceptions=True)


def _name(actuator: Actuator) -> str:
    """Return the name by which `actuator_of` knows an actuator: a setpoint is a point, everything else a target."""
    if actuator.kind is ActuatorKind.SETPOINT:
        return actuator_of(Verb.SETPOINT, actuator.point_id)
    return f"{actuator.target}.{actuator.kind.value}"


def _list_setpoints(actuators: Iterable[Actuator]) -> dict[str, Setpoint]:
    """Return what may be written to setpoints; one without bounds and a way back is written by nobody."""
    return {
        one.point_id: Setpoint(low=one.value_low, high=one.value_high, safe=one.value_rest)
        for one in actuators
        if one.kind is ActuatorKind.SETPOINT
        and one.value_low is not None
        and one.value_high is not None
        and (one.value_rest is not None or one.is_relinquished)
    }


def _store(connection: sa.Connection, *, stored: Stored, actions: tuple[Action, ...], now_s: float) -> None:
    write_meta(connection, _STATE, msgspec.json.encode(stored, order="deterministic").decode())
    for action in actions:
        request = action.request
        AUDIT_LOG.append(
            connection,
            at_s=now_s,
            actor=request.requester,
            action=f"facility.{request.verb.value}",
            target=request.target,
            detail=msgspec.to_builtins(action),
        )
