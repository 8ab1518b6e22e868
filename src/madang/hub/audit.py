"""The hub's audit chain. Owns which table it is in; `madang.runtime.audit_log` does the rest."""

from madang.hub.tables import AUDIT
from madang.runtime.audit_log import AuditLog

AUDIT_LOG = AuditLog(AUDIT)
