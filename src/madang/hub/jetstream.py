"""JetStream at the hub: streams, consumers and pulls, as requests on the bus.

Owns the few calls of the JetStream API that the hub needs, and their errors. Refuses to know what the streams
carry. Every call is one request with a time limit and is safe to repeat; whoever calls retries.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from madang.core import Unavailable, s_to_ns
from madang.runtime.bus import Bus, BusMessage, Inbox

ACK = b"+ACK"
TERM = b"+TERM"
PAGE_PULL_MAX = 256
"""Messages asked for at a time when a whole stream is read."""

_TIMEOUT_S = 5.0
_STREAM_NOT_FOUND = 10059  # err_code of nats-server, stable by its own promise
_CONSUMER_NOT_FOUND = 10014
_NO_ROOM = 10047
_NO_MESSAGES = frozenset({"404", "408"})
_READER_INACTIVE_S = 30.0


class JetStreamRefused(Unavailable):
    """JetStream answered with an error; `err_code` says which."""

    def __init__(self, message: str, err_code: int) -> None:
        super().__init__(message, retry_after_s=1.0)
        self.err_code = err_code


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    """A stream as it stands; `created` changes when somebody deletes it and makes it again."""

    created: str
    last_seq: int
    messages: int
    bytes: int
    consumers: int


class StreamMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message of a stream.

    Attributes:
        subject, data: as published.
        reply: where to acknowledge.
        seq: its place in the stream.
        stored_at_s: wall time at the server when it was stored.
        pending: messages after it that the consumer has not delivered.
    """

    subject: str
    data: bytes
    reply: str
    seq: int
    stored_at_s: float
    pending: int


