"""What a node observes, numbered, so that the site can wait for the next change.

Owns the newest observation of each replica and chip, and the sequence number. Refuses to know how they came
about. Written by keepers and the chip book, read by the admin API.
"""

import asyncio
import contextlib
from collections.abc import Callable

from madang.core import Clock, NodeId
from madang.model import Chip, ChipCordon, ChipLease, FileTransfer, ReplicaObserved
from madang.wire.node_api import NodeObserved


class Board:
    """The observations of one node since `boot_id` began."""

    def __init__(
        self,
        node: NodeId,
        boot_id: str,
        clock: Clock,
        list_transfers: Callable[[], tuple[FileTransfer, ...]] = lambda: (),
    ) -> None:
        self.node = node
        self._boot_id = boot_id
        self._clock = clock
        self._list_transfers = list_transfers
        self._seq = 0
        self._generation = 0
        self._chips: tuple[Chip, ...] = ()
        self._leases: tuple[ChipLease, ...] = ()
        self._cordons: tuple[ChipCordon, ...] = ()
        self._replicas: dict[str, ReplicaObserved] = {}
        self._changed = asyncio.Event()

    @property
    def chips(self) -> tuple[Chip, ...]:
        """Return the newest reading of each chip."""
        return self._chips

    @property
    def leases(self) -> tuple[ChipLease, ...]:
        """Return who holds which chip."""
        return self._leases

    @property
    def cordons(self) -> tuple[ChipCordon, ...]:
        """Return the cordons of the node's own rules."""
        return self._cordons

    @property
    def replicas(self) -> tuple[ReplicaObserved, ...]:
        """Return every replica, by id."""
        return tuple(self._replicas[key] for key in sorted(self._replicas))

    @property
    def generation(self) -> int:
        """Return the generation of the accepted plan."""
        return self._generation

    def accept(self, generation: int) -> None:
        """Note the generation of the plan that is being carried out."""
        self._generation = generation
        self._bump()

    def see_chips(self, chips: tuple[Chip, ...]) -> None:
        """Replace the chips."""
        self._chips = chips
        self._bump()

    def see_desk(self, leases: tuple[ChipLease, ...], cordons: tuple[ChipCordon, ...]) -> None:
        """Replace who holds which chip, and which chips are cordoned, if anything about it changed."""
        if (leases, cordons) != (self._leases, self._cordons):
            self._leases, self._cordons = leases, cordons
            self._bump()

    def see_replica(self, replica: ReplicaObserved) -> None:
        """Replace one replica, if anything about it changed."""
        if self._replicas.get(replica.replica_id) != replica:
            self._replicas[replica.replica_id] = replica
            self._bump()

    def forget_replica(self, replica_id: str) -> None:
        """Remove one replica."""
        if self._replicas.pop(replica_id, None) is not None:
            self._bump()

    def observed(self) -> NodeObserved:
        """Return everything now."""
        return NodeObserved(
            node=self.node,
            boot_id=self._boot_id,
            seq=self._seq,
            plan_generation=self._generation,
            observed_at_s=self._clock.wall_s(),
            chips=self._chips,
            leases=self._leases,
            cordons=self._cordons,
            replicas=self.replicas,
            transfers=self._list_transfers(),
        )

    async def wait(self, after: int, wait_s: float, is_ending: Callable[[], bool]) -> NodeObserved:
        """Return once the sequence is not `after` any more, or when `wait_s` is over.

        A number from another life of this node (`after` ahead of ours) returns at once.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self._seq == after and not is_ending():
                    await self._changed.wait()
        return self.observed()

    def wake(self) -> None:
        """Let all who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _bump(self) -> None:
        self._seq += 1
        self.wake()
