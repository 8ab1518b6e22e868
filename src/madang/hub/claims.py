"""Who may join: the account's JWT in the database, on disk, and at the NATS server, kept the same.

Owns the table `nats_claims`. Refuses to decide whom to revoke (`madang.hub.enrolment` does). A revocation is
committed before it is pushed, and pushed again until the server holds it; the file keeps it for a server whose
resolver folder was lost, and for a database that was restored from an older copy.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from madang.core import Clock, Rejected, Unavailable
from madang.hub.bootstrap import HubPaths
from madang.hub.seeds import HubSeeds, compose_account
from madang.hub.tables import NATS_CLAIMS
from madang.hub.trouble import Trouble
from madang.runtime.bus import Bus
from madang.runtime.files import write_secret
from madang.runtime.nats import decode_claims
from madang.runtime.store import Store
from madang.runtime.telemetry import EventLog

_CHECK_PERIOD_S = 30.0
_RETRY_S = 1.0
_TIMEOUT_S = 3.0


def read_claims(connection: sa.Connection, seeds: HubSeeds) -> tuple[str, dict[str, int]]:
    """Return the account's JWT and revocations; empty before the first `merge_claims`."""
    row = connection.execute(sa.select(NATS_CLAIMS).where(NATS_CLAIMS.c.account == seeds.account_key)).first()
    if row is None:
        return "", {}
    return row.jwt, msgspec.json.decode(row.revocations, type=dict[str, int])


def add_revocations(connection: sa.Connection, seeds: HubSeeds, users: Iterable[str], now_s: float) -> None:
    """Revoke users (public keys) in the caller's transaction; the push follows from the commit."""
    token, revocations = read_claims(connection, seeds)
    # A user is refused if it was issued at or before the instant; the margin covers a clock set back since.
    revocations |= dict.fromkeys(users, int(now_s) + 60)
    _write_claims(connection, seeds, token, revocations, now_s)


def merge_claims(connection: sa.Connection, seeds: HubSeeds, file_jwt: str, now_s: float) -> str:
    """Bring the database in line with the file and with this release's site role; return the JWT.

    Revocations of both are kept: one of the two may come from an older copy, and neither may readmit a site.
    """
    token, revocations = read_claims(connection, seeds)
    merged = {**_revocations_of(file_jwt), **revocations}
    wanted = decode_claims(compose_account(seeds, merged, 0))["nats"]
    if token and decode_claims(token)["nats"] == wanted:
        return token
    if not token and file_jwt and decode_claims(file_jwt)["nats"] == wanted:
        _store_claims(connection, seeds, file_jwt, merged)
        return file_jwt
    return _write_claims(connection, seeds, token or file_jwt, merged, now_s)


def _revocations_of(token: str) -> dict[str, int]:
    if not token:
        return {}
    try:
        nats: Mapping[str, Any] = decode_claims(token).get("nats", {})
        return msgspec.convert(nats.get("revocations", {}), dict[str, int])
    except (Rejected, msgspec.ValidationError):
        return {}


def _write_claims(
    connection: sa.Connection, seeds: HubSeeds, old_token: str, revocations: Mapping[str, int], now_s: float
) -> str:
    # The server keeps the newest; two changes in one second must still follow each other.
    last_s = int(decode_claims(old_token)["iat"]) if old_token else 0
    token = compose_account(seeds, revocations, max(int(now_s), last_s + 1))
    _store_claims(connection, seeds, token, revocations)
    return token


def _store_claims(connection: sa.Connection, seeds: HubSeeds, token: str, revocations: Mapping[str, int]) -> None:
    connection.execute(NATS_CLAIMS.delete().where(NATS_CLAIMS.c.account == seeds.account_key))
    connection.execute(
        NATS_CLAIMS.insert().values(
            account=seeds.account_key,
            jwt=token,
            revocations=msgspec.json.encode(dict(revocations), order="deterministic").decode(),
            issued_at_s=int(decode_claims(token)["iat"]),
        )
    )


class ClaimsKeeper:
    """Keeps the NATS server's idea of the account equal to the database's."""

    def __init__(
        self, *, store: Store, bus: Bus, seeds: HubSeeds, paths: HubPaths, clock: Clock, log: EventLog
    ) -> None:
        """Prepare; `run` works.

        Args:
            store: the hub's database.
            bus: a connection as a user of account SYS.
            seeds: of this federation.
            paths: where the file is.
            clock: wall time of new JWTs.
            log: gets what was pushed.
        """
        self._store = store
        self._bus = bus
        self._seeds = seeds
        self._paths = paths
        self._clock = clock
        self._log = log
        self._woken = asyncio.Event()
        self._trouble = Trouble(log, failed="claims_not_current", works="claims_current")

    @property
    def problem(self) -> str:
        """Return why the server may not hold the database's JWT, empty when it was seen to."""
        return self._trouble.reason

    def wake(self) -> None:
        """Look now: something was revoked."""
        self._woken.set()

    async def run(self) -> None:
        """Keep database, file and server the same until cancelled."""
        while True:
            await self._bus.wait_connected()
            self._woken.clear()
            try:
                await self._reconcile()
                self._trouble.note_success()
                wait_s = _CHECK_PERIOD_S
            except Unavailable as error:
                self._trouble.note_failure(str(error))
                wait_s = _RETRY_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            except TimeoutError:
                continue

    async def _reconcile(self) -> None:
        path, now_s = self._paths.account_jwt, self._clock.wall_s()
        file_jwt = path.read_text().strip() if path.exists() else ""
        token = await self._store.write(lambda c: merge_claims(c, self._seeds, file_jwt, now_s))
        if token != file_jwt:
            write_secret(path, token.encode())
        account = self._seeds.account_key
        held = await self._bus.request(f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP", b"", timeout_s=_TIMEOUT_S)
        if held.data.decode(errors="replace") != token:
            await self._push(token)

    async def _push(self, token: str) -> None:
        answer = await self._bus.request("$SYS.REQ.CLAIMS.UPDATE", token.encode(), timeout_s=_TIMEOUT_S)
        try:
            code = msgspec.json.decode(answer.data)["data"]["code"]
        except (msgspec.DecodeError, KeyError, TypeError):
            code = None
        if code != 200:
            raise Unavailable(f"NATS did not take the account's JWT: {answer.data[:200]!r}")
        self._log.info("claims_pushed", issued_at_s=decode_claims(token)["iat"])
