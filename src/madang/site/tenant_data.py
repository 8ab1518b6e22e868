"""What tenants keep at this site, put together: files, batches, their routes and their loops.

Owns the wiring of `madang.site.files` and `madang.site.batches`. Refuses to know what they do. Called by
`madang.site.parts` and `madang.site.app`.
"""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.routing import Route

from madang.core import Clock, Entropy, Rejected
from madang.runtime.files import read_secret
from madang.runtime.telemetry import EventLog
from madang.site.batches.api import BatchesApi
from madang.site.batches.calls import GatewayCalls
from madang.site.batches.rows import find_reader
from madang.site.batches.runner import BatchRunner
from madang.site.batches.work import WAIT_S_MIN, BatchCounts, Kit
from madang.site.bootstrap import batches_folder, files_folder, files_key_file
from madang.site.desired import DesiredView
from madang.site.files.api import FilesApi
from madang.site.files.blobs import BlobStore
from madang.site.files.crypt import KEY_BYTES
from madang.site.files.keeper import FileKeeper
from madang.site.files.keeping import KeepRule, Withdrawal
from madang.site.guard import GuardedStore
from madang.site.peers import Peers
from madang.site.settings import SiteSettings
from madang.wire.bus import ServiceLoad


@dataclass(frozen=True)
class TenantData:
    """Files and batches of this site."""

    files: FileKeeper
    runner: BatchRunner
    calls: GatewayCalls
    counts: BatchCounts
    files_api: FilesApi
    batches_api: BatchesApi
    withdrawal: Withdrawal

    async def prepare(self) -> None:
        """Clean up after an earlier life; once the database is ready."""
        await self.files.prepare(frozenset())
        await self.runner.prepare()

    def routes(self) -> list[Route]:
        """Return what the gateway may ask."""
        return [*self.files_api.routes(), *self.batches_api.routes()]

    def loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return the loops; all of them run until cancelled."""
        return {
            "files_purge": self.files.run_purge(),
            "files_withdrawal": self.withdrawal.run(),
            "batches": self.runner.run(),
        }

    async def close(self) -> None:
        """Close connections."""
        await self.calls.close()


def make_tenant_data(
    *,
    settings: SiteSettings,
    store: GuardedStore,
    view: DesiredView,
    peers: Peers,
    find_loads: Callable[[], tuple[ServiceLoad, ...]],
    clock: Clock,
    entropy: Entropy,
    log: EventLog,
    batch_wait_s_min: float = WAIT_S_MIN,
) -> TenantData:
    """Make the parts; see their modules.

    Raises:
        Unavailable: the master key is missing or open to others, naming the file.
        Rejected: it is damaged.
    """
    blobs = BlobStore(files_folder(settings), _load_master(settings), entropy)
    files = FileKeeper(settings=settings, blobs=blobs, store=store, clock=clock, entropy=entropy, log=log)
    calls = _make_calls(settings, view, peers, clock)
    counts = BatchCounts()
    kit = Kit(
        site=settings.name,
        keeper=files,
        store=store,
        view=view,
        calls=calls,
        slots=asyncio.Semaphore(settings.batch_concurrency),
        concurrency=settings.batch_concurrency,
        lines_max=settings.batch_lines_max,
        find_loads=find_loads,
        folder=batches_folder(settings),
        clock=clock,
        entropy=entropy,
        log=log,
        counts=counts,
        wait_s_min=batch_wait_s_min,
    )
    runner = BatchRunner(kit)
    rule = KeepRule(settings.name, view)
    return TenantData(
        files=files,
        runner=runner,
        calls=calls,
        counts=counts,
        files_api=_make_files_api(settings, files, store, rule),
        batches_api=BatchesApi(
            settings=settings,
            keeper=files,
            store=store,
            runner=runner,
            check_tenant=rule.check,
            clock=clock,
            entropy=entropy,
        ),
        withdrawal=Withdrawal(
            rule=rule, keeper=files, store=store, grace_s=settings.withdrawn_files_kept_s, clock=clock, log=log
        ),
    )


def _make_calls(settings: SiteSettings, view: DesiredView, peers: Peers, clock: Clock) -> GatewayCalls:
    return GatewayCalls(
        site=settings.name,
        url=settings.own_gateway_url,
        find_sessions=peers.own_sessions,
        keys=view.keys,
        tenants=view.tenants,
        clock=clock,
        connections_max=settings.batch_concurrency,
    )


def _make_files_api(settings: SiteSettings, files: FileKeeper, store: GuardedStore, rule: KeepRule) -> FilesApi:
    return FilesApi(
        files,
        store,
        settings.file_bytes_max,
        lambda file_id: store.read(partial(find_reader, file_id=file_id)),
        rule.check,
    )


def _load_master(settings: SiteSettings) -> bytes:
    path = files_key_file(settings)
    try:
        master = bytes.fromhex(read_secret(path).decode("ascii"))
    except ValueError as error:
        raise Rejected(f"{path} is not a key: expected {KEY_BYTES * 2} hex digits") from error
    if len(master) != KEY_BYTES:
        raise Rejected(
            f"{path} holds {len(master)} bytes; expected {KEY_BYTES}", next_step="restore it from its backup"
        )
    return master