class JetStream:
    """The hub's use of JetStream over one bus connection."""

    def __init__(self, bus: Bus) -> None:
        """Prepare; call before the bus runs, since pulls need their inbox from the first connection on."""
        self._bus = bus
        self._numbers = itertools.count(1)
        self._inbox_root = bus.make_inbox_name()

    def listen(self, name: str, *, pending_max: int) -> "Pull":
        """Return a way to pull; call before the bus runs."""
        root = f"{self._inbox_root}.{name}"
        return Pull(self._bus, root, self._bus.listen(f"{root}.*", pending_max=pending_max))

    async def call(self, subject: str, body: object = None) -> dict[str, Any]:
        """Call `$JS.API.<subject>`.

        Raises:
            JetStreamRefused: the server answered with an error.
            Unavailable: no connection or no answer.
        """
        data = b"" if body is None else msgspec.json.encode(body)
        message = await self._bus.request(f"$JS.API.{subject}", data, timeout_s=_TIMEOUT_S)
        return _decode_answer(message, subject)

    async def publish(self, subject: str, data: bytes) -> int:
        """Publish into a stream and return the sequence number once it is on disk."""
        message = await self._bus.request(subject, data, timeout_s=_TIMEOUT_S)
        return int(_decode_answer(message, subject)["seq"])

    async def ensure_stream(self, config: Mapping[str, Any]) -> StreamState:
        """Make a stream, or bring its configuration in line; return its state."""
        name = config["name"]
        try:
            answer = await self.call(f"STREAM.INFO.{name}")
        except JetStreamRefused as error:
            if error.err_code != _STREAM_NOT_FOUND:
                raise
            answer = await self._change_stream("CREATE", config)
        found = answer["config"]
        if any(found.get(key, type(value)()) != value for key, value in config.items()):
            answer = await self._change_stream("UPDATE", {**found, **config})
        state = answer["state"]
        return StreamState(
            created=answer["created"],
            last_seq=state["last_seq"],
            messages=state["messages"],
            bytes=state["bytes"],
            consumers=state["consumer_count"],
        )

    async def _change_stream(self, verb: str, config: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self.call(f"STREAM.{verb}.{config['name']}", config)
        except JetStreamRefused as error:
            if error.err_code != _NO_ROOM:
                raise
            raise Unavailable(
                f"nats-server was told to store too little for stream {config['name']} of {config['max_bytes']} bytes",
                next_step="make its configuration again from the hub's settings, and restart it",
            ) from error

    async def ensure_consumer(self, stream: str, config: Mapping[str, Any]) -> None:
        """Make a durable consumer, or bring it in line; one that is as wanted is left alone."""
        name = config["durable_name"]
        await self.call(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})

    async def consumer_names(self, stream: str) -> frozenset[str]:
        """Return the names of all consumers of a stream."""
        names: list[str] = []
        while True:
            answer = await self.call(f"CONSUMER.NAMES.{stream}", {"offset": len(names)})
            page = answer.get("consumers") or []
            names += page
            if not page or len(names) >= answer["total"]:
                return frozenset(names)

    async def ack_floor(self, stream: str, name: str) -> int | None:
        """Return up to which sequence number a consumer has everything acknowledged; None when it does not exist."""
        try:
            answer = await self.call(f"CONSUMER.INFO.{stream}.{name}")
        except JetStreamRefused as error:
            if error.err_code != _CONSUMER_NOT_FOUND:
                raise
            return None
        return int(answer["ack_floor"]["stream_seq"])

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer; one that does not exist is fine."""
        try:
            await self.call(f"CONSUMER.DELETE.{stream}.{name}")
        except JetStreamRefused as error:
            if error.err_code != _CONSUMER_NOT_FOUND:
                raise

    async def purge(self, stream: str, subject: str) -> None:
        """Remove all messages of a subject (wildcards allowed)."""
        await self.call(f"STREAM.PURGE.{stream}", {"filter": subject})

    async def read_last(self, pull: "Pull", stream: str, subject: str) -> AsyncIterator[StreamMessage]:
        """Yield the last message of every subject that matches, by a consumer that vanishes afterwards."""
        # Upper case, so that it can never be a site's name.
        name = f"READ-{next(self._numbers)}-{self._inbox_root.rsplit('.', 1)[-1]}"
        config = {
            "name": name,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "filter_subject": subject,
            "inactive_threshold": s_to_ns(_READER_INACTIVE_S),
            "mem_storage": True,
        }
        answer = await self.call(f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
        remaining = int(answer.get("num_pending", 0))
        while remaining > 0:
            page = await pull.fetch(stream, name, batch=min(PAGE_PULL_MAX, remaining), wait_s=_TIMEOUT_S)
            if not page:
                raise Unavailable(f"stream {stream} stopped in the middle of being read", retry_after_s=1.0)
            for message in page:
                yield message
            remaining = page[-1].pending
        await self.delete_consumer(stream, name)


class Pull:
    """Pulls messages of consumers, one request at a time."""

    def __init__(self, bus: Bus, root: str, inbox: Inbox) -> None:
        self._bus = bus
        self._root = root
        self._inbox = inbox
        self._numbers = itertools.count(1)

    async def fetch(self, stream: str, consumer: str, *, batch: int, wait_s: float) -> list[StreamMessage]:
        """Return up to `batch` messages: what is there at once, or the first to come within `wait_s`.

        Only the request for a single message waits, so that at most one is ever open at the server.

        Raises:
            Unavailable: no connection, or the consumer is gone.
        """
        page = await self._ask(stream, consumer, {"batch": batch, "no_wait": True}, _TIMEOUT_S)
        return page or await self._ask(stream, consumer, {"batch": 1, "expires": s_to_ns(wait_s)}, wait_s + 1.0)

    async def _ask(self, stream: str, consumer: str, body: dict[str, Any], timeout_s: float) -> list[StreamMessage]:
        reply = f"{self._root}.{next(self._numbers)}"
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        await self._bus.publish(subject, msgspec.json.encode(body), reply=reply)
        messages: list[StreamMessage] = []
        try:
            async with asyncio.timeout(timeout_s):
                while len(messages) < body["batch"]:
                    message = await self._inbox.next()
                    if message.subject == reply:
                        _check_end(message, stream, consumer)
                        break
                    # What is left of an earlier request is not an answer to this one.
                    if message.reply.split(".")[-7:-5] == [stream, consumer]:
                        messages.append(_read_position(message))
        except TimeoutError as error:
            if not messages:
                raise Unavailable(f"no answer while pulling from {stream}", retry_after_s=1.0) from error
        return messages

    async def answer(self, message: StreamMessage, verdict: bytes) -> None:
        """Acknowledge (ACK) or end (TERM) a message; a lost answer means another delivery."""
        await self._bus.publish(message.reply, verdict)


def _check_end(message: BusMessage, stream: str, consumer: str) -> None:
    if message.status not in _NO_MESSAGES:
        text = message.headers.get("Description", "")
        raise Unavailable(f"consumer {consumer} of {stream} cannot be pulled: {message.status} {text}")


def _read_position(message: BusMessage) -> StreamMessage:
    """Return the message with what its acknowledgement subject says; the last five tokens are fixed."""
    tokens = message.reply.split(".")
    _, seq, _, stored_ns, pending = (int(token) for token in tokens[-5:])
    return StreamMessage(
        subject=message.subject,
        data=message.data,
        reply=message.reply,
        seq=seq,
        stored_at_s=stored_ns / 1e9,
        pending=pending,
    )


def _decode_answer(message: BusMessage, subject: str) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(message.data, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise Unavailable(f"{subject} was answered with {message.data[:100]!r}") from error
    problem = answer.get("error")
    if problem:
        raise JetStreamRefused(f"{subject}: {problem.get('description')}", int(problem.get("err_code", 0)))
    return answer
