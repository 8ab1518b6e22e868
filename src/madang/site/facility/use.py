"""What the facility has to know of the site's work: what runs on a node and for whom, and which peers are open.

Owns both questions. Refuses to decide. Called once a second.
"""

from collections.abc import Iterable

from madang.core import NodeId, SiteId
from madang.model import PriorityClass
from madang.policy.residency import is_allowed
from madang.policy.routing import is_peer_current
from madang.site.desired import DesiredView
from madang.site.facility.world import NodeUse
from madang.site.nodes import NodeBook
from madang.wire.feed import Peer


def find_use(book: NodeBook, view: DesiredView, node: NodeId, site: SiteId) -> NodeUse:
    """Return what runs on a node; one that was never heard is not taken for drained."""
    state = book.nodes.get(node)
    if state is None or state.observed is None:
        return NodeUse()
    services = {replica.service for replica in state.observed.replicas}
    return NodeUse(is_drained=not state.observed.replicas, classes=find_classes(view, services, site))


def find_classes(view: DesiredView, services: Iterable[str], site: SiteId) -> tuple[PriorityClass, ...]:
    """Return the classes of those who may use any of the services at this site, most urgent first."""
    found: set[PriorityClass] = set()
    here = view.sites.get(site)
    for name in services:
        service = view.services.get(name)
        allowed = view.tenants if service is None or not service.tenants else service.tenants
        tenants = [view.tenants[tenant] for tenant in allowed if tenant in view.tenants]
        # Whom the law keeps elsewhere is not served here: their class protects no node of this site.
        found |= {one.priority for one in tenants if here is None or is_allowed(one.residency, one.data_class, here)}
    return tuple(sorted(found, key=lambda one: one.rank))


def list_open_peers(peers: Iterable[Peer]) -> tuple[SiteId, ...]:
    """Return peers that were heard of late, serve something and are not short of power or cooling themselves."""
    return tuple(
        peer.site
        for peer in peers
        if is_peer_current(peer.digest_age_s)
        and not peer.is_spilling
        and any(load.replicas_ready for load in peer.services)
    )
