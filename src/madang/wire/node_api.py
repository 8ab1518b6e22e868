"""What a site and its nodes say to each other over the node's admin port.

Owns the shapes. `PUT /api/v1/plan` hands a whole plan over (repeating it is harmless, an older generation is
refused with 409); `GET /api/v1/observed?after=<seq>&wait_s=<s>` returns at once when `seq` has moved on, else
waits up to `wait_s`. `POST /api/v1/replicas/<id>/restart` restarts one engine, `POST
/api/v1/chips/<id>/uncordon` lifts the cordons of the node's own rules from a chip. Bearer token.
"""

import msgspec

from madang.core import NodeId, SiteId
from madang.model import Chip, ChipCordon, ChipLease, FileTransfer, ReplicaObserved, ReplicaSpec


class NodePlan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a node shall run. Replicas that are running and not in it are drained and stopped."""

    site: SiteId
    node: NodeId
    generation: int
    replicas: tuple[ReplicaSpec, ...]
    version: int = 1


class NodeObserved(msgspec.Struct, frozen=True, kw_only=True):
    """What a node sees; `seq` grows with every change since `boot_id` began.

    Attributes:
        leases: who holds which chip, and which are not back yet.
        cordons: of the node's own rules; those that people set are the site's.
        transfers: files on their way into its cache.
    """

    node: NodeId
    boot_id: str
    seq: int
    plan_generation: int
    observed_at_s: float
    chips: tuple[Chip, ...]
    replicas: tuple[ReplicaObserved, ...]
    leases: tuple[ChipLease, ...] = ()
    cordons: tuple[ChipCordon, ...] = ()
    transfers: tuple[FileTransfer, ...] = ()
    version: int = 1
