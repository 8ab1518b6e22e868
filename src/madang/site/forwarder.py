"""The forwarder's shell: reads the oldest batch, asks the hub's stream to keep it, deletes it once kept.

Owns the effects of `machine.forward`. Refuses to decide when: the machine does. Called by the site process, which
runs it for as long as it lives.

A batch goes as a request through the leaf to the hub's stream; the answer is JetStream's acknowledgement. If that
is lost, the same rows go again: the batch id stays the same, and the ledger takes every event once in any case.
"""

import asyncio
from functools import partial

import msgspec

from madang.core import Clock, Entropy, MadangError, Unavailable, ns_to_s
from madang.machine.forward import (
    Answered,
    Event,
    Forget,
    Forgotten,
    ForwardState,
    HoldUntil,
    Report,
    Send,
    Trouble,
    Woken,
    step,
)
from madang.runtime.bus import Bus, NoResponders
from madang.runtime.telemetry import EventLog
from madang.site.guard import GuardedStore
from madang.site.intake import OutboxGauge, refresh_oldest
from madang.site.link import HubLink
from madang.site.outbox import Batch, forget_batch, read_batch
from madang.wire.bus import usage_subject

ANSWER_TIMEOUT_S = 3.0
_WAKE_S = 0.5
"""How long an idle forwarder waits before it looks again whether the connection is back."""
_IN_PROCESS = 10158
_FULL = frozenset({10077, 10047, 10023, 10122})
"""JetStream: maximum messages or bytes exceeded, insufficient storage, insufficient resources, message too large."""


class _AckError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _PubAck(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    error: _AckError | None = None


def judge_answer(data: bytes) -> tuple[Trouble, str]:
    """Return what JetStream's answer to a batch means, NONE when it is kept, and its words."""
    try:
        answer = msgspec.json.decode(data, type=_PubAck)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Trouble.REFUSED, f"not an acknowledgement: {data[:100]!r}"
    if answer.error is None:
        is_kept = bool(answer.stream) and answer.seq > 0
        return (Trouble.NONE, "") if is_kept else (Trouble.REFUSED, f"not an acknowledgement: {data[:100]!r}")
    words = f"{answer.error.description} ({answer.error.err_code})"
    if answer.error.err_code == _IN_PROCESS:
        return Trouble.IN_PROCESS, words
    return (Trouble.STREAM_FULL if answer.error.err_code in _FULL else Trouble.REFUSED), words


class Forwarder:
    """Empties the outbox into the hub's stream."""

    def __init__(
        self,
        *,
        site: str,
        bus: Bus,
        store: GuardedStore,
        gauge: OutboxGauge,
        link: HubLink,
        clock: Clock,
        entropy: Entropy,
        log: EventLog,
    ) -> None:
        self._site = site
        self._bus = bus
        self._store = store
        self._gauge = gauge
        self._link = link
        self._clock = clock
        self._entropy = entropy
        self._log = log
        self._state = ForwardState()
        self._batch: Batch | None = None
        self._words = ""
        self.forwarded_total = 0
        self.batches_total = 0
        self.failures_total = 0

    @property
    def trouble(self) -> Trouble:
        """Why usage does not flow now; NONE while it does."""
        return self._state.trouble

    async def run(self) -> None:
        """Forward for ever."""
        while True:
            seen = self._gauge.grew.level
            hold = await self._settle(Woken(has_rows=self._gauge.rows > 0, is_connected=self._bus.is_connected))
            if hold is not None:
                await asyncio.sleep(max(0.0, ns_to_s(hold.instant_ns - self._clock.monotonic_ns())))
            elif self._gauge.rows == 0 or not self._bus.is_connected:
                await self._gauge.grew.wait(seen, _WAKE_S)

    async def _settle(self, event: Event) -> HoldUntil | None:
        """Feed an event and every outcome that follows from it; return the instant to wait for, if any."""
        hold: HoldUntil | None = None
        next_event: Event | None = event
        while next_event is not None:
            self._state, effects = step(self._state, next_event, self._clock.monotonic_ns())
            next_event = None
            for effect in effects:
                match effect:
                    case Send():
                        next_event = await self._send()
                    case Forget():
                        next_event = await self._forget()
                    case HoldUntil():
                        hold = effect
                    case Report():
                        self._report(effect.trouble)
        return hold

    async def _send(self) -> Event:
        self._batch = None
        try:
            self._batch = batch = await self._store.read(partial(read_batch, site=self._site))
            if batch is None:
                self._gauge.remove(self._gauge.rows, None)
                return Answered(trouble=Trouble.NONE)
            answer = await self._bus.request(
                usage_subject(self._site),
                batch.payload,
                timeout_s=ANSWER_TIMEOUT_S,
                headers={"Nats-Msg-Id": batch.batch_id},
            )
        except MadangError as error:
            return self._fail(self._judge_error(error), error.message)
        self._link.note_contact()
        trouble, words = judge_answer(answer.data)
        if trouble is not Trouble.NONE:
            return self._fail(trouble, words)
        self.batches_total += 1
        return Answered(trouble=Trouble.NONE)

    def _judge_error(self, error: MadangError) -> Trouble:
        if isinstance(error, NoResponders) or not self._bus.is_connected:
            return Trouble.HUB_UNREACHABLE
        return Trouble.NO_ANSWER

    def _fail(self, trouble: Trouble, words: str) -> Answered:
        self.failures_total += 1
        self._words = words
        return Answered(trouble=trouble, seed=self._entropy.seed64())

    async def _forget(self) -> Event:
        batch = self._batch
        if batch is None:
            return Forgotten()
        try:
            await self._store.write(lambda connection: forget_batch(connection, batch))
            await refresh_oldest(self._store, self._gauge, batch.events)
        except Unavailable as error:
            return self._fail(Trouble.NOT_FORGOTTEN, error.message)
        self.forwarded_total += batch.events
        return Forgotten()

    def _report(self, trouble: Trouble) -> None:
        if trouble is Trouble.NONE:
            self._log.info("usage_forward_recovered", waiting=self._gauge.rows)
        else:
            self._log.warning("usage_forward_failed", trouble=trouble, reason=self._words, waiting=self._gauge.rows)
