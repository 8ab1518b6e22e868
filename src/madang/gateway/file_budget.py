"""How many connections a worker may hold, from how many files it may open.

Owns the sum and the process's own limit. Refuses to count what is open: the ports and the pool do. Called once, before
anything else is opened. A worker that runs out of files could neither take connections nor write usage, so it holds
fewer connections than it was told to rather than come near.
"""

import resource

import msgspec

from madang.core import Rejected
from madang.gateway.settings import GatewaySettings

OTHER_FILES = 256
"""Listening sockets, usage segments, feeds, in-flight tables, calls of the site process, connections of the admin port
and those that are being refused."""
CONNECTIONS_LEAST = 64
"""With fewer a worker is of no use."""


class FileBudget(msgspec.Struct, frozen=True, kw_only=True):
    """What may be open.

    Attributes:
        wanted: files that the settings ask for.
        allowed: files that this process may open.
        connections_max: connections of tenants, after the shortfall.
        shortfall: what is missing, in words; empty when nothing is.
    """

    wanted: int
    allowed: int
    connections_max: int
    shortfall: str = ""


def plan_files(settings: GatewaySettings, allowed: int | None = None) -> FileBudget:
    """Return what a worker may hold open.

    Args:
        settings: how many connections there shall be.
        allowed: files that the process may open; None when that is not limited.

    Raises:
        Rejected: too few for any useful work.
    """
    others = 2 * settings.upstreams_max + OTHER_FILES  # calls upwards, and connections of peers
    wanted = settings.connections_max + others
    if allowed is None or allowed >= wanted:
        return FileBudget(wanted=wanted, allowed=allowed or wanted, connections_max=settings.connections_max)
    connections_max = allowed - others
    if connections_max < CONNECTIONS_LEAST:
        raise Rejected(
            f"a worker may open {allowed} files, and {others + CONNECTIONS_LEAST} is the least that its settings need",
            next_step="raise the hard limit of open files, or lower upstreams_max",
        )
    return FileBudget(
        wanted=wanted,
        allowed=allowed,
        connections_max=connections_max,
        shortfall=f"only {allowed} of {wanted} files may be open, so only {connections_max} of "
        f"{settings.connections_max} connections are taken; raise the hard limit of open files",
    )


def raise_file_limit(settings: GatewaySettings) -> FileBudget:
    """Raise this process's soft limit as far as needed and allowed, and return what it may hold open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    budget = plan_files(settings, None if hard == resource.RLIM_INFINITY else hard)
    wanted = min(budget.wanted, budget.allowed)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return budget
