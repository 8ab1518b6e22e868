"""The desired-state agent: pulls items from the hub through the leaf, takes snapshots, and stores both.

Owns the pull, the acknowledgements and the answers to commands. Refuses to decide what is newer: `desired` does.
Called by the site process, which runs both loops for as long as it lives.

The pull is raw: nats-py's own subscription asks for rights on the hub's consumers that a site must not have. What
came is acknowledged only after the commit, so whatever happens in between comes again.
"""

import asyncio
from enum import StrEnum

import msgspec

from madang.core import Clock, Conflict, Entropy, MadangError, Rejected, Unavailable
from madang.machine.backoff import choose_backoff_s
from madang.runtime.admin_http import NotFound
from madang.runtime.bus import NO_RESPONDERS, Bus, BusMessage
from madang.runtime.nats import DESIRED_STREAM, HUB_DOMAIN
from madang.runtime.telemetry import EventLog
from madang.site.cordons import Cordons
from madang.site.desired import (
    Applied,
    DesiredView,
    Refusal,
    StoredItem,
    apply_items,
    apply_snapshot,
    check_item,
    record_refusals,
)
from madang.site.guard import GuardedStore
from madang.site.link import HubLink
from madang.site.resync import ResyncBuffer, Snapshot
from madang.site.signal import Signal
from madang.wire.bus import CommandReply, CordonOrder, ResyncPart, command_subject, decode, decode_desired, encode

PULL_BATCH_MAX = 100
PULL_EXPIRES_S = 1.0
PULL_SLACK_S = 1.0
"""How much later than it expired a pull may be answered: a round trip over a satellite."""
_INBOX_MAX = 4 * PULL_BATCH_MAX
_COMMANDS_MAX = 64
_RETRY_BASE_S = 0.05
_RETRY_MAX_S = 0.8
"""A pull without a link costs one local message, and a heal is to be noticed within a second."""
_PROBE_AFTER = 3
"""Silent pulls in a row after which the agent asks whether its consumer exists at all."""
_PROBE_TIMEOUT_S = 2.0
_STATUS_TIMED_OUT = "408"
_STATUS_NOTHING = "404"
_STATUS_BEAT = "100"


class PullEnd(StrEnum):
    """How a pull ended."""

    ANSWERED = "answered"
    UNREACHABLE = "unreachable"
    SILENT = "silent"
    REFUSED = "refused"


