"""PostgreSQL refuses to change the audit chain too, as SQLite has from the first revision on."""

from alembic import op

revision = "0007"
down_revision = "0006"

_REFUSE = """
CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'audit is append-only' USING ERRCODE = 'integrity_constraint_violation';
END $$
"""


def upgrade() -> None:
    """Add the triggers; TRUNCATE is a verb of its own there."""
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute(_REFUSE)
    for verb in ("UPDATE", "DELETE", "TRUNCATE"):
        op.execute(
            f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit "
            "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()"
        )
