"""All proposers of a site in one call.

Owns their order and their memories. Refuses to decide. Called once a second by the site's facility shell, which hands
what they ask for to `policy.power.authority`.
"""

import msgspec

from madang.model import Request
from madang.policy.power.loss import LossMemory, LossRules, propose_loss
from madang.policy.power.safety import propose_safety
from madang.policy.power.shaving import (
    DemandEvent,
    HeadroomMemory,
    HeadroomRules,
    PeakMemory,
    PeakRules,
    propose_headroom,
    propose_peak,
    propose_response,
)
from madang.policy.power.thermal import ThermalMemory, ThermalRules, propose_thermal
from madang.policy.power.topology import Topology
from madang.policy.power.view import View, read_all_signs


class ProposerRules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of each, and the dated events."""

    loss: LossRules = LossRules()
    thermal: ThermalRules = ThermalRules()
    headroom: HeadroomRules = HeadroomRules()
    peak: PeakRules = PeakRules()
    events: tuple[DemandEvent, ...] = ()


class ProposerMemory(msgspec.Struct, frozen=True, kw_only=True):
    """What they remember. Without it they begin anew; what they asked for stands until they see that it is better."""

    loss: LossMemory = LossMemory()
    thermal: ThermalMemory = ThermalMemory()
    headroom: HeadroomMemory = HeadroomMemory()
    peak: PeakMemory = PeakMemory()


def propose_all(
    memory: ProposerMemory, view: View, topology: Topology, rules: ProposerRules
) -> tuple[ProposerMemory, tuple[Request, ...]]:
    """Return the next memory and everything that is asked for now, safety first."""
    signs = read_all_signs(view, topology)
    safety = propose_safety(view, signs, topology)
    loss, on_loss = propose_loss(memory.loss, view, signs, topology, rules.loss)
    thermal, on_heat = propose_thermal(memory.thermal, view, signs, topology, rules.thermal)
    headroom, on_feeds = propose_headroom(memory.headroom, view, topology, rules.headroom)
    peak, on_peak = propose_peak(memory.peak, view, topology, rules.peak)
    on_events = propose_response(view, topology, rules.events)
    return (
        ProposerMemory(loss=loss, thermal=thermal, headroom=headroom, peak=peak),
        (*safety, *on_loss, *on_heat, *on_feeds, *on_peak, *on_events),
    )