class DesiredAgent:
    """Keeps the applied state in step with the hub's."""

    def __init__(
        self,
        *,
        site: str,
        bus: Bus,
        store: GuardedStore,
        view: DesiredView,
        changed: Signal,
        cordons: Cordons,
        link: HubLink,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        """Prepare both loops.

        Args:
            site: our name.
            bus: not yet running, since both loops listen on it.
            store: where items are applied.
            view: follows the commits; written only here.
            changed: rises after each commit that changed something.
            cordons: carries out the hub's orders about nodes and chips.
            link: told of every contact.
            clock: for `applied_at_s`.
            entropy: seeds of the back-off.
            log: gets refusals and changes of state.
        """
        self._site = site
        self._bus = bus
        self._store = store
        self._view = view
        self._changed = changed
        self._cordons = cordons
        self._link = link
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._buffer = ResyncBuffer(site)
        # Commits and the view that follows them must keep one order, though two loops apply.
        self._order = asyncio.Lock()
        self._reply = bus.make_inbox_name()
        self._inbox = bus.listen(f"{self._reply}.*", pending_max=_INBOX_MAX)
        self._commands = bus.listen(command_subject(site, ">"), pending_max=_COMMANDS_MAX)
        self._next_subject = f"$JS.{HUB_DOMAIN}.API.CONSUMER.MSG.NEXT.{DESIRED_STREAM}.{site}"
        self._info_subject = f"$JS.{HUB_DOMAIN}.API.CONSUMER.INFO.{DESIRED_STREAM}.{site}"
        self._pulls = 0
        self.applied_total = 0
        self.refused_total = 0
        self.resyncs_total = 0

    async def run_pulls(self) -> None:
        """Pull for ever; without a link, at a bounded pace."""
        failures = silent = 0
        while True:
            await self._bus.wait_connected()
            try:
                end = await self._pull()
            except Unavailable:
                # The database, or our own server just now; both have said so themselves.
                end = PullEnd.REFUSED
            if end is PullEnd.ANSWERED:
                if silent >= _PROBE_AFTER:
                    self._log.info("desired_pull_answered")
                failures = silent = 0
                continue
            failures += 1
            silent = silent + 1 if end is PullEnd.SILENT else 0
            if silent == _PROBE_AFTER:
                await self._probe()
            seed = self._entropy.seed64()
            await asyncio.sleep(choose_backoff_s(failures, seed, base_s=_RETRY_BASE_S, max_s=_RETRY_MAX_S))

    async def _pull(self) -> PullEnd:
        self._pulls += 1
        reply = f"{self._reply}.{self._pulls}"
        request = {"batch": PULL_BATCH_MAX, "expires": round(PULL_EXPIRES_S * 1e9)}
        await self._bus.publish(self._next_subject, msgspec.json.encode(request), reply=reply)
        deadline_s = asyncio.get_running_loop().time() + PULL_EXPIRES_S + PULL_SLACK_S
        end, taken = PullEnd.SILENT, 0
        while taken < PULL_BATCH_MAX:
            try:
                async with asyncio.timeout_at(deadline_s):
                    message = await self._inbox.next()
            except TimeoutError:
                break
            messages, status = self._drain(message)
            if messages:
                self._link.note_contact()
                await self._take(messages)
                taken += len(messages)
                end = PullEnd.ANSWERED
            ended = None if status is None else self._judge_status(status, reply)
            if ended is not None:
                return ended
        return end

    def _drain(self, first: BusMessage) -> tuple[list[BusMessage], BusMessage | None]:
        """Return the items that are here already, up to a batch, and the server's status that follows them."""
        messages: list[BusMessage] = []
        message: BusMessage | None = first
        while message is not None and message.status == "":
            messages.append(message)
            message = self._inbox.next_nowait() if len(messages) < PULL_BATCH_MAX else None
        return messages, message

    def _judge_status(self, message: BusMessage, reply: str) -> PullEnd | None:
        """Return how the pull ended if `message` ends it; one of an earlier pull ends nothing."""
        if message.status == NO_RESPONDERS:
            return PullEnd.UNREACHABLE if message.subject == reply else None
        self._link.note_contact()
        if message.subject != reply or message.status == _STATUS_BEAT:
            return None
        if message.status in (_STATUS_TIMED_OUT, _STATUS_NOTHING):
            return PullEnd.ANSWERED
        self._log.warning(
            "desired_pull_refused", status=message.status, reason=message.headers.get("Description", "")[:200]
        )
        return PullEnd.REFUSED

    async def _take(self, messages: list[BusMessage]) -> None:
        items: list[StoredItem] = []
        good: list[BusMessage] = []
        bad: list[tuple[BusMessage, Refusal]] = []
        for message in messages:
            try:
                items.append(check_item(decode_desired(message.data), self._site))
                good.append(message)
            except Rejected as error:
                bad.append((message, Refusal(subject=message.subject, reason=error.message)))
        await self._apply(items, [refusal for _, refusal in bad])
        for message in good:
            await self._bus.publish(message.reply, b"+ACK")
        for message, _ in bad:
            # Sent again it would be as malformed; the hub sees by our state hash that something is missing.
            await self._bus.publish(message.reply, b"+TERM")

    async def _apply(self, items: list[StoredItem], refusals: list[Refusal]) -> None:
        now_s = self._clock.wall_s()
        if refusals:
            self.refused_total += len(refusals)
            for refusal in refusals:
                self._log.error("desired_item_refused", subject=refusal.subject, reason=refusal.reason)
            await self._store.write(lambda connection: record_refusals(connection, refusals, now_s))
        if items:
            async with self._order:
                self._follow(await self._store.write(lambda connection: apply_items(connection, items, now_s)))

    def _follow(self, applied: Applied) -> None:
        if not applied.items and not applied.is_snapshot:
            return
        self.applied_total += len(applied.items)
        self._view.take(applied)
        self._changed.rise()

    async def _probe(self) -> None:
        """Say why pulls stay silent: a denied publish and a missing consumer look the same from here."""
        try:
            answer = await self._bus.request(self._info_subject, b"", timeout_s=_PROBE_TIMEOUT_S)
        except Unavailable as error:
            self._log.warning("desired_pull_silent", reason=error.message)
            return
        self._link.note_contact()
        self._log.error("desired_pull_silent", consumer=answer.data[:300].decode(errors="replace"))

    async def run_commands(self) -> None:
        """Answer the hub's commands for ever."""
        prefix = command_subject(self._site, "")
        while True:
            message = await self._commands.next()
            self._link.note_contact()
            reply = await self._obey(message.subject.removeprefix(prefix), message.data)
            if not message.reply:
                continue
            try:
                await self._bus.publish(message.reply, encode(reply))
            except Unavailable as error:
                # The hub sees the outcome in the next heartbeat.
                self._log.warning("command_reply_lost", subject=message.subject, reason=error.message)

    async def _obey(self, verb: str, data: bytes) -> CommandReply:
        if verb == "cordon":
            return await self._cordon(data)
        if verb != "resync":
            known = "this release knows resync and cordon"
            return CommandReply(is_ok=False, code="unknown_command", message=f"{known}, not {verb!r}")
        try:
            snapshot = self._buffer.add(decode(data, ResyncPart), len(data))
            if snapshot is None:
                return CommandReply(is_ok=True, code="buffered")
            await self._restore(snapshot)
        except MadangError as error:
            self._log.error("resync_refused", reason=error.message)
            code = {Rejected: "invalid", Conflict: "older"}.get(type(error), "unavailable")
            return CommandReply(is_ok=False, code=code, message=str(error))
        return CommandReply(is_ok=True, code="applied", message=f"generation {snapshot.generation}")

    async def _cordon(self, data: bytes) -> CommandReply:
        try:
            order = decode(data, CordonOrder)
            await self._cordons.carry_out(order)
        except MadangError as error:
            self._log.error("cordon_refused", reason=error.message)
            code = "not_found" if isinstance(error, NotFound) else "invalid"
            return CommandReply(
                is_ok=False, code="unavailable" if isinstance(error, Unavailable) else code, message=str(error)
            )
        return CommandReply(is_ok=True, code="done")

    async def _restore(self, snapshot: Snapshot) -> None:
        items = [check_item(item, self._site) for item in snapshot.items]
        now_s = self._clock.wall_s()
        async with self._order:
            applied = await self._store.write(
                lambda connection: apply_snapshot(connection, snapshot.generation, items, now_s)
            )
            self._follow(applied)
        self.resyncs_total += 1
        self._log.info("resync_applied", generation=snapshot.generation, items=len(applied.items))
