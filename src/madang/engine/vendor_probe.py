"""Asks a vendor's engine how it is, by the names in its manifest.

Owns the two questions, health and load. Refuses to know engines. Called by the drivers that a manifest describes.
"""

from madang.core import Unavailable
from madang.engine.contract import EngineReading, Verdict
from madang.engine.loopback import fetch
from madang.engine.manifest import Manifest
from madang.engine.prometheus import first_count, sum_samples

_PROBE_S = 2.0
_METRICS_S = 2.0


async def probe_vendor(manifest: Manifest, endpoint: str, key: str) -> EngineReading:
    """Return how an engine is; raises nothing for a broken one."""
    health, names = manifest.health, manifest.metrics
    try:
        answer = await fetch(endpoint, health.path, key=key, timeout_s=_PROBE_S)
    except Unavailable as error:
        return EngineReading(verdict=Verdict.SILENT, reason=str(error))
    if answer.status not in health.ready:
        verdict = Verdict.LOADING if answer.status in health.loading else Verdict.SICK
        reason = f"GET {health.path} answered {answer.status}"
        return EngineReading(verdict=verdict, reason=reason, is_simulated=answer.is_simulated)
    running, waiting = await _load(names.path, names.running, names.waiting, endpoint, key)
    return EngineReading(verdict=Verdict.READY, running=running, waiting=waiting, is_simulated=answer.is_simulated)


async def _load(
    path: str, running: tuple[str, ...], waiting: tuple[str, ...], endpoint: str, key: str
) -> tuple[int | None, int | None]:
    try:
        answer = await fetch(endpoint, path, key=key, timeout_s=_METRICS_S)
    except Unavailable:
        return 1, None  # its loop is busy with something: busy, not idle
    if answer.status != 200:
        return None, None
    samples = sum_samples(answer.body)
    return first_count(samples, running), first_count(samples, waiting)
