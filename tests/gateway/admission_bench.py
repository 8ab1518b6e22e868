"""What admission adds to a request: `python -m tests.gateway.admission_bench`. No test: numbers depend on the machine.

Each line is one request's way through admission as a journey takes it: terms at the head, account once the body is
read, charge and settling at the end; time of this process's CPU, the best of several rounds.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.gateway.bank import Bank
from tests.gateway.lab import CHAT, Log, residency

from madang.core import KeyId, ProjectId, RequestId, ServiceName, SiteId, TenantId
from madang.gateway.admission import Admission
from madang.gateway.errand import Errand
from madang.gateway.feed import Desired
from madang.gateway.metrics import Meter
from madang.gateway.purse import Purse
from madang.gateway.rates import RateTable
from madang.model import (
    ApiKey,
    Budget,
    DataClass,
    KeyPolicy,
    Outcome,
    PriorityClass,
    Project,
    Service,
    Tariff,
    Tenant,
)
from madang.model.lease import Period, Scope
from madang.runtime.clock import SystemClock, SystemEntropy
from madang.runtime.telemetry import EventLog
from madang.wire.feed import GatewaySnapshot
from madang.wire.openai import Endpoint
from madang.wire.plain_chat import read_plain_chat

RICH = 10**15
REQUESTS = 500
ROUNDS = 200
"""Many short rounds, since a shared machine is quiet for moments only."""
BODY = b'{"model":"qwen","max_tokens":64,"messages":[{"role":"user","content":"' + b"x" * 200 + b'"}]}'
ANY = residency("any")


def snapshot(*, has_price: bool, budgets: int, has_limits: bool) -> GatewaySnapshot:
    """A tenant of which so many of the four budgets are set."""
    limit = [RICH if number < budgets else None for number in range(4)]
    ids = {"tenant_id": TenantId("t")}
    return GatewaySnapshot(
        site=SiteId("daegu"),
        generation=1,
        sites=(),
        keys=(ApiKey(key_id=KeyId("k"), sha256="00" * 32, residency=ANY, has_policy=True, **ids),),
        tenants=(
            Tenant(title="t", residency=ANY, budget=Budget(day_micro_won=limit[1], month_micro_won=limit[0]), **ids),
        ),
        services=(Service(name=ServiceName(CHAT), model="m"),),
        models=(),
        projects=(
            Project(
                project_id=ProjectId("p"),
                title="p",
                budget=Budget(day_micro_won=limit[3], month_micro_won=limit[2]),
                **ids,
            ),
        ),
        key_policies=(
            KeyPolicy(
                key_id=KeyId("k"),
                project_id=ProjectId("p"),
                requests_per_minute=10**9 if has_limits else None,
                tokens_per_minute=10**12 if has_limits else None,
                streams_max=1000 if has_limits else None,
                **ids,
            ),
        ),
        tariffs=(
            Tariff(
                tariff_id="t",
                service=ServiceName(CHAT),
                priority=PriorityClass.INTERACTIVE,
                valid_from="2020-01-01",
                prompt_micro_won_per_million=1_000_000,
                completion_micro_won_per_million=2_000_000,
            ),
        )
        if has_price
        else (),
    )


def way(admission: Admission, desired: Desired) -> Callable[[], None]:
    """One request, from its head to its end."""
    request = read_plain_chat(BODY)
    assert request is not None
    service = desired.services[CHAT]
    key, tenant = KeyId("k"), TenantId("t")
    errand = Errand(
        request_id=RequestId("r"),
        tenant_id=tenant,
        key_id=key,
        residency=ANY,
        data_class=DataClass.OPEN,
        entry_site=SiteId("daegu"),
        endpoint=Endpoint.CHAT,
    )

    def run() -> None:
        admission.terms_of(desired, key, tenant)
        account = admission.open(desired, errand, request, service, len(BODY))
        charge = account.charge(Outcome.COMPLETED, 50, 40, 0)
        account.overdraw(charge)
        account.close(charge, 90)

    return run


def best_of(run: Callable[[], object]) -> float:
    """Return the least time of a round, for each call, microseconds of CPU."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.process_time_ns()
        for _ in range(REQUESTS):
            run()
        best = min(best, (time.process_time_ns() - begun) / REQUESTS / 1000)
    return best


def measure(folder: Path, title: str, *, others: int = 0, **fields: bool | int) -> None:
    clock, loop = SystemClock(), asyncio.new_event_loop()
    purse = Purse(folder, 0, loop=loop, clock=clock, entropy=SystemEntropy(), log=EventLog(clock, Log()), boot=1)
    tables = [RateTable(folder, worker, boot=1, clock=clock) for worker in range(1 + others)]
    for table in tables:
        table.refresh()
    bank = Bank(folder)
    for scope, account in ((Scope.TENANT, "t"), (Scope.PROJECT, "p")):
        for period in Period:
            bank.grant(bank.add(account, scope=scope, period=period), RICH)
    purse.tick()
    meter = Meter("daegu")
    desired = Desired(snapshot(**fields))  # type: ignore[arg-type]
    for table in tables[1:]:
        way(Admission(purse, table, meter, clock), desired)()
    run = way(Admission(purse, tables[0], meter, clock), desired)
    best = best_of(run)
    print(f"{title:58} {best:6.2f} us")
    purse.close()
    bank.close()
    for table in tables:
        table.close()
    loop.close()


def main() -> None:
    """Print a line for each kind of key."""
    kinds: tuple[tuple[str, dict[str, bool | int]], ...] = (
        ("no price, no budget, no limits", {"has_price": False, "budgets": 0, "has_limits": False}),
        ("price", {"has_price": True, "budgets": 0, "has_limits": False}),
        ("price, one budget", {"has_price": True, "budgets": 1, "has_limits": False}),
        ("price, four budgets", {"has_price": True, "budgets": 4, "has_limits": False}),
        ("price, three limits, one worker", {"has_price": True, "budgets": 0, "has_limits": True}),
        ("price, three limits, four workers", {"has_price": True, "budgets": 0, "has_limits": True, "others": 3}),
        (
            "price, four budgets, three limits, two workers",
            {"has_price": True, "budgets": 4, "has_limits": True, "others": 1},
        ),
    )
    yardstick = EventLog(SystemClock(), Log())
    print(f"{'for comparison: a method that makes one object':58} {best_of(yardstick.bind):6.2f} us")
    for title, fields in kinds:
        with TemporaryDirectory() as folder:
            measure(Path(folder), title, **fields)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
