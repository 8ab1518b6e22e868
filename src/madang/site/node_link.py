"""One node over its admin port: its observations come by long poll, its plan goes out by level.

Owns the HTTP client of one node and both loops over it. Refuses to plan. Called by the site process, once per node.

A node that does not answer is normal life: it is asked again at a bounded pace, and what was seen of it last stays
known with its age.
"""

import asyncio
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from madang.core import Conflict, Entropy, MadangError, NodeId, Rejected, Unavailable
from madang.machine.backoff import choose_backoff_s
from madang.runtime.files import read_secret
from madang.runtime.http_trust import trust_for
from madang.runtime.telemetry import EventLog
from madang.site.nodes import NodeBook
from madang.site.settings import NodeLink
from madang.wire.node_api import NodeObserved

POLL_WAIT_S = 10.0
PLAN_TICK_S = 2.0
ANSWER_BYTES_MAX = 8 * 1024 * 1024
_CONNECT_TIMEOUT_S = 2.0
_ANSWER_SLACK_S = 5.0
_RETRY_BASE_S = 0.1
_RETRY_MAX_S = 2.0

_observed_decoder = msgspec.json.Decoder(NodeObserved)


class NodeClient:
    """Talks to one node."""

    def __init__(self, *, link: NodeLink, book: NodeBook, entropy: Entropy, log: EventLog) -> None:
        self._link = link
        self._name = NodeId(link.name)
        self._book = book
        self._entropy = entropy
        self._log = log
        timeout = httpx.Timeout(POLL_WAIT_S + _ANSWER_SLACK_S, connect=_CONNECT_TIMEOUT_S)
        limits = httpx.Limits(max_connections=4, max_keepalive_connections=2)
        # Never through a proxy of the environment: nodes are inside the site.
        self._http = httpx.AsyncClient(
            base_url=link.url, timeout=timeout, limits=limits, trust_env=False, verify=trust_for(link.url)
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run_observe(self) -> None:
        """Follow the node's observations for ever."""
        failures = 0
        while True:
            try:
                await self._observe()
            except MadangError as error:
                failures += 1
                self._note(str(error))
                seed = self._entropy.seed64()
                await asyncio.sleep(choose_backoff_s(failures, seed, base_s=_RETRY_BASE_S, max_s=_RETRY_MAX_S))
            else:
                if failures:
                    self._log.info("node_answers", node=self._name)
                failures = 0

    async def _observe(self) -> None:
        node = self._book.nodes[self._name]
        after = node.observed.seq if node.observed is not None else -1
        # After silence the node may be another life with lower numbers: ask for what is, not for what is new.
        params = {"after": after, "wait_s": POLL_WAIT_S} if not node.trouble and after >= 0 else {"after": -1}
        data = await self._call("GET", "/api/v1/observed", params=params)
        try:
            observed = _observed_decoder.decode(data)
        except msgspec.MsgspecError as error:
            raise Unavailable(f"node {self._name} sent a malformed observation: {error}") from error
        if observed.node != self._name:
            raise Unavailable(
                f"{self._link.url} says it is node {observed.node!r}, not {self._name!r}",
                next_step="check `nodes` in site.toml and `name` in node.toml",
            )
        self._book.hear(self._name, observed)

    def _note(self, trouble: str) -> None:
        node = self._book.nodes[self._name]
        if not node.trouble:
            self._log.warning("node_silent", node=self._name, reason=trouble)
        node.trouble = trouble

    async def run_plans(self) -> None:
        """Hand the plan over for ever, whenever the node holds another generation than the one decided."""
        while True:
            seen = self._book.changed.level
            node = self._book.nodes[self._name]
            plan, observed = node.plan, node.observed
            if plan is not None and observed is not None and observed.plan_generation < plan.generation:
                try:
                    await self._call("PUT", "/api/v1/plan", content=msgspec.json.encode(plan))
                    self._log.info("node_plan_handed_over", node=self._name, plan_gen=plan.generation)
                except Conflict as error:
                    # It holds a newer one: its next observation says which, and the planner goes above it.
                    self._log.warning("node_plan_older", node=self._name, reason=error.message)
                except (Unavailable, Rejected) as error:
                    self._log.warning("node_plan_not_taken", node=self._name, reason=str(error))
                await asyncio.sleep(_RETRY_BASE_S)
            await self._book.changed.wait(seen, PLAN_TICK_S)

    async def restart_replica(self, replica_id: str) -> None:
        """Restart one engine; raises as `_call` does."""
        await self._call("POST", f"/api/v1/replicas/{replica_id}/restart")

    async def uncordon_chip(self, chip_id: str) -> None:
        """Lift the cordons of the node's own rules from a chip; raises as `_call` does."""
        await self._call("POST", f"/api/v1/chips/{quote(chip_id, safe='')}/uncordon")

    async def _call(self, method: str, path: str, **request: Any) -> bytes:
        """Return the body of a 2xx answer.

        Raises:
            Conflict: 409.
            Rejected: another 4xx.
            Unavailable: no answer, 5xx, an answer over the bound, or a token file that cannot be read.
        """
        where = f"node {self._name} at {self._link.url}"
        token = read_secret(self._link.token_file).decode(errors="replace")
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        try:
            async with self._http.stream(method, path, headers=headers, **request) as answer:
                data = b""
                async for piece in answer.aiter_bytes():
                    data += piece
                    if len(data) > ANSWER_BYTES_MAX:
                        raise Unavailable(f"{where} answers with more than {ANSWER_BYTES_MAX} bytes")
        except httpx.HTTPError as error:
            raise Unavailable(f"{where} does not answer {method} {path}: {error or type(error).__name__}") from error
        status = answer.status_code
        if status < 300:
            return data
        text = f"{where} answers {method} {path} with {status}: {data[:300].decode(errors='replace')}"
        if status == 409:
            raise Conflict(text)
        raise Rejected(text) if 400 <= status < 500 else Unavailable(text)
