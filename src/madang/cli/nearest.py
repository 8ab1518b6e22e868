"""`madang site nearest`: which legal site is nearest to this machine, measured from this machine.

Owns the measurement. Refuses to know the hub: any gateway of the federation tells a key its legal sites. A round trip
is one small request on a connection that stands already, asked of the tenants' port as any request would be; what is
connected first is measured apart.
"""

import statistics
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from madang.cli.access import Access
from madang.cli.terminal import field, print_json, print_table, say
from madang.core import Rejected, SiteId, Unavailable
from madang.policy.nearest import LegalSite, SiteHealth, rank_sites
from madang.runtime.http_trust import trust_for

TIMEOUT_S = 3.0
_SITES = "/v1/sites"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of one site; the times are milliseconds and None when it did not answer, then `trouble` is why."""

    name: str
    region: str
    base_url: str
    health: str
    connect_ms: float | None = None
    round_trip_ms: float | None = None
    round_trip_ms_min: float | None = None
    trouble: str = ""


def find_nearest(access: Access, *, key: str, url: str | None, count: int) -> None:
    """Measure and print; raises Unavailable when no legal site answers, Rejected when the key opens nothing.

    Args:
        access: for the national entry's URL, and how to print.
        key: the tenant's.
        url: of any gateway of the federation; None for the national entry of the state folder.
        count: round trips at each site.
    """
    entry = (access.credentials().national_url if url is None else url).rstrip("/").removesuffix("/v1")
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False, verify=trust_for(entry)) as client:
        found = _ask_sites(client, entry, key)
    measured = [_measure(site, key, count) for site in found["data"]]
    by_name = {one.name: one for one in measured}
    best = next((by_name[site.name] for site in _rank(measured) if by_name[site.name].round_trip_ms is not None), None)
    if access.is_json:
        print_json({"entry": entry, "best": best, "sites": measured})
    else:
        _print(measured)
    if best is None:
        raise Unavailable(
            f"none of the {len(measured)} sites that this key's residency allows answers from here",
            next_step="is there a way from this machine to the URLs above? The entry itself may still relay",
        )
    if not access.is_json:
        say(f"best: {best.base_url} ({best.name}); for OpenAI's clients: export OPENAI_BASE_URL={best.base_url}")


def _ask_sites(client: httpx.Client, entry: str, key: str) -> Any:
    """Return the answer to GET /v1/sites; raises Rejected or Unavailable naming what was said instead."""
    try:
        response = client.get(f"{entry}{_SITES}", headers={"authorization": f"Bearer {key}"})
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unavailable(f"{entry} does not answer: {error or type(error).__name__}") from error
    if response.status_code == 200:
        return response.json()
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:200]
    raise Rejected(f"{entry}{_SITES} answered {response.status_code}: {message}")


def _measure(site: Any, key: str, count: int) -> Measured:
    known = Measured(name=site["name"], region=site["region"], base_url=site["base_url"], health=site["health"])
    if not site["url"]:
        return msgspec.structs.replace(known, trouble="it announces no URL")
    head = httpx.Request("HEAD", f"{site['url']}{_SITES}", headers={"authorization": f"Bearer {key}"})
    taken_ms = []
    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, verify=trust_for(site["url"])) as client:
            for _ in range(count + 1):
                began_ns = time.perf_counter_ns()
                client.send(head).raise_for_status()
                taken_ms.append((time.perf_counter_ns() - began_ns) / 1e6)
    except httpx.HTTPStatusError as error:
        return msgspec.structs.replace(known, trouble=f"it answered {error.response.status_code}")
    except httpx.TransportError as error:
        return msgspec.structs.replace(known, trouble=str(error) or type(error).__name__)
    first_ms, rest_ms = taken_ms[0], taken_ms[1:]
    return msgspec.structs.replace(
        known,
        connect_ms=round(first_ms, 2),
        round_trip_ms=round(statistics.median(rest_ms), 2),
        round_trip_ms_min=round(min(rest_ms), 2),
    )


def _rank(measured: list[Measured]) -> list[LegalSite]:
    """Return the sites, the best first, by the same rule as the gateway's but with what was measured here."""
    sites = [
        LegalSite(
            name=SiteId(one.name),
            region=one.region,
            url=urlsplit(one.base_url).netloc,
            health=SiteHealth(one.health),
            round_trip_s=None if one.round_trip_ms is None else one.round_trip_ms / 1000,
        )
        for one in measured
    ]
    return rank_sites(sites, ())


def _print(measured: list[Measured]) -> None:
    rows = {one.name: msgspec.structs.asdict(one) for one in measured}
    print_table(
        "sites that this key's residency allows",
        (
            ("SITE", field("name")),
            ("REGION", field("region")),
            ("ROUND TRIP ms", field("round_trip_ms")),
            ("LEAST ms", field("round_trip_ms_min")),
            ("FIRST ms", field("connect_ms")),
            ("HEALTH", field("health")),
            ("BASE URL", field("base_url")),
            ("TROUBLE", field("trouble")),
        ),
        [rows[site.name] for site in _rank(measured)],
    )
