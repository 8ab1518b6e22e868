"""The accepted plan on disk, so that a node that starts alone brings its engines back.

Owns `<state>/plan.json` and which plan may replace it. Refuses to carry it out. Called by the node program.
"""

from pathlib import Path

import msgspec

from madang.core import Conflict, NodeId, Rejected, SiteId
from madang.node.records import replica_folder
from madang.runtime.files import replace_file
from madang.wire.node_api import NodePlan

REPLICAS_MAX = 256


def load_plan(state_dir: Path) -> NodePlan | None:
    """Return the accepted plan, or None when there is none; raises Rejected when it is damaged."""
    path = state_dir / "plan.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=NodePlan)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise Rejected(
            f"accepted plan {path} is damaged: {error}", next_step="remove the file; the site sends the plan again"
        ) from error


def check_plan(plan: NodePlan, site: SiteId, node: NodeId, state_dir: Path) -> None:
    """Raise Rejected when a plan is not for this node or cannot be carried out by any."""
    if plan.version != 1:
        raise Rejected(f"plan has version {plan.version}; this release knows 1")
    if (plan.site, plan.node) != (site, node):
        raise Rejected(f"plan is for node {plan.node} of site {plan.site}; this is {node} of {site}")
    if len(plan.replicas) > REPLICAS_MAX:
        raise Rejected(f"plan has {len(plan.replicas)} replicas; at most {REPLICAS_MAX}")
    ids = [spec.replica_id for spec in plan.replicas]
    for spec in plan.replicas:
        replica_folder(state_dir, spec.replica_id)
        if ids.count(spec.replica_id) > 1:
            raise Rejected(f"plan names replica {spec.replica_id} twice")
        if not spec.artifact.files and spec.artifact.engine != "external":  # others keep the files of theirs
            raise Rejected(f"replica {spec.replica_id}: its artifact has no file")


def accept_plan(plan: NodePlan, current: NodePlan | None, state_dir: Path) -> bool:
    """Store a plan and return whether it says anything new; raises Conflict when it is older than the accepted one."""
    if current is not None and plan.generation < current.generation:
        raise Conflict(
            f"plan generation {plan.generation} is older than the accepted {current.generation}",
            next_step="read the site's plan again and send the newest",
        )
    if plan == current:
        return False
    replace_file(state_dir / "plan.json", msgspec.json.encode(plan), is_durable=True)
    return True
