"""Whose files this site may keep: residency and the class of data, for what lies on a disk.

Owns the judgement before a file is taken, and the erasing of what lies here and may not any more: because the tenant's
residency or class changed, the site lost its mark, or the tenant is gone. Such files are out of everybody's reach at
once, since the gateway refuses their tenant here. They are destroyed after a grace, so that a slip of an operator's
hand can be taken back; the grace begins when the site hears of the change, and restarts do not begin it anew.
"""

import asyncio
import contextlib
from functools import partial

import msgspec
import sqlalchemy as sa

from madang.core import Clock, Unavailable
from madang.policy.residency import is_allowed
from madang.runtime.telemetry import EventLog
from madang.site.desired import DesiredView, read_meta, write_meta
from madang.site.files.keeper import FileKeeper
from madang.site.files.rows import list_tenants, list_unused
from madang.site.guard import GuardedStore
from madang.wire.openai_errors import ApiError, ErrorCode

PERIOD_S = 30.0
_SINCE = "files_withdrawn_since"


class KeepRule:
    """Judges by applied desired state."""

    def __init__(self, site: str, view: DesiredView) -> None:
        self._site = site
        self._view = view

    @property
    def is_informed(self) -> bool:
        """Whether desired state was ever applied; before that nothing is known of anybody."""
        return self._view.generation > 0

    def may_keep(self, tenant_id: str) -> bool:
        """Return whether a tenant's files may lie here; one that is not known here may have none."""
        site, tenant = self._view.sites.get(self._site), self._view.tenants.get(tenant_id)
        if site is None or tenant is None:
            return False
        return is_allowed(tenant.residency, tenant.data_class, site)

    def check(self, tenant_id: str) -> None:
        """Raise ApiError 403 where a tenant's files may not be kept; the gateway has said so before, and elsewhere."""
        if not self.may_keep(tenant_id):
            message = f"the tenant's residency and class of data do not allow site {self._site} to keep its files"
            raise ApiError(ErrorCode.RESIDENCY_VIOLATION, message)


class Withdrawal:
    """Destroys files of tenants that may have none here any more, once their grace is over."""

    def __init__(
        self,
        *,
        rule: KeepRule,
        keeper: FileKeeper,
        store: GuardedStore,
        grace_s: float,
        clock: Clock,
        log: EventLog,
    ) -> None:
        """Prepare the loop; see the module's text.

        Args:
            rule: whose files may be here.
            keeper: destroys.
            store: remembers since when they may not.
            grace_s: how long they are left lying, out of reach.
            clock: wall time.
            log: told when a tenant's files are withdrawn, restored and destroyed.
        """
        self._rule = rule
        self._keeper = keeper
        self._store = store
        self._grace_s = grace_s
        self._clock = clock
        self._log = log

    async def run(self) -> None:
        """Look for ever."""
        while True:
            # Unavailable: the guarded store has said so; this is tried again at the next tick.
            with contextlib.suppress(Unavailable):
                await self.sweep()
            await asyncio.sleep(PERIOD_S)

    async def sweep(self) -> None:
        """Note whose files may not be here now, and destroy those of whom that is true for longer than the grace."""
        if not self._rule.is_informed:
            return
        now_s = self._clock.wall_s()
        tenants, text = await self._store.read(lambda c: (list_tenants(c), read_meta(c, _SINCE)))
        before = _decode(text)
        since = {name: before.get(name, now_s) for name in tenants if not self._rule.may_keep(name)}
        if since != before:
            await self._store.write(partial(_write, since=since))
            for name in sorted(set(since) - set(before)):
                self._log.warning("files_withdrawn", tenant=name, destroyed_in_s=self._grace_s)
            for name in sorted(set(before) - set(since)):
                self._log.info("files_not_withdrawn_any_more", tenant=name)
        for name, since_s in since.items():
            if now_s - since_s >= self._grace_s:
                await self._destroy(name)

    async def _destroy(self, tenant_id: str) -> None:
        file_ids = await self._store.read(partial(list_unused, tenant_id=tenant_id))
        if file_ids:
            await self._keeper.forget(file_ids)
            self._log.warning("withdrawn_files_destroyed", tenant=tenant_id, files=len(file_ids))


def _decode(text: str) -> dict[str, float]:
    return msgspec.json.decode(text, type=dict[str, float]) if text else {}


def _write(connection: sa.Connection, *, since: dict[str, float]) -> None:
    write_meta(connection, _SINCE, msgspec.json.encode(since).decode())
