"""Changes of projects, and what makes a budget valid.

Owns the table `project`. Refuses to know HTTP, NATS and leases: a budget is a limit here, who may spend of it is
`madang.hub.leases`'. Every function that changes anything runs inside a Change.
"""

import sqlalchemy as sa

from madang.core import Conflict, Rejected, check_entity_id
from madang.hub.change import Change
from madang.hub.desired_store import read_projects, read_projects_of, read_tenants
from madang.hub.lease_rows import note_unleased
from madang.hub.tables import API_KEY, KEY_POLICY, PROJECT
from madang.model import Budget, Project, Tenant
from madang.model.lease import Scope
from madang.policy.desired import KIND_KEY, KIND_KEY_POLICY, KIND_PROJECT
from madang.runtime.admin_http import NotFound

TITLE_CHARS_MAX = 200
PROJECTS_PER_TENANT_MAX = 500
BUDGET_MICRO_WON_MAX = 10**15
"""A thousand million won: what is granted and handed back in a period must add up far below 2^53, which the wire's
other readers can still tell apart."""


def read_tenant(connection: sa.Connection, tenant_id: str) -> Tenant:
    """Return a tenant; raises NotFound."""
    for tenant in read_tenants(connection, [tenant_id]):
        return tenant
    raise NotFound(f"tenant {tenant_id!r} does not exist", next_step="GET /api/v1/tenants lists those that do")


def check_budget(what: str, budget: Budget, overdraw_micro_won: int = 0) -> None:
    """Raise Rejected, naming the field, for amounts that cannot be; an overdraw without a budget has no effect."""
    amounts = {
        "budget.day_micro_won": budget.day_micro_won,
        "budget.month_micro_won": budget.month_micro_won,
        "overdraw_micro_won": overdraw_micro_won,
    }
    for field, amount in amounts.items():
        if amount is not None and not 0 <= amount <= BUDGET_MICRO_WON_MAX:
            raise Rejected(f"{what}: {field} is {amount}, expected 0 to {BUDGET_MICRO_WON_MAX}")
    day, month = budget.day_micro_won, budget.month_micro_won
    if day is not None and month is not None and day > month:
        raise Rejected(
            f"{what}: budget.day_micro_won is {day}, more than a whole month's {month}",
            next_step="lower the day's budget, or raise the month's",
        )


def put_project(change: Change, project: Project, *, may_replace: bool) -> tuple[Project, bool]:
    """Create or replace a project; return it and whether it is new.

    Raises:
        NotFound: no such tenant.
        Rejected: a field is malformed.
        Conflict: it exists and differs, and `may_replace` is false; it is another tenant's; or there are too many.
    """
    name = f"project {project.project_id}"
    check_entity_id("project", project.project_id)
    if not 1 <= len(project.title) <= TITLE_CHARS_MAX:
        raise Rejected(f"{name}: title must have 1 to {TITLE_CHARS_MAX} characters")
    check_budget(name, project.budget)
    read_tenant(change.connection, project.tenant_id)
    old = next(iter(read_projects(change.connection, [project.project_id])), None)
    if old == project:
        return project, False
    if old is not None and old.tenant_id != project.tenant_id:
        raise Conflict(
            f"{name} belongs to tenant {old.tenant_id}, not to {project.tenant_id}",
            next_step="choose another project_id: what a project spent stays with its tenant",
        )
    if old is not None and not may_replace:
        raise Conflict(f"{name} exists and differs", next_step=f"PUT /api/v1/projects/{project.project_id} replaces it")
    if old is None and len(read_projects_of(change.connection, [project.tenant_id])) >= PROJECTS_PER_TENANT_MAX:
        raise Conflict(
            f"tenant {project.tenant_id} has {PROJECTS_PER_TENANT_MAX} projects, the most allowed",
            next_step="delete one that is no longer used",
        )
    change.write_fact(PROJECT, PROJECT.c.project_id, project.project_id, project, tenant_id=project.tenant_id)
    change.touch(KIND_PROJECT, project.project_id)
    note_unleased(
        change.connection,
        Scope.PROJECT,
        project.project_id,
        None if old is None else old.budget,
        project.budget,
        change.now_s,
    )
    change.audit("project.put", project.project_id, project)
    return project, old is None


def delete_project(change: Change, project_id: str) -> None:
    """Remove a project and the policies of its revoked keys; raises NotFound, or Conflict while it has live keys."""
    read_project(change.connection, project_id)
    query = sa.select(API_KEY.c.key_id, API_KEY.c.is_revoked).join(KEY_POLICY, KEY_POLICY.c.key_id == API_KEY.c.key_id)
    keys = change.connection.execute(
        query.where(KEY_POLICY.c.project_id == project_id).order_by(API_KEY.c.key_id)
    ).all()
    live = [row.key_id for row in keys if not row.is_revoked]
    if live:
        raise Conflict(
            f"project {project_id} has {len(live)} keys that are not revoked, such as {live[0]}",
            next_step="revoke them (POST /api/v1/keys/{id}/revoke) or move them (PUT /api/v1/keys/{id}/policy) first",
        )
    change.connection.execute(KEY_POLICY.delete().where(KEY_POLICY.c.project_id == project_id))
    change.connection.execute(PROJECT.delete().where(PROJECT.c.project_id == project_id))
    change.touch(KIND_PROJECT, project_id)
    for row in keys:
        change.touch(KIND_KEY_POLICY, row.key_id)
        change.touch(KIND_KEY, row.key_id)
    change.audit("project.delete", project_id, {"keys": [row.key_id for row in keys]})


def read_project(connection: sa.Connection, project_id: str) -> Project:
    """Return a project; raises NotFound."""
    for project in read_projects(connection, [project_id]):
        return project
    raise NotFound(f"project {project_id!r} does not exist", next_step="GET /api/v1/projects lists those that do")


def list_projects(connection: sa.Connection, tenant_id: str | None) -> tuple[Project, ...]:
    """Return projects, of one tenant or of all."""
    return read_projects(connection) if tenant_id is None else read_projects_of(connection, [tenant_id])
