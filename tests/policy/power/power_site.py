"""A site under its proposers and its authority, second by second, over the oracle's world."""

from tests.policy.power.oracle_world import NODES, World, make_model

from madang.model import ActionState, Verb
from madang.policy.power.authority import decide
from madang.policy.power.proposers import ProposerMemory, ProposerRules, propose_all
from madang.policy.power.state import AuthorityRules, AuthorityState, Setpoint
from madang.policy.power.topology import index_site

TOPOLOGY = index_site(make_model())
ARMED = frozenset(
    [f"{node}.{what}" for node in NODES for what in ("cap", "state")]
    + ["daegu.shed", "daegu.spill", "cdu.isolate_liquid", "ups.isolate_electrical", "crac.setpoint_supply.setpoint"]
)
RULES = AuthorityRules(armed=ARMED, setpoints={"crac.setpoint_supply": Setpoint(low=18.0, high=27.0, safe=20.0)})


class Site:
    """Runs one site; what came out stays readable."""

    def __init__(self, seed=0, *, rules=RULES, proposer_rules=None, has_proposers=True):
        self.world = World(seed)
        self.rules = rules
        self.proposer_rules = proposer_rules or ProposerRules()
        self.has_proposers = has_proposers
        self.memory = ProposerMemory()
        self.state = AuthorityState()
        self.envelope = None
        self.actions = []
        self.log = []

    def tick(self, *requests, approvals=(), dt_s=1.0):
        self.world.step(dt_s)
        self.world.read()
        view = self.world.view(self.envelope, self.state.holds)
        asked = ()
        if self.has_proposers:
            self.memory, asked = propose_all(self.memory, view, TOPOLOGY, self.proposer_rules)
        decision = decide(self.state, (*asked, *requests), approvals, view, TOPOLOGY, self.rules)
        self.state, self.envelope, self.actions = decision.state, decision.envelope, list(decision.actions)
        self.log += self.actions
        for action in self.actions:
            if action.state is ActionState.SENT:
                self.world.perform(action)
        return self.actions

    def run(self, seconds, *requests):
        for _ in range(seconds):
            self.tick(*requests)

    def settle(self, seconds=90):
        self.run(seconds)
        self.log.clear()
        return self

    def node(self, name):
        return next(one for one in self.envelope.nodes if one.node == name)

    def told(self, verb=None, state=None):
        return [
            action
            for action in self.log
            if (verb is None or action.request.verb is verb) and (state is None or action.state is state)
        ]

    def sent(self, verb):
        return [action.request.target for action in self.told(verb, ActionState.SENT)]

    def caps_w(self):
        return {node: self.world.servers[node].active_w for node in NODES}


__all__ = ["ARMED", "RULES", "TOPOLOGY", "Site", "Verb"]
