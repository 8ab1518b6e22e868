"""PUE of a site over a stated interval, from the registers that it wrote down at each quarter of an hour.

Owns which stored readings are the interval's ends, and the shape that people see. Refuses to judge coverage and doubt
(`madang.policy.facility.pue` does) and to stretch an interval. Called by the admin API.
"""

from typing import Any

from madang.core import Rejected
from madang.model import Quality, Sample
from madang.model.facility_site import PueMeters
from madang.policy.facility.graph import SiteGraph
from madang.policy.facility.pue import COVERAGE_MIN, Pue, energy_meters, pue_interim
from madang.site.facility.meters import MeterLog


async def show_pue(
    log: MeterLog, graph: SiteGraph, plan: tuple[PueMeters, ...], since_s: float, until_s: float
) -> dict[str, Any]:
    """Return interim PUE between the first and the last stored reading of a span.

    Raises:
        Rejected: the site file has no [[pue]], or there are not two instants in the span.
    """
    if not plan:
        raise Rejected("the site file says nowhere how PUE is measured", next_step="add [[pue]] to it")
    rows = await log.read_ends(since_s=since_s, until_s=until_s)
    instants = sorted({int(row["at_s"]) for row in rows})
    if len(instants) < 2:
        raise Rejected(
            f"{len(instants)} readings of registers between {since_s:.0f} and {until_s:.0f}: two are needed",
            next_step="they are written at each quarter of an hour; ask for a longer time, or later",
        )
    begins_at_s, ends_at_s = instants
    begin, end = ({row["point_id"]: sample_of(row) for row in rows if row["at_s"] == at_s} for at_s in instants)
    simulated = {row["point_id"] for row in rows if row["is_simulated"]}
    shown = []
    for meters in energy_meters(graph, plan):
        found = pue_interim(graph, meters, begin, end, (begins_at_s, ends_at_s))
        shown.append(_show(found, bool(simulated.intersection((*meters.facility, *meters.it)))))
    return {
        "site": str(graph.model.site),
        "begins_at_s": begins_at_s,
        "ends_at_s": ends_at_s,
        "coverage_min": COVERAGE_MIN,
        "pue": shown,
    }


def sample_of(row: dict[str, Any]) -> Sample:
    """Return a stored reading as the sample that it was."""
    value = row["value_wh"]
    return Sample(
        point_id=row["point_id"],
        value=value,
        quality=Quality.BAD if value is None else Quality(row["quality"]),
        observed_at_s=row["at_s"] if value is None else row["read_at_s"],
        reason="" if value is not None else "nothing usable was read",
    )


def _show(found: Pue, is_simulated: bool) -> dict[str, Any]:
    def show(name: str) -> dict[str, Any]:
        fact = getattr(found, name)
        return {"value": fact.value, "quality": fact.quality.value, "reason": fact.reason}

    return {
        "category": found.category,
        "pue": show("pue"),
        "facility_wh": show("facility"),
        "it_wh": show("it"),
        "coverage": round(found.coverage, 4),
        "is_simulated": is_simulated,
    }
